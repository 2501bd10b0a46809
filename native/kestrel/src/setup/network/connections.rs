//! Resetting connections that a restored guest believes to have: their other ends have gone on with somebody else, or are gone.
//!
//! A connection is TCP to or from an address that is no loopback. The kernel's own way is sock_diag(7), which needs
//! `CONFIG_INET_DIAG_DESTROY` and the module `tcp_diag`. It sees one network namespace, so processes are gone through
//! afterwards, with whatever kernel: a socket of theirs that is connected still is disconnected. The owner reads
//! `ECONNABORTED` the first way and `ECONNRESET` the second. What listens goes on listening.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::setup::network::netlink::{Message, Netlink};
use crate::setup::network::socket;
use crate::sys::{check, own};

/// include/uapi/linux/sock_diag.h, inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_sockid`, behind four bytes of `struct inet_diag_msg`.
const ID_AT: usize = 4;
const ID_BYTES: usize = 48;

/// include/net/tcp_states.h.
const SYN_SENT: u8 = 2;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
const STATES: u8 = 12;

/// Tells whether a socket in this state has another end that may send or wait.
const fn is_connected(state: u8) -> bool {
    state > 0 && state <= STATES && !matches!(state, TIME_WAIT | CLOSE | LISTEN)
}

/// Resets all of them.
pub fn reset() {
    // A kernel that has no such thing, or only the listing: the second way is for it.
    let _ = destroy_all();
    // The first process is kestrel, which has no connections.
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut seen = HashSet::new();
    for pid in pids.filter(|&pid| pid != 1) {
        // It ended meanwhile, or holds nothing; others may.
        let _ = disconnect_all(pid, &mut seen);
    }
}

/// Has the kernel destroy the sockets of this network namespace.
fn destroy_all() -> io::Result<()> {
    let mut netlink = Netlink::open(libc::NETLINK_SOCK_DIAG, 0)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut found = Vec::new();
        let message = Message::new(SOCK_DIAG_BY_FAMILY, 0, &request(family, &[0; ID_BYTES]));
        netlink.list(message, |_, body| {
            let id = body.get(ID_AT..ID_AT + ID_BYTES);
            found.extend(id.filter(|id| !is_local(id)).map(<[u8]>::to_vec));
        })?;
        for id in found {
            match netlink.change(Message::new(SOCK_DESTROY, 0, &request(family, &id))) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Err(error),
                // Gone by itself, or not to be had: the next.
                _ => {}
            }
        }
    }
    Ok(())
}

/// `struct inet_diag_req_v2`.
fn request(family: libc::c_int, id: &[u8]) -> Vec<u8> {
    let byte = |number: libc::c_int| u8::try_from(number).unwrap_or_default();
    let states = (1..=STATES).filter(|&state| is_connected(state));
    let states = states.fold(0_u32, |mask, state| mask | 1 << state);
    let mut bytes = vec![byte(family), byte(libc::IPPROTO_TCP), 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// Tells whether a `struct inet_diag_sockid` has a loopback at one of its ends.
fn is_local(id: &[u8]) -> bool {
    let end = |at: usize| {
        let bytes: Option<&[u8; 16]> = id.get(at..).and_then(<[u8]>::first_chunk);
        bytes.is_some_and(|bytes| {
            // An IPv4 address has the first four bytes, and no IPv6 one begins with 127.
            bytes[0] == 127 || is_loopback(IpAddr::from(*bytes))
        })
    };
    end(4) || end(20)
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Disconnects the sockets of a process that are not in `seen`.
fn disconnect_all(pid: libc::pid_t, seen: &mut HashSet<Vec<u8>>) -> io::Result<()> {
    let mut process = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let name = target.into_os_string().into_encoded_bytes();
        if !name.starts_with(b"socket:") || !seen.insert(name) {
            continue;
        }
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let process = match &process {
            Some(process) => process,
            None => process.insert(pidfd(pid)?),
        };
        // Closed meanwhile.
        let Ok(socket) = descriptor_of(process, number) else {
            continue;
        };
        if is_remote(&socket) {
            disconnect(&socket);
        }
    }
    Ok(())
}

fn pidfd(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open touches no memory of ours.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    own(libc::c_int::try_from(fd).map_err(io::Error::other)?)
}

/// A descriptor of ours for what another process has open.
fn descriptor_of(process: &OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd touches no memory of ours.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })?;
    own(libc::c_int::try_from(fd).map_err(io::Error::other)?)
}

/// Tells whether this is TCP, connected, with no loopback at either end.
fn is_remote(socket: &OwnedFd) -> bool {
    let number = |name| {
        let mut bytes = [0; 4];
        let read = socket::option(socket, libc::SOL_SOCKET, name, &mut bytes);
        read.map(|_| libc::c_int::from_ne_bytes(bytes))
    };
    let is_tcp = number(libc::SO_DOMAIN)
        .is_ok_and(|family| family == libc::AF_INET || family == libc::AF_INET6)
        && number(libc::SO_PROTOCOL).is_ok_and(|protocol| protocol == libc::IPPROTO_TCP);
    let mut state = [0];
    // The first byte of `struct tcp_info`.
    let known = socket::option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state);
    let is_remote = |ip: io::Result<IpAddr>| ip.is_ok_and(|ip| !is_loopback(ip));
    is_tcp
        && known.is_ok_and(|_| is_connected(state[0]))
        && is_remote(socket::local(socket))
        // An attempt has no other end yet.
        && (state[0] == SYN_SENT || is_remote(socket::peer(socket)))
}

/// Takes a socket from its connection: connect(2) to nowhere.
fn disconnect(socket: &OwnedFd) {
    // SAFETY: sockaddr is plain data; zero is a value of it.
    let mut nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    nowhere.sa_family = socket::family(libc::AF_UNSPEC);
    if socket::connect(socket, &nowhere).is_err() {
        // Some kernels let nobody disconnect what another thread waits for: it reads an end then.
        // SAFETY: shutdown touches no memory.
        unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::test_network::{alone, ip};

    const HERE: &str = "setup::network::connections::tests::";

    /// A listener and both ends of a connection to it.
    struct Connected {
        listener: TcpListener,
        near: TcpStream,
        far: TcpStream,
    }

    fn connected(address: &str) -> Connected {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let place = listener.local_addr().unwrap();
        // The kernel makes the route to an address of IPv6 a moment after the address.
        let deadline = Instant::now() + Duration::from_secs(20);
        let near = loop {
            match TcpStream::connect(place) {
                Ok(near) => break near,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        let (far, _) = listener.accept().unwrap();
        near.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Connected {
            listener,
            near,
            far,
        }
    }

    impl Connected {
        fn works(&mut self) -> bool {
            let mut byte = [0];
            self.far.write_all(b"x").is_ok() && self.near.read_exact(&mut byte).is_ok()
        }

        /// Asserts that an end is told at once, with an error.
        fn is_reset(&mut self) {
            let error = self.near.read(&mut [0]).unwrap_err();
            assert!(
                matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ),
                "{error}"
            );
            assert!(!self.works());
        }

        fn listens(&self) {
            let _near = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            self.listener.accept().unwrap();
        }
    }

    fn check_with(reset: fn() -> io::Result<()>) {
        ip("link set lo up");
        ip("addr add 10.42.0.5/32 dev lo");
        ip("addr add fd42::5/128 dev lo nodad");
        let local = ["127.0.0.1", "127.9.9.9", "::1"].map(connected);
        // Connected to an IPv4 address from a socket of IPv6.
        let any = TcpListener::bind("[::]:0").unwrap();
        let port = any.local_addr().unwrap().port();
        let mapped = TcpStream::connect(("::ffff:127.0.0.1", port)).unwrap();
        let remote = ["10.42.0.5", "fd42::5"].map(connected);
        let mapped_remote = TcpStream::connect(("::ffff:10.42.0.5", port)).unwrap();

        reset().unwrap();

        for mut connected in remote {
            connected.is_reset();
            connected.listens();
        }
        for mut connected in local {
            assert!(connected.works(), "{:?}", connected.near);
            connected.listens();
        }
        assert!(mapped.peer_addr().is_ok());
        assert!(mapped_remote.take_error().unwrap().is_some());
    }

    #[test]
    fn the_kernel_destroys_connections_and_nothing_else() {
        let name = "the_kernel_destroys_connections_and_nothing_else";
        alone(&format!("{HERE}{name}"), || {
            if destroy_all().is_err() {
                eprintln!("skipped: this kernel destroys no sockets");
                return;
            }
            check_with(destroy_all);
        });
    }

    #[test]
    fn connections_of_a_process_are_taken_from_it_and_nothing_else() {
        let name = "connections_of_a_process_are_taken_from_it_and_nothing_else";
        alone(&format!("{HERE}{name}"), || {
            check_with(|| {
                let pid = libc::pid_t::try_from(std::process::id()).unwrap();
                disconnect_all(pid, &mut HashSet::new())
            });
        });
    }

    #[test]
    fn an_attempt_to_connect_ends_either_way() {
        let name = "an_attempt_to_connect_ends_either_way";
        alone(&format!("{HERE}{name}"), || {
            ip("link add one type veth peer name two");
            ip("link set one up");
            ip("link set two up");
            ip("addr add 10.42.0.5/24 dev one");
            ip("neigh add 10.42.0.9 lladdr 02:00:00:00:00:09 dev one nud permanent");
            let pid = libc::pid_t::try_from(std::process::id()).unwrap();
            let attempt = || {
                let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
                let socket = socket::open(libc::AF_INET, kind, 0).unwrap();
                // SAFETY: sockaddr_in is plain data; zero is a value of it.
                let mut nobody: libc::sockaddr_in = unsafe { std::mem::zeroed() };
                nobody.sin_family = socket::family(libc::AF_INET);
                nobody.sin_port = 7;
                nobody.sin_addr.s_addr = u32::from_ne_bytes([10, 42, 0, 9]);
                let begun = socket::connect(&socket, &nobody).unwrap_err();
                assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
                socket
            };
            let state = |socket: &OwnedFd| {
                let mut state = [0];
                socket::option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state).unwrap();
                state[0]
            };
            let (first, second) = (attempt(), attempt());
            assert_eq!(state(&first), SYN_SENT);

            disconnect_all(pid, &mut HashSet::new()).unwrap();

            assert_eq!((state(&first), state(&second)), (CLOSE, CLOSE));
            let third = attempt();
            if destroy_all().is_ok() {
                assert_eq!(state(&third), CLOSE);
            }
        });
    }

    #[test]
    fn what_waits_for_a_connection_is_woken() {
        let name = "what_waits_for_a_connection_is_woken";
        alone(&format!("{HERE}{name}"), || {
            ip("link set lo up");
            ip("addr add 10.42.0.5/24 dev lo");
            let Connected { mut near, far, .. } = connected("10.42.0.5");
            near.set_read_timeout(None).unwrap();
            let waits = std::thread::spawn(move || near.read(&mut [0]));

            // Whether it waits already or not: it must not wait on.
            let pid = libc::pid_t::try_from(std::process::id()).unwrap();
            disconnect_all(pid, &mut HashSet::new()).unwrap();

            assert!(!matches!(waits.join().unwrap(), Ok(1..)));
            drop(far);
        });
    }
}
