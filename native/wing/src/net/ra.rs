//! Router advertisements (RFC 4861): the way out, the prefix, the MTU and the resolver. Addresses are never made of them:
//! they are the daemon's to give.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use vmm_sys_util::epoll::EventSet;

use super::{
    error::NetError,
    message::RaStats,
    poll::{Kind, Poll},
    state::State,
    sys,
};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// What comes from this link and was not forwarded to it.
const HOPS: i32 = 255;
/// How often advertisements go out unasked, and how far they are apart at least (RFC 4861, 10).
const INTERVAL: Duration = Duration::from_secs(200);
const APART: Duration = Duration::from_secs(3);
/// How long what is said is good, in seconds.
const ROUTER_SECONDS: u16 = 1800;
const PREFIX_SECONDS: u32 = 86_400;
const RESOLVER_SECONDS: u32 = 1800;
/// Packets that are answered before others have their turn.
const TURN: usize = 32;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

#[derive(Debug)]
pub struct Ra {
    socket: OwnedFd,
    /// The device that it is bound to.
    device: u32,
    sent_to_all: Option<Instant>,
    /// Somebody without an address has asked.
    is_asked: bool,
    pub stats: RaStats,
}

impl Ra {
    pub fn new(socket: OwnedFd, poll: &Poll) -> Result<Self, NetError> {
        let device = bound_device(&socket)
            .and_then(|device| set_up(&socket, device).map(|()| device))
            .map_err(NetError::io("set up router advertisements"))?;
        poll.add(socket.as_raw_fd(), Kind::Ra, 0, EventSet::IN)
            .map_err(NetError::io("wait for router solicitations"))?;
        Ok(Self {
            socket,
            device,
            sent_to_all: None,
            is_asked: false,
            stats: RaStats::default(),
        })
    }

    pub fn on_event(
        &mut self,
        state: Option<&State>,
        resolver: Option<Ipv6Addr>,
        scratch: &mut [u8],
    ) {
        for _ in 0..TURN {
            let Ok((len, from, hops)) = sys::recv_with_hops(&self.socket, scratch) else {
                return;
            };
            let Some(SocketAddr::V6(from)) = from else {
                continue;
            };
            if !is_solicitation(&scratch[..len], *from.ip(), hops) {
                continue;
            }
            self.stats.solicited += 1;
            if from.ip().is_unspecified() {
                self.is_asked = true;
            } else if let Some(state) = state {
                let to = SocketAddrV6::new(*from.ip(), 0, 0, self.device);
                self.send(state, resolver, to);
            }
        }
    }

    /// When an advertisement to all is due.
    pub fn due(&self, state: Option<&State>, now: Instant) -> Option<Instant> {
        state?.network.subnet6?;
        let wait = if self.is_asked { APART } else { INTERVAL };
        Some(self.sent_to_all.map_or(now, |last| last + wait))
    }

    /// Sends what is due.
    pub fn on_tick(&mut self, state: Option<&State>, resolver: Option<Ipv6Addr>, now: Instant) {
        let is_due = self.due(state, now).is_some_and(|due| due <= now);
        if let Some(state) = state.filter(|_| is_due) {
            self.sent_to_all = Some(now);
            self.is_asked = false;
            self.send(
                state,
                resolver,
                SocketAddrV6::new(ALL_NODES, 0, 0, self.device),
            );
        }
    }

    /// What is said has changed: everybody hears it soon.
    pub fn on_state_changed(&mut self) {
        self.is_asked = true;
    }

    fn send(&mut self, state: &State, resolver: Option<Ipv6Addr>, to: SocketAddrV6) {
        if let Some(bytes) = advertisement(state, resolver)
            && sys::send_to(&self.socket, &bytes, &to.into()).is_ok()
        {
            self.stats.sent += 1;
        }
    }
}

/// A valid solicitation (RFC 4861, 6.1.1), of a source that can be answered on this link.
fn is_solicitation(packet: &[u8], from: Ipv6Addr, hops: Option<i32>) -> bool {
    packet.len() >= 8
        && packet[0] == ROUTER_SOLICITATION
        && packet[1] == 0
        && hops == Some(HOPS)
        && (from.is_unspecified() || from.is_unicast_link_local())
}

fn advertisement(state: &State, resolver: Option<Ipv6Addr>) -> Option<Vec<u8>> {
    let network = &state.network;
    let subnet = network.subnet6?;
    let lifetime = if network.gateway6.is_some() {
        ROUTER_SECONDS
    } else {
        0
    };
    // The kernel fills in the checksum. Hop limit 64; no addresses and no other configuration by DHCPv6.
    let mut bytes = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    bytes.extend_from_slice(&lifetime.to_be_bytes());
    bytes.extend_from_slice(&[0; 8]);

    bytes.extend_from_slice(&[5, 1, 0, 0]);
    bytes.extend_from_slice(&u32::from(network.mtu).to_be_bytes());

    // On this link, and no addresses to be made of it.
    bytes.extend_from_slice(&[3, 4, subnet.prefix, 0x80]);
    bytes.extend_from_slice(&PREFIX_SECONDS.to_be_bytes());
    bytes.extend_from_slice(&PREFIX_SECONDS.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&subnet.first().octets());

    if let Some(resolver) = resolver {
        bytes.extend_from_slice(&[25, 3, 0, 0]);
        bytes.extend_from_slice(&RESOLVER_SECONDS.to_be_bytes());
        bytes.extend_from_slice(&resolver.octets());
    }
    let mut names = Vec::new();
    for domain in &network.search {
        for label in domain.split('.') {
            names.push(u8::try_from(label.len()).ok()?);
            names.extend_from_slice(label.as_bytes());
        }
        names.push(0);
    }
    if !names.is_empty() {
        names.resize(names.len().next_multiple_of(8), 0);
        // Eight domains of 254 bytes make 254 units and one for the head.
        let units = u8::try_from(names.len() / 8 + 1).ok()?;
        bytes.extend_from_slice(&[31, units, 0, 0]);
        bytes.extend_from_slice(&RESOLVER_SECONDS.to_be_bytes());
        bytes.extend_from_slice(&names);
    }
    Some(bytes)
}

/// The index of the device that a socket is bound to.
fn bound_device(socket: &OwnedFd) -> io::Result<u32> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    let mut len = libc::socklen_t::try_from(name.len()).map_err(io::Error::other)?;
    // SAFETY: `name` has room for `len` bytes and both live through the call.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    if name[0] == 0 {
        return Err(io::Error::other("the socket is bound to no device"));
    }
    // SAFETY: ifreq is plain data; zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    // The socket's own namespace is asked, which may be another than this process's: netdevice(7).
    const SIOCGIFINDEX: libc::Ioctl = 0x8933;
    // SAFETY: a valid ifreq, which the kernel writes.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGIFINDEX, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFINDEX has written this member.
    u32::try_from(unsafe { request.ifr_ifru.ifru_ifindex }).map_err(io::Error::other)
}

fn set_up(socket: &OwnedFd, device: u32) -> io::Result<()> {
    let number = i32::try_from(device).map_err(io::Error::other)?;
    let level = libc::IPPROTO_IPV6;
    sys::set_option(socket, level, libc::IPV6_MULTICAST_HOPS, HOPS)?;
    sys::set_option(socket, level, libc::IPV6_UNICAST_HOPS, HOPS)?;
    sys::set_option(socket, level, libc::IPV6_MULTICAST_IF, number)?;
    sys::set_option(socket, level, libc::IPV6_MULTICAST_LOOP, 0i32)?;
    sys::set_option(socket, level, libc::IPV6_RECVHOPLIMIT, 1i32)?;
    // A bit for each type; a set bit blocks (RFC 3542, 3.2).
    let mut filter = [u32::MAX; 8];
    filter[usize::from(ROUTER_SOLICITATION >> 5)] &= !(1 << (ROUTER_SOLICITATION & 31));
    const ICMP6_FILTER: i32 = 1;
    sys::set_option(socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, filter)?;
    let group = libc::ipv6_mreq {
        ipv6mr_multiaddr: libc::in6_addr {
            s6_addr: ALL_ROUTERS.octets(),
        },
        ipv6mr_interface: device,
    };
    sys::set_option(socket, level, libc::IPV6_ADD_MEMBERSHIP, group)
}

/// The IPv6 address among those that DNS is served at.
pub fn resolver(mut addresses: impl Iterator<Item = IpAddr>) -> Option<Ipv6Addr> {
    addresses.find_map(|address| match address {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::net::state::tests::{example, state};

    /// The options by type, as bytes behind type and length.
    fn options(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut rest = &bytes[16..];
        let mut found = Vec::new();
        while let [kind, units, ..] = rest {
            let length = usize::from(*units) * 8;
            found.push((*kind, rest[2..length].to_vec()));
            rest = &rest[length..];
        }
        found
    }

    #[test]
    fn an_advertisement_says_all_and_makes_no_addresses() {
        let resolver = "fd00:1::1".parse().unwrap();
        let bytes = advertisement(&state(example()).unwrap(), Some(resolver)).unwrap();

        assert_eq!(bytes[..8], [134, 0, 0, 0, 64, 0, 0x07, 0x08]);
        let options = options(&bytes);
        let kinds: Vec<_> = options.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [5, 3, 25, 31]);
        assert_eq!(options[0].1, [0, 0, 0, 0, 0x05, 0xaa]);
        assert_eq!(options[1].1[..2], [64, 0x80]);
        assert_eq!(
            options[1].1[14..],
            "fd00:1::".parse::<Ipv6Addr>().unwrap().octets()
        );
        assert_eq!(options[2].1[6..], resolver.octets());
        let names = b"\x07default\x05aerie\0\x04corp\x07example\0";
        assert_eq!(options[3].1[6..6 + names.len()], *names);
    }

    #[test]
    fn without_a_way_out_there_is_no_router_and_without_a_subnet_nothing() {
        let mut whole = example();
        whole["network"]["gateway6"] = json!(null);
        let bytes = advertisement(&state(whole.clone()).unwrap(), None).unwrap();
        assert_eq!(bytes[6..8], [0, 0]);
        assert!(options(&bytes).iter().all(|(kind, _)| *kind != 25));

        whole["network"]["subnet6"] = json!(null);
        for lease in whole["leases"].as_array_mut().unwrap() {
            lease["address6"] = json!(null);
        }
        assert_eq!(advertisement(&state(whole).unwrap(), None), None);
    }

    #[test]
    fn only_what_comes_from_this_link_is_a_solicitation() {
        let own = "fe80::1".parse().unwrap();
        let packet = [133, 0, 0, 0, 0, 0, 0, 0];
        assert!(is_solicitation(&packet, own, Some(255)));
        assert!(is_solicitation(&packet, Ipv6Addr::UNSPECIFIED, Some(255)));
        assert!(!is_solicitation(&packet, own, Some(254)));
        assert!(!is_solicitation(&packet, own, None));
        assert!(!is_solicitation(
            &packet,
            "2001::1".parse().unwrap(),
            Some(255)
        ));
        assert!(!is_solicitation(&packet[..7], own, Some(255)));
        assert!(!is_solicitation(
            &[134, 0, 0, 0, 0, 0, 0, 0],
            own,
            Some(255)
        ));
        assert!(!is_solicitation(
            &[133, 1, 0, 0, 0, 0, 0, 0],
            own,
            Some(255)
        ));
        assert!(!is_solicitation(&[], own, Some(255)));
    }
}
