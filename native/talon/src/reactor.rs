//! The one wait of the main thread: an epoll instance. Nothing in it wakes up by itself when nothing happens.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The API's listening socket.
    Listener,
    /// An API connection.
    Connection(u32),
    /// A doorbell of the device in this slot.
    Kick(u8),
    /// A source of the device in this slot.
    Source(u8),
    /// A processor or worker has something to say.
    Stops,
    /// The serial port's client.
    Serial,
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, value) = match self {
            Self::Listener => (0, 0),
            Self::Connection(number) => (1, number),
            Self::Kick(slot) => (2, u32::from(slot)),
            Self::Source(slot) => (3, u32::from(slot)),
            Self::Stops => (4, 0),
            Self::Serial => (5, 0),
        };
        u64::from(value) << 8 | kind
    }

    fn unpack(raw: u64) -> Self {
        let value = crate::bytes::low(raw >> 8);
        let slot = u8::try_from(value & 0xff).unwrap_or(0);
        match raw & 0xff {
            0 => Self::Listener,
            1 => Self::Connection(value),
            2 => Self::Kick(slot),
            3 => Self::Source(slot),
            4 => Self::Stops,
            _ => Self::Serial,
        }
    }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Reactor {
    epoll: OwnedFd,
}

/// Readable, until read.
pub const READ: u32 = libc::EPOLLIN as u32;
/// Writable, until full.
pub const WRITE: u32 = libc::EPOLLOUT as u32;
/// Told once for each change.
pub const EDGE: u32 = libc::EPOLLET.cast_unsigned();

impl Reactor {
    /// An empty one.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes a flag; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { epoll })
    }

    fn control(&self, operation: i32, fd: RawFd, events: u32, token: Token) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events,
            u64: token.pack(),
        };
        // SAFETY: `event` lives through the call.
        if unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Readable when something that it watches is ready.
    #[must_use]
    pub fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Watches `fd`.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn add(&self, fd: RawFd, events: u32, token: Token) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    /// Watches `fd` for something else.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn change(&self, fd: RawFd, events: u32, token: Token) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    /// Watches `fd` no longer. One that was not watched is fine.
    pub fn remove(&self, fd: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, Token::Stops);
    }

    /// Waits for something or for `deadline`.
    ///
    /// # Errors
    /// When the wait itself fails.
    pub fn wait(&self, deadline: Option<Instant>, ready: &mut Vec<(Token, u32)>) -> io::Result<()> {
        const EVENTS: i32 = 32;
        ready.clear();
        let timeout = deadline.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now());
            // Rounded up: waking a fraction of a millisecond early would spin.
            let left = left
                .saturating_add(Duration::from_nanos(999_999))
                .as_millis();
            i32::try_from(left).unwrap_or(i32::MAX)
        });
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS.unsigned_abs() as usize];
        // SAFETY: the buffer holds as many events as are asked for.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS, timeout)
        };
        match usize::try_from(count) {
            Ok(count) => {
                ready.extend(
                    events[..count]
                        .iter()
                        .map(|event| (Token::unpack(event.u64), event.events)),
                );
                Ok(())
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Listener,
            Token::Connection(70_000),
            Token::Kick(31),
            Token::Source(9),
            Token::Stops,
            Token::Serial,
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
