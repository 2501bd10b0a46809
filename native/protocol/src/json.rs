//! The bounds of JSON on the wire: length, depth, one value, UTF-8.

use serde::de::{DeserializeOwned, IgnoredAny};

/// How deep arrays and objects may be nested. serde_json recurses, and kestrel's threads have small stacks.
pub const JSON_DEPTH_MAX: usize = 64;

/// Why bytes are no JSON of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("JSON is {bytes} bytes long, {max} are allowed")]
    TooLong { bytes: usize, max: usize },
    #[error("JSON is nested deeper than {JSON_DEPTH_MAX}")]
    TooDeep,
    #[error("JSON is malformed")]
    Malformed,
}

/// Checks that `bytes` are one JSON value within `max` bytes and [`JSON_DEPTH_MAX`].
///
/// # Errors
/// The first bound that is broken: length, then depth, then form.
pub fn check_json(bytes: &[u8], max: usize) -> Result<(), JsonError> {
    check_bounds(bytes, max)?;
    serde_json::from_slice::<IgnoredAny>(bytes).map_err(|_| JsonError::Malformed)?;
    Ok(())
}

/// Reads a typed value from JSON that a [`crate::Decoder`] has let through. Unknown fields are ignored: a newer side may
/// say more.
///
/// # Errors
/// serde's own sentence, which names the field and the place.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}

fn check_bounds(bytes: &[u8], max: usize) -> Result<(), JsonError> {
    if bytes.len() > max {
        return Err(JsonError::TooLong {
            bytes: bytes.len(),
            max,
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::Malformed)?;
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return Err(JsonError::TooDeep);
                }
            }
            // Saturating: "]]]" is malformed, which serde_json says better.
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings_only() {
        let at_limit = format!("{}{}", "[".repeat(64), "]".repeat(64));
        let beyond = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let in_string = format!("\"{}\\\"{}\"", "[".repeat(100), "{".repeat(100));

        assert_eq!(check_json(at_limit.as_bytes(), 1024), Ok(()));
        assert_eq!(check_json(beyond.as_bytes(), 1024), Err(JsonError::TooDeep));
        assert_eq!(check_json(in_string.as_bytes(), 1024), Ok(()));
    }

    #[test]
    fn what_is_not_one_value_is_malformed() {
        for bad in [
            "",
            " ",
            "{",
            "{} {}",
            "{}x",
            "]",
            "nul",
            "{\"a\":}",
            "\u{feff}{}",
        ] {
            assert_eq!(
                check_json(bad.as_bytes(), 1024),
                Err(JsonError::Malformed),
                "{bad:?}"
            );
        }
        assert_eq!(check_json(b"\"\xff\"", 1024), Err(JsonError::Malformed));
    }

    #[test]
    fn length_is_checked_before_anything_is_read() {
        assert_eq!(
            check_json(b"[[[", 2),
            Err(JsonError::TooLong { bytes: 3, max: 2 })
        );
    }
}
