//! Paths as an archive spells them, made into components below a root that they cannot leave.

use super::error::{Error, Result, show};

/// The bound of a path: `PATH_MAX` of Linux, without its NUL.
pub const PATH_MAX: usize = 4096;
/// The bound of a name: `NAME_MAX` of Linux and of EROFS.
pub const NAME_MAX: usize = 255;
/// Directories above each other, after symlinks are followed. Ours: deeper trees break the tools that walk them.
pub const DEPTH_MAX: usize = 256;

/// Checks `path` and gives it back without `/` at either end, `//` and `.`: empty for the root itself.
///
/// # Errors
/// `entry_escapes` for a `..` component, `entry_path_invalid` for NUL, and for what is longer or deeper than allowed.
pub fn normalize(path: &[u8]) -> Result<Vec<u8>> {
    let invalid = |reason| Error::Path {
        path: show(path),
        reason,
    };
    if path.len() > PATH_MAX {
        return Err(invalid("the path is longer than 4096 bytes"));
    }
    if path.contains(&0) {
        return Err(invalid("the path holds a NUL byte"));
    }
    let mut clean = Vec::with_capacity(path.len());
    let mut depth = 0;
    for component in components(path) {
        if component == b".." {
            return Err(Error::Escapes { path: show(path) });
        }
        if component.len() > NAME_MAX {
            return Err(invalid("a name is longer than 255 bytes"));
        }
        depth += 1;
        if depth > DEPTH_MAX {
            return Err(invalid("it is deeper than 256 directories"));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    Ok(clean)
}

/// The components of `path` that say something.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
}

/// Splits a clean path into the folder (empty for the root) and the last name; `None` for the root itself.
pub fn split(clean: &[u8]) -> Option<(&[u8], &[u8])> {
    match clean.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((&clean[..slash], &clean[slash + 1..])),
        None if clean.is_empty() => None,
        None => Some((b"", clean)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_path_become_one() {
        for path in [
            &b"usr/bin"[..],
            b"./usr/bin/",
            b"/usr//bin",
            b"/./usr/./bin//",
        ] {
            assert_eq!(normalize(path).unwrap(), b"usr/bin");
        }
        assert_eq!(normalize(b"./").unwrap(), b"");
        assert_eq!(normalize(b"...").unwrap(), b"...");
    }

    #[test]
    fn hostile_paths_are_refused_by_code() {
        let code = |path: &[u8]| normalize(path).unwrap_err().code().as_str();

        assert_eq!(code(b"../etc/passwd"), "entry_escapes");
        assert_eq!(code(b"a/b/../../.."), "entry_escapes");
        assert_eq!(code(b"a\0b"), "entry_path_invalid");
        assert_eq!(code(&[b'a'; 256]), "entry_path_invalid");
        assert_eq!(code(&b"a/".repeat(257)), "entry_path_invalid");
        assert_eq!(code(&b"ab/".repeat(1400)), "entry_path_invalid");
    }

    #[test]
    fn a_path_splits_into_folder_and_name() {
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"c"), Some((&b""[..], &b"c"[..])));
        assert_eq!(split(b""), None);
    }
}
