//! proxy: bytes between the host and a server inside the guest, each direction ended by itself.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use aerie_protocol::message::{Empty, ErrorBody, Proxy, code};
use aerie_protocol::{Frame, kind_byte};

use crate::sys::{NO_FD, check, is_ready, own, poll, poll_entry, set_nonblocking, write_now};
use crate::talk::conn::{CHUNK_BYTES, Conn, ConnError, frame_name};

/// Time for which a connection waits for its turn. A server on the loopback answers at once, or its queue is full.
const CONNECT: Duration = Duration::from_secs(30);

/// Time after which a full queue is tried anew. Linux would send a SYN that was dropped again after 1, 3, 7 and 15
/// seconds, so that some of a burst would wait for ever longer while others pass them.
const AGAIN: Duration = Duration::from_millis(250);

/// `AF_UNIX` in the width of the field.
const UNIX_FAMILY: libc::sa_family_t = 1;
const _: () = assert!(libc::AF_UNIX == 1);
/// `sizeof(struct sockaddr_un)`.
const UNIX_ADDRESS_BYTES: libc::socklen_t = 110;
const _: () = assert!(size_of::<libc::sockaddr_un>() == 110);

/// Bytes of the host's data that wait for the server before the host is no longer read.
const WAITING_BYTES: usize = 64 * 1024;

/// Serves a proxy conversation whose `open` had this body.
pub fn serve(mut conn: Conn, body: &Proxy) {
    let server = match connect(&conn, body, Instant::now() + CONNECT) {
        Ok(server) => server,
        Err(Broken::Server(error)) => {
            let body = ErrorBody::new(error_code(&error), format!("cannot connect: {error}"));
            return conn.fail(&body);
        }
        Err(Broken::Host(error)) => return conn.end(Err(error)),
    };
    let done = conn
        .output
        .queue_json(kind_byte::OK, &Empty {})
        .map_err(Broken::Host)
        .and_then(|()| carry(&mut conn, server));
    match done {
        Err(Broken::Server(error)) => {
            conn.fail(&ErrorBody::new(code::CONNECTION_LOST, error.to_string()));
        }
        Err(Broken::Host(error)) => conn.end(Err(error)),
        Ok(()) => conn.finish(),
    }
}

fn error_code(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => code::CONNECTION_REFUSED,
        io::ErrorKind::PermissionDenied => code::PERMISSION_DENIED,
        _ => code::CONNECTION_LOST,
    }
}

/// Connects, and waits for a place in the server's queue as long as the host does, until `deadline` at most.
fn connect(conn: &Conn, target: &Proxy, deadline: Instant) -> Result<OwnedFd, Broken> {
    loop {
        let full = match attempt(target) {
            Ok(server) => {
                set_nonblocking(server.as_fd(), true).map_err(Broken::Server)?;
                return Ok(server);
            }
            Err(error) if is_full(&error) => error,
            Err(error) => return Err(Broken::Server(error)),
        };
        if Instant::now() >= deadline {
            return Err(Broken::Server(full));
        }
        // An attempt over TCP has waited already; one to a Unix socket waits here.
        let pause = match target {
            Proxy::Unix { .. } => AGAIN,
            Proxy::Port { .. } => Duration::ZERO,
        };
        let mut host = [poll_entry(conn.fd(), libc::POLLRDHUP)];
        poll(&mut host, Some(Instant::now() + pause)).map_err(ConnError::Io)?;
        if is_ready(&host[0]) {
            return Err(Broken::Host(ConnError::Gone));
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

fn attempt(target: &Proxy) -> io::Result<OwnedFd> {
    match target {
        Proxy::Unix { unix } => connect_unix(Path::new(unix)),
        Proxy::Port { port } => {
            let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, *port));
            let stream = TcpStream::connect_timeout(&v4, AGAIN).or_else(|refused| {
                // The first answer is the one to show: a guest without IPv6 would say something misleading. A full
                // queue of the second one is worth waiting for, too.
                TcpStream::connect_timeout(&v6, AGAIN)
                    .map_err(|error| if is_full(&error) { error } else { refused })
            })?;
            // Small answers must not wait for each other: nobody but us knows what the bytes mean.
            let _ = stream.set_nodelay(true);
            Ok(stream.into())
        }
    }
}

/// Connects to the socket at `path` without waiting: where its queue is full that is `WouldBlock`.
fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: sockaddr_un is plain integers; zero is a value of it.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = UNIX_FAMILY;
    // One byte stays the NUL that ends it.
    if bytes.len() >= address.sun_path.len() || bytes.is_empty() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket touches no memory of ours.
    let fd = own(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: a valid sockaddr_un and its size.
    check(unsafe {
        libc::connect(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            UNIX_ADDRESS_BYTES,
        )
    })?;
    Ok(fd)
}

#[derive(Debug)]
enum Broken {
    Host(ConnError),
    Server(io::Error),
}

impl From<ConnError> for Broken {
    fn from(error: ConnError) -> Self {
        Self::Host(error)
    }
}

fn carry(conn: &mut Conn, server: OwnedFd) -> Result<(), Broken> {
    let mut waiting: Vec<u8> = Vec::new();
    let (mut host_ended, mut shut, mut server_ended) = (false, false, false);
    loop {
        if host_ended && waiting.is_empty() && !shut {
            shut = true;
            // SAFETY: shutdown touches no memory. A server that is gone already needs none.
            unsafe { libc::shutdown(server.as_raw_fd(), libc::SHUT_WR) };
        }
        conn.flush_now()?;
        if shut && server_ended && conn.output.is_flushed() {
            return Ok(());
        }
        let read_host = waiting.len() < WAITING_BYTES;
        let read_server = !server_ended && conn.output.is_flushed();
        let write_server = !waiting.is_empty();
        let mut wanted = 0;
        if read_server {
            wanted |= libc::POLLIN;
        }
        if write_server {
            wanted |= libc::POLLOUT;
        }
        let target = if wanted == 0 {
            NO_FD
        } else {
            server.as_raw_fd()
        };
        let mut entries = [conn.interest(read_host), poll_entry(target, wanted)];
        poll(&mut entries, None).map_err(ConnError::Io)?;
        let [host, there] = entries;
        if read_host && host.revents & !libc::POLLOUT != 0 || host.revents & libc::POLLHUP != 0 {
            conn.fill()?;
            host_ended |= take_frames(conn, &mut waiting, host_ended)?;
        }
        if write_server
            && is_ready(&there)
            && let Some(count) = write_now(server.as_fd(), &waiting).map_err(Broken::Server)?
        {
            waiting.drain(..count);
        }
        if read_server && is_ready(&there) {
            let read = conn
                .output
                .queue_read(kind_byte::STDOUT, server.as_fd(), CHUNK_BYTES)
                .map_err(Broken::Server)?;
            if read == Some(0) {
                server_ended = true;
                conn.output.queue(&Frame::Eof)?;
            }
        }
    }
}

/// Takes data; `true` when the host said its end.
fn take_frames(conn: &mut Conn, waiting: &mut Vec<u8>, ended: bool) -> Result<bool, ConnError> {
    let mut ended = ended;
    while let Some(frame) = conn.decoder.next_frame()? {
        match frame {
            Frame::Stdin(bytes) if !ended => waiting.extend_from_slice(bytes),
            Frame::Eof if !ended => ended = true,
            other => return Err(ConnError::Unexpected(frame_name(&other))),
        }
    }
    conn.decoder.shrink();
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::test_folder::TestFolder;

    fn open(target: Proxy) -> Conn {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || serve(Conn::new(ours.into()).unwrap(), &target));
        Conn::new(theirs.into()).unwrap()
    }

    /// Reads to `eof` or `error`, whose code it returns.
    fn rest(host: &mut Conn) -> (Vec<u8>, Option<String>) {
        let mut all = Vec::new();
        loop {
            let part = host
                .receive(None, |frame| {
                    Ok(match frame {
                        Frame::Stdout(bytes) => Ok(bytes.to_vec()),
                        Frame::Ok(_) => Ok(vec![]),
                        Frame::Eof => Err(None),
                        Frame::Error(body) => {
                            let body: ErrorBody = serde_json::from_slice(body).unwrap();
                            Err(Some(body.code))
                        }
                        other => panic!("{other:?}"),
                    })
                })
                .unwrap();
            match part {
                Ok(bytes) => all.extend(bytes),
                Err(code) => return (all, code),
            }
        }
    }

    #[test]
    fn a_server_that_answers_after_the_end_of_the_request_is_heard() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            stream.read_to_end(&mut request).unwrap();
            let answer = request.repeat(3);
            stream.write_all(&answer).unwrap();
            request.len()
        });
        let mut host = open(Proxy::Port { port });
        let sent = vec![42; 300_000];

        for part in sent.chunks(50_000) {
            host.output.queue(&Frame::Stdin(part)).unwrap();
        }
        host.output.queue(&Frame::Eof).unwrap();
        host.flush(None).unwrap();
        let (answer, error) = rest(&mut host);

        assert_eq!((answer.len(), error), (900_000, None));
        assert_eq!(server.join().unwrap(), 300_000);
    }

    #[test]
    fn a_server_that_ends_first_still_gets_the_rest_of_the_request() {
        let folder = TestFolder::new();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"bye").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            rest
        });
        let unix = path.to_str().unwrap().to_owned();
        let mut host = open(Proxy::Unix { unix });

        assert_eq!(rest(&mut host), (b"bye".to_vec(), None));
        host.output.queue(&Frame::Stdin(b"late")).unwrap();
        host.output.queue(&Frame::Eof).unwrap();
        host.flush(None).unwrap();

        assert_eq!(server.join().unwrap(), b"late");
    }

    /// Makes the listener's queue hold no more than one or two that wait.
    fn shorten(listener: &impl AsRawFd) {
        // SAFETY: listen touches no memory of ours.
        check(unsafe { libc::listen(listener.as_raw_fd(), 0) }).unwrap();
    }

    /// Answers `clients` connections one after the other, the first when all of them have been made. Each says a word
    /// first: what a queue had no room for may be known to its client alone (tcp(7), `tcp_syncookies`), and only what
    /// that sends brings it back.
    fn answers<S: Read + Write>(accept: impl Fn() -> io::Result<S>, clients: Vec<Conn>) {
        let count = clients.len();
        let hosts: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                client.output.queue(&Frame::Stdin(b"hello")).unwrap();
                client.flush(None).unwrap();
                std::thread::spawn(move || rest(&mut client))
            })
            .collect();
        // Of those that found the queue full at once, every one is in its turn now.
        std::thread::sleep(AGAIN * 2);
        let last = Instant::now() + CONNECT * 2;
        let mut served = 0;
        while served < count {
            match accept() {
                Ok(mut stream) => {
                    stream.read_exact(&mut [0; 5]).unwrap();
                    stream.write_all(b"served").unwrap();
                    served += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(Instant::now() < last, "{served} of {count} came");
                    std::thread::sleep(AGAIN / 10);
                }
                Err(error) => panic!("{error}"),
            }
        }
        for host in hosts {
            assert_eq!(host.join().unwrap(), (b"served".to_vec(), None));
        }
    }

    #[test]
    fn a_burst_that_a_tcp_queue_cannot_hold_waits_for_its_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        shorten(&listener);
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let clients = (0..20).map(|_| open(Proxy::Port { port })).collect();

        let started = Instant::now();
        answers(|| listener.accept().map(|(stream, _)| stream), clients);

        assert!(started.elapsed() < CONNECT);
    }

    #[test]
    fn a_burst_that_a_unix_queue_cannot_hold_waits_for_its_turn() {
        let folder = TestFolder::new();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        shorten(&listener);
        listener.set_nonblocking(true).unwrap();
        let unix = path.to_str().unwrap();
        let clients = (0..20)
            .map(|_| open(Proxy::Unix { unix: unix.into() }))
            .collect();

        answers(|| listener.accept().map(|(stream, _)| stream), clients);
    }

    #[test]
    fn who_waits_in_a_queue_goes_when_its_host_goes_and_when_its_time_is_over() {
        let folder = TestFolder::new();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        shorten(&listener);
        let unix = path.to_str().unwrap().to_owned();
        let _full = UnixStream::connect(&path).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let conn = Conn::new(ours.into()).unwrap();
        let target = Proxy::Unix { unix };

        let late = connect(&conn, &target, Instant::now());
        assert!(matches!(late, Err(Broken::Server(error)) if is_full(&error)));
        drop(theirs);
        let gone = connect(&conn, &target, Instant::now() + CONNECT);
        assert!(matches!(gone, Err(Broken::Host(ConnError::Gone))));
    }

    #[test]
    fn nobody_there_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);

        let refused = Some(code::CONNECTION_REFUSED.to_owned());
        assert_eq!(rest(&mut open(Proxy::Port { port })).1, refused);
        let unix = "/no-such-place/socket".to_owned();
        assert_eq!(rest(&mut open(Proxy::Unix { unix })).1, refused);
    }
}
