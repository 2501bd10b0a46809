//! The loopback and the network cards, by the old ioctls (netdevice(7)): no netlink is needed for four numbers.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use aerie_protocol::message::Nic;

use crate::sys::{check, ioctl_request, own};
use crate::talk::encoding::hex;

/// include/uapi/linux/sockios.h.
const SIOCADDRT: u32 = 0x890b;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCSIFADDR: u32 = 0x8916;
const SIOCSIFNETMASK: u32 = 0x891c;
const SIOCSIFHWADDR: u32 = 0x8924;
const SIOCGIFHWADDR: u32 = 0x8927;

/// `AF_INET` in the width of the field.
const FAMILY: libc::sa_family_t = 2;
const _: () = assert!(libc::AF_INET == 2);

/// A network that cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("\"{0}\" is not the address of one network card")]
    Mac(String),
    #[error("\"{0}\" is not an IPv4 address, or one with the length of its prefix")]
    Address(String),
    #[error("there is no network card {0}")]
    NoCard(usize),
    #[error("cannot {step} of {card}")]
    Set {
        step: &'static str,
        card: String,
        #[source]
        source: io::Error,
    },
}

/// Brings the loopback up: without it not even 127.0.0.1 answers, and every port proxy goes there.
///
/// # Errors
/// The kernel's refusal.
pub fn loopback() -> Result<(), NetworkError> {
    let control = control("lo")?;
    raise(&control, "lo")
}

/// One card as the host says it, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Card {
    mac: Option<[u8; 6]>,
    /// The IPv4 address and its mask.
    address: Option<(Ipv4Addr, Ipv4Addr)>,
    gateway: Option<Ipv4Addr>,
}

/// All cards as the host says them, understood; nothing is set yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cards {
    cards: Vec<Card>,
    /// Resolvers, for `/etc/resolv.conf`.
    pub dns: Vec<IpAddr>,
}

impl Cards {
    /// # Errors
    /// The first text that is not what it should be.
    pub fn of(nics: &[Nic]) -> Result<Self, NetworkError> {
        let ip = |text: &String| {
            text.parse()
                .map_err(|_| NetworkError::Address(text.clone()))
        };
        let mut all = Self::default();
        for nic in nics {
            all.cards.push(Card {
                mac: nic.mac.as_deref().map(mac).transpose()?,
                address: nic.address.as_deref().map(with_mask).transpose()?,
                gateway: nic.gateway.as_ref().map(ip).transpose()?,
            });
            for text in &nic.dns {
                let address = text.parse();
                all.dns
                    .push(address.map_err(|_| NetworkError::Address(text.clone()))?);
            }
        }
        Ok(all)
    }

    /// Sets and raises each card.
    ///
    /// # Errors
    /// The first card that is not there or refuses, when all others are done.
    pub fn apply(&self) -> Result<(), NetworkError> {
        let names = names();
        let mut done = Ok(());
        for (index, card) in self.cards.iter().enumerate() {
            let name = names.get(index).ok_or(NetworkError::NoCard(index));
            done = done.and(name.and_then(|name| card.apply(name)));
        }
        done
    }
}

impl Card {
    fn apply(&self, name: &str) -> Result<(), NetworkError> {
        let control = control(name)?;
        if let Some(mac) = self.mac {
            hardware_address(&control, name, mac)?;
        }
        if let Some((ip, mask)) = self.address {
            address(&control, name, "set the address", SIOCSIFADDR, ip)?;
            address(&control, name, "set the mask", SIOCSIFNETMASK, mask)?;
        }
        raise(&control, name)?;
        self.gateway
            .map_or(Ok(()), |gateway| route(&control, name, gateway))
    }
}

/// An address and the mask of its prefix: `10.0.2.15/24`.
fn with_mask(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), NetworkError> {
    let parse = || {
        let (address, bits) = text.split_once('/')?;
        let bits: u32 = bits.parse().ok().filter(|bits| (1..=32).contains(bits))?;
        Some((
            address.parse().ok()?,
            Ipv4Addr::from_bits(u32::MAX << (32 - bits)),
        ))
    };
    parse().ok_or_else(|| NetworkError::Address(text.to_owned()))
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

/// Interfaces with a device behind them, in the order in which the kernel found them, whatever they are called now.
fn names() -> Vec<String> {
    let mut found: Vec<(u32, String)> = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| {
            let index = fs::read_to_string(entry.path().join("ifindex")).ok()?;
            Some((
                index.trim().parse().ok()?,
                entry.file_name().into_string().ok()?,
            ))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

fn control(card: &str) -> Result<OwnedFd, NetworkError> {
    // SAFETY: socket touches no memory of ours.
    own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
        .map_err(failed("open a socket", card))
}

fn failed<'a>(step: &'static str, card: &'a str) -> impl FnOnce(io::Error) -> NetworkError + 'a {
    move |source| NetworkError::Set {
        step,
        card: card.to_owned(),
        source,
    }
}

fn request(card: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data; zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One less than the array: the name stays null-terminated.
    for (to, from) in request.ifr_name.iter_mut().take(15).zip(card.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets();
    // SAFETY: sockaddr is plain data; zero is a value of it.
    let mut raw: libc::sockaddr = unsafe { std::mem::zeroed() };
    raw.sa_family = FAMILY;
    // sockaddr_in: port (2 bytes), then the address.
    for (to, from) in raw.sa_data.iter_mut().skip(2).zip([a, b, c, d]) {
        *to = from.cast_signed();
    }
    raw
}

fn address(
    control: &OwnedFd,
    card: &str,
    step: &'static str,
    number: u32,
    value: Ipv4Addr,
) -> Result<(), NetworkError> {
    let mut request = request(card);
    request.ifr_ifru.ifru_addr = socket_address(value);
    // SAFETY: a valid ifreq.
    check(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            number as libc::Ioctl,
            &raw const request,
        )
    })
    .map_err(failed(step, card))?;
    Ok(())
}

/// Gives the card another address. Some drivers want the link down for it; the caller raises it, and sets the routes that
/// go with it.
fn hardware_address(control: &OwnedFd, card: &str, mac: [u8; 6]) -> Result<(), NetworkError> {
    let mut request = request(card);
    let ask = |number: u32, request: &mut libc::ifreq| {
        // SAFETY: a valid ifreq, which the kernel may write.
        check(unsafe { libc::ioctl(control.as_raw_fd(), ioctl_request(number), request) })
    };
    ask(SIOCGIFHWADDR, &mut request).map_err(failed("read the address", card))?;
    // SAFETY: SIOCGIFHWADDR has written this member; the address keeps its family, which the kernel wants to see.
    let address = unsafe { &mut request.ifr_ifru.ifru_hwaddr };
    let wanted = mac.map(u8::cast_signed);
    if address.sa_data.starts_with(&wanted) {
        return Ok(());
    }
    for (to, from) in address.sa_data.iter_mut().zip(wanted) {
        *to = from;
    }
    let failed = failed("set the hardware address", card);
    match ask(SIOCSIFHWADDR, &mut request) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            flags(control, card, "lower the link", 0)?;
            ask(SIOCSIFHWADDR, &mut request).map_err(failed)?;
        }
        other => drop(other.map_err(failed)?),
    }
    Ok(())
}

fn raise(control: &OwnedFd, card: &str) -> Result<(), NetworkError> {
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    flags(control, card, "raise the link", up)
}

fn flags(
    control: &OwnedFd,
    card: &str,
    step: &'static str,
    flags: libc::c_int,
) -> Result<(), NetworkError> {
    let mut request = request(card);
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(libc::c_short::MAX);
    // SAFETY: a valid ifreq.
    check(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            ioctl_request(SIOCSIFFLAGS),
            &raw const request,
        )
    })
    .map_err(failed(step, card))?;
    Ok(())
}

fn route(control: &OwnedFd, card: &str, gateway: Ipv4Addr) -> Result<(), NetworkError> {
    // SAFETY: rtentry is plain data; zero (the default route) is a value of it.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: a valid rtentry.
    match check(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            ioctl_request(SIOCADDRT),
            &raw const route,
        )
    }) {
        // Set already: after a restore this is applied once more.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop).map_err(failed("set the route", card)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let nic = Nic {
            mac: Some("02:00:00:00:00:01".to_owned()),
            address: Some("10.0.2.15/24".to_owned()),
            gateway: Some("10.0.2.2".to_owned()),
            dns: vec!["10.0.2.3".to_owned(), "fd00::3".to_owned()],
        };

        let cards = Cards::of(&[nic, Nic::default()]).unwrap();

        let first = Card {
            mac: Some([2, 0, 0, 0, 0, 1]),
            address: Some(([10, 0, 2, 15].into(), [255, 255, 255, 0].into())),
            gateway: Some([10, 0, 2, 2].into()),
        };
        assert_eq!(cards.cards, [first, Card::default()]);
        assert_eq!(
            cards.dns,
            ["10.0.2.3", "fd00::3"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
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
            "10.0.2/24",
            "fd00::1/64",
            "10.0.2.15/-1",
            "a/b",
        ] {
            assert!(
                matches!(with_mask(text), Err(NetworkError::Address(_))),
                "{text}"
            );
        }
        for (text, mask) in [
            ("1.2.3.4/32", [255, 255, 255, 255]),
            ("1.2.3.4/9", [255, 128, 0, 0]),
        ] {
            assert_eq!(with_mask(text).unwrap().1, Ipv4Addr::from(mask), "{text}");
        }
        for dns in ["", "dns.example.org", "10.0.2.3:53"] {
            let nic = Nic {
                dns: vec![dns.to_owned()],
                ..Nic::default()
            };
            assert!(
                matches!(Cards::of(&[nic]), Err(NetworkError::Address(_))),
                "{dns}"
            );
        }
    }
}
