//! Sockets of any family, in any network namespace; taps; network namespaces that have a name.
//!
//! A call that works in another namespace enters it on the calling thread (setns(2)), makes its descriptor there and
//! comes back before it returns: the descriptor stays in that namespace, the thread does not, and no other thread of
//! the process notices. A thread that could not come back would make the daemon's next socket in the wrong
//! namespace, so the process is ended instead.

use libc::{c_int, c_long};

use crate::call::{Path, bytes, checked, error, narrow, out_bytes, result, run};
use crate::fd::Owned;

/// Bytes of an interface's name with its NUL (IFNAMSIZ, linux/if.h).
const NAME_BYTES: usize = 16;
/// linux/if_tun.h.
const TUNSETIFF: c_long = 0x4004_54ca;
const TUNSETVNETHDRSZ: c_long = 0x4004_54d8;
/// `struct virtio_net_hdr_v1` (virtio 1.2, section 5.1.6).
const VNET_HEADER_BYTES: c_int = 12;

/// `struct ifreq` as far as TUNSETIFF reads it, in the size that the kernel copies.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    /// # Errors
    /// ERANGE: more than 15 bytes, as netlink has it.
    fn new(name: &[u8], flags: u32) -> Result<Self, i64> {
        let mut request = Self {
            name: [0; NAME_BYTES],
            flags: u16::try_from(flags).map_err(|_| error(libc::EINVAL))?,
            rest: [0; 22],
        };
        match request.name.get_mut(..name.len()) {
            Some(room) if name.len() < NAME_BYTES => room.copy_from_slice(name),
            _ => return Err(error(libc::ERANGE)),
        }
        Ok(request)
    }
}

/// Runs `body` in the network namespace of a descriptor; −1: in the caller's own.
fn inside(netns: c_int, body: impl FnOnce() -> Result<i64, i64>) -> Result<i64, i64> {
    if netns < 0 {
        return body();
    }
    let home = own_namespace()?;
    enter(netns)?;
    let done = body();
    if enter(home.0).is_err() {
        abort();
    }
    done
}

fn own_namespace() -> Result<Owned, i64> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the path ends in NUL.
    Owned::take(unsafe {
        libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc/thread-self/ns/net".as_ptr(),
            flags,
        )
    })
}

fn enter(netns: c_int) -> Result<i64, i64> {
    // SAFETY: integers only.
    checked(result(unsafe {
        libc::syscall(libc::SYS_setns, netns, libc::CLONE_NEWNET)
    }))
}

fn abort() -> ! {
    loop {
        // SAFETY: integers only; ends this process.
        unsafe {
            libc::syscall(
                libc::SYS_kill,
                libc::syscall(libc::SYS_getpid),
                libc::SIGKILL,
            )
        };
    }
}

/// A close-on-exec socket, made in the network namespace of the descriptor `netns` (−1: our own): socket(2), setns(2).
/// EPERM: may not enter it, or not make such a socket; EINVAL: no network namespace.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_socket_in(
    netns: c_int,
    domain: c_int,
    kind: c_int,
    protocol: c_int,
) -> i32 {
    narrow(run(|| {
        inside(netns, || {
            // SAFETY: integers only.
            checked(result(unsafe {
                libc::syscall(
                    libc::SYS_socket,
                    domain,
                    kind | libc::SOCK_CLOEXEC,
                    protocol,
                )
            }))
        })
    }))
}

/// Gives a socket an address, the `len` bytes of a `sockaddr`: bind(2). EADDRINUSE, EADDRNOTAVAIL, EACCES (below 1024).
///
/// # Safety
/// `address` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_bind(fd: c_int, address: *const u8, len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let address = unsafe { bytes(address, len) }?;
        // SAFETY: the bytes are alive over the call.
        checked(result(unsafe {
            libc::syscall(libc::SYS_bind, fd, address.as_ptr(), len)
        }))
    }))
}

/// Makes a bound socket take connections: listen(2).
#[unsafe(no_mangle)]
pub extern "C" fn aerie_listen(fd: c_int, backlog: c_int) -> i32 {
    // SAFETY: integers only.
    narrow(result(unsafe {
        libc::syscall(libc::SYS_listen, fd, backlog)
    }))
}

/// Ends both directions of a socket, whoever holds its descriptor: shutdown(2).
#[unsafe(no_mangle)]
pub extern "C" fn aerie_shutdown(fd: c_int) -> i32 {
    // SAFETY: integers only.
    narrow(result(unsafe {
        libc::syscall(libc::SYS_shutdown, fd, libc::SHUT_RDWR)
    }))
}

/// Fills `address` with at most `len` bytes of the socket's own address: getsockname(2). The bytes that it has.
///
/// # Safety
/// `address` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_socket_name(fd: c_int, address: *mut u8, len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let address = unsafe { out_bytes(address, len) }?;
        let mut has = len;
        // SAFETY: `address` has `has` bytes; both are alive over the call.
        checked(result(unsafe {
            libc::syscall(
                libc::SYS_getsockname,
                fd,
                address.as_mut_ptr(),
                &raw mut has,
            )
        }))?;
        Ok(i64::from(has))
    }))
}

/// Sets an option to the `len` bytes at `value`: setsockopt(2).
///
/// # Safety
/// `value` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_set_option(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const u8,
    len: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let value = unsafe { bytes(value, len) }?;
        // SAFETY: the bytes are alive over the call.
        checked(result(unsafe {
            libc::syscall(libc::SYS_setsockopt, fd, level, option, value.as_ptr(), len)
        }))
    }))
}

/// Sends `len` bytes as one message: send(2). A netlink socket has done what they say when it returns, which for most
/// changes is at once; the deletion of a link waits in the kernel for tens of milliseconds.
///
/// # Safety
/// `data` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_send(fd: c_int, data: *const u8, len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let data = unsafe { bytes(data, len) }?;
        // SAFETY: the bytes are alive over the call.
        checked(result(unsafe {
            libc::syscall(
                libc::SYS_sendto,
                fd,
                data.as_ptr(),
                data.len(),
                libc::MSG_NOSIGNAL,
                0,
                0,
            )
        }))
    }))
}

/// Receives one message into at most `len` bytes: recv(2). The length that the message has, which may be more than what
/// fitted. EAGAIN: nothing is there; ENOBUFS: messages were lost.
///
/// # Safety
/// `data` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_receive(fd: c_int, data: *mut u8, len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let data = unsafe { out_bytes(data, len) }?;
        // SAFETY: the bytes are alive over the call.
        checked(result(unsafe {
            libc::syscall(
                libc::SYS_recvfrom,
                fd,
                data.as_mut_ptr(),
                data.len(),
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                0,
                0,
            )
        }))
    }))
}

/// Opens a queue of the tap with this name, made in the network namespace of `netns` (−1: our own) where there is none:
/// Documentation/networking/tuntap.rst. `flags` are those of TUNSETIFF; with IFF_VNET_HDR the packets carry a
/// `virtio_net_hdr_v1`. The descriptor does not block. EBUSY: somebody else has it; EPERM; ERANGE: a name of more than
/// 15 bytes; ENOENT: no `/dev/net/tun`.
///
/// # Safety
/// `name` is null or valid for `name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_tap_open(
    netns: c_int,
    name: *const u8,
    name_len: u32,
    flags: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let name = unsafe { bytes(name, name_len) }?;
        inside(netns, || {
            let mode = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK;
            // SAFETY: the path ends in NUL.
            let tap = Owned::take(unsafe {
                libc::syscall(
                    libc::SYS_openat,
                    libc::AT_FDCWD,
                    c"/dev/net/tun".as_ptr(),
                    mode,
                )
            })?;
            attach(&tap, name, flags)?;
            Ok(tap.give())
        })
    }))
}

/// Sets up a macvtap's character device `fd` as a tap: `flags` as for [`aerie_tap_open`]. The name is the link's own.
///
/// # Safety
/// `name` is null or valid for `name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_tap_attach(
    fd: c_int,
    name: *const u8,
    name_len: u32,
    flags: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let name = unsafe { bytes(name, name_len) }?;
        let tap = Owned(fd);
        let done = attach(&tap, name, flags);
        let _ = tap.give(); // it stays the caller's
        done
    }))
}

fn attach(tap: &Owned, name: &[u8], flags: u32) -> Result<i64, i64> {
    let mut request = InterfaceRequest::new(name, flags)?;
    // SAFETY: the kernel reads and writes one ifreq, which has that size.
    checked(result(unsafe {
        libc::syscall(libc::SYS_ioctl, tap.0, TUNSETIFF, &raw mut request)
    }))?;
    let bytes = VNET_HEADER_BYTES;
    // SAFETY: the kernel reads one int.
    checked(result(unsafe {
        libc::syscall(libc::SYS_ioctl, tap.0, TUNSETVNETHDRSZ, &raw const bytes)
    }))
}

/// Makes a network namespace that lives as long as it is mounted at `path`, a file that exists: unshare(2), mount(2).
/// EPERM.
///
/// # Safety
/// `path` is null or valid for `path_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_netns_make(path: *const u8, path_len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { Path::new(path, path_len) }?;
        let home = own_namespace()?;
        // SAFETY: integers only.
        checked(result(unsafe {
            libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNET)
        }))?;
        // SAFETY: all paths end in NUL; no data for a bind.
        let mounted = checked(result(unsafe {
            libc::syscall(
                libc::SYS_mount,
                c"/proc/thread-self/ns/net".as_ptr(),
                path.as_ptr(),
                c"none".as_ptr(),
                libc::MS_BIND,
                0,
            )
        }));
        if enter(home.0).is_err() {
            abort();
        }
        mounted
    }))
}

/// Takes away what is mounted at `path`, at once for whoever asks by the path: umount2(2), MNT_DETACH. EINVAL: nothing is.
///
/// # Safety
/// `path` is null or valid for `path_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_unmount(path: *const u8, path_len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { Path::new(path, path_len) }?;
        let flags = libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW;
        // SAFETY: the path ends in NUL.
        checked(result(unsafe {
            libc::syscall(libc::SYS_umount2, path.as_ptr(), flags)
        }))
    }))
}
