//! Words of a command line on the wire. execve(2) takes bytes, JSON has characters: a byte that is no UTF-8 where it stands
//! travels as the surrogate `U+DC00` + byte, alone, which no text holds (PEP 383 calls it surrogateescape).

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::{self, SerializeSeq};
use serde::{Deserialize, Deserializer, Serializer};

/// Turns what JSON said into the bytes that are meant. serde_json hands out a surrogate alone as the three bytes that
/// UTF-8 would have for it, `ED A0..BF xx`, which are in no UTF-8; `None` where it stands for no byte.
fn bytes_of(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        match rest {
            // U+DC80 to U+DCFF: what is below 0x80 is UTF-8 by itself.
            [0xed, high @ 0xb2..=0xb3, low @ 0x80..=0xbf, tail @ ..] => {
                bytes.push(((high & 0x03) << 6) | (low & 0x3f));
                rest = tail;
            }
            [0xed, 0xa0..=0xbf, ..] => return None,
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    Some(bytes)
}

struct Word(OsString);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Word;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a word of a command line")
            }

            fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<Word, E> {
                let bytes = bytes_of(text)
                    .ok_or_else(|| E::custom("a surrogate that stands for no byte"))?;
                Ok(Word(OsString::from_vec(bytes)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Word, E> {
                Ok(Word(OsString::from(text)))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Reads the words of a command line.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<OsString>, D::Error> {
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Vec<OsString>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("the words of a command line")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut words = Vec::new();
            while let Some(Word(word)) = seq.next_element()? {
                words.push(word);
            }
            Ok(words)
        }
    }
    deserializer.deserialize_seq(Words)
}

/// Writes the words of a command line that is text; the daemon alone sends others.
pub(super) fn serialize<S: Serializer>(
    words: &[OsString],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut seq = serializer.serialize_seq(Some(words.len()))?;
    for word in words {
        let text = std::str::from_utf8(OsStr::as_bytes(word)).map_err(ser::Error::custom)?;
        seq.serialize_element(text)?;
    }
    seq.end()
}

#[cfg(test)]
mod tests {
    use crate::message::Exec;

    fn words(json: &str) -> Result<Vec<Vec<u8>>, serde_json::Error> {
        use std::os::unix::ffi::OsStringExt;
        let exec: Exec = crate::parse_json(format!("{{\"argv\":{json}}}").as_bytes())?;
        Ok(exec.argv.into_iter().map(OsStringExt::into_vec).collect())
    }

    #[test]
    fn a_word_is_the_bytes_that_were_meant() {
        for (json, bytes) in [
            (r#"["sh"]"#, b"sh".to_vec()),
            (r#"["\udcff"]"#, b"\xff".to_vec()),
            (r#"["\udc80\udcbf\udcc3"]"#, b"\x80\xbf\xc3".to_vec()),
            (r#"["a\udce4b\n\"\u00e4"]"#, b"a\xe4b\n\"\xc3\xa4".to_vec()),
            (
                "[\"\u{1f600}\\udcff\u{fffd}\"]",
                b"\xf0\x9f\x98\x80\xff\xef\xbf\xbd".to_vec(),
            ),
            (r#"["\ud83d\ude00"]"#, b"\xf0\x9f\x98\x80".to_vec()),
            (r#"[""]"#, vec![]),
            // Letters of UTF-8 that begin with 0xED and are no surrogates.
            (
                "[\"\u{d7ff}\u{d000}\"]",
                "\u{d7ff}\u{d000}".as_bytes().to_vec(),
            ),
        ] {
            assert_eq!(words(json).unwrap(), [bytes], "{json}");
        }
    }

    #[test]
    fn a_surrogate_that_stands_for_no_byte_is_refused() {
        for json in [
            r#"["\ud800"]"#,
            r#"["\udc7f"]"#,
            r#"["\udd00"]"#,
            r#"["\udfff"]"#,
            "[1]",
            "[[1]]",
            "\"sh\"",
        ] {
            assert!(words(json).is_err(), "{json}");
        }
    }
}
