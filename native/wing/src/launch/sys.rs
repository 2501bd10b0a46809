//! The system calls of a launch that std does not have, each as one function over safe types.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::RawFd;
use std::ptr;

use libc::{c_int, c_long, c_ulong};

fn check(ret: c_long) -> io::Result<c_long> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// prctl(2) with integer arguments only.
pub fn prctl(option: c_int, arg2: c_ulong, arg3: c_ulong) -> io::Result<c_long> {
    let zero: c_ulong = 0;
    // SAFETY: no option used in this module takes a pointer; unused arguments are zero, as prctl demands.
    check(unsafe { libc::prctl(option, arg2, arg3, zero, zero) }.into())
}

/// Whether `fd` is open: fcntl(2), F_GETFD.
pub fn fd_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFD takes no third argument.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into()).map(drop)
}

/// A close-on-exec copy of `fd` at the lowest free number that is `min` or more.
pub fn dup_above(fd: RawFd, min: RawFd) -> io::Result<RawFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an int.
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, min) }.into())?;
    RawFd::try_from(copy).map_err(io::Error::other)
}

/// Makes `to` the same file as `from`, inherited over exec.
pub fn dup_onto(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: both are numbers; what `to` was is closed, and nothing in this process owns it any more.
    check(unsafe { libc::dup2(from, to) }.into()).map(drop)
}

/// close_range(2), Linux 5.9: closes `first..=last`.
pub fn close_range(first: RawFd, last: u32) -> io::Result<()> {
    // SAFETY: no Rust object of this process owns a descriptor by the time of the call (see `fds.rs`).
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// The `f_type` of the file system that `fd` is on: fstatfs(2).
pub fn fs_magic(fd: RawFd) -> io::Result<u32> {
    let mut out = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `out` is a statfs to write to, and all-zero bytes are one.
    check(unsafe { libc::fstatfs(fd, out.as_mut_ptr()) }.into())?;
    // SAFETY: initialised by zeroing, then by the kernel.
    let magic = unsafe { out.assume_init() }.f_type;
    // Signed with glibc, unsigned with musl; a magic has 32 bits.
    u32::try_from(magic).map_err(io::Error::other)
}

/// prlimit(2) on this process.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let old: *mut libc::rlimit64 = ptr::null_mut();
    // SAFETY: `limit` outlives the call and `old` may be null.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, old) })
        .map(drop)
}

/// setgroups(2). The raw call: this process has one thread, and libc's wrapper exists to synchronise several.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length are those of one slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Real, effective, saved and file-system gid: setresgid(2).
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Real, effective, saved and file-system uid: setresuid(2).
pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// (effective uid, effective gid).
pub fn ids() -> (u32, u32) {
    // SAFETY: these calls cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// unshare(2).
pub fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: the flags used are namespaces; no memory or descriptor table is unshared.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Makes every mount of this mount namespace receive the host's changes and send none back.
pub fn mounts_slave() -> io::Result<()> {
    let none: *const libc::c_char = ptr::null();
    // SAFETY: a change of propagation ignores source, type and data (mount(2)).
    let ret = unsafe {
        libc::mount(
            none,
            c"/".as_ptr(),
            none,
            libc::MS_REC | libc::MS_SLAVE,
            ptr::null(),
        )
    };
    check(ret.into()).map(drop)
}

/// fork(2), except that the new process is a child of **our parent**: clone(2), CLONE_PARENT.
/// Zero in the new process, its pid in this one.
pub fn fork_sibling() -> io::Result<u32> {
    let flags = c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    let (stack, tid, tls): (c_long, c_long, c_long) = (0, 0, 0);
    // SAFETY: without CLONE_VM the new process has a copy of all memory, as after fork; the process has one
    // thread, so no lock of the copy can be held by a thread that is not there.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, stack, tid, tid, tls) })?;
    u32::try_from(pid).map_err(io::Error::other)
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

/// This process, in `_LINUX_CAPABILITY_VERSION_3`: the sets are two times {effective, permitted, inheritable}.
static CAPABILITIES_OF_SELF: CapabilityHeader = CapabilityHeader {
    version: 0x2008_0522,
    pid: 0,
};

fn set_capabilities(sets: [u32; 6]) -> io::Result<()> {
    // SAFETY: both have the layout of linux/capability.h for version 3 and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_capset,
            &raw const CAPABILITIES_OF_SELF,
            sets.as_ptr(),
        )
    })
    .map(drop)
}

/// capset(2): no effective, permitted or inheritable capability.
pub fn clear_capabilities() -> io::Result<()> {
    set_capabilities([0; 6])
}

/// Lets what is permitted pass an execve(2) by an ordinary user: inheritable, then ambient (capabilities(7)).
pub fn keep_capabilities_on_exec() -> io::Result<()> {
    let mut sets = [0_u32; 6];
    // SAFETY: both have the layout of linux/capability.h for version 3 and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_capget,
            &raw const CAPABILITIES_OF_SELF,
            sets.as_mut_ptr(),
        )
    })?;
    let [_, low, _, _, high, _] = sets;
    (sets[2], sets[5]) = (low, high);
    set_capabilities(sets)?;
    let permitted = u64::from(high) << 32 | u64::from(low);
    let raise = libc::c_ulong::from(libc::PR_CAP_AMBIENT_RAISE.unsigned_abs());
    for capability in (0..64).filter(|capability| permitted >> capability & 1 == 1) {
        prctl(libc::PR_CAP_AMBIENT, raise, capability)?;
    }
    Ok(())
}

/// setsid(2), where this process does not lead a session yet.
pub fn set_sid() -> io::Result<()> {
    // SAFETY: integers only.
    if unsafe { libc::getsid(0) == libc::getpid() } {
        return Ok(());
    }
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() }.into()).map(drop)
}

/// chdir(2).
pub fn change_dir(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` ends in NUL and outlives the call.
    check(unsafe { libc::chdir(path.as_ptr()) }.into()).map(drop)
}

pub fn umask(mask: u32) {
    // SAFETY: integers only, cannot fail.
    unsafe { libc::umask(mask) };
}

/// Every signal back to its default, none blocked. The raw calls, because libc keeps some real-time signals
/// for itself and refuses to touch them. KILL and STOP cannot be changed: their errors mean nothing.
pub fn reset_signals() {
    const SIGNALS: c_int = 64;
    const SET_BYTES: usize = 8; // sizeof(sigset_t) of the kernel
    let default = [0_u64; 4]; // struct sigaction of the kernel: handler SIG_DFL, flags, restorer, mask
    let none: *mut u64 = ptr::null_mut();
    for signal in 1..=SIGNALS {
        // SAFETY: `default` is a whole kernel sigaction; no handler of this process is in use.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                none,
                SET_BYTES,
            )
        };
    }
    let empty = 0_u64;
    // SAFETY: `empty` is a kernel sigset_t and outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const empty,
            none,
            SET_BYTES,
        )
    };
}

/// Makes a write beyond RLIMIT_FSIZE an error instead of our end, until [`reset_signals`].
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN is a valid disposition and runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// What is executed.
#[derive(Debug)]
pub enum Image {
    Path(CString),
    Fd(RawFd),
}

/// execve(2), or execveat(2) with AT_EMPTY_PATH. Returns only to say why it did not happen.
pub fn exec(image: &Image, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    let (dir, path, flags): (RawFd, &CStr, c_int) = match image {
        Image::Path(path) => (libc::AT_FDCWD, path, 0),
        Image::Fd(fd) => (*fd, c"", libc::AT_EMPTY_PATH),
    };
    // SAFETY: both vectors end in null and point into strings that the caller holds over the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            dir,
            path.as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            flags,
        )
    };
    io::Error::last_os_error()
}
