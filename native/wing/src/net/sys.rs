//! System calls on sockets that the standard library does not make, or not without others that the confined process lacks.

use std::{
    io, mem,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use super::error::NetError;

/// Bytes of the one buffer that everything is read into.
pub const SCRATCH_BYTES: usize = 64 * 1024;

/// How many descriptors one read of a control stream takes at most; more are closed by the kernel.
const FDS_MAX: usize = 16;

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn length_of<T>() -> libc::socklen_t {
    // No structure of sockets is larger than a few hundred bytes.
    libc::socklen_t::try_from(mem::size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}

/// Whether an error says that there is nothing now, and later maybe.
pub fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Whether an error says that there are no descriptors or no memory left for another one.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// What a socket has to be.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub words: &'static str,
    pub domains: &'static [i32],
    pub kind: i32,
    pub listening: bool,
}

/// Takes an inherited descriptor that is what it should be, and makes it non-blocking.
pub fn inherit(fd: RawFd, expected: Expected) -> Result<OwnedFd, NetError> {
    let bad = |source| NetError::Descriptor {
        fd,
        expected: expected.words,
        source,
    };
    check(fd, expected).map_err(bad)?;
    // SAFETY: the descriptor is open (the kernel just answered for it), and by the command line, which names no number twice,
    // it is ours alone.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    set_nonblocking(&owned).map_err(bad)?;
    Ok(owned)
}

/// Checks that a descriptor is such a socket.
pub fn check(fd: RawFd, expected: Expected) -> io::Result<()> {
    let is = |name| option(fd, libc::SOL_SOCKET, name);
    let listening = is(libc::SO_ACCEPTCONN)? == 1;
    if expected.domains.contains(&is(libc::SO_DOMAIN)?)
        && is(libc::SO_TYPE)? == expected.kind
        && listening == expected.listening
    {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// Sets the flags of a socket, which has no others than this one. The call is made without the library, which in musl adds
/// a flag of files to it that the confined process may not set.
pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fcntl,
            fd.as_raw_fd(),
            libc::F_SETFL,
            libc::O_RDWR | libc::O_NONBLOCK,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// An integer option of a socket (socket(7)).
pub fn option(fd: RawFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value: i32 = 0;
    let mut len = length_of::<i32>();
    // SAFETY: `value` has room for `len` bytes and both live through the call.
    checked(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value)
}

pub fn set_option<T: Copy>(fd: &OwnedFd, level: i32, name: i32, value: T) -> io::Result<()> {
    // SAFETY: `value` is as long as is said and lives through the call.
    checked(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            length_of::<T>(),
        )
    })
    .map(drop)
}

/// Takes the error that a socket holds.
pub fn error_of(fd: &OwnedFd) -> io::Result<()> {
    match option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Closes a TCP connection by RST.
pub fn reset(fd: OwnedFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // Where it fails the connection ends by FIN.
    let _ = set_option(&fd, libc::SOL_SOCKET, libc::SO_LINGER, linger);
    drop(fd);
}

/// A new internet socket, non-blocking.
pub fn socket(address: &SocketAddr, kind: i32) -> io::Result<OwnedFd> {
    let domain = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    // SAFETY: takes numbers only.
    let fd = checked(unsafe {
        libc::socket(domain, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An address as the kernel wants it.
struct Raw {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl Raw {
    fn empty() -> Self {
        Self {
            // SAFETY: all zeroes is a valid sockaddr_storage: of no family.
            storage: unsafe { mem::zeroed() },
            len: length_of::<libc::sockaddr_storage>(),
        }
    }

    fn of(address: &SocketAddr) -> Self {
        let mut raw = Self::empty();
        match address {
            SocketAddr::V4(v4) => {
                let value = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                raw.len = length_of::<libc::sockaddr_in>();
                // SAFETY: a sockaddr_storage is at least as large as any address and aligned for all of them.
                unsafe {
                    (&raw mut raw.storage)
                        .cast::<libc::sockaddr_in>()
                        .write(value)
                };
            }
            SocketAddr::V6(v6) => {
                let value = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                raw.len = length_of::<libc::sockaddr_in6>();
                // SAFETY: as above.
                unsafe {
                    (&raw mut raw.storage)
                        .cast::<libc::sockaddr_in6>()
                        .write(value);
                };
            }
        }
        raw
    }

    fn address(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says what it is, and it is as aligned as it must be.
                let v4 = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let v6 = unsafe {
                    (&raw const self.storage)
                        .cast::<libc::sockaddr_in6>()
                        .read()
                };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

fn family(number: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(number).unwrap_or_default()
}

/// Begins to connect; whether it went well is the socket's error once it can be written to.
pub fn connect(fd: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    let raw = Raw::of(address);
    // SAFETY: the address lives through the call and is as long as is said.
    let result =
        checked(unsafe { libc::connect(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len) });
    match result {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// Takes the next connection of a listener; a Unix one has no address.
pub fn accept(fd: &OwnedFd) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let mut raw = Raw::empty();
    // SAFETY: the address has room for `len` bytes and both live through the call.
    let new = checked(unsafe {
        libc::accept4(
            fd.as_raw_fd(),
            (&raw mut raw.storage).cast(),
            &raw mut raw.len,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok((unsafe { OwnedFd::from_raw_fd(new) }, raw.address()))
}

/// The address that a socket is bound to.
pub fn local_address(fd: &OwnedFd) -> Option<SocketAddr> {
    let mut raw = Raw::empty();
    // SAFETY: the address has room for `len` bytes and both live through the call.
    checked(unsafe {
        libc::getsockname(
            fd.as_raw_fd(),
            (&raw mut raw.storage).cast(),
            &raw mut raw.len,
        )
    })
    .ok()?;
    raw.address()
}

/// Reads one datagram and says who sent it.
pub fn recv_from(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Option<SocketAddr>)> {
    let mut raw = Raw::empty();
    // SAFETY: buffer and address have the room that is said and live through the call.
    let len = counted(unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut raw.storage).cast(),
            &raw mut raw.len,
        )
    })?;
    Ok((len, raw.address()))
}

pub fn send_to(fd: &OwnedFd, bytes: &[u8], address: &SocketAddr) -> io::Result<usize> {
    let raw = Raw::of(address);
    // SAFETY: bytes and address are as long as is said and live through the call.
    counted(unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            (&raw const raw.storage).cast(),
            raw.len,
        )
    })
}

pub fn recv(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer has the room that is said and lives through the call.
    counted(unsafe {
        libc::recv(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    })
}

pub fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the bytes are as long as is said and live through the call.
    counted(unsafe {
        libc::send(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })
}

/// Says to the other side that nothing more comes. A connection that is gone already needs no saying.
pub fn end_writing(fd: &OwnedFd) {
    // SAFETY: takes numbers only.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
}

/// Room for the control messages that come with one read, aligned as they must be.
#[repr(C, align(8))]
struct Ancillary([u8; 256]);

/// Reads a datagram and its hop limit, where the socket was told to give it.
pub fn recv_with_hops(
    fd: &OwnedFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<SocketAddr>, Option<i32>)> {
    let mut raw = Raw::empty();
    let mut hops = None;
    let len = recv_message(fd, buffer, Some(&mut raw), |level, kind, data| {
        if level == libc::IPPROTO_IPV6 && kind == libc::IPV6_HOPLIMIT {
            hops = data.try_into().ok().map(i32::from_ne_bytes);
        }
    })?;
    Ok((len, raw.address(), hops))
}

/// Reads what a stream has, and the descriptors that came with it.
pub fn recv_with_fds(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    let len = recv_message(fd, buffer, None, |level, kind, data| {
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            for number in data.chunks_exact(mem::size_of::<RawFd>()) {
                if let Ok(number) = number.try_into().map(RawFd::from_ne_bytes) {
                    // SAFETY: the kernel made this descriptor for us in this call.
                    fds.push(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
        }
    })?;
    Ok((len, fds))
}

fn recv_message(
    fd: &OwnedFd,
    buffer: &mut [u8],
    from: Option<&mut Raw>,
    mut each: impl FnMut(i32, i32, &[u8]),
) -> io::Result<usize> {
    let mut ancillary = Ancillary([0; 256]);
    const { assert!(FDS_MAX * mem::size_of::<RawFd>() + 32 <= 256) };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid msghdr: of nothing.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    if let Some(raw) = from {
        header.msg_name = (&raw mut raw.storage).cast();
        header.msg_namelen = raw.len;
    }
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut ancillary.0).cast();
    // musl and glibc differ in this field's type; the room is a small number in both.
    #[allow(clippy::useless_conversion)]
    {
        let room = 24 + u16::try_from(FDS_MAX * mem::size_of::<RawFd>()).unwrap_or(0);
        header.msg_controllen = room.into();
    }
    // SAFETY: everything that the header points to lives through the call and has the room that is said.
    let len = counted(unsafe {
        libc::recvmsg(
            fd.as_raw_fd(),
            &raw mut header,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel filled the header and the control messages that it points to; the macros walk what it wrote, and
    // no more than `cmsg_len` says is read of each.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(message) = next.as_ref() {
            // musl and glibc differ in this field's type.
            #[allow(clippy::useless_conversion)]
            let whole = usize::try_from(message.cmsg_len).unwrap_or(0);
            let head = usize::try_from(libc::CMSG_LEN(0)).unwrap_or(usize::MAX);
            let data = std::slice::from_raw_parts(
                libc::CMSG_DATA(next).cast_const(),
                whole.saturating_sub(head),
            );
            each(message.cmsg_level, message.cmsg_type, data);
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
    }
    Ok(len)
}

/// Fills bytes from the kernel's generator, which has been seeded long before.
pub fn random(bytes: &mut [u8]) {
    // SAFETY: the buffer has the room that is said. Up to 256 bytes come whole.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert!(counted(got).is_ok_and(|got| got == bytes.len()));
}

/// Raises the limit of open files as far as it goes, and gives it.
pub fn raise_descriptors() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` lives through all calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 0;
        }
        let now = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
            limit.rlim_cur = now;
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}
