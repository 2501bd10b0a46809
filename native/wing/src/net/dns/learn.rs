//! What an upstream's answer means for a client that may reach named places only: which addresses are to be opened before
//! it hears of them, and which answers it never hears.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};

use super::{
    public::is_public,
    question::{Question, Reason, plain_name},
};
use crate::net::state::{Network, State};

/// How long an address that was learned is good, in seconds. Below the first, clients would lose it while they connect.
pub const TTL_MIN: u32 = 30;
pub const TTL_MAX: u32 = 3600;
/// How much longer it should stay open: clients keep names for longer than they may.
pub const GRACE: u32 = 60;

const ALIASES_MAX: usize = 16;
const ADDRESSES_MAX: usize = 64;
/// Answers that are remembered: of one client, so that none pushes out the others', and in all.
const PER_CLIENT_MAX: usize = 128;
const REMEMBERED_MAX: usize = 2048;

#[derive(Debug)]
pub enum Lesson {
    /// To be told, and then answered.
    Learn {
        answer: Message,
        addresses: Vec<IpAddr>,
        ttl: u32,
    },
    /// There is nothing in it to reach.
    Pass(Message),
    Filter(Message),
}

/// Reads an answer as the client's rule has it: only what is on the way from the name that was asked.
pub fn read(network: &Network, question: &Question, bytes: &[u8]) -> Lesson {
    let Ok(answer) = Message::from_vec(bytes) else {
        return Lesson::Pass(question.reply(ResponseCode::ServFail));
    };
    let mut reply = question.reply(answer.metadata.response_code);
    let mut addresses = Vec::new();
    let mut ttl = TTL_MAX;
    let mut name = question.query.name().clone();
    for _ in 0..ALIASES_MAX {
        let own: Vec<_> = answer
            .answers
            .iter()
            .filter(|record| record.name == name)
            .collect();
        let mut next = None;
        for record in own {
            let is_wanted = record.record_type() == question.kind();
            match &record.data {
                RData::A(a) if is_wanted => addresses.push(IpAddr::from(a.0)),
                RData::AAAA(a) if is_wanted => addresses.push(IpAddr::from(a.0)),
                RData::CNAME(alias) => next = Some(alias.0.clone()),
                _ if is_wanted => {}
                _ => continue,
            }
            if addresses.len() > ADDRESSES_MAX {
                addresses.pop();
                break;
            }
            let mut record = record.clone();
            record.ttl = record.ttl.min(TTL_MAX);
            ttl = ttl.min(record.ttl);
            reply.add_answer(record);
        }
        match next {
            Some(next) if next != name => name = next,
            _ => break,
        }
    }
    let is_here = |address: &IpAddr| !is_public(*address) || network.contains(*address);
    if addresses.iter().any(is_here) {
        let mut empty = question.reply(ResponseCode::NoError);
        Question::explain(&mut empty, Reason::Filtered);
        return Lesson::Filter(empty);
    }
    if addresses.is_empty() {
        return Lesson::Pass(reply);
    }
    Lesson::Learn {
        answer: reply,
        addresses,
        ttl: ttl.max(TTL_MIN),
    }
}

type Key = (IpAddr, String, RecordType);

/// Answers that the daemon has committed: what is good while it is away.
#[derive(Debug, Default)]
pub struct Committed {
    answers: HashMap<Key, (Vec<Record>, Instant)>,
}

impl Committed {
    pub fn put(
        &mut self,
        client: IpAddr,
        question: &Question,
        answer: &Message,
        ttl: u32,
        now: Instant,
    ) {
        let key = key(client, question);
        if !self.answers.contains_key(&key) {
            self.make_room(client, now);
        }
        let until = now + Duration::from_secs(ttl.into());
        self.answers.insert(key, (answer.answers.clone(), until));
    }

    /// The answer to a question, with what is left of its time.
    pub fn get(&self, client: IpAddr, question: &Question, now: Instant) -> Option<Message> {
        let (records, until) = self.answers.get(&key(client, question))?;
        let left = until.checked_duration_since(now)?.as_secs();
        let left = u32::try_from(left).ok().filter(|left| *left > 0)?;
        let mut message = question.reply(ResponseCode::NoError);
        for record in records {
            let mut record = record.clone();
            record.ttl = record.ttl.min(left);
            message.add_answer(record);
        }
        Some(message)
    }

    /// Forgets what was committed for addresses whose lease is another now.
    pub fn forget_changed(&mut self, before: &State, after: &State) {
        let clients: HashSet<_> = self.answers.keys().map(|key| key.0).collect();
        let changed: HashSet<_> = clients
            .into_iter()
            .filter(|client| before.lease_of(*client) != after.lease_of(*client))
            .collect();
        self.answers.retain(|key, _| !changed.contains(&key.0));
    }

    pub fn forget(&mut self, client: IpAddr) {
        self.answers.retain(|key, _| key.0 != client);
    }

    fn make_room(&mut self, client: IpAddr, now: Instant) {
        let of_client = |key: &Key| key.0 == client;
        let own = self.answers.keys().filter(|key| of_client(key)).count();
        if own < PER_CLIENT_MAX && self.answers.len() < REMEMBERED_MAX {
            return;
        }
        self.answers.retain(|_, (_, until)| *until > now);
        let only_own = own >= PER_CLIENT_MAX;
        let first = self
            .answers
            .iter()
            .filter(|(key, _)| !only_own || of_client(key))
            .min_by_key(|(_, (_, until))| *until)
            .map(|(key, _)| key.clone());
        let own = self.answers.keys().filter(|key| of_client(key)).count();
        if own >= PER_CLIENT_MAX || self.answers.len() >= REMEMBERED_MAX {
            first.map(|key| self.answers.remove(&key));
        }
    }
}

fn key(client: IpAddr, question: &Question) -> Key {
    let name = plain_name(question.query.name());
    (client.to_canonical(), name, question.kind())
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, rdata::CNAME};

    use super::*;
    use crate::net::{
        dns::question::tests::question,
        state::tests::{example, state},
    };

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, address: &str, ttl: u32) -> Record {
        let data = match address.parse().unwrap() {
            IpAddr::V4(v4) => RData::A(v4.into()),
            IpAddr::V6(v6) => RData::AAAA(v6.into()),
        };
        Record::from_rdata(name(owner), ttl, data)
    }

    fn alias(owner: &str, target: &str, ttl: u32) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn lesson(records: Vec<Record>, kind: RecordType) -> Lesson {
        let state = state(example()).unwrap();
        let question = question("Example.com.", kind, Some(1232));
        let mut answer = question.reply(ResponseCode::NoError);
        answer.add_answers(records);
        read(&state.network, &question, &answer.to_vec().unwrap())
    }

    #[test]
    fn addresses_are_learned_through_aliases_and_nothing_else_is_passed_on() {
        let records = vec![
            a("elsewhere.example.org.", "5.6.7.8", 5),
            alias("example.com.", "cdn.example.net.", 300),
            a("cdn.example.net.", "93.184.216.35", 9000),
            alias("cdn.example.net.", "edge.example.net.", 9000),
            a("edge.example.net.", "93.184.216.34", 90),
            a("edge.example.net.", "2606:4700::1", 5),
        ];

        let Lesson::Learn {
            answer,
            addresses,
            ttl,
        } = lesson(records, RecordType::A)
        else {
            panic!("nothing learned");
        };

        let expected: Vec<IpAddr> = vec![
            "93.184.216.35".parse().unwrap(),
            "93.184.216.34".parse().unwrap(),
        ];
        assert_eq!((addresses, ttl), (expected, 90));
        assert_eq!(answer.answers.len(), 4);
        assert!(answer.answers.iter().all(|record| record.ttl <= TTL_MAX));
    }

    #[test]
    fn a_short_life_is_made_longer_and_a_long_one_shorter() {
        for (given, expected) in [(0, 30), (29, 30), (31, 31), (86400, 3600)] {
            match lesson(vec![a("example.com.", "1.1.1.1", given)], RecordType::A) {
                Lesson::Learn { ttl, .. } => assert_eq!(ttl, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_answer_with_an_address_of_here_is_filtered_whole() {
        for (address, kind) in [
            ("10.0.0.1", RecordType::A),
            ("10.42.0.5", RecordType::A),
            ("127.0.0.1", RecordType::A),
            ("169.254.169.254", RecordType::A),
            ("::1", RecordType::AAAA),
            ("fd00:1::5", RecordType::AAAA),
            ("::ffff:192.168.0.1", RecordType::AAAA),
        ] {
            let public = if kind == RecordType::A {
                "1.1.1.1"
            } else {
                "2606:4700::1"
            };
            let records = vec![
                a("example.com.", public, 60),
                a("example.com.", address, 60),
            ];
            match lesson(records, kind) {
                Lesson::Filter(message) => assert!(message.answers.is_empty()),
                other => panic!("{address}: {other:?}"),
            }
        }
    }

    #[test]
    fn loops_of_aliases_and_answers_without_addresses_end() {
        let round = vec![
            alias("example.com.", "b.example.com.", 60),
            alias("b.example.com.", "example.com.", 60),
        ];
        assert!(matches!(lesson(round, RecordType::A), Lesson::Pass(_)));
        assert!(matches!(
            lesson(
                vec![alias("example.com.", "example.com.", 60)],
                RecordType::A
            ),
            Lesson::Pass(_)
        ));
        assert!(matches!(lesson(vec![], RecordType::A), Lesson::Pass(_)));
        let many = (0..200u8)
            .map(|last| a("example.com.", &format!("1.1.1.{last}"), 60))
            .collect();
        match lesson(many, RecordType::A) {
            Lesson::Learn {
                addresses, answer, ..
            } => assert_eq!((addresses.len(), answer.answers.len()), (64, 64)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_committed_is_good_for_its_client_name_and_time() {
        let mut committed = Committed::default();
        let now = Instant::now();
        let question = question("Example.com.", RecordType::A, None);
        let client: IpAddr = [10, 42, 0, 6].into();
        let mut answer = question.reply(ResponseCode::NoError);
        answer.add_answer(a("example.com.", "1.1.1.1", 3600));
        committed.put(client, &question, &answer, 60, now);

        let later = now + Duration::from_secs(50);
        let found = committed.get(client, &question, later).unwrap();
        assert_eq!(found.answers[0].ttl, 10);
        assert!(
            committed
                .get([10, 42, 0, 5].into(), &question, later)
                .is_none()
        );
        assert!(
            committed
                .get(client, &question, now + Duration::from_secs(60))
                .is_none()
        );
        committed.forget(client);
        assert!(committed.get(client, &question, now).is_none());
    }

    #[test]
    fn one_client_does_not_push_out_anothers() {
        let mut committed = Committed::default();
        let now = Instant::now();
        let answered = question("example.com.", RecordType::A, None);
        let answer = answered.reply(ResponseCode::NoError);
        committed.put([10, 42, 0, 5].into(), &answered, &answer, 60, now);
        for number in 0..500 {
            let other = question(&format!("n{number}.example.com."), RecordType::A, None);
            committed.put([10, 42, 0, 6].into(), &other, &answer, 3600, now);
        }

        assert!(
            committed
                .get([10, 42, 0, 5].into(), &answered, now)
                .is_some()
        );
        assert_eq!(committed.answers.len(), 1 + PER_CLIENT_MAX);
    }

    #[test]
    fn no_mutation_of_an_answer_harms_or_teaches_an_address_of_here() {
        let state = state(example()).unwrap();
        let question = question("example.com.", RecordType::A, Some(1232));
        let mut answer = question.reply(ResponseCode::NoError);
        answer.add_answer(alias("example.com.", "edge.example.net.", 60));
        answer.add_answer(a("edge.example.net.", "93.184.216.34", 60));
        let good = answer.to_vec().unwrap();
        for at in 0..good.len() {
            let _ = read(&state.network, &question, &good[..at]);
            for value in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Lesson::Learn { addresses, .. } = read(&state.network, &question, &bytes) {
                    assert!(addresses.iter().all(|address| is_public(*address)));
                }
            }
        }
    }
}
