//! Loads the kernel modules of the initramfs: `/modules/NN-name.ko`, in the order of their names, uncompressed.
//!
//! A module that fails is said once and passed over: whether it was needed shows when the disk or the socket that it
//! drives is missing, and that failure is the one that names a cause.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::sys::check;

/// A module that was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("cannot load {}", .path.display())]
pub struct ModuleError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Loads all of them and returns what failed. A folder that is not there has no modules: everything is built in.
pub fn load_all(folder: &Path) -> Vec<ModuleError> {
    in_order(folder)
        .into_iter()
        .filter_map(|path| load(&path).err().map(|source| ModuleError { path, source }))
        .collect()
}

fn in_order(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ko"))
        .collect();
    paths.sort();
    paths
}

fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: a valid descriptor and an empty C string.
    let loaded =
        check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) });
    match loaded {
        // Built in, or loaded by the kernel itself meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    #[test]
    fn modules_come_in_the_order_of_their_numbers() {
        let folder = TestFolder::new();
        for name in ["10-c.ko", "02-b.ko", "01-a.ko", "README", "03-x.ko.xz"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }

        let names: Vec<_> = in_order(folder.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();

        assert_eq!(names, ["01-a.ko", "02-b.ko", "10-c.ko"]);
    }

    #[test]
    fn a_file_that_is_no_module_is_named() {
        let folder = TestFolder::new();
        std::fs::write(folder.path().join("01-bad.ko"), "no ELF").unwrap();

        let failed = load_all(folder.path());

        assert_eq!(failed.len(), 1);
        assert!(failed[0].to_string().ends_with("01-bad.ko"));
    }

    #[test]
    fn no_folder_is_no_modules() {
        assert!(load_all(Path::new("/no-such-place/modules")).is_empty());
    }
}
