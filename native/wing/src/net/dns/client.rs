//! A guest that asks by TCP (RFC 7766): questions and answers each behind their length, several at a time.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use vmm_sys_util::epoll::EventSet;

use super::question::QUESTION_BYTES_MAX;
use crate::net::{
    poll::{Kind, Poll},
    sys,
};

/// How long a client may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection that wait for answers; the next is not read before.
const WAITING_MAX: u32 = 16;
/// Answers that a client may leave unread; its questions are not read before.
const UNREAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one read: a client needs no more to say what it may.
const READ_BYTES: usize = 4096;

#[derive(Debug)]
pub struct Client {
    fd: OwnedFd,
    pub address: SocketAddr,
    input: Vec<u8>,
    out: Vec<u8>,
    waiting: u32,
    /// It says nothing more; what it asked is answered first.
    is_ended: bool,
    last: Instant,
}

impl Client {
    pub fn new(
        fd: OwnedFd,
        address: SocketAddr,
        number: u64,
        poll: &Poll,
        now: Instant,
    ) -> io::Result<Self> {
        poll.add(fd.as_raw_fd(), Kind::DnsClient, number, EventSet::IN)?;
        Ok(Self {
            fd,
            address,
            input: Vec::new(),
            out: Vec::new(),
            waiting: 0,
            is_ended: false,
            last: now,
        })
    }

    /// Reads and writes what can be.
    ///
    /// # Errors
    /// When the connection is at its end.
    pub fn on_event(
        &mut self,
        events: EventSet,
        scratch: &mut [u8],
        now: Instant,
    ) -> io::Result<()> {
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.flush()?;
        if !events.contains(EventSet::IN) || self.is_ended {
            return Ok(());
        }
        match sys::recv(&self.fd, &mut scratch[..READ_BYTES]) {
            Ok(0) => self.is_ended = true,
            Ok(len) => {
                self.last = now;
                self.input.extend_from_slice(&scratch[..len]);
            }
            Err(error) if sys::is_later(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The next question that may be answered now.
    ///
    /// # Errors
    /// For a length that no question has.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.waiting >= WAITING_MAX || self.out.len() > UNREAD_BYTES_MAX {
            return Ok(None);
        }
        let Some(head) = self.input.first_chunk::<2>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*head));
        if length == 0 || length > QUESTION_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(question) = self.input.get(2..2 + length).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.input.drain(..2 + length);
        self.waiting += 1;
        Ok(Some(question))
    }

    /// Gives one answer, or none for what has no answer.
    ///
    /// # Errors
    /// When the connection is at its end.
    pub fn answer(&mut self, answer: &[u8], now: Instant) -> io::Result<()> {
        self.waiting = self.waiting.saturating_sub(1);
        self.last = now;
        if let Ok(length) = u16::try_from(answer.len())
            && length > 0
        {
            self.out.extend_from_slice(&length.to_be_bytes());
            self.out.extend_from_slice(answer);
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match sys::send(&self.fd, &self.out) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(error) if sys::is_later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for what is wanted next; whether there is anything.
    pub fn rearm(&self, number: u64, poll: &Poll) -> bool {
        let mut wanted = EventSet::empty();
        let is_full = self.waiting >= WAITING_MAX
            || self.out.len() > UNREAD_BYTES_MAX
            || self.input.len() > QUESTION_BYTES_MAX + READ_BYTES;
        if !self.is_ended && !is_full {
            wanted |= EventSet::IN;
        }
        if !self.out.is_empty() {
            wanted |= EventSet::OUT;
        }
        poll.change(self.fd.as_raw_fd(), Kind::DnsClient, number, wanted);
        self.waiting > 0 || !wanted.is_empty()
    }

    pub fn is_idle(&self, now: Instant) -> bool {
        self.waiting == 0 && now.saturating_duration_since(self.last) > IDLE
    }
}
