//! The words by which a kernel names itself, `Linux version 6.12.1 (…`, found in an ELF that goes by in parts: what a
//! bzImage says in its header, a vmlinux says nowhere else.

use super::bzimage::is_version;

const MARK: &[u8] = b"Linux version ";
/// Bytes of a version with the blank after it: UTS_RELEASE has at most 64 with its NUL (linux/utsname.h).
const VERSION_MAX: usize = 65;

/// Sees every byte once, in order.
#[derive(Debug, Default)]
pub struct Banner {
    /// The end of what has gone by: where a banner may have begun that has not ended.
    tail: Vec<u8>,
    version: Option<String>,
}

impl Banner {
    pub fn see(&mut self, part: &[u8]) {
        if self.version.is_some() {
            return;
        }
        self.tail.extend_from_slice(part);
        self.version = find(&self.tail);
        let old = self.tail.len().saturating_sub(MARK.len() + VERSION_MAX);
        self.tail.drain(..old);
    }

    pub fn version(self) -> Option<String> {
        self.version
    }
}

/// The first one that is a version: the same words stand in format strings too.
fn find(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    while let Some(at) = position(rest) {
        let after = &rest[at + MARK.len()..];
        let word = &after[..after.len().min(VERSION_MAX)];
        if let Some(end) = word.iter().position(|&byte| byte == b' ')
            && is_version(&word[..end])
        {
            return Some(String::from_utf8_lossy(&word[..end]).into_owned());
        }
        rest = after;
    }
    None
}

fn position(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|&byte| byte == MARK[0]) {
        let start = from + at;
        if bytes[start..].starts_with(MARK) {
            return Some(start);
        }
        from = start + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(parts: &[&[u8]]) -> Option<String> {
        let mut banner = Banner::default();
        parts.iter().for_each(|part| banner.see(part));
        banner.version()
    }

    #[test]
    fn it_is_found_wherever_the_parts_end() {
        let text = b"\0LLinux version %s\0Linux version 6.12.1-aerie (a@b) #1\0Linux version 7.0 (";

        for cut in 0..text.len() {
            let (head, tail) = text.split_at(cut);
            assert_eq!(
                version(&[head, tail]).as_deref(),
                Some("6.12.1-aerie"),
                "{cut}"
            );
        }
        let single: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(version(&single).as_deref(), Some("6.12.1-aerie"));
    }

    #[test]
    fn what_is_no_version_is_none() {
        let long = [MARK, &[b'9'; 100], b" "].concat();

        for text in [&b""[..], b"Linux version ", b"Linux version 6.12", &long] {
            assert_eq!(version(&[text]), None);
        }
    }
}
