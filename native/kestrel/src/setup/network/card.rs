//! Network cards as the host says them, understood; nothing is set here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aerie_protocol::message::Nic;

use crate::setup::network::error::NetworkError;
use crate::talk::encoding::hex;

/// A host has few routes to tell; a list without an end would hold up a boot.
const ROUTES_MAX: usize = 256;
/// RFC 791: every link carries this; RFC 8200 wants 1280 for IPv6, which the kernel then leaves out.
const MTU_MIN: u32 = 68;
const MTU_MAX: u32 = 65_535;

/// An address and the length of its network's prefix: `10.0.2.15/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    pub ip: IpAddr,
    pub bits: u8,
}

impl Subnet {
    /// Reads the address of a host: `None` too where no host has such an address.
    pub fn of_host(text: &str) -> Option<Self> {
        Self::parse(text).filter(|subnet| {
            subnet.bits > 0 && !subnet.ip.is_unspecified() && !subnet.ip.is_multicast()
        })
    }

    /// Reads a network; bits behind the prefix are taken as zero.
    pub fn of_network(text: &str) -> Option<Self> {
        Self::parse(text).map(|subnet| subnet.network())
    }

    fn parse(text: &str) -> Option<Self> {
        let (ip, bits) = text.split_once('/')?;
        let ip: IpAddr = ip.parse().ok()?;
        let max = if ip.is_ipv4() { 32 } else { 128 };
        let digits = bits.bytes().all(|digit| digit.is_ascii_digit());
        let bits = bits.parse().ok().filter(|&bits| digits && bits <= max)?;
        Some(Self { ip, bits })
    }

    /// The network that it is in.
    pub fn network(self) -> Self {
        let bits = u32::from(self.bits);
        let ip = match self.ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & mask).into()
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & mask).into()
            }
        };
        Self { ip, ..self }
    }

    /// Tells whether an address is in the same network.
    pub fn holds(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.ip.is_ipv4() && Self { ip, ..self }.network() == self.network()
    }
}

/// A route over a card: everything, where the destination is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub destination: Option<Subnet>,
    pub via: Option<IpAddr>,
}

impl Way {
    pub fn is_ipv4(&self) -> bool {
        let family = self.destination.map(|subnet| subnet.ip).or(self.via);
        family.is_some_and(|ip| ip.is_ipv4())
    }
}

/// One card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
    pub addresses: Vec<Subnet>,
    /// Default routes first.
    pub ways: Vec<Way>,
    pub dhcp: bool,
}

/// All cards, and what they say of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cards {
    pub cards: Vec<Card>,
    /// Resolvers, for `/etc/resolv.conf`.
    pub dns: Vec<IpAddr>,
    /// Domains, for the same.
    pub search: Vec<String>,
}

impl Cards {
    /// # Errors
    /// The first text that is not what it should be.
    pub fn of(nics: &[Nic]) -> Result<Self, NetworkError> {
        let mut all = Self::default();
        for nic in nics {
            all.cards.push(Card::of(nic)?);
            for text in &nic.dns {
                push_new(&mut all.dns, address(text)?);
            }
            for text in &nic.search {
                if !is_domain(text) {
                    return Err(wrong(text, "a domain"));
                }
                push_new(&mut all.search, text.clone());
            }
        }
        Ok(all)
    }

    /// Adds resolvers and domains that are not there yet.
    pub fn add_names(
        &mut self,
        dns: impl IntoIterator<Item = IpAddr>,
        search: impl IntoIterator<Item = String>,
    ) {
        for address in dns {
            push_new(&mut self.dns, address);
        }
        for domain in search {
            push_new(&mut self.search, domain);
        }
    }

    /// The addresses of the first card that has one, which the guest's own name stands for.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        let first = self.cards.iter().find(|card| !card.addresses.is_empty());
        let addresses = first.map(|card| card.addresses.iter().map(|subnet| subnet.ip).collect());
        addresses.unwrap_or_default()
    }
}

impl Card {
    fn of(nic: &Nic) -> Result<Self, NetworkError> {
        let mut card = Self {
            mac: nic.mac.as_deref().map(mac).transpose()?,
            mtu: nic.mtu,
            dhcp: nic.dhcp,
            ..Self::default()
        };
        if let Some(mtu) = nic.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
            return Err(NetworkError::Mtu(mtu));
        }
        if nic.routes.len() > ROUTES_MAX {
            return Err(NetworkError::Routes(nic.routes.len()));
        }
        for (text, is_ipv4, expected) in [
            (
                &nic.address,
                true,
                "an IPv4 address with the length of its prefix",
            ),
            (
                &nic.address6,
                false,
                "an IPv6 address with the length of its prefix",
            ),
        ] {
            let Some(text) = text else { continue };
            let subnet = Subnet::of_host(text).filter(|subnet| subnet.ip.is_ipv4() == is_ipv4);
            card.addresses
                .push(subnet.ok_or_else(|| wrong(text, expected))?);
        }
        for (text, is_ipv4, expected) in [
            (&nic.gateway, true, "an IPv4 address"),
            (&nic.gateway6, false, "an IPv6 address"),
        ] {
            let Some(text) = text else { continue };
            let via = address(text)?;
            if via.is_ipv4() != is_ipv4 {
                return Err(wrong(text, expected));
            }
            card.ways.push(Way {
                destination: None,
                via: Some(via),
            });
        }
        for route in &nic.routes {
            let text = &route.destination;
            let destination = Subnet::of_network(text)
                .ok_or_else(|| wrong(text, "a network with the length of its prefix"))?;
            let via = route.via.as_deref().map(address).transpose()?;
            if let Some(other) = via.filter(|via| via.is_ipv4() != destination.ip.is_ipv4()) {
                return Err(wrong(&other.to_string(), "a router of its route's family"));
            }
            card.ways.push(Way {
                destination: Some(destination),
                via,
            });
        }
        Ok(card)
    }
}

fn wrong(text: &str, expected: &'static str) -> NetworkError {
    NetworkError::Address {
        text: text.to_owned(),
        expected,
    }
}

fn address(text: &str) -> Result<IpAddr, NetworkError> {
    text.parse().map_err(|_| wrong(text, "an IP address"))
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, value: T) {
    if !list.contains(&value) {
        list.push(value);
    }
}

/// Tells whether this is a domain that a line of `/etc/resolv.conf` can hold.
pub fn is_domain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// Six bytes with colons between them: one card's, and not that of all zeros.
fn mac(text: &str) -> Result<[u8; 6], NetworkError> {
    let digits: String = text.split(':').collect();
    let separated = text.split(':').all(|byte| byte.len() == 2);
    hex::<6>(&digits)
        .filter(|[first, ..]| separated && first & 1 == 0)
        .filter(|bytes| *bytes != [0; 6])
        .ok_or_else(|| NetworkError::Mac(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use aerie_protocol::message::Route;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_six_bytes_of_one_card() {
        assert_eq!(
            mac("02:aE:00:00:00:09").unwrap(),
            [0x02, 0xae, 0, 0, 0, 0x09]
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "0200:00:00:00:01",
            "020000000001",
            "02:00:00:00:0:001",
            "02:00:00:00:00:0g",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "03:00:00:00:00:01",
        ] {
            assert!(matches!(mac(text), Err(NetworkError::Mac(_))), "{text}");
        }
    }

    #[test]
    fn a_card_is_what_the_host_says_of_it() {
        let text = |text: &str| Some(text.to_owned());
        let nic = Nic {
            mac: text("02:00:00:00:00:01"),
            address: text("10.0.2.15/24"),
            gateway: text("10.0.2.2"),
            address6: text("fd00::5/64"),
            gateway6: text("fe80::1"),
            mtu: Some(1400),
            routes: vec![Route {
                destination: "10.9.8.7/8".to_owned(),
                via: text("10.0.2.9"),
            }],
            dns: vec!["10.0.2.3".to_owned(), "fd00::3".to_owned()],
            search: vec!["one.aerie".to_owned()],
            dhcp: false,
        };
        let second = Nic {
            dns: vec!["10.0.2.3".to_owned()],
            search: vec!["one.aerie".to_owned(), "two".to_owned()],
            ..Nic::default()
        };

        let cards = Cards::of(&[nic, second]).unwrap();

        let subnet = |text: &str, bits| Subnet { ip: ip(text), bits };
        let way = |destination, via: &str| Way {
            destination,
            via: Some(ip(via)),
        };
        let first = Card {
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: Some(1400),
            addresses: vec![subnet("10.0.2.15", 24), subnet("fd00::5", 64)],
            ways: vec![
                way(None, "10.0.2.2"),
                way(None, "fe80::1"),
                way(Some(subnet("10.0.0.0", 8)), "10.0.2.9"),
            ],
            dhcp: false,
        };
        assert_eq!(cards.cards, [first, Card::default()]);
        assert_eq!(cards.dns, [ip("10.0.2.3"), ip("fd00::3")]);
        assert_eq!(cards.search, ["one.aerie", "two"]);
        assert_eq!(cards.own_addresses(), [ip("10.0.2.15"), ip("fd00::5")]);
        assert_eq!(Cards::of(&[]).unwrap(), Cards::default());
    }

    #[test]
    fn what_is_no_address_with_a_prefix_is_refused() {
        for text in [
            "",
            "10.0.2.15",
            "10.0.2.15/",
            "10.0.2.15/0",
            "10.0.2.15/33",
            "10.0.2.15/+4",
            "10.0.2/24",
            "0.0.0.0/8",
            "224.0.0.1/8",
            "fd00::1/129",
            "10.0.2.15/-1",
            "a/b",
        ] {
            assert_eq!(Subnet::of_host(text), None, "{text}");
        }
        for (text, inside, outside) in [
            ("1.2.3.4/32", "1.2.3.4", "1.2.3.5"),
            ("1.2.3.4/9", "1.127.0.0", "1.128.0.0"),
            ("fd00::5/64", "fd00::ffff:0:0:1", "fd00:0:0:1::1"),
            ("fd00::5/64", "fd00::", "253.0.0.0"),
        ] {
            let subnet = Subnet::of_host(text).unwrap();
            assert!(subnet.holds(ip(inside)), "{text}");
            assert!(!subnet.holds(ip(outside)), "{text}");
        }
        assert_eq!(Subnet::of_network("8.8.8.8/0").unwrap().ip, ip("0.0.0.0"));
        assert_eq!(Subnet::of_network("fd00::9/0").unwrap().ip, ip("::"));
    }

    #[test]
    fn a_field_that_makes_no_sense_is_refused_by_its_text() {
        let text = |text: &str| Some(text.to_owned());
        let route = |destination: &str, via| Nic {
            routes: vec![Route {
                destination: destination.to_owned(),
                via,
            }],
            ..Nic::default()
        };
        let dns = |text: &str| Nic {
            dns: vec![text.to_owned()],
            ..Nic::default()
        };
        let search = |text: &str| Nic {
            search: vec![text.to_owned()],
            ..Nic::default()
        };
        let none = Nic::default;
        for nic in [
            Nic {
                address: text("fd00::1/64"),
                ..none()
            },
            Nic {
                address6: text("10.0.0.1/8"),
                ..none()
            },
            Nic {
                address6: text("ff02::1/64"),
                ..none()
            },
            Nic {
                gateway: text("fd00::1"),
                ..none()
            },
            Nic {
                gateway6: text("10.0.0.1"),
                ..none()
            },
            Nic {
                gateway: text("router"),
                ..none()
            },
            Nic {
                mtu: Some(67),
                ..none()
            },
            Nic {
                mtu: Some(65_536),
                ..none()
            },
            route("10.0.0.0", None),
            route("10.0.0.0/8", text("fd00::1")),
            route("fd00::/8", text("10.0.0.1")),
            route("10.0.0.0/8", text("")),
            dns(""),
            dns("dns.example.org"),
            dns("10.0.2.3:53"),
            search(""),
            search("a b"),
            search("a\nnameserver 6.6.6.6"),
            search(&"a".repeat(254)),
            Nic {
                routes: vec![Route::default(); 257],
                ..none()
            },
        ] {
            assert!(Cards::of(std::slice::from_ref(&nic)).is_err(), "{nic:?}");
        }
    }
}
