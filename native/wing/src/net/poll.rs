//! Who waits for what: the epoll, and what its numbers mean.

use std::{io, os::fd::RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    ControlListener,
    Controller,
    Dhcp,
    Ra,
    DnsUdp,
    DnsTcp,
    DnsClient,
    DnsUpstream,
    TcpListener,
    UdpListener,
    RelayClient,
    RelayTarget,
    UdpFlow,
}

const KINDS: [Kind; 13] = [
    Kind::ControlListener,
    Kind::Controller,
    Kind::Dhcp,
    Kind::Ra,
    Kind::DnsUdp,
    Kind::DnsTcp,
    Kind::DnsClient,
    Kind::DnsUpstream,
    Kind::TcpListener,
    Kind::UdpListener,
    Kind::RelayClient,
    Kind::RelayTarget,
    Kind::UdpFlow,
];

/// The bits of a token that hold the number; those above hold the kind.
const NUMBER_BITS: u32 = 56;

/// A kind and a number that is never used twice for it: an event of something that has just gone finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub number: u64,
}

impl Token {
    fn encode(self) -> u64 {
        u64::from(self.kind as u8) << NUMBER_BITS | self.number
    }

    fn decode(data: u64) -> Option<Self> {
        let kind = usize::try_from(data >> NUMBER_BITS).ok()?;
        Some(Self {
            kind: *KINDS.get(kind)?,
            number: data & ((1 << NUMBER_BITS) - 1),
        })
    }
}

#[derive(Debug)]
pub struct Poll(Epoll);

impl Poll {
    pub fn new() -> io::Result<Self> {
        Epoll::new().map(Self)
    }

    pub fn add(&self, fd: RawFd, kind: Kind, number: u64, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, kind, number, events)
    }

    /// Changes what is waited for. A descriptor that is open stays known to the epoll, so this does not fail.
    pub fn change(&self, fd: RawFd, kind: Kind, number: u64, events: EventSet) {
        let _ = self.control(ControlOperation::Modify, fd, kind, number, events);
    }

    /// Takes out a descriptor that another process may hold too; closing ours alone would not.
    pub fn remove(&self, fd: RawFd) {
        let _ = self
            .0
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Waits, and puts what happened into `found`.
    pub fn wait(&self, timeout_ms: i32, found: &mut Vec<(Token, EventSet)>) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 64];
        found.clear();
        let there = match self.0.wait(timeout_ms, &mut events) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        found.extend(events[..there].iter().filter_map(|event| {
            let set = EventSet::from_bits_truncate(event.events());
            Some((Token::decode(event.data())?, set))
        }));
        Ok(())
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        kind: Kind,
        number: u64,
        events: EventSet,
    ) -> io::Result<()> {
        let token = Token { kind, number };
        self.0
            .ctl(operation, fd, EpollEvent::new(events, token.encode()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_was() {
        for kind in KINDS {
            let token = Token { kind, number: 77 };
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
