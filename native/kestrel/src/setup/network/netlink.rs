//! As much netlink (netlink(7), rtnetlink(7)) as a guest's cards need: messages, an answer for each, lists.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::setup::network::socket;
use crate::sys::check;

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
/// The kernel gives a list in parts of at most 32 KiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The kernel answers at once; nothing of a guest's may hang PID 1.
const ANSWER_SECONDS_MAX: u8 = 5;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Make what is not there.
pub const CREATE: u16 = 0x400;
/// Put it in the place of what is there.
pub const REPLACE: u16 = 0x100;

/// A message in the making: its kind, the fixed part of that kind, then attributes.
#[derive(Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// Begins a message; `fixed` is the structure that its kind begins with.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend(fixed);
        pad(&mut bytes);
        Self(bytes)
    }

    /// Adds an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = ATTRIBUTE_BYTES + value.len();
        // Attributes of ours are a few bytes long.
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        pad(&mut self.0);
        self
    }

    /// Adds an attribute where there is a value for it.
    pub fn with_some(self, kind: u16, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => self.with(kind, value),
            None => self,
        }
    }

    fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let old = self.0.get(6..8).and_then(|bytes| bytes.try_into().ok());
        let flags = flags | u16::from_ne_bytes(old.unwrap_or_default());
        for (at, bytes) in [
            (0, &length.to_ne_bytes()[..]),
            (6, &flags.to_ne_bytes()[..]),
            (8, &sequence.to_ne_bytes()[..]),
        ] {
            for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        }
        self.0
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A socket of one netlink protocol.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket of `protocol`; `groups` is a mask of what it hears unasked.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open(protocol: libc::c_int, groups: u32) -> io::Result<Self> {
        let socket = socket::open(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        let limit = libc::timeval {
            tv_sec: ANSWER_SECONDS_MAX.into(),
            tv_usec: 0,
        };
        socket::set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit)?;
        // SAFETY: sockaddr_nl is plain data; zero is a value of it.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = socket::family(libc::AF_NETLINK);
        address.nl_groups = groups;
        socket::bind(&socket, &address)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The socket, for poll.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn change(&mut self, message: Message) -> io::Result<()> {
        self.send(message, NLM_F_ACK)?;
        self.answers(|_, _| {})
    }

    /// Asks for a list; `each` gets the kind of every message and what is behind its header.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn list(&mut self, message: Message, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.send(message, NLM_F_DUMP)?;
        self.answers(each)
    }

    fn send(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(flags, self.sequence);
        // SAFETY: `bytes` is valid for reads of its length.
        check(unsafe { libc::send(self.fd(), bytes.as_ptr().cast(), bytes.len(), 0) })?;
        Ok(())
    }

    /// Reads until the kernel has said that the last message is done.
    fn answers(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let count = self.receive(&mut buffer, 0)?;
            for (kind, sequence, body) in messages(buffer.get(..count).unwrap_or_default()) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = body
                            .first_chunk()
                            .map_or(0, |code| i32::from_ne_bytes(*code));
                        return match code {
                            0.. => Ok(()),
                            _ => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    kind => each(kind, body),
                }
            }
        }
    }

    /// Reads one datagram of messages.
    ///
    /// # Errors
    /// The kernel's refusal; a wait that is too long.
    pub fn receive(&self, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
        socket::receive(&self.socket, buffer, flags)
    }
}

/// The messages of a datagram: kind, sequence number and what is behind the header.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// The attributes behind the fixed part of a message: kind and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(ATTRIBUTE_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_header_a_fixed_part_and_padded_attributes() {
        let message = Message::new(16, CREATE, &[1, 2, 3, 4])
            .with(3, b"eth0\0")
            .with_some(4, None);

        let bytes = message.finish(NLM_F_ACK, 7);

        let read: Vec<_> = messages(&bytes).collect();
        let [(16, 7, body)] = read[..] else {
            panic!("{read:?}")
        };
        assert_eq!(bytes.len(), 16 + 4 + 12);
        assert_eq!(
            &bytes[6..8],
            (CREATE | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes()
        );
        assert_eq!(
            attributes(&body[4..]).collect::<Vec<_>>(),
            [(3, &b"eth0\0"[..])]
        );
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        for bytes in [
            &[][..],
            &[4, 0, 0],
            &[0, 0, 0, 0],
            &[3, 0, 1, 0],
            &[255, 255, 1, 0, 1],
        ] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
        }
        let mut header = vec![0; 32];
        header[0] = 33;
        assert_eq!(messages(&header).count(), 0);
    }
}
