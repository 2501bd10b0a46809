//! What the daemon said is true: the network, its leases, its names and where other questions go.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::message::{self, Refusal, Whole};

/// Bounds of a state; a network has at most 65,534 addresses, and nobody has that many vms on one host.
const LEASES_MAX: usize = 16_384;
const NAMES_MAX: usize = 16_384;
const ADDRESSES_MAX: usize = 256;
const EGRESS_NAMES_MAX: usize = 1024;
const UPSTREAMS_MAX: usize = 8;
const SEARCH_MAX: usize = 8;

pub type Mac = [u8; 6];

/// An IPv4 or IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet<A> {
    pub base: A,
    pub prefix: u8,
}

#[derive(Debug)]
pub struct Network {
    pub domain: String,
    pub subnet: Option<Subnet<Ipv4Addr>>,
    pub gateway: Option<Ipv4Addr>,
    pub subnet6: Option<Subnet<Ipv6Addr>>,
    pub gateway6: Option<Ipv6Addr>,
    pub mtu: u16,
    pub dhcp: bool,
    pub lease_s: u32,
    pub search: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    pub hostname: Option<String>,
    pub running: bool,
    /// Names that may be resolved; all where there is no list.
    pub egress: Option<Vec<Pattern>>,
}

/// A name, or all names below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    Name(String),
    Below(String),
    All,
}

impl Pattern {
    /// Whether a name in small letters, without a dot at its end, is meant.
    pub fn covers(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Below(parent) => is_below(name, parent),
            Self::All => true,
        }
    }
}

/// Whether a name is a subdomain of another, and not that itself.
pub fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent)
        .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

#[derive(Debug)]
pub struct State {
    pub generation: u64,
    pub network: Network,
    leases: HashMap<Mac, Lease>,
    macs: HashMap<IpAddr, Mac>,
    names: HashMap<String, Vec<IpAddr>>,
    pub upstreams: Vec<SocketAddr>,
}

impl Subnet<Ipv4Addr> {
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (u32::from(self.base) ^ u32::from(address)) & self.mask_bits() == 0
    }

    pub fn mask(&self) -> Ipv4Addr {
        self.mask_bits().into()
    }

    pub fn broadcast(&self) -> Ipv4Addr {
        (u32::from(self.base) | !self.mask_bits()).into()
    }

    fn mask_bits(&self) -> u32 {
        u32::MAX
            .checked_shl(u32::from(32 - self.prefix))
            .unwrap_or(0)
    }
}

impl Subnet<Ipv6Addr> {
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        (u128::from(self.base) ^ u128::from(address)) & self.mask_bits() == 0
    }

    pub fn first(&self) -> Ipv6Addr {
        (u128::from(self.base) & self.mask_bits()).into()
    }

    fn mask_bits(&self) -> u128 {
        u128::MAX
            .checked_shl(u32::from(128 - self.prefix))
            .unwrap_or(0)
    }
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.subnet.is_some_and(|subnet| subnet.contains(v4)),
            IpAddr::V6(v6) => self.subnet6.is_some_and(|subnet| subnet.contains(v6)),
        }
    }

    pub fn is_gateway(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.gateway == Some(v4),
            IpAddr::V6(v6) => self.gateway6 == Some(v6),
        }
    }
}

impl State {
    /// # Errors
    /// `state_invalid`.
    pub fn new(whole: Whole) -> Result<Self, Refusal> {
        let mut state = Self {
            generation: whole.generation,
            network: network(whole.network)?,
            leases: HashMap::with_capacity(whole.leases.len().min(LEASES_MAX)),
            macs: HashMap::new(),
            names: HashMap::with_capacity(whole.names.len().min(NAMES_MAX)),
            upstreams: Vec::new(),
        };
        state.set_upstreams(whole.upstreams)?;
        for lease in whole.leases {
            state.put_lease(lease)?;
        }
        for name in whole.names {
            state.put_name(name)?;
        }
        Ok(state)
    }

    /// # Errors
    /// `state_invalid`; then nothing has changed.
    pub fn set_upstreams(&mut self, upstreams: Vec<SocketAddr>) -> Result<(), Refusal> {
        if upstreams.len() > UPSTREAMS_MAX {
            return invalid(format!("there are more than {UPSTREAMS_MAX} upstreams"));
        }
        self.upstreams = upstreams;
        Ok(())
    }

    /// # Errors
    /// `state_invalid`; then nothing has changed.
    pub fn put_lease(&mut self, said: message::Lease) -> Result<(), Refusal> {
        let mac = mac(&said.mac)?;
        let outside = |address: IpAddr| !self.network.contains(address);
        for address in addresses_of(said.address, said.address6) {
            if outside(address) {
                return invalid(format!("the address {address} is outside the network"));
            }
            if self.macs.get(&address).is_some_and(|owner| *owner != mac) {
                return invalid(format!("the address {address} has two leases"));
            }
        }
        if !self.leases.contains_key(&mac) && self.leases.len() >= LEASES_MAX {
            return invalid(format!("there are more than {LEASES_MAX} leases"));
        }
        let lease = Lease {
            address: said.address,
            address6: said.address6,
            hostname: said.hostname.map(|name| domain(&name)).transpose()?,
            running: said.running,
            egress: said.egress.map(patterns).transpose()?,
        };
        self.remove_lease_of(mac);
        for address in addresses_of(lease.address, lease.address6) {
            self.macs.insert(address, mac);
        }
        self.leases.insert(mac, lease);
        Ok(())
    }

    /// # Errors
    /// `state_invalid` for what is no MAC.
    pub fn remove_lease(&mut self, text: &str) -> Result<(), Refusal> {
        self.remove_lease_of(mac(text)?);
        Ok(())
    }

    fn remove_lease_of(&mut self, mac: Mac) {
        if let Some(old) = self.leases.remove(&mac) {
            for address in addresses_of(old.address, old.address6) {
                self.macs.remove(&address);
            }
        }
    }

    /// # Errors
    /// `state_invalid`; then nothing has changed.
    pub fn put_name(&mut self, said: message::Name) -> Result<(), Refusal> {
        let name = domain(&said.name)?;
        if said.addresses.len() > ADDRESSES_MAX {
            return invalid(format!(
                "the name {name} has more than {ADDRESSES_MAX} addresses"
            ));
        }
        if !self.names.contains_key(&name) && self.names.len() >= NAMES_MAX {
            return invalid(format!("there are more than {NAMES_MAX} names"));
        }
        self.names.insert(name, said.addresses);
        Ok(())
    }

    /// # Errors
    /// `state_invalid` for what is no name.
    pub fn remove_name(&mut self, text: &str) -> Result<(), Refusal> {
        self.names.remove(&domain(text)?);
        Ok(())
    }

    /// The addresses of a MAC's lease; none where it has none.
    ///
    /// # Errors
    /// `state_invalid` for what is no MAC.
    pub fn addresses_of_mac(&self, text: &str) -> Result<Vec<IpAddr>, Refusal> {
        let lease = self.leases.get(&mac(text)?);
        Ok(lease.map_or_else(Vec::new, |lease| {
            addresses_of(lease.address, lease.address6).collect()
        }))
    }

    pub fn lease_of_mac(&self, mac: &Mac) -> Option<&Lease> {
        self.leases.get(mac)
    }

    pub fn lease_of(&self, address: IpAddr) -> Option<&Lease> {
        self.leases.get(self.macs.get(&address.to_canonical())?)
    }

    /// The addresses of a name of ours, which is in small letters and without the domain.
    pub fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        self.names.get(name).map(Vec::as_slice)
    }

    /// A name of ours, without the domain, that has this address: that of its lease before one that it shares.
    pub fn name_of(&self, address: IpAddr) -> Option<&str> {
        let own = self
            .lease_of(address)
            .filter(|lease| lease.running)
            .and_then(|lease| lease.hostname.as_deref());
        let shared = || {
            self.names
                .iter()
                .filter(|(_, addresses)| addresses.contains(&address))
                .map(|(name, _)| name.as_str())
                .min()
        };
        own.or_else(shared)
    }
}

fn addresses_of(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    let v4 = v4.map(IpAddr::from);
    v4.into_iter().chain(v6.map(IpAddr::from))
}

fn invalid<T>(message: String) -> Result<T, Refusal> {
    Err(Refusal::new("state_invalid", message))
}

fn network(said: message::Network) -> Result<Network, Refusal> {
    let subnet: Option<Subnet<Ipv4Addr>> = said
        .subnet
        .as_deref()
        .map(|text| cidr(text, 32))
        .transpose()?;
    let subnet6: Option<Subnet<Ipv6Addr>> = said
        .subnet6
        .as_deref()
        .map(|text| cidr(text, 128))
        .transpose()?;
    if subnet.is_none() && subnet6.is_none() {
        return invalid("the network has no subnet".into());
    }
    let gateway_is_in = said
        .gateway
        .is_none_or(|gateway| subnet.is_some_and(|subnet| subnet.contains(gateway)));
    let gateway6_is_in = said
        .gateway6
        .is_none_or(|gateway| subnet6.is_some_and(|subnet| subnet.contains(gateway)));
    if !(gateway_is_in && gateway6_is_in) {
        return invalid("a gateway is outside the network".into());
    }
    // 576 is what every IPv4 host takes (RFC 791).
    if said.mtu < 576 {
        return invalid(format!("the MTU {} is below 576", said.mtu));
    }
    if said.lease_s < 60 {
        return invalid(format!("a lease of {} s is below 60", said.lease_s));
    }
    if said.search.len() > SEARCH_MAX {
        return invalid(format!("there are more than {SEARCH_MAX} search domains"));
    }
    let search: Result<Vec<_>, _> = said.search.iter().map(|text| domain(text)).collect();
    Ok(Network {
        domain: domain(&said.domain)?,
        subnet,
        gateway: said.gateway,
        subnet6,
        gateway6: said.gateway6,
        mtu: said.mtu,
        dhcp: said.dhcp,
        lease_s: said.lease_s,
        search: search?,
    })
}

fn cidr<A: std::str::FromStr>(text: &str, longest: u8) -> Result<Subnet<A>, Refusal> {
    let parsed = text.split_once('/').and_then(|(base, prefix)| {
        Some(Subnet {
            base: base.parse().ok()?,
            prefix: prefix.parse().ok().filter(|prefix| *prefix <= longest)?,
        })
    });
    parsed.map_or_else(|| invalid(format!("{text:?} is no subnet")), Ok)
}

/// Checks a domain name and gives it in small letters, without the dot at its end.
fn domain(text: &str) -> Result<String, Refusal> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.len() <= 253 && name.split('.').all(is_label) {
        Ok(name)
    } else {
        invalid(format!("{text:?} is no domain name"))
    }
}

fn patterns(said: message::Egress) -> Result<Vec<Pattern>, Refusal> {
    if said.names.len() > EGRESS_NAMES_MAX {
        return invalid(format!(
            "there are more than {EGRESS_NAMES_MAX} names of one lease's egress"
        ));
    }
    said.names
        .iter()
        .map(|text| match text.strip_prefix("*.") {
            _ if text == "*" => Ok(Pattern::All),
            Some(parent) => domain(parent).map(Pattern::Below),
            None => domain(text).map(Pattern::Name),
        })
        .collect()
}

/// Two digits, without the sign that the standard library would take.
fn hex(part: &str) -> Option<u8> {
    let is_hex = part.bytes().all(|byte| byte.is_ascii_hexdigit());
    u8::from_str_radix(part, 16).ok().filter(|_| is_hex)
}

fn mac(text: &str) -> Result<Mac, Refusal> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        let Some(value) = part.and_then(hex) else {
            return invalid(format!("{text:?} is no MAC address"));
        };
        *byte = value;
    }
    if parts.next().is_some() {
        return invalid(format!("{text:?} is no MAC address"));
    }
    Ok(mac)
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The state that the tests of all protocols start with.
    pub fn example() -> Value {
        json!({
            "generation": 7,
            "network": {
                "name": "default", "domain": "default.aerie", "subnet": "10.42.0.0/24", "gateway": "10.42.0.1",
                "subnet6": "fd00:1::/64", "gateway6": "fd00:1::1", "mtu": 1450, "dhcp": true, "lease_s": 3600,
                "search": ["default.aerie", "corp.example"],
            },
            "leases": [
                {"mac": "02:00:00:00:00:05", "address": "10.42.0.5", "address6": "fd00:1::5", "hostname": "web", "running": true, "egress": null},
                {"mac": "02:00:00:00:00:06", "address": "10.42.0.6", "hostname": "strange", "running": true,
                 "egress": {"names": ["example.com", "*.debian.org"]}},
                {"mac": "02:00:00:00:00:07", "address": null, "address6": null, "hostname": "bare", "running": true},
                {"mac": "02:00:00:00:00:08", "address": "10.42.0.8", "hostname": "asleep", "running": false},
            ],
            "names": [
                {"name": "web", "addresses": ["10.42.0.5", "fd00:1::5"]},
                {"name": "strange", "addresses": ["10.42.0.6"]},
                {"name": "pool", "addresses": ["10.42.0.5", "10.42.0.6", "10.42.0.8"]},
                {"name": "api.pool", "addresses": ["10.42.0.8"]},
            ],
            "upstreams": ["127.0.0.1:53"],
        })
    }

    pub fn state(value: Value) -> Result<State, Refusal> {
        State::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_lease_is_found_by_mac_and_by_address() {
        let state = state(example()).unwrap();

        let lease = state.lease_of_mac(&[2, 0, 0, 0, 0, 5]).unwrap();
        assert_eq!(lease.hostname.as_deref(), Some("web"));
        for address in ["10.42.0.5", "fd00:1::5", "::ffff:10.42.0.5"] {
            assert_eq!(state.lease_of(address.parse().unwrap()), Some(lease));
        }
        assert_eq!(state.lease_of("10.42.0.9".parse().unwrap()), None);
    }

    #[test]
    fn a_lease_that_is_put_takes_the_place_of_the_old_one() {
        let mut state = state(example()).unwrap();
        let next = json!({"mac": "02:00:00:00:00:05", "address": "10.42.0.50", "running": true});

        state
            .put_lease(serde_json::from_value(next).unwrap())
            .unwrap();

        assert!(state.lease_of("10.42.0.50".parse().unwrap()).is_some());
        assert!(state.lease_of("10.42.0.5".parse().unwrap()).is_none());
        assert!(state.lease_of("fd00:1::5".parse().unwrap()).is_none());

        state.remove_lease("02:00:00:00:00:05").unwrap();
        assert!(state.lease_of("10.42.0.50".parse().unwrap()).is_none());
        state.remove_lease("02:00:00:00:00:05").unwrap();
    }

    #[test]
    fn a_subdomain_is_below_and_the_name_itself_is_not() {
        let below = Pattern::Below("debian.org".into());

        for (name, is_covered) in [
            ("deb.debian.org", true),
            ("a.b.debian.org", true),
            ("debian.org", false),
            (".debian.org", false),
            ("notdebian.org", false),
            ("debian.org.evil.example", false),
        ] {
            assert_eq!(below.covers(name), is_covered, "{name}");
        }
        assert!(Pattern::All.covers("x"));
        assert!(Pattern::Name("example.com".into()).covers("example.com"));
        assert!(!Pattern::Name("example.com".into()).covers("www.example.com"));
    }

    #[test]
    fn subnets_of_every_length_know_what_is_in_them() {
        let all = cidr::<Ipv4Addr>("0.0.0.0/0", 32).unwrap();
        assert!(all.contains([1, 2, 3, 4].into()));
        assert_eq!(all.mask(), Ipv4Addr::UNSPECIFIED);
        let one = cidr::<Ipv4Addr>("10.0.0.1/32", 32).unwrap();
        assert!(one.contains([10, 0, 0, 1].into()) && !one.contains([10, 0, 0, 2].into()));
        let some = cidr::<Ipv4Addr>("10.42.7.9/20", 32).unwrap();
        assert_eq!(some.broadcast(), Ipv4Addr::from([10, 42, 15, 255]));
        let six = cidr::<Ipv6Addr>("fd00:1::9/64", 128).unwrap();
        assert_eq!(six.first(), "fd00:1::".parse::<Ipv6Addr>().unwrap());
        assert!(
            cidr::<Ipv6Addr>("::/0", 128)
                .unwrap()
                .contains(Ipv6Addr::LOCALHOST)
        );
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        for (path, value) in [
            ("/network/subnet", json!("10.42.0.0/33")),
            ("/network/subnet", json!("10.42.0.0")),
            ("/network/subnet", json!("10.43.0.0/24")),
            ("/network/gateway6", json!("fd01::1")),
            ("/network/domain", json!("a..b")),
            ("/network/domain", json!("")),
            ("/network/mtu", json!(500)),
            ("/network/lease_s", json!(0)),
            ("/network/search/0", json!("white space")),
            ("/leases/0/mac", json!("02:00:00:00:00")),
            ("/leases/0/mac", json!("02:00:00:00:00:05:06")),
            ("/leases/0/mac", json!("02:00:00:00:00:+5")),
            ("/leases/0/address", json!("10.42.1.5")),
            ("/leases/0/address", json!("10.42.0.6")),
            ("/leases/0/hostname", json!("a\u{e4}")),
            ("/leases/1/egress/names/0", json!("*.*")),
            ("/leases/1/egress/names/0", json!("a.*.b")),
            ("/names/0/name", json!("x".repeat(64))),
            ("/upstreams", json!(vec!["1.1.1.1:53"; 9])),
        ] {
            let mut whole = example();
            *whole.pointer_mut(path).unwrap() = value.clone();
            let refusal = state(whole).unwrap_err();
            assert_eq!(refusal.code, "state_invalid", "{path} {value}");
        }
    }
}
