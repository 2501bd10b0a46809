//! JSON of strangers made readable: bytes and escapes that are no character become U+FFFD, as Docker reads them. Labels and
//! variables may hold any byte, and a manifest is not refused for one that nobody looks at.

use std::borrow::Cow;

/// `bytes` as text in which each escape names a character.
pub fn readable(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    if !text.contains("\\u") {
        return text;
    }
    let mut fixed = String::with_capacity(text.len());
    let mut rest = &*text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        fixed.push_str(before);
        let len = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                fixed.push('\u{fffd}');
                rest = &escape[6..];
                continue;
            }
            (Some(_), _) => 6,
            // One escaped character, whatever it is: `\\` must not begin another escape.
            (None, _) => 1 + escape[1..].chars().next().map_or(0, char::len_utf8),
        };
        fixed.push_str(&escape[..len]);
        rest = &escape[len..];
    }
    fixed.push_str(rest);
    fixed.into()
}

/// The number of an escape `\uXXXX` at the beginning of `text`.
fn unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_character_is_replaced_and_all_else_stays() {
        for (given, read) in [
            (&br#"["a\u0041"]"#[..], "aA"),
            (br#"["\ud83e\udd80"]"#, "\u{1f980}"),
            (b"[\"A=\xff\xe4\"]", "A=\u{fffd}\u{fffd}"),
            (br#"["\ud83e"]"#, "\u{fffd}"),
            (br#"["\udd80\ud83e."]"#, "\u{fffd}\u{fffd}."),
            (br#"["\ud83e\u0041"]"#, "\u{fffd}A"),
            (br#"["\\ud83e"]"#, "\\ud83e"),
            (br#"["\\\ud83e\n"]"#, "\\\u{fffd}\n"),
        ] {
            let list: Vec<String> = serde_json::from_str(&readable(given)).unwrap();

            assert_eq!(list, [read], "{}", String::from_utf8_lossy(given));
        }
        assert_eq!(readable(br#"["\u12"#), r#"["\u12"#);
        assert_eq!(readable(b"\\u\\"), "\\u\\");
    }
}
