//! The `CONNECT <port>\n` line of a host that opens a connection (Firecracker, docs/vsock.md).

use std::{io, os::fd::RawFd};

use crate::socket;

/// `CONNECT 4294967295\r\n` is 20 bytes; more than this without a newline is no line.
const LINE_BYTES_MAX: usize = 32;

/// What is there of the line. What follows it stays in the socket: it is data, and the credit is not known yet.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    line: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The line is not complete, and no more is there.
    Wait,
    /// The whole line, with the guest's port.
    Port(u32),
    /// What came is no line of the dialect, or the stream ended.
    Refused,
}

impl Handshake {
    /// Reads on until the line ends.
    pub fn read(&mut self, fd: RawFd) -> Progress {
        loop {
            let mut peeked = [0; LINE_BYTES_MAX];
            let room = LINE_BYTES_MAX - self.line.len();
            let there = match socket::receive_bytes(fd, &mut peeked[..room], libc::MSG_PEEK) {
                Ok(0) => return Progress::Refused,
                Ok(there) => there,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Wait,
                Err(_) => return Progress::Refused,
            };
            let end = peeked[..there].iter().position(|byte| *byte == b'\n');
            let take = end.map_or(there, |newline| newline + 1);
            match socket::receive_bytes(fd, &mut peeked[..take], 0) {
                Ok(taken) if taken == take => self.line.extend_from_slice(&peeked[..take]),
                _ => return Progress::Refused,
            }
            if end.is_some() {
                return parse(&self.line).map_or(Progress::Refused, Progress::Port);
            }
            if self.line.len() == LINE_BYTES_MAX {
                return Progress::Refused;
            }
        }
    }
}

/// The port of a line with its newline; Firecracker takes any case of the word and a `\r`, so both pass here.
fn parse(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line)
        .ok()?
        .trim_end_matches(['\r', '\n']);
    let (word, port) = text.split_once(' ')?;
    if !word.eq_ignore_ascii_case("connect") || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // 4294967295 is VMADDR_PORT_ANY: nobody listens on it.
    port.parse().ok().filter(|port| *port != u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::{fd::AsRawFd, unix::net::UnixStream},
    };

    use super::*;

    fn heard(parts: &[&[u8]]) -> (Progress, UnixStream, UnixStream) {
        let (mut host, ours) = UnixStream::pair().unwrap();
        let mut handshake = Handshake::default();
        let mut progress = Progress::Wait;
        for part in parts {
            host.write_all(part).unwrap();
            progress = handshake.read(ours.as_raw_fd());
        }
        (progress, host, ours)
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        assert_eq!(
            heard(&[b"CON", b"NECT 10", b"24\n"]).0,
            Progress::Port(1024)
        );
        assert_eq!(heard(&[b"connect 7\r\n"]).0, Progress::Port(7));
        assert_eq!(heard(&[b"CONNECT 7"]).0, Progress::Wait);
    }

    #[test]
    fn what_follows_the_line_stays_in_the_socket() {
        let (progress, _host, ours) = heard(&[b"CONNECT 7\nhello"]);
        let mut rest = [0; 16];

        let len = socket::receive_bytes(ours.as_raw_fd(), &mut rest, 0).unwrap();

        assert_eq!(progress, Progress::Port(7));
        assert_eq!(&rest[..len], b"hello");
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "CONNECT x\n",
            "CONNECT +7\n",
            "CONNECT -1\n",
            "CONNECT 7 8\n",
            "CONNECT  7\n",
            "CONNECT 4294967295\n",
            "CONNECT 4294967296\n",
            "GET / HTTP/1.1\r\n",
            "CONNECT 00000000000000000000000000000000007\n",
        ] {
            assert_eq!(heard(&[line.as_bytes()]).0, Progress::Refused, "{line:?}");
        }
        assert_eq!(heard(&[b"\xff\xfe\n"]).0, Progress::Refused);
        assert_eq!(heard(&[&[b'x'; LINE_BYTES_MAX]]).0, Progress::Refused);
    }
}
