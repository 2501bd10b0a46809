//! One question as a guest asks it, and the answers that can be made of it.

use std::sync::LazyLock;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{SOA, opt::EdnsOption},
    },
};

/// Length of the header (RFC 1035, 4.1.1).
pub const HEADER_BYTES: usize = 12;
/// What a client without EDNS takes by UDP.
const UDP_BYTES: u16 = 512;
/// What we send by UDP at most: it fits every link without fragments.
pub const UDP_BYTES_MAX: u16 = 1232;
/// Longest question: a name, a few numbers, and what EDNS may carry beside them.
pub const QUESTION_BYTES_MAX: usize = 4096;
/// Time for which a guest may keep what we say of our own names, in seconds.
pub const OWN_TTL: u32 = 5;
/// Extended errors (RFC 8914): why a name is not there.
const EDE: u16 = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The client's rule does not have the name.
    Blocked = 15,
    /// The answer has addresses that it must not have.
    Filtered = 17,
}

/// What a packet is.
#[derive(Debug)]
pub enum Asked {
    Question(Box<Question>),
    /// Nothing that can be answered but by this code.
    Wrong(Vec<u8>),
    /// Nothing at all; to answer it could begin a game of ping-pong.
    Nothing,
}

#[derive(Clone, Debug)]
pub struct Question {
    pub id: u16,
    pub query: Query,
    /// The name in small letters, without the dot at its end; the root is empty.
    pub name: String,
    /// The name as the client's packet has it.
    pub wire: Vec<u8>,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    pub authentic_data: bool,
    /// Whether the client speaks EDNS, and then whether it wants signatures.
    pub edns: Option<bool>,
    /// Longest answer.
    pub limit: usize,
}

impl Question {
    pub fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// An empty answer.
    pub fn reply(&self, code: ResponseCode) -> Message {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.queries.push(self.query.clone());
        if let Some(dnssec) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX).set_version(0);
            edns.set_dnssec_ok(dnssec);
            message.edns = Some(edns);
        }
        message
    }

    /// An answer of ours.
    pub fn own_reply(&self, code: ResponseCode) -> Message {
        let mut message = self.reply(code);
        message.metadata.authoritative = true;
        message
    }

    /// Says in a reply why there is nothing in it, where the client can read it.
    pub fn explain(message: &mut Message, reason: Reason) {
        if let Some(edns) = message.edns.as_mut() {
            let code = (reason as u16).to_be_bytes().to_vec();
            edns.options_mut().insert(EdnsOption::Unknown(EDE, code));
        }
    }

    /// The bytes of a reply: truncated where they are too many for the client.
    pub fn encode(&self, message: &Message) -> Vec<u8> {
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= self.limit => bytes,
            Ok(_) => self.truncated(),
            Err(_) => self.plain(ResponseCode::ServFail),
        }
    }

    /// An empty answer that sends a client to TCP.
    pub fn truncated(&self) -> Vec<u8> {
        let mut message = self.reply(ResponseCode::NoError);
        message.metadata.truncation = true;
        message.to_vec().unwrap_or_default()
    }

    /// A code and nothing more.
    pub fn plain(&self, code: ResponseCode) -> Vec<u8> {
        self.reply(code).to_vec().unwrap_or_default()
    }
}

/// Reads a packet. `limit` is what the way back carries, where that is not for the client to say.
pub fn read(packet: &[u8], limit: Option<usize>) -> Asked {
    let Some(header) = packet.first_chunk::<HEADER_BYTES>() else {
        return Asked::Nothing;
    };
    let is_answer = header[2] & 0x80 != 0;
    if is_answer || packet.len() > QUESTION_BYTES_MAX {
        return Asked::Nothing;
    }
    let wrong = |code: u8| {
        let mut bytes = header.to_vec();
        // QR, and of the client's flags the operation and RD.
        bytes[2] = 0x80 | header[2] & 0x79;
        bytes[3] = code;
        bytes[4..].fill(0);
        Asked::Wrong(bytes)
    };
    if header[2] >> 3 & 0xf != 0 {
        return wrong(4);
    }
    let Ok(message) = Message::from_vec(packet) else {
        return wrong(1);
    };
    let [query] = message.queries.as_slice() else {
        return wrong(1);
    };
    if query.query_class() != DNSClass::IN {
        return wrong(5);
    }
    // The first name of a packet cannot be compressed: there is nothing before it to point to.
    let wire_end = HEADER_BYTES + wire_length(query.name());
    let Some(wire) = packet.get(HEADER_BYTES..wire_end) else {
        return wrong(1);
    };
    let size = message.edns.as_ref().map_or(UDP_BYTES, Edns::max_payload);
    let by_udp = usize::from(size.clamp(UDP_BYTES, UDP_BYTES_MAX));
    Asked::Question(Box::new(Question {
        id: message.metadata.id,
        query: query.clone(),
        name: plain_name(query.name()),
        wire: wire.to_vec(),
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        authentic_data: message.metadata.authentic_data,
        edns: message.edns.as_ref().map(|edns| edns.flags().dnssec_ok),
        limit: limit.unwrap_or(by_udp),
    }))
}

/// Small letters, no dot at the end. Bytes that are no text of a host's name are escaped, and so are never a name of ours.
pub fn plain_name(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// Bytes of a name that is not compressed.
fn wire_length(name: &Name) -> usize {
    name.iter().map(|label| label.len() + 1).sum::<usize>() + 1
}

/// What a guest may keep of "there is no such name": as little as of what there is.
pub fn soa(zone: &Name) -> Record {
    static ROOT: LazyLock<Name> = LazyLock::new(Name::root);
    let seconds = 60;
    let data = SOA::new(
        zone.clone(),
        ROOT.clone(),
        1,
        seconds,
        seconds,
        seconds,
        OWN_TTL,
    );
    Record::from_rdata(zone.clone(), OWN_TTL, RData::SOA(data))
}

#[cfg(test)]
pub mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// A packet that asks.
    pub fn packet(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message
            .queries
            .push(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(size) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            message.edns = Some(edns);
        }
        message.to_vec().unwrap()
    }

    pub fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Question {
        match read(&packet(name, kind, edns), None) {
            Asked::Question(question) => *question,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let asked = question("WeB.Default.aerie.", RecordType::AAAA, Some(4096));

        assert_eq!(asked.name, "web.default.aerie");
        assert_eq!(asked.wire, b"\x03WeB\x07Default\x05aerie\0");
        assert_eq!((asked.id, asked.kind()), (0x1234, RecordType::AAAA));
        assert_eq!((asked.edns, asked.limit), (Some(false), 1232));
        assert_eq!(question("x.", RecordType::A, None).limit, 512);
        assert_eq!(question("x.", RecordType::A, Some(0)).limit, 512);
        assert_eq!(question(".", RecordType::NS, None).name, "");
    }

    #[test]
    fn what_is_no_question_has_a_code_or_nothing() {
        let good = packet("web.", RecordType::A, None);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        for (what, bytes, code) in [
            ("an inverse query", with(2, 0x08), 4),
            ("an update", with(2, 0x28), 4),
            ("no question", with(5, 0), 1),
            ("two questions", with(5, 2), 1),
            ("a question that is cut", good[..good.len() - 1].to_vec(), 1),
            (
                "a name that points to itself",
                [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(),
                1,
            ),
            ("the class CHAOS", with(good.len() - 1, 3), 5),
        ] {
            match read(&bytes, None) {
                Asked::Wrong(answer) => {
                    assert_eq!(answer.len(), HEADER_BYTES, "{what}");
                    assert_eq!(&answer[..2], &good[..2], "{what}");
                    assert_eq!((answer[2] & 0x80, answer[3] & 0xf), (0x80, code), "{what}");
                }
                other => panic!("{what}: {other:?}"),
            }
        }
        assert!(matches!(read(&with(2, 0x81), None), Asked::Nothing));
        assert!(matches!(read(&good[..11], None), Asked::Nothing));
        assert!(matches!(read(&[], None), Asked::Nothing));
        let mut long = good.clone();
        long.resize(QUESTION_BYTES_MAX + 1, 0);
        assert!(matches!(read(&long, None), Asked::Nothing));
    }

    #[test]
    fn a_reply_that_does_not_fit_is_truncated() {
        let asked = question("web.", RecordType::A, None);
        let mut reply = asked.own_reply(ResponseCode::NoError);
        for last in 0..60 {
            let address = RData::A(Ipv4Addr::new(10, 42, 0, last).into());
            reply.add_answer(Record::from_rdata(asked.query.name().clone(), 5, address));
        }

        let bytes = asked.encode(&reply);

        assert!(bytes.len() <= 512);
        let read = Message::from_vec(&bytes).unwrap();
        assert!(read.metadata.truncation && read.answers.is_empty());
        let by_tcp = Question {
            limit: 65535,
            ..asked
        };
        assert_eq!(
            Message::from_vec(&by_tcp.encode(&reply))
                .unwrap()
                .answers
                .len(),
            60
        );
    }

    #[test]
    fn no_mutation_of_a_packet_harms() {
        let good = packet(
            "a.very.long-name.of.some.kind.default.aerie.",
            RecordType::A,
            Some(1400),
        );
        for at in 0..good.len() {
            let _ = read(&good[..at], None);
            for value in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Asked::Question(asked) = read(&bytes, None) {
                    assert!(asked.plain(ResponseCode::ServFail).len() <= asked.limit);
                }
            }
        }
    }
}
