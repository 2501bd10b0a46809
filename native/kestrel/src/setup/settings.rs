//! What makes a guest this guest: clock, entropy, names, files of the configuration.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aerie_protocol::message::FileSpec;

use crate::observe::console::chain;
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

/// Writes `/etc/machine-id`.
///
/// # Errors
/// A field that is no hex of 16 bytes, or a root that cannot be written.
pub fn machine_id(field: &str) -> Result<(), SettingError> {
    if hex::<16>(field).is_none() {
        return Err(SettingError::Field {
            field: "machine_id",
            expected: "32 hex digits",
        });
    }
    write(
        Path::new("/etc/machine-id"),
        0o444,
        format!("{}\n", field.to_ascii_lowercase()).as_bytes(),
    )
}

/// Writes `/etc/hostname`, `/etc/hosts` and, with a DNS server, `/etc/resolv.conf` where the image has none: container
/// images hold them empty or not at all.
///
/// # Errors
/// A root that cannot be written.
pub fn names(hostname: &str, dns: Option<&str>) -> Result<(), SettingError> {
    names_in(Path::new("/etc"), hostname, dns)
}

fn names_in(etc: &Path, hostname: &str, dns: Option<&str>) -> Result<(), SettingError> {
    write_if_empty(&etc.join("hostname"), &format!("{hostname}\n"))?;
    write_if_empty(
        &etc.join("hosts"),
        &format!(
            "127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        ),
    )?;
    if let Some(dns) = dns {
        write_if_empty(&etc.join("resolv.conf"), &format!("nameserver {dns}\n"))?;
    }
    Ok(())
}

/// After a fork: `/etc/hostname` and `/etc/hosts` as kestrel wrote them would still name the parent.
///
/// # Errors
/// A root that cannot be written.
pub fn rename(old: &str, new: &str) -> Result<(), SettingError> {
    rename_in(Path::new("/etc"), old, new)
}

fn rename_in(etc: &Path, old: &str, new: &str) -> Result<(), SettingError> {
    let path = etc.join("hostname");
    if fs::read_to_string(&path).is_ok_and(|text| text.trim() == old) {
        write(&path, 0o644, format!("{new}\n").as_bytes())?;
    }
    let path = etc.join("hosts");
    let ours = format!("127.0.1.1\t{old}\n");
    if let Ok(text) = fs::read_to_string(&path)
        && text.contains(&ours)
    {
        let text = text.replace(&ours, &format!("127.0.1.1\t{new}\n"));
        write(&path, 0o644, text.as_bytes())?;
    }
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
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|source| SettingError::File {
                path: path.to_owned(),
                source,
            })?;
        }
        write(path, file.mode & 0o7777, &content)?;
    }
    Ok(())
}

fn write_if_empty(path: &Path, content: &str) -> Result<(), SettingError> {
    match fs::metadata(path) {
        Ok(found) if found.len() > 0 => Ok(()),
        _ => write(path, 0o644, content.as_bytes()),
    }
}

fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), SettingError> {
    let attempt = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // A link to nowhere (resolv.conf → a systemd that does not run here) is replaced.
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
            && fs::metadata(path).is_err()
        {
            fs::remove_file(path)?;
        }
        // Mode first: a secret is never readable by others for a moment.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(path)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)
    };
    attempt().map_err(|source| SettingError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn names_are_written_where_the_image_has_none() {
        let etc = TestFolder::new();
        fs::write(etc.path().join("hostname"), "").unwrap();
        fs::write(etc.path().join("hosts"), "10.0.0.1 kept\n").unwrap();
        std::os::unix::fs::symlink("/no-such-place/stub", etc.path().join("resolv.conf")).unwrap();

        names_in(etc.path(), "web", Some("10.0.2.3")).unwrap();

        assert_eq!(read(etc.path().join("hostname")), "web\n");
        assert_eq!(read(etc.path().join("hosts")), "10.0.0.1 kept\n");
        assert_eq!(
            read(etc.path().join("resolv.conf")),
            "nameserver 10.0.2.3\n"
        );
    }

    #[test]
    fn a_fork_gets_its_own_name_and_foreign_lines_stay() {
        let etc = TestFolder::new();
        names_in(etc.path(), "mother", None).unwrap();

        rename_in(etc.path(), "mother", "child").unwrap();

        assert_eq!(read(etc.path().join("hostname")), "child\n");
        assert!(read(etc.path().join("hosts")).contains("127.0.1.1\tchild\n"));
        rename_in(etc.path(), "stranger", "x").unwrap();
        assert_eq!(read(etc.path().join("hostname")), "child\n");
    }

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
        assert!(matches!(machine_id("xyz"), Err(SettingError::Field { .. })));
    }
}
