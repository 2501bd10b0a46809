//! An empty, read-only root with at most one folder in it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::checked;

/// Where the folder appears.
pub const VSOCK_FOLDER: &str = "/vsock";

// linux/mount.h; not all are in every libc.
const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = 0o2_000_000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
const AT_EMPTY_PATH: u32 = 0x1000;
const AT_RECURSIVE: u32 = 0x8000;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;

/// Makes what `fd` and `path` name readable only.
fn seal(fd: i32, path: &std::ffi::CStr, flags: u32) -> io::Result<()> {
    // struct mount_attr: set, clear, propagation, user namespace.
    let attributes: [u64; 4] = [
        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
        0,
        0,
        0,
    ];
    // SAFETY: a valid string, and a structure with its size.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            path.as_ptr(),
            flags,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    })
    .map(drop)
}

/// Leaves the host's file systems for a tmpfs with nothing in it but `folder`.
///
/// # Errors
/// When the process may not mount, or the folder is not there.
pub fn empty(folder: Option<&Path>) -> io::Result<()> {
    let folder = folder
        .map(|path| CString::new(path.as_os_str().as_bytes()))
        .transpose()?;
    // SAFETY: system calls with valid strings and flags; every result is checked, and a failure ends the process.
    unsafe {
        checked(libc::unshare(libc::CLONE_NEWNS).into())?;
        // Slave: what we do here is not seen outside, what the host unmounts is not kept busy here.
        let recursive = libc::MS_SLAVE | libc::MS_REC;
        let none = std::ptr::null();
        checked(libc::mount(none, c"/".as_ptr(), none, recursive, none.cast()).into())?;
        let tree = match &folder {
            None => None,
            Some(folder) => {
                let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
                let tree =
                    libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, folder.as_ptr(), flags);
                Some(i32::try_from(checked(tree)?).map_err(io::Error::other)?)
            }
        };
        // Any folder that is always there serves as the place of the new root for a moment.
        let (place, options) = (c"/proc", c"size=64k,mode=0755");
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let kind = c"tmpfs".as_ptr();
        checked(libc::mount(kind, place.as_ptr(), kind, flags, options.as_ptr().cast()).into())?;
        checked(libc::chdir(place.as_ptr()).into())?;
        if let Some(tree) = tree {
            checked(libc::mkdir(c"vsock".as_ptr(), 0o755).into())?;
            seal(tree, c"", AT_EMPTY_PATH | AT_RECURSIVE)?;
            checked(libc::syscall(
                libc::SYS_move_mount,
                tree,
                c"".as_ptr(),
                libc::AT_FDCWD,
                c"vsock".as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            ))?;
            libc::close(tree);
        }
        checked(libc::syscall(
            libc::SYS_pivot_root,
            c".".as_ptr(),
            c".".as_ptr(),
        ))?;
        checked(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
        checked(libc::chdir(c"/".as_ptr()).into())?;
    }
    seal(libc::AT_FDCWD, c"/", 0)
}
