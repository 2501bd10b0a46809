//! Sockets of kinds that std does not open.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::{check, own};

/// Opens a socket, closed on exec.
///
/// # Errors
/// The kernel's refusal.
pub fn open(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket touches no memory of ours.
    own(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// The family in the width that it has in an address.
pub fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or_default()
}

/// The size of a kernel's structure.
fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

/// Sets an option, of the type that setsockopt(2) wants for it.
///
/// # Errors
/// The kernel's refusal.
pub fn set<T: Copy>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let (fd, value) = (socket.as_raw_fd(), std::ptr::from_ref(value).cast());
    // SAFETY: `value` is valid for reads of the size of its type.
    check(unsafe { libc::setsockopt(fd, level, name, value, size::<T>()) })?;
    Ok(())
}

/// Binds to an address, a `sockaddr_*`.
///
/// # Errors
/// The kernel's refusal.
pub fn bind<T: Copy>(socket: &OwnedFd, address: &T) -> io::Result<()> {
    let address = std::ptr::from_ref(address).cast();
    // SAFETY: `address` is valid for reads of the size of its type.
    check(unsafe { libc::bind(socket.as_raw_fd(), address, size::<T>()) })?;
    Ok(())
}

/// Sends a datagram to an address, a `sockaddr_*`.
///
/// # Errors
/// The kernel's refusal.
pub fn send_to<T: Copy>(socket: &OwnedFd, bytes: &[u8], address: &T) -> io::Result<()> {
    let address = std::ptr::from_ref(address).cast();
    let (fd, start) = (socket.as_raw_fd(), bytes.as_ptr().cast());
    // SAFETY: both are valid for reads of their sizes.
    check(unsafe { libc::sendto(fd, start, bytes.len(), 0, address, size::<T>()) })?;
    Ok(())
}

/// Receives a datagram.
///
/// # Errors
/// The kernel's refusal.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let (fd, start) = (socket.as_raw_fd(), buffer.as_mut_ptr().cast());
    // SAFETY: `buffer` is valid for writes of its length.
    let count = check(unsafe { libc::recv(fd, start, buffer.len(), flags) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Connects to an address, a `sockaddr_*`.
///
/// # Errors
/// The kernel's refusal.
pub fn connect<T: Copy>(socket: &OwnedFd, address: &T) -> io::Result<()> {
    let address = std::ptr::from_ref(address).cast();
    // SAFETY: `address` is valid for reads of the size of its type.
    check(unsafe { libc::connect(socket.as_raw_fd(), address, size::<T>()) })?;
    Ok(())
}

/// Reads as much of an option as there is room for, and gives its length.
///
/// # Errors
/// The kernel's refusal.
pub fn option(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(value.len()).unwrap_or_default();
    let (fd, start) = (socket.as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: `value` is valid for writes of the length that is stated.
    check(unsafe { libc::getsockopt(fd, level, name, start, &raw mut length) })?;
    Ok(usize::try_from(length).unwrap_or(0))
}

/// The own address of an IP socket.
///
/// # Errors
/// The kernel's refusal; `InvalidData` where it is none of IP.
pub fn local(socket: &OwnedFd) -> io::Result<IpAddr> {
    name(socket, libc::getsockname)
}

/// The other end's address of an IP socket.
///
/// # Errors
/// As [`local`]; `NotConnected` where there is no other end.
pub fn peer(socket: &OwnedFd) -> io::Result<IpAddr> {
    name(socket, libc::getpeername)
}

type Name =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name(socket: &OwnedFd, get: Name) -> io::Result<IpAddr> {
    // SAFETY: sockaddr_in6 is plain data; zero is a value of it.
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut length = size::<libc::sockaddr_in6>();
    let start = (&raw mut address).cast();
    // SAFETY: there is room for what is stated; an address of IPv4 is shorter.
    check(unsafe { get(socket.as_raw_fd(), start, &raw mut length) })?;
    match libc::c_int::from(address.sin6_family) {
        libc::AF_INET6 => Ok(IpAddr::from(address.sin6_addr.s6_addr)),
        // Behind family and port, where sockaddr_in6 has its flow.
        libc::AF_INET => Ok(IpAddr::from(address.sin6_flowinfo.to_ne_bytes())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
