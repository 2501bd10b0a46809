//! Files that belong to the guest: whoever is root in it may have put anything in their place.
//!
//! Only plain files are opened, and never so that an open can wait: a FIFO without a writer, a device or a folder is an
//! error like any other. A write that cannot be finished leaves the old content.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// An old content larger than this is not kept for the case that the new one cannot be written.
const KEPT_BYTES_MAX: u64 = 1024 * 1024;

/// The fate of a file's permission bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A new file gets these, one that is there keeps its own.
    IfNew(u32),
    /// The file has these before it has its content.
    Always(u32),
}

/// Opens a plain file, following links.
///
/// # Errors
/// The kernel's, or that it is something else than a plain file.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Looked at before it is opened, since opening a device can do something; and after, since it may have changed.
    is_plain(&fs::metadata(path)?)?;
    let file = options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    is_plain(&file.metadata()?)?;
    Ok(file)
}

fn is_plain(found: &fs::Metadata) -> io::Result<()> {
    match found.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a plain file",
        )),
    }
}

/// Reads at most `max` bytes of a plain file.
///
/// # Errors
/// As [`open`], or of the reading.
pub fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path, OpenOptions::new().read(true))?
        .take(max)
        .read_to_end(&mut content)?;
    Ok(content)
}

/// Gives a file this content, and makes it and the folders above it where they are missing. What has the content already is
/// not written. A link to nowhere (resolv.conf → a systemd that does not run here) is replaced.
///
/// # Errors
/// As [`open`], or of the writing.
pub fn put(path: &Path, mode: Mode, content: &[u8]) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
                fs::remove_file(path)?;
            }
            return create(path, mode, content);
        }
        Err(error) => return Err(error),
    }
    if let Mode::Always(bits) = mode {
        let file = open(path, OpenOptions::new().read(true))?;
        if file.metadata()?.permissions().mode() & 0o7777 != bits {
            file.set_permissions(fs::Permissions::from_mode(bits))?;
        }
    }
    let old = read(path, KEPT_BYTES_MAX.max(content.len() as u64 + 1))?;
    if old == content {
        return Ok(());
    }
    let file = open(path, OpenOptions::new().write(true))?;
    let written = file
        .write_all_at(content, 0)
        .and_then(|()| file.set_len(content.len() as u64));
    if written.is_err() && (old.len() as u64) < KEPT_BYTES_MAX {
        // These bytes had their place on the disk a moment ago.
        let _ = file.write_all_at(&old, 0);
        let _ = file.set_len(old.len() as u64);
    }
    written
}

fn create(path: &Path, mode: Mode, content: &[u8]) -> io::Result<()> {
    let (Mode::IfNew(bits) | Mode::Always(bits)) = mode;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Mode first: a secret is never readable by others for a moment.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(bits)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let written = file
        .set_permissions(fs::Permissions::from_mode(bits))
        .and_then(|()| file.write_all_at(content, 0));
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::test_folder::TestFolder;

    fn fifo(path: &Path) {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a valid C string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }

    #[test]
    fn what_is_no_plain_file_is_an_error_at_once_and_stays() {
        let folder = TestFolder::new();
        let at = |name: &str| folder.path().join(name);
        fifo(&at("fifo"));
        fs::create_dir(at("folder")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("fifo", at("to-fifo")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

        for name in ["fifo", "folder", "loop", "to-fifo", "device", "socket"] {
            let before = fs::symlink_metadata(at(name)).unwrap();

            assert!(read(&at(name), 10).is_err(), "{name}");
            for mode in [Mode::IfNew(0o644), Mode::Always(0o600)] {
                assert!(put(&at(name), mode, b"x").is_err(), "{name}");
            }

            let after = fs::symlink_metadata(at(name)).unwrap();
            assert_eq!(
                (after.ino(), after.mode()),
                (before.ino(), before.mode()),
                "{name}"
            );
        }
    }

    #[test]
    fn a_file_is_made_changed_or_left_as_it_is() {
        let folder = TestFolder::new();
        let path = folder.path().join("a/b/file");
        let bits = || fs::metadata(&path).unwrap().mode() & 0o7777;

        put(&path, Mode::IfNew(0o640), b"long content").unwrap();
        assert_eq!(
            (read(&path, 99).unwrap(), bits()),
            (b"long content".to_vec(), 0o640)
        );
        put(&path, Mode::IfNew(0o600), b"short").unwrap();
        assert_eq!(
            (read(&path, 99).unwrap(), bits()),
            (b"short".to_vec(), 0o640)
        );
        put(&path, Mode::Always(0o600), b"short").unwrap();
        assert_eq!(bits(), 0o600);
        let before = fs::metadata(&path).unwrap();
        put(&path, Mode::IfNew(0o644), b"short").unwrap();

        let after = fs::metadata(&path).unwrap();
        assert_eq!(
            (after.mtime(), after.mtime_nsec(), after.ctime_nsec()),
            (before.mtime(), before.mtime_nsec(), before.ctime_nsec())
        );
    }

    #[test]
    fn a_link_is_followed_and_one_to_nowhere_replaced() {
        let folder = TestFolder::new();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("real"), "old").unwrap();
        symlink("real", at("link")).unwrap();
        symlink("/no-such-place/stub", at("dangling")).unwrap();

        put(&at("link"), Mode::IfNew(0o644), b"new").unwrap();
        put(&at("dangling"), Mode::IfNew(0o644), b"new").unwrap();

        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read(at("real")).unwrap(), b"new");
        assert!(fs::symlink_metadata(at("dangling")).unwrap().is_file());
    }
}
