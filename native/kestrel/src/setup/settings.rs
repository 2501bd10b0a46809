//! What makes a guest this guest: clock, entropy, the kernel's host name, files of the configuration.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use aerie_protocol::message::FileSpec;

use crate::observe::console::chain;
use crate::setup::guest_file::{self, Mode};
use crate::sys::{check, ioctl_request};
use crate::talk::encoding::{base64, hex};

/// `_IOW('R', 0x03, int[2])`, include/uapi/linux/random.h.
const RNDADDENTROPY: u32 = 0x4008_5203;
/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: u32 = 0x5207;

/// A step of the boot or of a new identity that failed, by the name that the host shows.
#[derive(Debug)]
pub struct Failure {
    pub stage: &'static str,
    pub message: String,
}

/// Names the stage of an error.
pub fn at<E: Error>(stage: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure {
        stage,
        message: chain(&error),
    }
}

/// A setting that cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    #[error("\"{field}\" is not {expected}")]
    Field {
        field: &'static str,
        expected: &'static str,
    },
    #[error("cannot set the {what}")]
    Apply {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("file path \"{0}\" is not absolute")]
    FilePath(String),
    #[error("cannot write {}", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Mixes the host's 32 bytes into the kernel's pool and credits them: the host is trusted with everything here. The
/// generator is seeded anew at once: by itself it would give for up to a minute what it gives in every other guest that
/// was restored from the same memory.
///
/// # Errors
/// A field that is no hex of 32 bytes, or the kernel's refusal.
pub fn entropy(field: &str) -> Result<(), SettingError> {
    /// `struct rand_pool_info` with a buffer of 32 bytes.
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        bytes: libc::c_int,
        buffer: [u8; 32],
    }
    let buffer = hex::<32>(field).ok_or(SettingError::Field {
        field: "entropy",
        expected: "hex of 32 bytes",
    })?;
    let pool = Pool {
        bits: 256,
        bytes: 32,
        buffer,
    };
    let add = || -> io::Result<()> {
        let random = File::open("/dev/urandom")?;
        // SAFETY: the ioctl reads a rand_pool_info of the size it states.
        check(unsafe {
            libc::ioctl(
                random.as_raw_fd(),
                ioctl_request(RNDADDENTROPY),
                &raw const pool,
            )
        })?;
        // SAFETY: the ioctl ignores its argument.
        match check(unsafe { libc::ioctl(random.as_raw_fd(), ioctl_request(RNDRESEEDCRNG), 0) }) {
            // Not seeded for the first time yet, or a kernel that does it by itself only.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EINVAL)) => {
                Ok(())
            }
            other => other.map(drop),
        }
    };
    add().map_err(|source| SettingError::Apply {
        what: "entropy",
        source,
    })
}

/// Sets the wall clock.
///
/// # Errors
/// The kernel's refusal.
pub fn clock(time_ns: u64) -> Result<(), SettingError> {
    crate::sys::set_wall_clock(time_ns).map_err(|source| SettingError::Apply {
        what: "clock",
        source,
    })
}

/// Sets the kernel's host name.
///
/// # Errors
/// A name that is none (RFC 1123, at most 64 bytes: `__NEW_UTS_LEN`), or the kernel's refusal.
pub fn hostname(name: &str) -> Result<(), SettingError> {
    let valid = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    if !valid {
        return Err(SettingError::Field {
            field: "hostname",
            expected: "a host name of at most 64 letters, digits, dots and hyphens",
        });
    }
    // SAFETY: the name is valid for its length.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map_err(|source| {
        SettingError::Apply {
            what: "host name",
            source,
        }
    })?;
    Ok(())
}

/// Writes the configuration's files, making the folders above them.
///
/// # Errors
/// The first that cannot be written.
pub fn files(files: &[FileSpec]) -> Result<(), SettingError> {
    for file in files {
        let path = Path::new(&file.path);
        if !path.is_absolute() {
            return Err(SettingError::FilePath(file.path.clone()));
        }
        let content = base64(&file.content_base64).ok_or(SettingError::Field {
            field: "content_base64",
            expected: "base64",
        })?;
        guest_file::put(path, Mode::Always(file.mode & 0o7777), &content).map_err(|source| {
            SettingError::File {
                path: path.to_owned(),
                source,
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::test_folder::TestFolder;

    #[test]
    fn files_get_folders_modes_and_contents() {
        let folder = TestFolder::new();
        let path = folder.path().join("a/b/key");
        let file = |path: String, content: &str| FileSpec {
            path,
            mode: 0o600,
            content_base64: content.to_owned(),
        };

        files(&[file(path.to_string_lossy().into_owned(), "AAEC")]).unwrap();

        assert_eq!(fs::read(&path).unwrap(), [0, 1, 2]);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert!(matches!(
            files(&[file("relative".to_owned(), "")]),
            Err(SettingError::FilePath(_))
        ));
        assert!(matches!(
            files(&[file("/tmp/x".to_owned(), "?")]),
            Err(SettingError::Field { .. })
        ));
    }

    #[test]
    fn names_and_numbers_of_the_wrong_form_are_refused_before_anything_is_set() {
        for bad in ["", "a b", "ä", &"x".repeat(65), "a/b"] {
            assert!(
                matches!(hostname(bad), Err(SettingError::Field { .. })),
                "{bad:?}"
            );
        }
        assert!(matches!(entropy("00"), Err(SettingError::Field { .. })));
    }
}
