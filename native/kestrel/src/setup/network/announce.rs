//! Telling the others on a link who has its addresses now: they may know them from a guest that had them before.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::observe::console::say;
use crate::setup::network::link::{self, Link};
use crate::setup::network::socket;
use crate::sys::spawn_thread;

/// A host may give the link of a clone its carrier only when the clone is told who it is.
const CARRIER_MAX: Duration = Duration::from_secs(30);

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ARP_REQUEST: u16 = 1;
const ICMPV6_ADVERTISEMENT: u8 = 136;
/// RFC 4861 §4.4: this overrides what is known.
const OVERRIDE: u32 = 1 << 29;
const TARGET_LINK_ADDRESS: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 4861 §7.1.2: a packet that crossed a router is not believed.
const HOPS_MAX: libc::c_int = 255;

/// A link and the addresses that are its own.
#[derive(Debug)]
pub struct Own {
    pub link: Link,
    pub addresses: Vec<IpAddr>,
}

/// Announces these as soon as frames get through. Nobody waits for it: what is not heard is asked for later.
pub fn start(all: impl Iterator<Item = Own>) {
    let all: Vec<Own> = all.filter(|own| !own.addresses.is_empty()).collect();
    if all.is_empty() {
        return;
    }
    let started = spawn_thread("announce", move || {
        for own in &all {
            if let Err(error) = announce(own) {
                say(&format!("cannot announce {}: {error}", own.link.name));
            }
        }
    });
    if let Err(error) = started {
        say(&format!("no announcement: {error}"));
    }
}

fn announce(own: &Own) -> io::Result<()> {
    let deadline = Instant::now() + CARRIER_MAX;
    let Some(mac) = link::carrier(own.link.index, deadline, None)? else {
        return Ok(());
    };
    for address in &own.addresses {
        match *address {
            IpAddr::V4(ip) => arp(own.link.index, mac, ip)?,
            IpAddr::V6(ip) => advertisement(own.link.index, mac, ip)?,
        }
    }
    Ok(())
}

/// An announcement by ARP (RFC 5227 §3): a request for the own address.
fn arp(index: u32, mac: [u8; 6], ip: Ipv4Addr) -> io::Result<()> {
    let socket = socket::open(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: sockaddr_ll is plain data; zero is a value of it.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = socket::family(libc::AF_PACKET);
    to.sll_protocol = ETHERTYPE_ARP.to_be();
    to.sll_ifindex = index.cast_signed();
    to.sll_halen = 6;
    to.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    socket::send_to(&socket, &arp_packet(mac, ip), &to)
}

fn arp_packet(mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1];
    packet.extend(ETHERTYPE_IPV4.to_be_bytes());
    packet.extend([6, 4]);
    packet.extend(ARP_REQUEST.to_be_bytes());
    packet.extend(mac);
    packet.extend(ip.octets());
    packet.extend([0; 6]);
    packet.extend(ip.octets());
    packet
}

/// An unsolicited neighbour advertisement (RFC 4861 §7.2.6); the kernel fills in its checksum.
fn advertisement(index: u32, mac: [u8; 6], ip: Ipv6Addr) -> io::Result<()> {
    let socket = socket::open(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)?;
    socket::set(
        &socket,
        libc::IPPROTO_IPV6,
        libc::IPV6_MULTICAST_HOPS,
        &HOPS_MAX,
    )?;
    socket::bind(&socket, &inet6(ip, 0))?;
    socket::send_to(
        &socket,
        &advertisement_packet(mac, ip),
        &inet6(ALL_NODES, index),
    )
}

fn advertisement_packet(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![ICMPV6_ADVERTISEMENT, 0, 0, 0];
    packet.extend(OVERRIDE.to_be_bytes());
    packet.extend(ip.octets());
    packet.extend([TARGET_LINK_ADDRESS, 1]);
    packet.extend(mac);
    packet
}

fn inet6(ip: Ipv6Addr, scope: u32) -> libc::sockaddr_in6 {
    // SAFETY: sockaddr_in6 is plain data; zero is a value of it.
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    address.sin6_family = socket::family(libc::AF_INET6);
    address.sin6_addr.s6_addr = ip.octets();
    address.sin6_scope_id = scope;
    address
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::{poll, poll_entry};
    use crate::test_network::{alone, ip};

    #[test]
    fn both_families_are_announced_as_soon_as_there_is_a_carrier() {
        const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
        let name = "both_families_are_announced_as_soon_as_there_is_a_carrier";
        alone(&format!("setup::network::announce::tests::{name}"), || {
            ip("link add one type veth peer name two");
            ip("link set one addr 02:00:00:00:00:05 up");
            ip("addr add 10.42.0.5/24 dev one");
            ip("addr add fd42::5/64 dev one nodad");
            let index = |name: &str| {
                let listed = ip(&format!("-o link show {name}"));
                listed.split(':').next().unwrap().parse::<u32>().unwrap()
            };
            const EVERYTHING: u16 = 3;
            let socket = socket::open(libc::AF_PACKET, libc::SOCK_RAW, 0).unwrap();
            // SAFETY: sockaddr_ll is plain data; zero is a value of it.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            from.sll_family = socket::family(libc::AF_PACKET);
            from.sll_protocol = EVERYTHING.to_be();
            from.sll_ifindex = index("two").cast_signed();
            socket::bind(&socket, &from).unwrap();

            start(std::iter::once(Own {
                link: Link {
                    index: index("one"),
                    name: "one".to_owned(),
                },
                addresses: ["10.42.0.5", "fd42::5"]
                    .map(|ip| ip.parse().unwrap())
                    .into(),
            }));
            ip("link set two up");

            let arp = [
                &[0xff; 6][..],
                &MAC,
                &[8, 6],
                &arp_packet(MAC, [10, 42, 0, 5].into()),
            ];
            let target: Ipv6Addr = "fd42::5".parse().unwrap();
            let advertisement = advertisement_packet(MAC, target);
            let (mut has_arp, mut has_advertisement) = (false, false);
            let deadline = Instant::now() + Duration::from_secs(20);
            while !has_arp || !has_advertisement {
                let mut entries = [poll_entry(socket.as_raw_fd(), libc::POLLIN)];
                assert!(poll(&mut entries, Some(deadline)).unwrap());
                let mut frame = vec![0; 2048];
                // An error too: the link was down.
                let count = socket::receive(&socket, &mut frame, 0).unwrap_or(0);
                let frame = &frame[..count];
                has_arp |= frame.starts_with(&arp.concat());
                // Behind Ethernet and IPv6, but for the checksum that the kernel fills in.
                has_advertisement |= frame.len() == 14 + 40 + advertisement.len()
                    && frame[14 + 7] == 255
                    && frame[14 + 8..14 + 24] == target.octets()
                    && frame[14 + 24..14 + 40] == ALL_NODES.octets()
                    && frame[14 + 40] == ICMPV6_ADVERTISEMENT
                    && frame[14 + 40 + 4..] == advertisement[4..];
            }
        });
    }
}
