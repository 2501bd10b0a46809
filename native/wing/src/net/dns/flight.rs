//! One question on its way to one upstream. An answer has to come from the address that was asked (the socket is connected),
//! to the port that the kernel chose, with the id and the letters of the question as they were sent: all of these are random.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use vmm_sys_util::epoll::EventSet;

use super::question::{HEADER_BYTES, Question, UDP_BYTES_MAX};
use crate::net::{
    poll::{Kind, Poll},
    sys,
};

/// Longest message by TCP.
const MESSAGE_BYTES_MAX: usize = 65_535;
/// Datagrams that are looked at in one turn; those that are no answer are somebody's attempts.
const TURN: usize = 16;
const TRUNCATED: u8 = 0x02;

#[derive(Debug)]
pub struct Flight {
    fd: OwnedFd,
    pub by_tcp: bool,
    /// The question as it was sent.
    sent: Vec<u8>,
    /// What is still to be written by TCP, and what was read.
    out: Vec<u8>,
    input: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    Waiting,
    Answer(Vec<u8>),
    /// The answer is too long for a datagram, or somebody is guessing: TCP says the truth.
    ByTcp,
    Failed,
}

impl Flight {
    /// Sends a question, or begins to.
    pub fn start(
        question: &Question,
        upstream: &SocketAddr,
        by_tcp: bool,
        number: u64,
        poll: &Poll,
    ) -> io::Result<Self> {
        let kind = if by_tcp {
            libc::SOCK_STREAM
        } else {
            libc::SOCK_DGRAM
        };
        let fd = sys::socket(upstream, kind)?;
        sys::connect(&fd, upstream)?;
        let sent = message(question);
        let mut out = Vec::new();
        let mut events = EventSet::IN;
        if by_tcp {
            events |= EventSet::OUT;
            // A question is at most a name and a few numbers.
            out.extend_from_slice(&u16::try_from(sent.len()).unwrap_or(0).to_be_bytes());
            out.extend_from_slice(&sent);
        } else {
            sys::send(&fd, &sent)?;
        }
        poll.add(fd.as_raw_fd(), Kind::DnsUpstream, number, events)?;
        Ok(Self {
            fd,
            by_tcp,
            sent,
            out,
            input: Vec::new(),
        })
    }

    pub fn on_event(&mut self, number: u64, poll: &Poll, scratch: &mut [u8]) -> Progress {
        if self.by_tcp {
            self.on_stream(number, poll, scratch)
        } else {
            self.on_datagrams(scratch)
        }
    }

    fn on_datagrams(&mut self, scratch: &mut [u8]) -> Progress {
        for _ in 0..TURN {
            let bytes = match sys::recv(&self.fd, scratch) {
                Ok(len) => &scratch[..len],
                Err(error) if sys::is_later(&error) => return Progress::Waiting,
                Err(_) => return Progress::Failed,
            };
            match self.matches(bytes) {
                Match::Exact if bytes[2] & TRUNCATED != 0 => return Progress::ByTcp,
                Match::Exact => return Progress::Answer(bytes.to_vec()),
                // A server that does not keep the letters, or a guess.
                Match::OtherLetters => return Progress::ByTcp,
                Match::None => {}
            }
        }
        Progress::Waiting
    }

    fn on_stream(&mut self, number: u64, poll: &Poll, scratch: &mut [u8]) -> Progress {
        while !self.out.is_empty() {
            match sys::send(&self.fd, &self.out) {
                Ok(sent) => {
                    self.out.drain(..sent);
                    if self.out.is_empty() {
                        let fd = self.fd.as_raw_fd();
                        poll.change(fd, Kind::DnsUpstream, number, EventSet::IN);
                    }
                }
                Err(error) if sys::is_later(&error) => break,
                Err(_) => return Progress::Failed,
            }
        }
        match sys::recv(&self.fd, scratch) {
            Ok(0) => return Progress::Failed,
            Ok(len) => self.input.extend_from_slice(&scratch[..len]),
            Err(error) if sys::is_later(&error) || error.kind() == io::ErrorKind::NotConnected => {
                return Progress::Waiting;
            }
            Err(_) => return Progress::Failed,
        }
        let Some(head) = self.input.first_chunk::<2>() else {
            return Progress::Waiting;
        };
        let length = usize::from(u16::from_be_bytes(*head));
        match self.input.get(2..2 + length) {
            Some(bytes) if self.matches(bytes) != Match::None => Progress::Answer(bytes.to_vec()),
            Some(_) => Progress::Failed,
            None if self.input.len() > 2 + MESSAGE_BYTES_MAX => Progress::Failed,
            None => Progress::Waiting,
        }
    }

    fn matches(&self, answer: &[u8]) -> Match {
        matches(&self.sent, answer)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Match {
    None,
    OtherLetters,
    Exact,
}

/// Whether bytes are the answer to a question of ours: its id, one question, and the same one.
fn matches(sent: &[u8], answer: &[u8]) -> Match {
    let Some(question) = sent
        .get(HEADER_BYTES..)
        .and_then(|rest| rest.get(..question_length(rest)?))
    else {
        return Match::None;
    };
    let echoed = answer.get(HEADER_BYTES..HEADER_BYTES + question.len());
    let is_answer = answer.len() >= HEADER_BYTES
        && answer[..2] == sent[..2]
        && answer[2] & 0xf8 == 0x80
        && answer[4..6] == [0, 1];
    match echoed {
        Some(echoed) if is_answer && echoed == question => Match::Exact,
        Some(echoed) if is_answer && echoed.eq_ignore_ascii_case(question) => Match::OtherLetters,
        _ => Match::None,
    }
}

/// Bytes of a name that is not compressed, a type and a class.
fn question_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at + 4);
        }
    }
}

/// The question as it goes out: of what the client sent nothing but the question itself, a few flags and whether it speaks
/// EDNS, since an answer with it is passed on as it is.
fn message(question: &Question) -> Vec<u8> {
    let mut random = [0; 64];
    sys::random(&mut random);
    let mut bytes = vec![random[0], random[1]];
    let mut flags = [0x01, 0];
    if question.authentic_data {
        flags[1] |= 0x20;
    }
    if question.checking_disabled {
        flags[1] |= 0x10;
    }
    bytes.extend_from_slice(&flags);
    bytes.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(question.edns.is_some())]);
    for (at, byte) in question.wire.iter().enumerate() {
        // A name has at most 255 bytes: a bit for each. Lengths of labels are below 64 and no letters.
        let bit = random[2 + at / 8 % 62] >> (at % 8) & 1;
        let is_flipped = bit == 1 && byte.is_ascii_alphabetic();
        bytes.push(byte ^ if is_flipped { 0x20 } else { 0 });
    }
    bytes.extend_from_slice(&u16::from(question.kind()).to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    if let Some(dnssec) = question.edns {
        let [high, low] = UDP_BYTES_MAX.to_be_bytes();
        let flag = if dnssec { 0x80 } else { 0 };
        bytes.extend_from_slice(&[0, 0, 41, high, low, 0, 0, flag, 0, 0, 0]);
    }
    bytes
}

/// Makes an upstream's answer one to the client's question: its id and its letters.
pub fn for_client(question: &Question, mut answer: Vec<u8>) -> Vec<u8> {
    let end = HEADER_BYTES + question.wire.len();
    if answer.len() < end {
        return question.plain(hickory_proto::op::ResponseCode::ServFail);
    }
    if answer.len() > question.limit {
        return question.truncated();
    }
    answer[..2].copy_from_slice(&question.id.to_be_bytes());
    answer[HEADER_BYTES..end].copy_from_slice(&question.wire);
    answer
}

/// The code of an answer that matched.
pub fn code_of(answer: &[u8]) -> u8 {
    answer.get(3).map_or(2, |flags| flags & 0xf)
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Message,
        rr::{Name, RecordType},
    };

    use super::*;
    use crate::net::dns::question::tests::question;

    fn asked() -> Question {
        question("a.rather-long-name.example.com.", RecordType::A, Some(4096))
    }

    #[test]
    fn what_goes_out_is_the_question_with_other_letters_and_another_id() {
        let question = asked();
        let sent: Vec<_> = (0..8).map(|_| message(&question)).collect();

        for bytes in &sent {
            let read = Message::from_vec(bytes).unwrap();
            assert_eq!(read.queries, std::slice::from_ref(&question.query));
            assert!(read.metadata.recursion_desired);
            assert_eq!(read.edns.map(|edns| edns.max_payload()), Some(1232));
        }
        let names: std::collections::HashSet<_> = sent.iter().map(|bytes| &bytes[12..44]).collect();
        let ids: std::collections::HashSet<_> = sent.iter().map(|bytes| &bytes[..2]).collect();
        assert!(names.len() > 4 && ids.len() > 4);
    }

    #[test]
    fn only_the_answer_to_that_question_is_one() {
        let sent = message(&asked());
        let mut answer = sent.clone();
        answer[2] |= 0x80;
        assert_eq!(matches(&sent, &answer), Match::Exact);
        let changed = |at: usize, by: u8| {
            let mut bytes = answer.clone();
            bytes[at] ^= by;
            matches(&sent, &bytes)
        };
        assert_eq!(changed(13, 0x20), Match::OtherLetters);
        for (what, at, by) in [
            ("another id", 0, 1),
            ("a question", 2, 0x80),
            ("another operation", 2, 0x08),
            ("no question", 5, 1),
            ("another name", 13, 1),
        ] {
            assert_eq!(changed(at, by), Match::None, "{what}");
        }
        for end in 0..sent.len() - 11 {
            assert_eq!(matches(&sent, &answer[..end]), Match::None, "{end}");
        }
    }

    #[test]
    fn an_answer_is_given_on_with_the_clients_own_id_and_letters() {
        let question = question("MiXed.example.com.", RecordType::A, None);
        let mut answer = message(&question);
        answer[2] |= 0x80;

        let read = Message::from_vec(&for_client(&question, answer.clone())).unwrap();

        assert_eq!(read.metadata.id, 0x1234);
        let name = Name::from_ascii("MiXed.example.com.").unwrap();
        assert!(read.queries[0].name().eq_case(&name));
        answer.resize(600, 0);
        let read = Message::from_vec(&for_client(&question, answer)).unwrap();
        assert!(read.metadata.truncation);
    }
}
