//! Calls about one name in an open folder.
//!
//! A path is looked up anew by every call, and whoever may write to a folder on its way can bend it meanwhile. A descriptor
//! stays the folder that it was opened as, so what copies files holds the folder and says one name at a time.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;

use crate::sys::{check, own};

fn c_name(name: &[u8]) -> io::Result<CString> {
    Ok(CString::new(name)?)
}

fn open(folder: BorrowedFd<'_>, name: &[u8], flags: libc::c_int, mode: u32) -> io::Result<OwnedFd> {
    let name = c_name(name)?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: a valid C string.
    own(unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags, mode) })
}

/// The root folder of this process.
pub fn root() -> io::Result<OwnedFd> {
    // SAFETY: a valid C string.
    own(unsafe {
        libc::open(
            c"/".as_ptr(),
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    })
}

/// A folder to look further from; a symlink to one is `NotADirectory`. `.` and `..` are names.
pub fn open_folder(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    open(folder, name, flags, 0)
}

/// As [`open_folder`], and its attributes can be changed and its entries read.
pub fn open_folder_to_read(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    open(folder, name, flags, 0)
}

/// What has this name, without touching it: not even a device is opened.
pub fn open_itself(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    open(folder, name, libc::O_PATH | libc::O_NOFOLLOW, 0)
}

/// A file to read. One that has become a pipe meanwhile does not hold us up.
pub fn open_to_read(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    open(folder, name, flags, 0).map(File::from)
}

/// A file that is there, to write.
pub fn open_to_write(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    open(folder, name, flags, 0).map(File::from)
}

/// A new file to write, which nobody else can read yet.
pub fn create(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    open(folder, name, flags, 0o600).map(File::from)
}

/// What `fstatat` says of a name itself.
#[derive(Clone, Copy)]
pub struct Status(libc::stat);

impl std::fmt::Debug for Status {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Status({:o}, {:?})", self.0.st_mode, self.id())
    }
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_sign_loss,
    reason = "the types of the fields differ between the C libraries"
)]
impl Status {
    /// One of the `S_IF` constants.
    pub fn kind(&self) -> libc::mode_t {
        self.0.st_mode & libc::S_IFMT
    }
    pub fn mode(&self) -> u32 {
        self.0.st_mode & 0o7777
    }
    pub fn owner(&self) -> (u32, u32) {
        (self.0.st_uid, self.0.st_gid)
    }
    /// Tells one file from all others: device and inode.
    pub fn id(&self) -> (u64, u64) {
        (self.0.st_dev as u64, self.0.st_ino as u64)
    }
    pub fn device(&self) -> u64 {
        self.0.st_dev as u64
    }
    /// Which device a device node stands for: major and minor.
    pub fn node(&self) -> (u32, u32) {
        (libc::major(self.0.st_rdev), libc::minor(self.0.st_rdev))
    }
    pub fn links(&self) -> u64 {
        self.0.st_nlink as u64
    }
    pub fn size(&self) -> u64 {
        u64::try_from(self.0.st_size).unwrap_or(0)
    }
    /// Bytes that blocks of the disk hold.
    pub fn allocated(&self) -> u64 {
        u64::try_from(self.0.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512)
    }
    pub fn time(&self) -> (i64, u32) {
        (
            self.0.st_mtime as i64,
            u32::try_from(self.0.st_mtime_nsec).unwrap_or(0),
        )
    }
}

fn stat(fd: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> io::Result<Status> {
    // SAFETY: stat is plain integers; zero is a value of it.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a valid C string and room for a stat.
    check(unsafe { libc::fstatat(fd.as_raw_fd(), name.as_ptr(), &raw mut status, flags) })?;
    Ok(Status(status))
}

/// What has this name; a symlink is itself.
pub fn status(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<Status> {
    stat(folder, &c_name(name)?, libc::AT_SYMLINK_NOFOLLOW)
}

/// As [`status`]; nothing there is `None`.
pub fn look(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Status>> {
    match status(folder, name) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a descriptor is of.
pub fn status_of(fd: BorrowedFd<'_>) -> io::Result<Status> {
    stat(fd, c"", libc::AT_EMPTY_PATH)
}

/// Where a symlink leads.
pub fn read_link(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    let name = c_name(name)?;
    let mut target = vec![0_u8; libc::PATH_MAX.cast_unsigned() as usize];
    // SAFETY: a valid C string, and room for the length given.
    let size = check(unsafe {
        libc::readlinkat(
            folder.as_raw_fd(),
            name.as_ptr(),
            target.as_mut_ptr().cast(),
            target.len(),
        )
    })?;
    target.truncate(usize::try_from(size).unwrap_or(0));
    Ok(target)
}

pub fn make_folder(folder: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    let name = c_name(name)?;
    // SAFETY: a valid C string.
    check(unsafe { libc::mkdirat(folder.as_raw_fd(), name.as_ptr(), mode) })?;
    Ok(())
}

/// A FIFO or a device node: `kind` is one of the `S_IF` constants.
pub fn make_node(
    folder: BorrowedFd<'_>,
    name: &[u8],
    kind: libc::mode_t,
    (major, minor): (u32, u32),
) -> io::Result<()> {
    let name = c_name(name)?;
    let device = libc::makedev(major, minor);
    // SAFETY: a valid C string.
    check(unsafe { libc::mknodat(folder.as_raw_fd(), name.as_ptr(), kind | 0o600, device) })?;
    Ok(())
}

pub fn make_symlink(folder: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> io::Result<()> {
    let (target, name) = (c_name(target)?, c_name(name)?);
    // SAFETY: two valid C strings.
    check(unsafe { libc::symlinkat(target.as_ptr(), folder.as_raw_fd(), name.as_ptr()) })?;
    Ok(())
}

/// Another name for what has one; a symlink is not followed.
pub fn make_link(
    (from, old): (BorrowedFd<'_>, &[u8]),
    (to, new): (BorrowedFd<'_>, &[u8]),
) -> io::Result<()> {
    let (old, new) = (c_name(old)?, c_name(new)?);
    // SAFETY: two valid C strings.
    check(unsafe {
        libc::linkat(
            from.as_raw_fd(),
            old.as_ptr(),
            to.as_raw_fd(),
            new.as_ptr(),
            0,
        )
    })?;
    Ok(())
}

/// Takes away a name that is no folder's.
pub fn remove(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = c_name(name)?;
    // SAFETY: a valid C string.
    check(unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), 0) })?;
    Ok(())
}

/// Gives away what a descriptor is of, also one of [`open_itself`].
pub fn set_owner(fd: BorrowedFd<'_>, (uid, gid): (u32, u32)) -> io::Result<()> {
    // SAFETY: a valid C string.
    check(unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) })?;
    Ok(())
}

/// Sets the mode of what a descriptor is of, also of one of [`open_itself`], which fchmod does not take.
pub fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: fchmod touches no memory.
    match check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            let path = c_name(path_of(fd).as_bytes())?;
            // SAFETY: a valid C string.
            check(unsafe { libc::chmod(path.as_ptr(), mode) })?;
            Ok(())
        }
        other => other.map(drop),
    }
}

/// The time of the last change of what has this name.
pub fn set_time(
    folder: BorrowedFd<'_>,
    name: &[u8],
    (seconds, nanos): (i64, u32),
) -> io::Result<()> {
    // SAFETY: timespec is plain integers; zero is a value of it.
    let mut times: [libc::timespec; 2] = unsafe { std::mem::zeroed() };
    times[0].tv_nsec = libc::UTIME_OMIT;
    times[1].tv_sec = seconds;
    times[1].tv_nsec = libc::c_long::from(nanos);
    let name = c_name(name)?;
    // SAFETY: a valid C string and two timespecs.
    check(unsafe {
        libc::utimensat(
            folder.as_raw_fd(),
            name.as_ptr(),
            times.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
        )
    })?;
    Ok(())
}

/// The path of what a descriptor is of, for calls that take only paths (proc(5)).
fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The path of a name in a folder, for calls that take only paths.
fn path_at(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<CString> {
    c_name(&[path_of(folder).as_bytes(), b"/", name].concat())
}

/// Sets an attribute of what a descriptor is of, also of one of [`open_itself`].
pub fn set_xattr(fd: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let key = c_name(key)?;
    let (at, size) = (value.as_ptr().cast(), value.len());
    // SAFETY: a valid C string, and a value valid for its length.
    match check(unsafe { libc::fsetxattr(fd.as_raw_fd(), key.as_ptr(), at, size, 0) }) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            let path = c_name(path_of(fd).as_bytes())?;
            // SAFETY: two valid C strings, and a value valid for its length.
            check(unsafe { libc::setxattr(path.as_ptr(), key.as_ptr(), at, size, 0) })?;
            Ok(())
        }
        other => other.map(drop),
    }
}

/// The names of the attributes of what has this name, each with a NUL; none where the file system has no such thing.
pub fn xattr_names(folder: BorrowedFd<'_>, name: &[u8], room: &mut [u8]) -> usize {
    let Ok(path) = path_at(folder, name) else {
        return 0;
    };
    // SAFETY: a valid C string, and room for the length given.
    let size = unsafe { libc::llistxattr(path.as_ptr(), room.as_mut_ptr().cast(), room.len()) };
    usize::try_from(size).unwrap_or(0)
}

/// The length of one attribute, which is in `room` then.
pub fn xattr(
    folder: BorrowedFd<'_>,
    name: &[u8],
    key: &[u8],
    room: &mut [u8],
) -> io::Result<usize> {
    let (path, key) = (path_at(folder, name)?, c_name(key)?);
    // SAFETY: two valid C strings, and room for the length given.
    let size = check(unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            key.as_ptr(),
            room.as_mut_ptr().cast(),
            room.len(),
        )
    })?;
    Ok(usize::try_from(size).unwrap_or(0))
}

/// Where data begins at or after an offset; `None` where there is none.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match seek(file, from, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        other => other.map(Some),
    }
}

/// Where the data ends that begins at an offset.
pub fn next_hole(file: &File, from: u64) -> io::Result<u64> {
    seek(file, from, libc::SEEK_HOLE)
}

fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<u64> {
    let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
    // SAFETY: lseek touches no memory.
    let at = check(unsafe { libc::lseek(file.as_raw_fd(), from, whence) })?;
    u64::try_from(at).map_err(io::Error::other)
}

/// Whether a descriptor is in a file system that the kernel makes up (magic numbers of linux/magic.h).
pub fn is_kernel_view(fd: BorrowedFd<'_>) -> bool {
    const VIEWS: [i64; 11] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x6367_7270, // cgroup2
        0x27_e0eb,   // cgroup
        0x1cd1,      // devpts
        0x7472_6163, // tracefs
        0x6462_6720, // debugfs
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x1980_0202, // mqueue
        0x6165_676c, // pstore
    ];
    // SAFETY: statfs is plain integers; zero is a value of it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: room for a statfs.
    let known = check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat) });
    // The type's width differs between the C libraries; the numbers are 32 bits.
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_possible_wrap,
        reason = "f_type is signed in one C library and unsigned in the other"
    )]
    let kind = stat.f_type as i64 & 0xffff_ffff;
    known.is_ok() && VIEWS.contains(&kind)
}

/// An open folder, entry by entry.
#[derive(Debug)]
pub struct Folder(NonNull<libc::DIR>);

impl Folder {
    /// Takes a descriptor of [`open_folder_to_read`].
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let raw = fd.into_raw_fd();
        // SAFETY: a descriptor that is ours; the stream has it from now on.
        match NonNull::new(unsafe { libc::fdopendir(raw) }) {
            Some(stream) => Ok(Self(stream)),
            None => {
                let error = io::Error::last_os_error();
                drop(own(raw));
                Err(error)
            }
        }
    }

    /// The name of the next entry; `None` at the end. `.` and `..` are left out.
    pub fn next_name(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            // readdir tells an error from the end by errno alone.
            // SAFETY: errno is this thread's own.
            unsafe { *libc::__errno_location() = 0 };
            // SAFETY: the stream is open, and used by nobody else.
            let entry = unsafe { libc::readdir(self.0.as_ptr()) };
            if entry.is_null() {
                return match io::Error::last_os_error() {
                    error if error.raw_os_error() == Some(0) => Ok(None),
                    error => Err(error),
                };
            }
            // SAFETY: readdir gave an entry, whose name ends in NUL; both live until the next call.
            let name = unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) }.to_bytes();
            if name != b"." && name != b".." {
                return Ok(Some(name.to_vec()));
            }
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream is open as long as `self`, and so is its descriptor.
        unsafe { BorrowedFd::borrow_raw(libc::dirfd(self.0.as_ptr())) }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody uses it after.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}
