//! stat and list: what is at a path of the guest.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aerie_protocol::message::{ErrorBody, FileStat, List, ListEntry, ListOk, Stat, code};

/// Entries that are told at most.
const ENTRIES_MAX: usize = 10_000;
/// Bytes of JSON of all entries: an answer is one frame.
const JSON_BYTES_MAX: usize = 1_000_000;

/// The code of an error of the file system.
pub fn error_code(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => code::NOT_FOUND,
        // mkdir says the second where a file is in the way.
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => code::NOT_A_DIRECTORY,
        io::ErrorKind::IsADirectory => code::IS_A_DIRECTORY,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            code::PERMISSION_DENIED
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => code::NO_SPACE,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => code::BODY_INVALID,
        _ => code::INTERNAL,
    }
}

/// The answer to an error of the file system at `path`.
pub fn error_body(path: &str, error: &io::Error) -> ErrorBody {
    ErrorBody::new(error_code(error), format!("{path}: {error}"))
}

/// Refuses paths that hang on kestrel's own working directory, or that the kernel cannot say.
pub fn absolute(path: &str) -> Result<&Path, ErrorBody> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(Path::new(path))
    } else {
        let message = format!("{path:?} is not an absolute path");
        Err(ErrorBody::new(code::BODY_INVALID, message))
    }
}

/// Answers a stat.
pub fn stat(body: &Stat) -> Result<FileStat, ErrorBody> {
    let path = absolute(&body.path)?;
    let found = match body.follow {
        true => fs::metadata(path),
        false => fs::symlink_metadata(path),
    };
    match found {
        Ok(found) => Ok(describe(path, &found)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(FileStat::default())
        }
        Err(error) => Err(error_body(&body.path, &error)),
    }
}

fn describe(path: &Path, found: &Metadata) -> FileStat {
    FileStat {
        exists: true,
        is_dir: found.is_dir(),
        is_file: found.is_file(),
        is_symlink: found.is_symlink(),
        link_target: found
            .is_symlink()
            .then(|| fs::read_link(path).ok())
            .flatten()
            .map(|target| target.to_string_lossy().into_owned()),
        mode: found.mode() & 0o7777,
        size: found.size(),
        uid: found.uid(),
        gid: found.gid(),
        mtime_ms: found
            .mtime()
            .saturating_mul(1000)
            .saturating_add(found.mtime_nsec() / 1_000_000),
    }
}

/// Answers a list.
pub fn list(body: &List) -> Result<ListOk, ErrorBody> {
    let path = absolute(&body.path)?;
    let failed = |error: io::Error| error_body(&body.path, &error);
    let limit = usize::try_from(body.limit).map_or(ENTRIES_MAX, |limit| limit.min(ENTRIES_MAX));
    let mut answer = ListOk {
        entries: Vec::new(),
        truncated: false,
    };
    let mut bytes = 0;
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Deleted since: it is not there.
        let Ok(found) = entry.metadata() else {
            continue;
        };
        let listed = ListEntry {
            name: entry.file_name().to_string_lossy().into_owned(),
            stat: describe(&entry.path(), &found),
        };
        // With the comma; strings and numbers always serialize.
        bytes += serde_json::to_vec(&listed).map_or(0, |json| json.len() + 1);
        if answer.entries.len() >= limit || bytes > JSON_BYTES_MAX {
            answer.truncated = true;
            break;
        }
        answer.entries.push(listed);
    }
    answer.entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    fn stat_of(path: &Path, follow: bool) -> FileStat {
        stat(&Stat {
            path: path.to_string_lossy().into_owned(),
            follow,
        })
        .unwrap()
    }

    #[test]
    fn a_link_is_itself_unless_it_is_followed() {
        let folder = TestFolder::new();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "12345").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();

        let itself = stat_of(&link, false);
        assert!(itself.is_symlink && !itself.is_file);
        assert_eq!(itself.link_target.as_deref(), Some("file"));
        let followed = stat_of(&link, true);
        assert!(followed.is_file);
        assert_eq!(followed.size, 5);
    }

    #[test]
    fn nothing_there_is_no_error() {
        assert_eq!(
            stat_of(Path::new("/no-such-place/a"), false),
            FileStat::default()
        );
        assert_eq!(
            stat_of(Path::new("/etc/passwd/a"), true),
            FileStat::default()
        );
    }

    #[test]
    fn a_list_is_sorted_and_says_when_it_is_cut() {
        let folder = TestFolder::new();
        for name in ["c", "a", "b"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let ask = |limit| {
            let answer = list(&List {
                path: folder.path().to_string_lossy().into_owned(),
                limit,
            })
            .unwrap();
            let names: Vec<_> = answer.entries.into_iter().map(|entry| entry.name).collect();
            (names, answer.truncated)
        };

        assert_eq!(
            ask(3),
            (vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], false)
        );
        assert_eq!(ask(2).0.len(), 2);
        assert!(ask(2).1);
    }

    #[test]
    fn a_folder_of_long_names_fits_a_frame() {
        let folder = TestFolder::new();
        // The worst for JSON: each byte is escaped to six.
        for number in 0..700 {
            fs::write(
                folder
                    .path()
                    .join(format!("{number:0>4}{}", "\u{1}".repeat(240))),
                "",
            )
            .unwrap();
        }

        let answer = list(&List {
            path: folder.path().to_string_lossy().into_owned(),
            limit: 10_000,
        })
        .unwrap();

        assert!(answer.truncated);
        assert!(serde_json::to_vec(&answer).unwrap().len() < aerie_protocol::OK_BYTES_MAX);
    }

    #[test]
    fn errors_are_told_apart() {
        let code_of = |path: &str| {
            let path = path.to_owned();
            list(&List { path, limit: 1 }).unwrap_err().code
        };

        assert_eq!(code_of("/no-such-place"), code::NOT_FOUND);
        assert_eq!(code_of("/etc/passwd"), code::NOT_A_DIRECTORY);
        assert_eq!(code_of("etc"), code::BODY_INVALID);
        assert_eq!(code_of("/a\0b"), code::BODY_INVALID);
    }
}
