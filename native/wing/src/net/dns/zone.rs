//! The names that are ours, and which names of others a client may ask for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::PTR},
};

use super::question::{OWN_TTL, Question, Reason, soa};
use crate::net::state::{State, is_below};

/// The domain below which nothing is anybody's but this host's.
const OWN: &str = "aerie";

/// What is to be done with a question.
#[derive(Debug)]
pub enum Verdict {
    Answer(Message),
    /// A rule or the lack of one is against it: an answer that counts as refused.
    Refuse(Message),
    /// The upstreams know. With `learn` only after the daemon has committed what they say.
    Forward {
        learn: bool,
    },
}

/// Decides about a question of a client that is inside the network. `turn` is another number each time.
pub fn decide(state: &State, client: IpAddr, question: &Question, turn: usize) -> Verdict {
    if let Some(message) = own(state, question, turn) {
        return Verdict::Answer(message);
    }
    let lease = state.lease_of(client);
    let is_known = lease.is_some() || state.network.is_gateway(client);
    if !is_known || state.upstreams.is_empty() || question.kind() == RecordType::ANY {
        return Verdict::Refuse(question.reply(ResponseCode::Refused));
    }
    let Some(patterns) = lease.and_then(|lease| lease.egress.as_ref()) else {
        return Verdict::Forward { learn: false };
    };
    if !is_covered(patterns, &question.name) {
        let mut message = question.reply(ResponseCode::NXDomain);
        Question::explain(&mut message, Reason::Blocked);
        return Verdict::Refuse(message);
    }
    // Their hints are addresses that nobody would learn of (RFC 9460, 7.3).
    if matches!(question.kind(), RecordType::HTTPS | RecordType::SVCB) {
        return Verdict::Answer(question.reply(ResponseCode::NoError));
    }
    Verdict::Forward { learn: true }
}

/// Whether a rule has the name. One with escaped bytes has labels that look like several: no rule means it.
pub fn is_covered(patterns: &[crate::net::state::Pattern], name: &str) -> bool {
    !name.contains('\\') && patterns.iter().any(|pattern| pattern.covers(name))
}

/// The answer where the name is ours to know.
fn own(state: &State, question: &Question, turn: usize) -> Option<Message> {
    let name = question.name.as_str();
    if name == "localhost" || is_below(name, "localhost") {
        let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Some(with_addresses(question, &addresses, 0));
    }
    if let Some(address) = reversed(name).filter(|address| state.network.contains(*address)) {
        return Some(pointer(state, question, address));
    }
    let network = &state.network;
    let domains = || std::iter::once(&network.domain).chain(&network.search);
    let found = domains()
        .filter_map(|domain| name.strip_suffix(domain.as_str())?.strip_suffix('.'))
        .chain(std::iter::once(name))
        .find_map(|short| state.addresses(short));
    if let Some(addresses) = found {
        return Some(with_addresses(question, addresses, turn));
    }
    let is_apex = domains().any(|domain| domain == name);
    let is_ours = name == OWN
        || is_below(name, OWN)
        || name == network.domain
        || is_below(name, &network.domain);
    // Of single labels the root knows top-level domains alone, and those have no addresses that anybody uses.
    let is_bare = !name.is_empty()
        && !name.contains('.')
        && matches!(question.kind(), RecordType::A | RecordType::AAAA);
    if !(is_ours || is_bare) {
        return None;
    }
    let code = if is_apex || name == OWN {
        ResponseCode::NoError
    } else {
        ResponseCode::NXDomain
    };
    let zone = if is_ours {
        zone_of(state, name)
    } else {
        Name::root()
    };
    let mut message = question.own_reply(code);
    message.add_authority(soa(&zone));
    Some(message)
}

fn zone_of(state: &State, name: &str) -> Name {
    let domain = &state.network.domain;
    let zone = if name == domain || is_below(name, domain) {
        domain
    } else {
        OWN
    };
    Name::from_ascii(format!("{zone}.")).unwrap_or_default()
}

fn with_addresses(question: &Question, addresses: &[IpAddr], turn: usize) -> Message {
    let mut message = question.own_reply(ResponseCode::NoError);
    let owner = question.query.name();
    let wanted: Vec<_> = addresses
        .iter()
        .filter_map(|address| match (question.kind(), address.to_canonical()) {
            (RecordType::A, IpAddr::V4(v4)) => Some(RData::A(v4.into())),
            (RecordType::AAAA, IpAddr::V6(v6)) => Some(RData::AAAA(v6.into())),
            _ => None,
        })
        .collect();
    let first = turn.checked_rem(wanted.len()).unwrap_or(0);
    let (later, sooner) = wanted.split_at(first);
    for data in sooner.iter().chain(later) {
        message.add_answer(Record::from_rdata(owner.clone(), OWN_TTL, data.clone()));
    }
    if wanted.is_empty() {
        message.add_authority(soa(owner));
    }
    message
}

fn pointer(state: &State, question: &Question, address: IpAddr) -> Message {
    let target = state
        .name_of(address)
        .and_then(|name| Name::from_ascii(format!("{name}.{}.", state.network.domain)).ok());
    let owner = question.query.name();
    let Some(target) = target else {
        let mut message = question.own_reply(ResponseCode::NXDomain);
        message.add_authority(soa(owner));
        return message;
    };
    let mut message = question.own_reply(ResponseCode::NoError);
    if question.kind() == RecordType::PTR {
        let data = RData::PTR(PTR(target));
        message.add_answer(Record::from_rdata(owner.clone(), OWN_TTL, data));
    } else {
        message.add_authority(soa(owner));
    }
    message
}

/// The address whose PTR a name is (RFC 1035, 3.5; RFC 3596, 2.5).
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = rest.split('.').rev();
        for octet in &mut octets {
            let part = parts.next()?;
            let is_plain = part == "0" || !part.starts_with(['0', '+']);
            *octet = part.parse().ok().filter(|_| is_plain)?;
        }
        return parts.next().is_none().then(|| octets.into());
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for part in rest.split('.').rev() {
        let digit = u128::from_str_radix(part, 16)
            .ok()
            .filter(|_| part.len() == 1)?;
        bits = bits << 4 | digit;
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::net::{
        dns::question::tests::question,
        state::tests::{example, state},
    };

    const WEB: &str = "10.42.0.5";
    const STRANGE: &str = "10.42.0.6";

    fn ask(client: &str, name: &str, kind: RecordType) -> Verdict {
        let state = state(example()).unwrap();
        decide(
            &state,
            client.parse().unwrap(),
            &question(name, kind, Some(1232)),
            0,
        )
    }

    /// What was answered: code, then the data of each record.
    fn said(verdict: Verdict) -> String {
        let (mark, message) = match verdict {
            Verdict::Answer(message) => ("", message),
            Verdict::Refuse(message) => ("refused ", message),
            Verdict::Forward { learn } => return format!("forward, learn {learn}"),
        };
        let code = format!("{mark}{:?}", message.metadata.response_code);
        assert!(
            message
                .answers
                .iter()
                .chain(&message.authorities)
                .all(|record| record.ttl <= 10)
        );
        std::iter::once(code)
            .chain(message.answers.iter().map(|record| record.data.to_string()))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn names_of_ours_are_known_in_every_form() {
        use RecordType::{A, AAAA, MX, PTR, SOA, TXT};
        for (name, kind, expected) in [
            ("web.default.aerie.", A, "NoError 10.42.0.5"),
            ("WEB.Default.AERIE.", A, "NoError 10.42.0.5"),
            ("web.", A, "NoError 10.42.0.5"),
            ("web.", AAAA, "NoError fd00:1::5"),
            ("web.corp.example.", A, "NoError 10.42.0.5"),
            ("api.pool.default.aerie.", A, "NoError 10.42.0.8"),
            ("api.pool.", A, "NoError 10.42.0.8"),
            ("strange.default.aerie.", AAAA, "NoError"),
            ("web.default.aerie.", TXT, "NoError"),
            ("nobody.default.aerie.", A, "NXDomain"),
            ("web.other.aerie.", A, "NXDomain"),
            ("nobody.", A, "NXDomain"),
            ("nobody.", AAAA, "NXDomain"),
            ("default.aerie.", SOA, "NoError"),
            ("aerie.", MX, "NoError"),
            ("localhost.", A, "NoError 127.0.0.1"),
            ("a.localhost.", AAAA, "NoError ::1"),
            ("5.0.42.10.in-addr.arpa.", PTR, "NoError web.default.aerie."),
            (
                "8.0.42.10.in-addr.arpa.",
                PTR,
                "NoError api.pool.default.aerie.",
            ),
            ("9.0.42.10.in-addr.arpa.", PTR, "NXDomain"),
            ("5.0.42.10.in-addr.arpa.", A, "NoError"),
            (
                "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.",
                PTR,
                "NoError web.default.aerie.",
            ),
            ("example.com.", A, "forward, learn false"),
            ("nobody.corp.example.", A, "forward, learn false"),
            ("com.", RecordType::DS, "forward, learn false"),
            (".", RecordType::NS, "forward, learn false"),
            ("5.0.43.10.in-addr.arpa.", PTR, "forward, learn false"),
            ("42.10.in-addr.arpa.", PTR, "forward, learn false"),
            ("example.com.", RecordType::ANY, "refused Refused"),
        ] {
            assert_eq!(said(ask(WEB, name, kind)), expected, "{name} {kind}");
        }
    }

    #[test]
    fn several_addresses_take_turns() {
        let state = state(example()).unwrap();
        let asked = question("pool.", RecordType::A, None);
        let firsts: Vec<_> = (0..4)
            .map(|turn| said(decide(&state, WEB.parse().unwrap(), &asked, turn)))
            .map(|text| text.split(' ').nth(1).unwrap().to_owned())
            .collect();

        assert_eq!(firsts, ["10.42.0.5", "10.42.0.6", "10.42.0.8", "10.42.0.5"]);
    }

    #[test]
    fn a_client_with_a_rule_may_ask_for_what_the_rule_has() {
        use RecordType::{A, AAAA, HTTPS, SVCB, TXT};
        for (name, kind, expected) in [
            ("example.com.", A, "forward, learn true"),
            ("EXAMPLE.com.", AAAA, "forward, learn true"),
            ("example.com.", TXT, "forward, learn true"),
            ("deb.debian.org.", A, "forward, learn true"),
            ("web.default.aerie.", A, "NoError 10.42.0.5"),
            ("example.com.", HTTPS, "NoError"),
            ("example.com.", SVCB, "NoError"),
            ("debian.org.", A, "refused NXDomain"),
            ("www.example.com.", A, "refused NXDomain"),
            ("notexample.com.", A, "refused NXDomain"),
            ("example.com.evil.org.", A, "refused NXDomain"),
            ("evil\\.debian.org.", A, "refused NXDomain"),
            ("9.9.9.9.in-addr.arpa.", RecordType::PTR, "refused NXDomain"),
        ] {
            assert_eq!(said(ask(STRANGE, name, kind)), expected, "{name} {kind}");
        }
    }

    #[test]
    fn a_blocked_name_says_that_it_is_blocked() {
        let Verdict::Refuse(message) = ask(STRANGE, "other.org.", RecordType::A) else {
            panic!("not refused");
        };

        let bytes = message.to_vec().unwrap();
        // The option EXTENDED-ERROR of two bytes, and in them 15.
        assert!(bytes.windows(6).any(|part| part == [0, 15, 0, 2, 0, 15]));
    }

    #[test]
    fn who_has_no_lease_may_ask_for_our_names_only_and_the_gateway_for_all() {
        let web = "web.default.aerie.";
        assert_eq!(
            said(ask("10.42.0.77", web, RecordType::A)),
            "NoError 10.42.0.5"
        );
        assert_eq!(
            said(ask("10.42.0.77", "example.com.", RecordType::A)),
            "refused Refused"
        );
        assert_eq!(
            said(ask("10.42.0.1", "example.com.", RecordType::A)),
            "forward, learn false"
        );
    }

    #[test]
    fn without_upstreams_others_names_are_refused() {
        let mut whole = example();
        whole["upstreams"] = json!([]);
        let state = state(whole).unwrap();
        let asked = question("example.com.", RecordType::A, None);

        assert_eq!(
            said(decide(&state, WEB.parse().unwrap(), &asked, 0)),
            "refused Refused"
        );
    }

    #[test]
    fn reversed_names_are_addresses_or_nothing() {
        assert_eq!(reversed("4.3.2.1.in-addr.arpa"), Some([1, 2, 3, 4].into()));
        for name in [
            "4.3.2.in-addr.arpa",
            "5.4.3.2.1.in-addr.arpa",
            "256.3.2.1.in-addr.arpa",
            "04.3.2.1.in-addr.arpa",
            "+4.3.2.1.in-addr.arpa",
            "x.3.2.1.in-addr.arpa",
            "in-addr.arpa",
            "1.ip6.arpa",
            "example.com",
        ] {
            assert_eq!(reversed(name), None, "{name}");
        }
    }
}
