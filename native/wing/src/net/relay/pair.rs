//! A client of the host and the guest's side of it: two sockets, and what was read from one and not yet written to the other.
//!
//! INVARIANTS: a side is waited for by edges, so `is_readable` and `is_writable` are lowered only by the kernel's "later",
//! and `pump` goes on until nothing can move; what it leaves for fairness is said (`has_more`) and comes again without an
//! event. A side is read only when all that was read from it has been written: a reader that is slow holds its writer up,
//! and at most one buffer is held for each direction.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Instant,
};

use vmm_sys_util::epoll::EventSet;

use crate::net::{
    poll::{Kind, Poll},
    sys,
};

/// What one direction moves before others have their turn.
const TURN_BYTES: usize = 256 * 1024;

#[derive(Debug)]
struct End {
    fd: OwnedFd,
    is_readable: bool,
    is_writable: bool,
    /// It said that nothing more comes.
    has_ended: bool,
    /// It was told that nothing more comes.
    was_told: bool,
    /// What came from it and waits for the other side, from `at` on.
    held: Vec<u8>,
    at: usize,
}

#[derive(Debug)]
pub struct Pair {
    pub listener: u64,
    client: End,
    target: End,
    pub is_connected: bool,
    /// When a target that has not answered counts as one that does not.
    pub deadline: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Target,
}

/// What became of a pair, and how many bytes went to the target and to the client.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub to_target: u64,
    pub to_client: u64,
    pub has_more: bool,
    /// Both sides have said all.
    pub is_done: bool,
}

impl End {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            is_readable: false,
            is_writable: false,
            has_ended: false,
            was_told: false,
            held: Vec::new(),
            at: 0,
        }
    }
}

impl Pair {
    pub fn new(
        listener: u64,
        client: OwnedFd,
        target: OwnedFd,
        deadline: Instant,
        number: u64,
        poll: &Poll,
    ) -> io::Result<Self> {
        let edges =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        for (fd, kind) in [(&client, Kind::RelayClient), (&target, Kind::RelayTarget)] {
            // Bytes go on as they come: small answers are not held back for larger ones.
            sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1i32)?;
            sys::set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1i32)?;
            poll.add(fd.as_raw_fd(), kind, number, edges)?;
        }
        Ok(Self {
            listener,
            client: End::new(client),
            target: End::new(target),
            is_connected: false,
            deadline,
        })
    }

    /// Notes what the kernel says of one side.
    ///
    /// # Errors
    /// When the side is gone, or the target is not there.
    pub fn on_event(&mut self, side: Side, events: EventSet) -> io::Result<()> {
        let end = match side {
            Side::Client => &mut self.client,
            Side::Target => &mut self.target,
        };
        if events.contains(EventSet::ERROR) {
            sys::error_of(&end.fd)?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let is_gone = events.contains(EventSet::HANG_UP);
        end.is_readable |= is_gone || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        end.is_writable |= is_gone || events.contains(EventSet::OUT);
        if side == Side::Target && !self.is_connected && end.is_writable {
            sys::error_of(&end.fd)?;
            self.is_connected = true;
        }
        // A client that has left nobody needs to be dialled for.
        if side == Side::Client && is_gone && !self.is_connected {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }

    /// Moves what can be moved.
    ///
    /// # Errors
    /// When a side is gone.
    pub fn pump(&mut self, scratch: &mut [u8]) -> io::Result<Moved> {
        if !self.is_connected {
            return Ok(Moved::default());
        }
        let (to_target, more_of_client) = carry(&mut self.client, &mut self.target, scratch)?;
        let (to_client, more_of_target) = carry(&mut self.target, &mut self.client, scratch)?;
        Ok(Moved {
            to_target,
            to_client,
            has_more: more_of_client || more_of_target,
            is_done: self.client.was_told && self.target.was_told,
        })
    }

    /// Ends both sides by RST.
    pub fn reset(self) {
        sys::reset(self.client.fd);
        sys::reset(self.target.fd);
    }
}

/// Moves bytes one way; gives how many, and whether there is more to be moved at once.
fn carry(from: &mut End, to: &mut End, scratch: &mut [u8]) -> io::Result<(u64, bool)> {
    let mut moved = 0usize;
    loop {
        while from.at < from.held.len() && to.is_writable {
            match sys::send(&to.fd, &from.held[from.at..]) {
                Ok(sent) => {
                    from.at += sent;
                    moved += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.is_writable = false,
                Err(error) if sys::is_later(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if from.at < from.held.len() {
            break;
        }
        if !from.held.is_empty() {
            from.held = Vec::new();
            from.at = 0;
        }
        if from.has_ended {
            if !to.was_told {
                sys::end_writing(&to.fd);
                to.was_told = true;
            }
            break;
        }
        if !from.is_readable {
            break;
        }
        if moved >= TURN_BYTES {
            return Ok((moved as u64, true));
        }
        let len = match sys::recv(&from.fd, scratch) {
            Ok(0) => {
                from.has_ended = true;
                continue;
            }
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                from.is_readable = false;
                break;
            }
            Err(error) if sys::is_later(&error) => continue,
            Err(error) => return Err(error),
        };
        let mut sent = 0;
        if to.is_writable {
            match sys::send(&to.fd, &scratch[..len]) {
                Ok(now) => sent = now,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.is_writable = false,
                Err(error) if sys::is_later(&error) => {}
                Err(error) => return Err(error),
            }
        }
        moved += sent;
        if sent < len {
            from.held = scratch[sent..len].to_vec();
            from.at = 0;
        }
    }
    Ok((moved as u64, false))
}
