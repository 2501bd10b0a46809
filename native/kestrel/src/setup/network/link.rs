//! What the kernel is told of one link: state, addresses, routes, neighbours (rtnetlink(7)).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Instant;

use crate::setup::network::card::{Subnet, Way};
use crate::setup::network::netlink::{CREATE, Message, Netlink, REPLACE, attributes};
use crate::sys::{NO_FD, is_ready, poll, poll_entry};

/// include/uapi/linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const RTMGRP_LINK: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;

/// include/uapi/linux/if_link.h, if_addr.h, neighbour.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 2;
const NDA_DST: u16 = 1;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;

/// `AF_INET` and `AF_INET6` in the width of their fields.
const INET: u8 = 2;
const INET6: u8 = 10;
const _: () = assert!(libc::AF_INET == 2 && libc::AF_INET6 == 10);

const UP: u32 = libc::IFF_UP.cast_unsigned();
/// Set by the kernel where frames get through: up, and the device has its carrier.
const RUNNING: u32 = libc::IFF_RUNNING.cast_unsigned();

/// A network interface, by the number that stays when it gets another name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    pub index: u32,
    pub name: String,
}

/// What a link is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub mac: [u8; 6],
    pub mtu: u32,
    pub is_up: bool,
    pub is_running: bool,
}

/// Finds the interfaces with a device behind them, in the order in which the kernel found them, whatever they are called now.
pub fn cards() -> Vec<Link> {
    let mut found: Vec<Link> = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| {
            let index = fs::read_to_string(entry.path().join("ifindex")).ok()?;
            Some(Link {
                index: index.trim().parse().ok()?,
                name: entry.file_name().into_string().ok()?,
            })
        })
        .collect();
    found.sort();
    found
}

/// Opens the socket that all functions here want.
///
/// # Errors
/// The kernel's refusal.
pub fn open() -> io::Result<Netlink> {
    Netlink::open(libc::NETLINK_ROUTE, 0)
}

/// `struct ifinfomsg`.
fn link_message(kind: u16, flags: u16, index: u32, up: Option<bool>) -> Message {
    let mut fixed = vec![0; 4];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(if up == Some(true) { UP } else { 0 }.to_ne_bytes());
    fixed.extend(if up.is_some() { UP } else { 0 }.to_ne_bytes());
    Message::new(kind, flags, &fixed)
}

/// Raises or lowers a link.
///
/// # Errors
/// The kernel's refusal.
pub fn set_up(netlink: &mut Netlink, index: u32, up: bool) -> io::Result<()> {
    netlink.change(link_message(RTM_NEWLINK, 0, index, Some(up)))
}

/// Gives a link another hardware address.
///
/// # Errors
/// The kernel's refusal.
pub fn set_mac(netlink: &mut Netlink, index: u32, mac: [u8; 6]) -> io::Result<()> {
    netlink.change(link_message(RTM_NEWLINK, 0, index, None).with(IFLA_ADDRESS, &mac))
}

/// Sets the largest packet of a link.
///
/// # Errors
/// The kernel's refusal.
pub fn set_mtu(netlink: &mut Netlink, index: u32, mtu: u32) -> io::Result<()> {
    netlink.change(link_message(RTM_NEWLINK, 0, index, None).with(IFLA_MTU, &mtu.to_ne_bytes()))
}

/// Asks what a link is now.
///
/// # Errors
/// The kernel's refusal; `NotFound` where there is no such link.
pub fn state(netlink: &mut Netlink, index: u32) -> io::Result<State> {
    let mut found = None;
    netlink.list(link_message(RTM_GETLINK, 0, 0, None), |kind, body| {
        if kind != RTM_NEWLINK || number(body, 4) != Some(index) {
            return;
        }
        let flags = number(body, 8).unwrap_or(0);
        let mut state = State {
            is_up: flags & UP != 0,
            is_running: flags & RUNNING != 0,
            ..State::default()
        };
        for (kind, value) in attributes(body.get(16..).unwrap_or_default()) {
            match kind {
                IFLA_ADDRESS => state.mac = value.try_into().unwrap_or_default(),
                IFLA_MTU => state.mtu = number(value, 0).unwrap_or(0),
                _ => {}
            }
        }
        found = Some(state);
    })?;
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Waits until frames get through a link, and gives its hardware address then; `None` where they do not in time, or `wake`
/// becomes readable.
///
/// # Errors
/// The kernel's refusal; `NotFound` where there is no such link.
pub fn carrier(index: u32, deadline: Instant, wake: Option<RawFd>) -> io::Result<Option<[u8; 6]>> {
    // Watched before it is asked: no change is missed.
    let watch = Netlink::open(libc::NETLINK_ROUTE, RTMGRP_LINK)?;
    let mut netlink = open()?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let state = state(&mut netlink, index)?;
        if state.is_running {
            return Ok(Some(state.mac));
        }
        let mut entries = [
            poll_entry(watch.fd(), libc::POLLIN),
            poll_entry(wake.unwrap_or(NO_FD), libc::POLLIN),
        ];
        let in_time = poll(&mut entries, Some(deadline))?;
        let [_, woken] = &entries;
        if !in_time || is_ready(woken) {
            return Ok(None);
        }
        // More may have happened than the kernel kept: the state is asked for anyway.
        let _ = watch.receive(&mut buffer, libc::MSG_DONTWAIT);
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

const fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => INET,
        IpAddr::V6(_) => INET6,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        16 => bytes.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        _ => None,
    }
}

/// `struct ifaddrmsg` with the address.
fn address_message(kind: u16, flags: u16, index: u32, subnet: Subnet) -> Message {
    let mut fixed = vec![family(subnet.ip), subnet.bits, IFA_F_NODAD, 0];
    fixed.extend(index.to_ne_bytes());
    let ip = octets(subnet.ip);
    Message::new(kind, flags, &fixed)
        .with(IFA_LOCAL, &ip)
        .with(IFA_ADDRESS, &ip)
}

/// Gives a link an address, or again the one that it has. An IPv6 address is there at once: nobody is asked whether it is
/// taken, the host has given it away once.
///
/// # Errors
/// The kernel's refusal.
pub fn add_address(netlink: &mut Netlink, index: u32, subnet: Subnet) -> io::Result<()> {
    let mut message = address_message(RTM_NEWADDR, CREATE | REPLACE, index, subnet);
    if let IpAddr::V4(ip) = subnet.ip
        && subnet.bits < 31
    {
        let rest = u32::MAX >> subnet.bits;
        message = message.with(IFA_BROADCAST, &(ip.to_bits() | rest).to_be_bytes());
    }
    netlink.change(message)
}

/// Takes an address away; fine where it is gone already.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_address(netlink: &mut Netlink, index: u32, subnet: Subnet) -> io::Result<()> {
    match netlink.change(address_message(RTM_DELADDR, 0, index, subnet)) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

/// Lists the addresses of a link, but for IPv6 ones of the link alone, which the kernel makes of the hardware address.
///
/// # Errors
/// The kernel's refusal.
pub fn addresses(netlink: &mut Netlink, index: u32) -> io::Result<Vec<Subnet>> {
    let mut found = Vec::new();
    netlink.list(Message::new(RTM_GETADDR, 0, &[0; 8]), |kind, body| {
        if kind != RTM_NEWADDR || number(body, 4) != Some(index) {
            return;
        }
        let bits = body.get(1).copied().unwrap_or(0);
        let value = |wanted| {
            let mut all = attributes(body.get(8..).unwrap_or_default());
            all.find_map(|(kind, value)| (kind == wanted).then(|| address_of(value))?)
        };
        match value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS)) {
            Some(IpAddr::V6(ip)) if ip.is_unicast_link_local() => {}
            Some(ip) => found.push(Subnet { ip, bits }),
            None => {}
        }
    })?;
    Ok(found)
}

/// Adds a route over a link or puts it in the place of the same; `metric` 0 is the kernel's own.
///
/// # Errors
/// The kernel's refusal.
pub fn add_route(
    netlink: &mut Netlink,
    index: u32,
    way: &Way,
    metric: u32,
    on_link: bool,
) -> io::Result<()> {
    let (is_ipv4, bits) = (way.is_ipv4(), way.destination.map_or(0, |net| net.bits));
    let scope = match way.via {
        None if is_ipv4 => RT_SCOPE_LINK,
        _ => RT_SCOPE_UNIVERSE,
    };
    let mut fixed = vec![if is_ipv4 { INET } else { INET6 }, bits, 0, 0];
    fixed.extend([RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST]);
    fixed.extend(if on_link { RTNH_F_ONLINK } else { 0 }.to_ne_bytes());
    let destination = way.destination.filter(|net| net.bits > 0);
    let message = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &fixed)
        .with_some(RTA_DST, destination.map(|net| octets(net.ip)).as_deref())
        .with_some(RTA_GATEWAY, way.via.map(octets).as_deref())
        .with(RTA_OIF, &index.to_ne_bytes())
        .with_some(
            RTA_PRIORITY,
            (metric > 0)
                .then(|| metric.to_ne_bytes())
                .as_ref()
                .map(<[u8; 4]>::as_slice),
        );
    netlink.change(message)
}

/// Forgets the hardware addresses of others on a link, but for those that were set by hand.
///
/// # Errors
/// The kernel's refusal.
pub fn forget_neighbours(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut found = Vec::new();
    netlink.list(Message::new(RTM_GETNEIGH, 0, &[0; 12]), |_, body| {
        let state = body
            .get(8..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u16::from_ne_bytes(*bytes));
        if number(body, 4) != Some(index) || state & (NUD_NOARP | NUD_PERMANENT) != 0 {
            return;
        }
        let mut all = attributes(body.get(12..).unwrap_or_default());
        found.extend(all.find_map(|(kind, value)| (kind == NDA_DST).then(|| address_of(value))?));
    })?;
    for ip in found {
        let mut fixed = vec![family(ip), 0, 0, 0];
        fixed.extend(index.to_ne_bytes());
        fixed.extend([0; 4]);
        let message = Message::new(RTM_DELNEIGH, 0, &fixed).with(NDA_DST, &octets(ip));
        match netlink.change(message) {
            // It went by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}
