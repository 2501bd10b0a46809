//! Connections of the control socket: a few, bounded in memory, never blocking. Descriptors that come with a request
//! (`SCM_RIGHTS`) stay with it and are closed with it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use super::http::{self, BODY_BYTES_MAX, HEAD_BYTES_MAX, Parsed, Request, Response};
use crate::reactor::{READ, Reactor, Token, WRITE};

/// Connections at a time; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 16;
/// Descriptors with one request.
const FDS_MAX: usize = 64;

/// A request and what came with it.
#[derive(Debug)]
pub struct Incoming {
    /// Whose it is.
    pub connection: u32,
    /// The request.
    pub request: Request,
    /// Its descriptors, in order.
    pub fds: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    /// A request is being answered; the next one waits.
    busy: bool,
    close_after: bool,
    continued: bool,
    /// Until when an answer may wait for an event, and after which event.
    waits: Option<(Instant, u64)>,
}

/// The control socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    connections: BTreeMap<u32, Connection>,
    next: u32,
}

impl Server {
    /// Serves `listener`.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn new(listener: UnixListener, reactor: &Reactor) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        reactor.add(listener.as_raw_fd(), READ, Token::Listener)?;
        Ok(Self {
            listener,
            connections: BTreeMap::new(),
            next: 0,
        })
    }

    /// Takes new connections.
    pub fn accept(&mut self, reactor: &Reactor) {
        while self.connections.len() < CONNECTIONS_MAX {
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            self.next = self.next.wrapping_add(1);
            let token = Token::Connection(self.next);
            if stream.set_nonblocking(true).is_err()
                || reactor.add(stream.as_raw_fd(), READ, token).is_err()
            {
                continue;
            }
            let connection = Connection {
                stream,
                input: Vec::new(),
                fds: Vec::new(),
                output: Vec::new(),
                busy: false,
                close_after: false,
                continued: false,
                waits: None,
            };
            self.connections.insert(self.next, connection);
        }
        // Level-triggered: without this a full table would spin on the connections that wait.
        let _ = reactor.change(self.listener.as_raw_fd(), 0, Token::Listener);
    }

    fn close(&mut self, number: u32, reactor: &Reactor) {
        if let Some(connection) = self.connections.remove(&number) {
            reactor.remove(connection.stream.as_raw_fd());
            let _ = reactor.change(self.listener.as_raw_fd(), READ, Token::Listener);
        }
    }

    /// A connection is ready. Returns the request that is now whole.
    pub fn ready(&mut self, number: u32, events: u32, reactor: &Reactor) -> Option<Incoming> {
        let connection = self.connections.get_mut(&number)?;
        let mut alive = true;
        if events & WRITE != 0 {
            alive = connection.send(number, reactor);
        }
        if alive && events & !WRITE != 0 {
            alive = connection.receive();
        }
        if !alive {
            self.close(number, reactor);
            return None;
        }
        self.next_request(number, reactor)
    }

    fn next_request(&mut self, number: u32, reactor: &Reactor) -> Option<Incoming> {
        let connection = self.connections.get_mut(&number)?;
        if connection.busy || connection.close_after {
            return None;
        }
        match http::parse(&connection.input) {
            Ok(Parsed::Partial(expects)) => {
                if expects && !connection.continued {
                    connection.continued = true;
                    connection
                        .output
                        .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    if !connection.send(number, reactor) {
                        self.close(number, reactor);
                    }
                }
                None
            }
            Ok(Parsed::Whole(request, taken)) => {
                connection.input.drain(..taken);
                connection.busy = true;
                connection.continued = false;
                connection.close_after = !request.keep_alive;
                let fds = std::mem::take(&mut connection.fds);
                Some(Incoming {
                    connection: number,
                    request,
                    fds,
                })
            }
            Err(error) => {
                connection.close_after = true;
                let answer = Response::fault(
                    error.status(),
                    "request_malformed",
                    &error.to_string(),
                    &[],
                    None,
                );
                connection.output.extend_from_slice(&answer.encode(false));
                if !connection.send(number, reactor) {
                    self.close(number, reactor);
                }
                None
            }
        }
    }

    /// Answers a request. Returns the next one, when it was already there.
    pub fn answer(
        &mut self,
        number: u32,
        response: &Response,
        reactor: &Reactor,
    ) -> Option<Incoming> {
        let connection = self.connections.get_mut(&number)?;
        connection.busy = false;
        connection.waits = None;
        connection
            .output
            .extend_from_slice(&response.encode(!connection.close_after));
        if !connection.send(number, reactor) {
            self.close(number, reactor);
            return None;
        }
        self.next_request(number, reactor)
    }

    /// Whether the connection is there still.
    #[must_use]
    pub fn is_open(&self, number: u32) -> bool {
        self.connections.contains_key(&number)
    }

    /// The request waits for an event newer than `after`, until `deadline`.
    pub fn wait(&mut self, number: u32, after: u64, deadline: Instant) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.waits = Some((deadline, after));
        }
    }

    /// Requests that wait no longer: there is an event newer than they know, or their time is over.
    #[must_use]
    pub fn due(&self, last: u64, now: Instant) -> Vec<(u32, u64)> {
        let due = |(number, connection): (&u32, &Connection)| {
            let (deadline, after) = connection.waits?;
            (after < last || deadline <= now).then_some((*number, after))
        };
        self.connections.iter().filter_map(due).collect()
    }

    /// The earliest time at which a waiting request is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.connections
            .values()
            .filter_map(|connection| connection.waits.map(|(at, _)| at))
            .min()
    }

    /// Sends what is left before the process ends; a client that does not read loses it.
    pub fn finish(&mut self) {
        for connection in self.connections.values_mut() {
            let _ = connection.stream.write_all(&connection.output);
        }
    }
}

impl Connection {
    /// Sends what it can. False when the connection is over.
    fn send(&mut self, number: u32, reactor: &Reactor) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        let waiting = !self.output.is_empty();
        let events = if waiting { WRITE } else { READ };
        let _ = reactor.change(self.stream.as_raw_fd(), events, Token::Connection(number));
        waiting || !self.close_after || self.busy
    }

    /// Reads what is there. False when the connection is over.
    fn receive(&mut self) -> bool {
        let mut part = [0; 16 << 10];
        loop {
            if self.input.len() > HEAD_BYTES_MAX + BODY_BYTES_MAX {
                return false;
            }
            match receive_with_fds(&self.stream, &mut part, &mut self.fds) {
                Ok(0) => return false,
                Ok(count) => self.input.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            if self.fds.len() > FDS_MAX {
                return false;
            }
        }
    }
}

const CONTROL_WORDS: usize = 64;
// The width of this field differs between C libraries; a literal has any.
const CONTROL_WORDS_BYTES: ControlLength = 512;
#[cfg(target_env = "musl")]
type ControlLength = libc::socklen_t;
#[cfg(not(target_env = "musl"))]
type ControlLength = usize;
const _: () = assert!(CONTROL_WORDS * 8 == 512);

#[cfg(target_env = "musl")]
const fn control_bytes(length: ControlLength) -> usize {
    length as usize
}
#[cfg(not(target_env = "musl"))]
const fn control_bytes(length: ControlLength) -> usize {
    length
}

/// `recvmsg` with room for descriptors, which are close-on-exec from their first moment.
fn receive_with_fds(
    stream: &UnixStream,
    part: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut vector = libc::iovec {
        iov_base: part.as_mut_ptr().cast(),
        iov_len: part.len(),
    };
    let mut control = [MaybeUninit::<u64>::uninit(); CONTROL_WORDS];
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_WORDS_BYTES;
    // SAFETY: the message points to buffers that live through the call.
    let count =
        unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the macros walk the control buffer that recvmsg has filled, within msg_controllen.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a whole header inside the buffer.
        let found = unsafe { &*header };
        if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: arithmetic on a constant.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            let number =
                control_bytes(found.cmsg_len).saturating_sub(overhead) / size_of::<RawFd>();
            // SAFETY: the data of an SCM_RIGHTS message is `number` descriptors.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for index in 0..number {
                // SAFETY: inside the message's data; each descriptor is new and ours alone.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) });
            }
        }
        // SAFETY: as for the first header.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(count)
}
