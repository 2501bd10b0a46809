//! Messages of DHCP: what a client says, and what it believes of an answer. Everything here comes from whoever is on the link.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::setup::network::card::{Subnet, Way, is_domain};

/// RFC 2131 §2, RFC 1497.
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const MAC_BYTES: u8 = 6;
const BROADCAST: u16 = 0x8000;
const YOUR_ADDRESS_AT: usize = 16;
const MAC_AT: usize = 28;
const SERVER_NAME_AT: usize = 44;
const FILE_AT: usize = 108;
const COOKIE_AT: usize = 236;
const OPTIONS_AT: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Relays of old throw away what is shorter.
const MESSAGE_BYTES_MIN: usize = 300;
/// What fits into one packet of Ethernet.
pub const MESSAGE_BYTES_MAX: usize = 1472;

/// RFC 2132, RFC 3397 (`SEARCH`), RFC 3442 (`ROUTES`).
const PAD: u8 = 0;
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const RESOLVERS: u8 = 6;
const HOST_NAME: u8 = 12;
const DOMAIN: u8 = 15;
const MTU: u8 = 26;
const WANTED_ADDRESS: u8 = 50;
const LEASE_SECONDS: u8 = 51;
const OVERLOAD: u8 = 52;
const TYPE: u8 = 53;
const SERVER: u8 = 54;
const WANTED_OPTIONS: u8 = 55;
const SIZE_MAX: u8 = 57;
const RENEW_SECONDS: u8 = 58;
const REBIND_SECONDS: u8 = 59;
const CLIENT: u8 = 61;
const SEARCH: u8 = 119;
const ROUTES: u8 = 121;
const END: u8 = 255;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUESTED: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// A server that gives less would have its clients ask without an end.
const LEASE_MIN: Duration = Duration::from_secs(60);
/// A link of less would be no use for IPv4 (RFC 791), and a server could make it so.
const MTU_MIN: u16 = 576;
/// A resolver asks three, and there are few domains that a name is looked for in.
const LIST_MAX: usize = 8;

/// Who asks, in all messages of one exchange.
#[derive(Clone, Debug)]
pub struct Asker {
    pub mac: [u8; 6],
    pub exchange: u32,
    pub hostname: String,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Who would give an address?
    Discover,
    /// This offer is taken.
    Take { ip: Ipv4Addr, server: Ipv4Addr },
    /// Does this address, of before, hold?
    Confirm { ip: Ipv4Addr },
    /// Its time is to be longer.
    Renew { ip: Ipv4Addr },
}

/// An answer that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Offer { ip: Ipv4Addr, server: Ipv4Addr },
    Lease(Lease),
    Refused,
}

/// What a server gives, for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Subnet,
    pub server: Option<Ipv4Addr>,
    pub ways: Vec<Way>,
    pub mtu: Option<u32>,
    pub dns: Vec<Ipv4Addr>,
    pub search: Vec<String>,
    pub times: Times,
}

/// How long a lease holds from its answer on; `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// The server is asked for more from here on, everybody from `rebind` on.
    pub renew: Option<Duration>,
    pub rebind: Option<Duration>,
    pub end: Option<Duration>,
}

impl Asker {
    /// The message for a question; `seconds` since the first.
    pub fn say(&self, question: Question, seconds: u16) -> Vec<u8> {
        let mut bytes = vec![REQUEST, ETHERNET, MAC_BYTES, 0];
        bytes.extend(self.exchange.to_be_bytes());
        bytes.extend(seconds.to_be_bytes());
        // Asked for by broadcast, since the card has no address that an answer could go to.
        let (has, flags) = match question {
            Question::Renew { ip } => (ip, 0),
            _ => (Ipv4Addr::UNSPECIFIED, BROADCAST),
        };
        bytes.extend(flags.to_be_bytes());
        bytes.extend(has.octets());
        bytes.resize(MAC_AT, 0);
        bytes.extend(self.mac);
        bytes.resize(COOKIE_AT, 0);
        bytes.extend(COOKIE);
        let kind = match question {
            Question::Discover => DISCOVER,
            _ => REQUESTED,
        };
        option(&mut bytes, TYPE, &[kind]);
        let mut client = vec![ETHERNET];
        client.extend(self.mac);
        option(&mut bytes, CLIENT, &client);
        let size = u16::try_from(MESSAGE_BYTES_MAX).unwrap_or(u16::MAX);
        option(&mut bytes, SIZE_MAX, &size.to_be_bytes());
        match question {
            Question::Take { ip, server } => {
                option(&mut bytes, WANTED_ADDRESS, &ip.octets());
                option(&mut bytes, SERVER, &server.octets());
            }
            Question::Confirm { ip } => option(&mut bytes, WANTED_ADDRESS, &ip.octets()),
            Question::Discover | Question::Renew { .. } => {}
        }
        option(&mut bytes, HOST_NAME, self.hostname.as_bytes());
        let wanted = [
            MASK,
            ROUTES,
            ROUTER,
            RESOLVERS,
            DOMAIN,
            SEARCH,
            MTU,
            LEASE_SECONDS,
            SERVER,
            RENEW_SECONDS,
            REBIND_SECONDS,
        ];
        option(&mut bytes, WANTED_OPTIONS, &wanted);
        bytes.push(END);
        bytes.resize(bytes.len().max(MESSAGE_BYTES_MIN), PAD);
        bytes
    }

    /// Reads an answer; `None` where it is none, not to this exchange, or not to be believed.
    pub fn hear(&self, bytes: &[u8]) -> Option<Answer> {
        let head = [REPLY, ETHERNET, MAC_BYTES];
        let is_ours = bytes.starts_with(&head)
            && bytes.get(4..)?.starts_with(&self.exchange.to_be_bytes())
            && bytes.get(MAC_AT..)?.starts_with(&self.mac)
            && bytes.get(COOKIE_AT..)?.starts_with(&COOKIE);
        if !is_ours {
            return None;
        }
        let ip = Ipv4Addr::from(*bytes.get(YOUR_ADDRESS_AT..)?.first_chunk::<4>()?);
        let options = Options::read(bytes)?;
        match *options.0.get(&TYPE)?.as_slice() {
            [NAK] => Some(Answer::Refused),
            [OFFER] => Some(Answer::Offer {
                ip: host(ip)?,
                server: options.address(SERVER)?,
            }),
            [ACK] => Some(Answer::Lease(options.lease(host(ip)?)?)),
            _ => None,
        }
    }
}

/// An address that one host can have.
fn host(ip: Ipv4Addr) -> Option<Ipv4Addr> {
    let [first, ..] = ip.octets();
    let is_none = first == 0 || ip.is_loopback() || first >= 224;
    (!is_none).then_some(ip)
}

fn option(bytes: &mut Vec<u8>, code: u8, value: &[u8]) {
    // A host name is the longest, of 64 bytes.
    let length = value.len().min(255);
    bytes.extend([code, u8::try_from(length).unwrap_or(255)]);
    bytes.extend(value.iter().take(length));
}

/// The options of an answer; parts of one with the same code are put together (RFC 3396).
struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut all = Self(BTreeMap::new());
        all.section(bytes.get(OPTIONS_AT..)?);
        let overload = all
            .0
            .get(&OVERLOAD)
            .and_then(|value| value.first().copied());
        // More of them are where a boot file and the server's name would be.
        if overload.is_some_and(|which| which & 1 != 0) {
            all.section(bytes.get(FILE_AT..COOKIE_AT)?);
        }
        if overload.is_some_and(|which| which & 2 != 0) {
            all.section(bytes.get(SERVER_NAME_AT..FILE_AT)?);
        }
        Some(all)
    }

    fn section(&mut self, mut bytes: &[u8]) {
        while let [code, rest @ ..] = bytes {
            bytes = rest;
            match *code {
                PAD => continue,
                END => return,
                _ => {}
            }
            let [length, rest @ ..] = bytes else { return };
            // One that is cut off is none.
            let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else {
                return;
            };
            self.0.entry(*code).or_default().extend(value);
            bytes = rest;
        }
    }

    fn bytes<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        self.0.get(&code)?.as_slice().try_into().ok()
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        host(Ipv4Addr::from(self.bytes::<4>(code)?))
    }

    /// A list of addresses, without those that no host has.
    fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let value = self.0.get(&code).map(Vec::as_slice).unwrap_or_default();
        let (parts, _) = value.as_chunks::<4>();
        parts
            .iter()
            .filter_map(|part| host((*part).into()))
            .take(LIST_MAX)
            .collect()
    }

    fn seconds(&self, code: u8) -> Option<u32> {
        self.bytes(code).map(u32::from_be_bytes)
    }

    fn lease(&self, ip: Ipv4Addr) -> Option<Lease> {
        let bits = match self.bytes::<4>(MASK).map(u32::from_be_bytes) {
            Some(mask) if mask != 0 && mask.leading_ones() == mask.count_ones() => {
                u8::try_from(mask.count_ones()).ok()?
            }
            Some(_) => return None,
            None => class_bits(ip),
        };
        let address = Subnet {
            ip: ip.into(),
            bits,
        };
        let mtu = self.bytes(MTU).map(u16::from_be_bytes);
        Some(Lease {
            address,
            server: self.address(SERVER),
            ways: self.ways(),
            mtu: mtu.filter(|&mtu| mtu >= MTU_MIN).map(u32::from),
            dns: self.addresses(RESOLVERS),
            search: self.search(),
            times: self.times()?,
        })
    }

    fn times(&self) -> Option<Times> {
        const EVER: u32 = u32::MAX;
        let seconds = self.seconds(LEASE_SECONDS)?;
        if seconds == EVER {
            return Some(Times {
                renew: None,
                rebind: None,
                end: None,
            });
        }
        let end = Duration::from_secs(seconds.into()).max(LEASE_MIN);
        let between = |code, least: Duration, otherwise: Duration| {
            let said = self
                .seconds(code)
                .map(|seconds| Duration::from_secs(seconds.into()));
            said.filter(|time| (least..end).contains(time))
                .unwrap_or(otherwise)
        };
        let renew = between(RENEW_SECONDS, LEASE_MIN / 2, end / 2);
        let rebind = between(REBIND_SECONDS, renew, (end * 7 / 8).max(renew));
        Some(Times {
            renew: Some(renew),
            rebind: Some(rebind),
            end: Some(end),
        })
    }

    /// Routes: those without classes and no router where there are some, as RFC 3442 has it.
    fn ways(&self) -> Vec<Way> {
        let Some(mut bytes) = self.0.get(&ROUTES).map(Vec::as_slice) else {
            let router = self.addresses(ROUTER).first().copied();
            let way = router.map(|router| Way {
                destination: None,
                via: Some(router.into()),
            });
            return way.into_iter().collect();
        };
        let mut ways = Vec::new();
        while let [bits @ 0..=32, rest @ ..] = bytes {
            let length = usize::from(bits.div_ceil(8));
            let Some((significant, rest)) = rest.split_at_checked(length) else {
                break;
            };
            let Some((via, rest)) = rest.split_first_chunk::<4>() else {
                break;
            };
            bytes = rest;
            let mut octets = [0; 4];
            for (to, from) in octets.iter_mut().zip(significant) {
                *to = *from;
            }
            let network = Subnet {
                ip: octets.into(),
                bits: *bits,
            };
            let via = Ipv4Addr::from(*via);
            if !via.is_unspecified() && host(via).is_none() {
                continue;
            }
            ways.push(Way {
                destination: (*bits > 0).then(|| network.network()),
                // A router of zeros: the network is on the link.
                via: host(via).map(Into::into),
            });
        }
        // Everything over the link itself is no route.
        ways.retain(|way| way.destination.is_some() || way.via.is_some());
        ways
    }

    fn search(&self) -> Vec<String> {
        let listed = self.0.get(&SEARCH).map(|bytes| domains(bytes));
        let single = || {
            let text = String::from_utf8(self.0.get(&DOMAIN)?.clone()).ok()?;
            Some(vec![text.trim_end_matches('\0').to_owned()])
        };
        let mut found = listed
            .filter(|found| !found.is_empty())
            .or_else(single)
            .unwrap_or_default();
        found.retain(|domain| is_domain(domain));
        found.truncate(LIST_MAX);
        found
    }
}

/// The prefix of an address of the time of classes, which a server without a mask means.
fn class_bits(ip: Ipv4Addr) -> u8 {
    match ip.octets() {
        [..128, _, _, _] => 8,
        [..192, _, _, _] => 16,
        _ => 24,
    }
}

/// A list of domains as DNS packs them (RFC 1035 §4.1.4); it ends where it makes no sense.
fn domains(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() && found.len() < LIST_MAX {
        let Some((domain, next)) = domain(bytes, at) else {
            break;
        };
        found.push(domain);
        at = next;
    }
    found
}

/// The domain at `start` and what is behind it. A pointer leads backwards only, so there are no circles.
fn domain(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let mut labels: Vec<&str> = Vec::new();
    let (mut at, mut begin, mut next) = (start, start, None);
    loop {
        let length = *bytes.get(at)?;
        match length {
            0 => break,
            1..=63 => {
                let from = at + 1;
                let to = from + usize::from(length);
                labels.push(str::from_utf8(bytes.get(from..to)?).ok()?);
                at = to;
            }
            192.. => {
                let low = *bytes.get(at + 1)?;
                let target = usize::from(length & 0x3f) << 8 | usize::from(low);
                if target >= begin {
                    return None;
                }
                next.get_or_insert(at + 2);
                (at, begin) = (target, target);
            }
            _ => return None,
        }
        // A name has at most 255 bytes.
        if labels.len() > 127 {
            return None;
        }
    }
    Some((labels.join("."), next.unwrap_or(at + 1)))
}

#[cfg(test)]
mod tests;
