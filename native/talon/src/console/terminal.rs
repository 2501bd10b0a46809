//! Who looks at a console and types: one client of a Unix socket, bytes both ways (Cloud Hypervisor's mode `Socket`).
//!
//! A new client takes the place of the one before. The guest never waits for a client: what one does not read waits here,
//! bounded, and then the oldest of it is lost to that client. The client waits for the guest: what is typed stays in the
//! socket until the guest has room.
//!
//! Everything that becomes ready is behind one descriptor, [`Terminal::poll_fd`], which the loop watches.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use crate::reactor::{READ, Reactor, Token, WRITE};

/// Bytes that wait for a slow client at most.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// Bytes that are kept of what a client typed before it went.
const LEFT_BYTES_MAX: usize = 4 << 10;

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    interest: u32,
    /// It has closed its side for writing, and may read on.
    silent: bool,
}

/// Clients taken in one turn; more wait in the socket's queue.
const ACCEPTS_MAX: usize = 16;

#[derive(Debug, Default)]
struct Inner {
    client: Option<Client>,
    /// Tells events of a client from those of the one before.
    number: u32,
    waiting: VecDeque<u8>,
    /// What a client that has gone had typed last.
    left: VecDeque<u8>,
    lost: u64,
}

/// The socket and its client.
#[derive(Debug)]
pub struct Terminal {
    reactor: Reactor,
    listener: UnixListener,
    /// Rung by whoever has something to show, or room again.
    bell: EventFd,
    /// The guest has no room for what is typed.
    full: AtomicBool,
    inner: Mutex<Inner>,
}

impl Inner {
    /// Watches for what can be done something about, and nothing else.
    fn watch(&mut self, reactor: &Reactor, full: bool) {
        let waits = !self.waiting.is_empty();
        let Some(client) = &mut self.client else {
            return;
        };
        let reads = if client.silent || full { 0 } else { READ };
        let wanted = reads | if waits { WRITE } else { 0 };
        if wanted != client.interest {
            client.interest = wanted;
            let token = Token::Connection(self.number);
            let _ = reactor.change(client.stream.as_raw_fd(), wanted, token);
        }
    }

    fn hang_up(&mut self, reactor: &Reactor) {
        if let Some(client) = self.client.take() {
            reactor.remove(client.stream.as_raw_fd());
        }
        self.waiting.clear();
    }

    /// The client has gone: what it had typed is kept, for it may have come to type a command and no more.
    fn part(&mut self, reactor: &Reactor) {
        if let Some(client) = self.client.as_mut().filter(|client| !client.silent) {
            let mut part = [0; LEFT_BYTES_MAX];
            let count = client.stream.read(&mut part).unwrap_or(0);
            self.left.extend(&part[..count]);
            self.left.truncate(LEFT_BYTES_MAX);
        }
        self.hang_up(reactor);
    }

    /// Shows what the client takes now.
    fn flush(&mut self, reactor: &Reactor) {
        while let (Some(client), (part, _)) = (&mut self.client, self.waiting.as_slices()) {
            if part.is_empty() {
                return;
            }
            match client.stream.write(part) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.hang_up(reactor),
            }
        }
    }
}

impl Terminal {
    /// On a listening socket.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let reactor = Reactor::new()?;
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        reactor.add(listener.as_raw_fd(), READ, Token::Listener)?;
        reactor.add(bell.as_raw_fd(), READ, Token::Stops)?;
        Ok(Self {
            reactor,
            listener,
            bell,
            full: AtomicBool::new(false),
            inner: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when [`Terminal::serve`] has something to do, or there is something to [`Terminal::take`].
    #[must_use]
    pub fn poll_fd(&self) -> RawFd {
        self.reactor.as_raw_fd()
    }

    /// Shows bytes to the client, if there is one. Never waits, and costs a processor's thread one call at most.
    pub fn put(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        if inner.client.is_none() {
            return;
        }
        let first = inner.waiting.is_empty();
        inner.waiting.extend(bytes);
        let over = inner.waiting.len().saturating_sub(WAITING_BYTES_MAX);
        inner.waiting.drain(..over);
        inner.lost += over as u64;
        if first {
            let _ = self.bell.write(1);
        }
    }

    /// Takes what was typed. Without room the client is not listened to before
    /// [`Terminal::room_again`] or the next call with room.
    pub fn take(&self, room: &mut [u8]) -> usize {
        self.full.store(room.is_empty(), Ordering::Relaxed);
        let mut inner = self.lock();
        let mut count = room.len().min(inner.left.len());
        for (place, byte) in room.iter_mut().zip(inner.left.drain(..count)) {
            *place = byte;
        }
        if let Some(client) = inner.client.as_mut().filter(|client| !client.silent)
            && count < room.len()
        {
            match client.stream.read(&mut room[count..]) {
                Ok(0) => client.silent = true,
                Ok(taken) => count += taken,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => inner.hang_up(&self.reactor),
            }
        }
        inner.watch(&self.reactor, room.is_empty());
        count
    }

    /// The guest has made room for what is typed.
    pub fn room_again(&self) {
        if self.full.swap(false, Ordering::Relaxed) {
            let _ = self.bell.write(1);
        }
    }

    /// Lets clients come and go, and shows what waits.
    pub fn serve(&self) {
        let mut ready = Vec::new();
        let _ = self.reactor.wait(Some(Instant::now()), &mut ready);
        let mut inner = self.lock();
        let mut came = false;
        for (token, events) in ready {
            match token {
                Token::Listener => came = true,
                Token::Connection(number) if number == inner.number && events & GONE != 0 => {
                    inner.part(&self.reactor);
                }
                Token::Stops => drop(self.bell.read()),
                _ => {}
            }
        }
        if came {
            self.accept(&mut inner);
        }
        inner.flush(&self.reactor);
        inner.watch(&self.reactor, self.full.load(Ordering::Relaxed));
    }

    /// The newest of those who came is the client.
    fn accept(&self, inner: &mut Inner) {
        for _ in 0..ACCEPTS_MAX {
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            inner.hang_up(&self.reactor);
            inner.number = inner.number.wrapping_add(1);
            let token = Token::Connection(inner.number);
            if self.reactor.add(stream.as_raw_fd(), READ, token).is_ok() {
                inner.client = Some(Client {
                    stream,
                    interest: READ,
                    silent: false,
                });
            }
        }
    }

    /// Bytes that clients have not seen because they were slow.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }
}

/// Told whether asked for or not.
const GONE: u32 = (libc::EPOLLERR | libc::EPOLLHUP).cast_unsigned();

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    struct Rig {
        terminal: Terminal,
        address: SocketAddr,
    }

    fn rig(name: &str) -> Rig {
        let name = format!("talon-terminal-{}-{name}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        Rig {
            terminal: Terminal::new(listener).unwrap(),
            address,
        }
    }

    impl Rig {
        fn connect(&self) -> UnixStream {
            let client = UnixStream::connect_addr(&self.address).unwrap();
            self.terminal.serve();
            client
        }

        /// Whether the loop would be woken.
        fn is_ready(&self) -> bool {
            let mut poll = libc::pollfd {
                fd: self.terminal.poll_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one descriptor, and no wait.
            unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
        }

        fn take(&self, room: usize) -> Vec<u8> {
            let mut bytes = vec![0; room];
            let count = self.terminal.take(&mut bytes);
            bytes.truncate(count);
            bytes
        }
    }

    fn read(client: &mut UnixStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        client.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn bytes_go_both_ways() {
        let rig = rig("both");
        let mut client = rig.connect();

        rig.terminal.put(b"login: ");
        rig.terminal.serve();
        client.write_all(b"root\n").unwrap();

        assert_eq!(read(&mut client, 7), b"login: ");
        assert!(rig.is_ready());
        assert_eq!(rig.take(64), b"root\n");
        assert!(!rig.is_ready());
    }

    #[test]
    fn without_a_client_nothing_waits() {
        let rig = rig("nobody");

        rig.terminal.put(b"to nobody");

        assert!(!rig.is_ready());
        let mut client = rig.connect();
        rig.terminal.put(b"x");
        rig.terminal.serve();
        assert_eq!(read(&mut client, 1), b"x");
    }

    #[test]
    fn a_client_that_does_not_read_loses_the_oldest_and_holds_nobody_up() {
        let rig = rig("slow");
        let mut client = rig.connect();
        let total = 4 << 20;

        for byte in 0..total / 1024 {
            rig.terminal.put(&[u8::try_from(byte % 251).unwrap(); 1024]);
            rig.terminal.serve();
        }

        assert!(rig.terminal.lock().waiting.len() <= WAITING_BYTES_MAX);
        let lost = rig.terminal.lost();
        assert!(lost > 0);
        // Full, it wakes nobody before its client reads.
        assert!(!rig.is_ready());
        let kept = total - usize::try_from(lost).unwrap();
        let reader = std::thread::spawn(move || read(&mut client, kept));
        while !rig.terminal.lock().waiting.is_empty() {
            rig.terminal.serve();
        }
        let seen = reader.join().unwrap();
        assert_eq!(
            seen.last().copied(),
            u8::try_from((total / 1024 - 1) % 251).ok()
        );
    }

    #[test]
    fn what_is_typed_waits_for_room() {
        let rig = rig("room");
        let mut client = rig.connect();
        client.write_all(b"abcdef").unwrap();

        assert_eq!(rig.take(2), b"ab");
        assert_eq!(rig.take(0), b"");
        assert!(!rig.is_ready(), "a full guest wakes nobody");
        rig.terminal.room_again();
        assert!(rig.is_ready());
        rig.terminal.serve();

        assert!(rig.is_ready());
        assert_eq!(rig.take(64), b"cdef");
    }

    #[test]
    fn the_newest_client_takes_the_place() {
        let rig = rig("newest");
        let mut first = rig.connect();
        let mut second = rig.connect();

        rig.terminal.put(b"for the second");
        rig.terminal.serve();

        assert_eq!(first.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(read(&mut second, 14), b"for the second");
    }

    #[test]
    fn a_client_that_only_stopped_typing_reads_on() {
        let rig = rig("half");
        let mut client = rig.connect();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(rig.take(64), b"");
        assert!(!rig.is_ready());

        rig.terminal.put(b"still here");
        rig.terminal.serve();

        assert_eq!(read(&mut client, 10), b"still here");
    }

    #[test]
    fn a_client_that_types_and_goes_has_typed() {
        let rig = rig("typed");
        let mut client = rig.connect();
        client.write_all(b"poweroff\n").unwrap();
        drop(client);

        rig.terminal.serve();

        assert_eq!(rig.take(4), b"powe");
        assert_eq!(rig.take(64), b"roff\n");
        assert!(!rig.is_ready());
    }

    #[test]
    fn a_client_that_goes_is_forgotten() {
        let rig = rig("gone");
        let client = rig.connect();
        rig.terminal.put(&[0; 1024]);
        drop(client);

        rig.terminal.serve();
        rig.terminal.serve();

        assert!(rig.terminal.lock().client.is_none());
        assert!(!rig.is_ready());
    }
}
