//! Unix sockets: pairs, listeners, who is at the other end.

use libc::{c_int, c_long};

use crate::call::{Path, checked, error, narrow, out, result, run};
use crate::fd::Owned;

/// Bytes of a socket path without its NUL: `sun_path` has 108 (unix(7)).
pub const PATH_BYTES_MAX: u32 = 107;

/// The process at the other end, at the time it connected (SO_PEERCRED, unix(7)).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// 0 where the peer is outside of our pid namespace.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// Two connected sockets in `pair`: socketpair(2). `packets` ≠ 0: SOCK_SEQPACKET, else SOCK_STREAM. Both block.
///
/// # Safety
/// `pair` is null or valid for two ints.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_socketpair(packets: c_int, pair: *mut [c_int; 2]) -> i32 {
    let kind = if packets == 0 {
        libc::SOCK_STREAM
    } else {
        libc::SOCK_SEQPACKET
    };
    if pair.is_null() {
        return narrow(error(libc::EFAULT));
    }
    // SAFETY: not null, and the caller's promise.
    narrow(result(unsafe {
        libc::syscall(
            libc::SYS_socketpair,
            libc::AF_UNIX,
            kind | libc::SOCK_CLOEXEC,
            0,
            pair,
        )
    }))
}

/// A listening stream socket at `path`, with exactly `mode`, `uid` and `gid` (4294967295: leave) whatever the
/// umask is, which belongs to all threads of the process and is not touched. Nobody can connect before
/// mode and owner are right: that needs listen(2), which comes last. The socket does not block.
///
/// A socket file that nobody listens on any more is replaced. EADDRINUSE: somebody listens. EEXIST: there is
/// something that is not a socket; it is left alone. ENAMETOOLONG: above [`PATH_BYTES_MAX`]. ENOENT: no such
/// folder. The folder must be the caller's alone and its daemon the only one: of two that replace the same
/// stale socket at once, the later wins.
///
/// # Safety
/// `path` is null or valid for `path_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_unix_listen(
    path: *const u8,
    path_len: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    backlog: c_int,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { Path::new(path, path_len) }?;
        let address = Address::new(&path, path_len)?;
        let listener = open_socket()?;
        // bind(2) gives the file the mode of the socket's own inode, minus the umask.
        // SAFETY: integers only.
        checked(result(unsafe {
            libc::syscall(libc::SYS_fchmod, listener.0, mode & 0o777)
        }))?;
        if let Err(errno) = address.apply(libc::SYS_bind, &listener) {
            if errno != error(libc::EADDRINUSE) {
                return Err(errno);
            }
            remove_stale(&path, &address)?;
            address.apply(libc::SYS_bind, &listener)?;
        }
        let settled = settle(&path, mode, uid, gid).and_then(|()| {
            // SAFETY: integers only.
            checked(result(unsafe {
                libc::syscall(libc::SYS_listen, listener.0, backlog)
            }))
        });
        match settled {
            Ok(_) => Ok(listener.give()),
            Err(errno) => {
                unlink(&path)?;
                Err(errno)
            }
        }
    }))
}

/// Fills `peer`, whose size is `len`: getsockopt(2), SO_PEERCRED. ENOTCONN or zeros for a socket without a peer.
///
/// # Safety
/// `peer` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_peer(fd: c_int, peer: *mut Peer, len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise; every byte pattern is a Peer, which has the layout of struct ucred.
        let peer = unsafe { out(peer, len) }?;
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        let mut bytes = len;
        // SAFETY: `peer` has `bytes` bytes; both are alive over the call.
        checked(result(unsafe {
            let peer: *mut Peer = peer;
            libc::syscall(
                libc::SYS_getsockopt,
                fd,
                level,
                option,
                peer,
                &raw mut bytes,
            )
        }))
    }))
}

struct Address(libc::sockaddr_un, u32);

impl Address {
    fn new(path: &Path, len: u32) -> Result<Self, i64> {
        if len > PATH_BYTES_MAX {
            return Err(error(libc::ENAMETOOLONG));
        }
        // SAFETY: all-zero bytes are a sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { core::mem::zeroed() };
        address.sun_family = 1; // AF_UNIX
        for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
            *to = from.cast_signed();
        }
        Ok(Self(address, len.saturating_add(3))) // the family's two bytes and the NUL
    }

    /// bind(2) or connect(2).
    fn apply(&self, call: c_long, socket: &Owned) -> Result<i64, i64> {
        // SAFETY: the address is alive over the call and has at least that many bytes.
        checked(result(unsafe {
            libc::syscall(call, socket.0, &raw const self.0, self.1)
        }))
    }
}

fn open_socket() -> Result<Owned, i64> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: integers only.
    Owned::take(unsafe { libc::syscall(libc::SYS_socket, libc::AF_UNIX, kind, 0) })
}

/// Removes a socket that refuses connections: only then is nobody there. A full backlog is EAGAIN, a live one 0.
fn remove_stale(path: &Path, address: &Address) -> Result<i64, i64> {
    drop(open_file(path)?);
    match address.apply(libc::SYS_connect, &open_socket()?) {
        Err(errno) if errno == error(libc::ECONNREFUSED) => unlink(path),
        _ => Err(error(libc::EADDRINUSE)),
    }
}

/// The socket file itself, without following a link. EEXIST where it is no socket.
fn open_file(path: &Path) -> Result<Owned, i64> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the path ends in NUL.
    let file = Owned::take(unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags)
    })?;
    let mode = u32::from(crate::file::stat(file.0, libc::STATX_TYPE)?.stx_mode);
    if mode & libc::S_IFMT == libc::S_IFSOCK {
        Ok(file)
    } else {
        Err(error(libc::EEXIST))
    }
}

/// Owner first: a change of owner comes before the mode that trusts it.
fn settle(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<(), i64> {
    let file = open_file(path)?;
    // SAFETY: the empty path ends in NUL: the descriptor itself is meant.
    checked(result(unsafe {
        libc::syscall(
            libc::SYS_fchownat,
            file.0,
            c"".as_ptr(),
            uid,
            gid,
            libc::AT_EMPTY_PATH,
        )
    }))?;
    // chmod(2) of an O_PATH descriptor goes by its name in /proc; fchmodat2 is too new (Linux 6.6).
    let name = crate::path::proc_self_fd(file.0);
    // SAFETY: the name ends in NUL.
    checked(result(unsafe {
        libc::syscall(
            libc::SYS_fchmodat,
            libc::AT_FDCWD,
            name.as_ptr(),
            mode & 0o777,
        )
    }))?;
    Ok(())
}

fn unlink(path: &Path) -> Result<i64, i64> {
    // SAFETY: the path ends in NUL.
    checked(result(unsafe {
        libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path.as_ptr(), 0)
    }))
}
