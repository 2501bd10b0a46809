//! DHCP (RFC 2131): every answer is a copy of what the daemon's database says. Nothing that a guest sends changes anything
//! here, so a guest that lies about its MAC learns an address and gets nothing.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode},
};
use hickory_proto::rr::Name;
use vmm_sys_util::epoll::EventSet;

use super::{
    error::NetError,
    message::DhcpStats,
    poll::{Kind, Poll},
    state::{Lease, Mac, State},
    sys,
};

const CLIENT_PORT: u16 = 68;
/// Fixed fields and the magic number.
const HEADER_BYTES: usize = 240;
/// Longest packet that is looked at: what fits a usual Ethernet frame.
const PACKET_BYTES_MAX: usize = 1472;
/// Shortest answer: old clients and switches take nothing below BOOTP's 300.
const ANSWER_BYTES_MIN: usize = 300;
/// Packets that are answered before others have their turn.
const TURN: usize = 32;

#[derive(Debug)]
pub struct Dhcp {
    socket: OwnedFd,
    pub stats: DhcpStats,
}

/// An answer and where it goes.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    kind: MessageType,
    bytes: Vec<u8>,
    to: SocketAddr,
}

impl Dhcp {
    pub fn new(socket: OwnedFd, poll: &Poll) -> Result<Self, NetError> {
        // Clients that read raw packets check the UDP checksum themselves, and between a tap and a bridge the kernel leaves
        // it unfilled for a device that never sees the packet. A packet without one is right for everybody.
        sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1i32)
            .map_err(NetError::io("leave out the checksums of DHCP"))?;
        poll.add(socket.as_raw_fd(), Kind::Dhcp, 0, EventSet::IN)
            .map_err(NetError::io("wait for DHCP"))?;
        Ok(Self {
            socket,
            stats: DhcpStats::default(),
        })
    }

    /// Answers what is there. `resolver` is where this network's DNS is.
    pub fn on_event(
        &mut self,
        state: Option<&State>,
        resolver: Option<Ipv4Addr>,
        scratch: &mut [u8],
    ) {
        for _ in 0..TURN {
            let Ok((len, _)) = sys::recv_from(&self.socket, scratch) else {
                return;
            };
            let packet = &scratch[..len];
            match state.and_then(|state| answer(state, resolver, packet)) {
                Some(answer) => {
                    if sys::send_to(&self.socket, &answer.bytes, &answer.to).is_ok() {
                        match answer.kind {
                            MessageType::Ack => self.stats.acks += 1,
                            MessageType::Nak => self.stats.naks += 1,
                            _ => {}
                        }
                    }
                }
                None => self.stats.ignored += 1,
            }
        }
    }
}

fn answer(state: &State, resolver: Option<Ipv4Addr>, packet: &[u8]) -> Option<Answer> {
    if !state.network.dhcp || packet.len() > PACKET_BYTES_MAX || packet.len() < HEADER_BYTES {
        return None;
    }
    // The decoder would believe any length of the hardware address.
    if packet[2] != 6 {
        return None;
    }
    let request = Message::from_bytes(packet).ok()?;
    let is_ours = request.opcode() == Opcode::BootRequest
        && request.htype() == HType::Eth
        && request.giaddr().is_unspecified();
    if !is_ours {
        return None;
    }
    let mac: Mac = request.chaddr().try_into().ok()?;
    let lease = state.lease_of_mac(&mac)?;
    let address = lease.address?;
    let server = state.network.gateway.or(resolver)?;
    let options = request.opts();
    let named_server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
        _ => None,
    };
    let requested = match options.get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
        _ => None,
    };
    // Said to another server: there is none that we know of, but it is not for us to answer.
    if named_server.is_some_and(|named| named != server) {
        return None;
    }
    let is_own = |of: Ipv4Addr| of.is_unspecified() || of == address;
    let (kind, given) = match options.get(OptionCode::MessageType)? {
        DhcpOption::MessageType(MessageType::Discover) => (MessageType::Offer, address),
        // Selecting and rebooting name the address in an option, renewing and rebinding in the header.
        DhcpOption::MessageType(MessageType::Request) => {
            let wanted = requested.unwrap_or_else(|| request.ciaddr());
            if wanted == address && is_own(request.ciaddr()) {
                (MessageType::Ack, address)
            } else {
                (MessageType::Nak, Ipv4Addr::UNSPECIFIED)
            }
        }
        DhcpOption::MessageType(MessageType::Inform) if request.ciaddr() == address => {
            (MessageType::Ack, Ipv4Addr::UNSPECIFIED)
        }
        _ => return None,
    };
    // A client that has an address hears it; one that has none, or the wrong one, would need ARP to be told of it first.
    let has_address = kind == MessageType::Ack && !request.ciaddr().is_unspecified();
    let (from, to) = if has_address {
        (address, address)
    } else {
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
    };
    let mut reply = Message::new_with_id(
        request.xid(),
        from,
        given,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &mac,
    );
    reply.set_opcode(Opcode::BootReply).set_htype(HType::Eth);
    reply.set_flags(if kind == MessageType::Nak {
        Flags::default().set_broadcast()
    } else {
        request.flags()
    });
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(server));
    if kind != MessageType::Nak {
        for option in configuration(state, lease, resolver) {
            options.insert(option);
        }
    }
    if !given.is_unspecified() {
        let seconds = state.network.lease_s;
        options.insert(DhcpOption::AddressLeaseTime(seconds));
        options.insert(DhcpOption::Renewal(seconds / 2));
        options.insert(DhcpOption::Rebinding(seconds / 8 * 7));
    }
    let mut bytes = reply.to_vec().ok()?;
    bytes.resize(bytes.len().max(ANSWER_BYTES_MIN), 0);
    Some(Answer {
        kind,
        bytes,
        to: (to, CLIENT_PORT).into(),
    })
}

/// What every client is told, with an address or without one.
fn configuration(state: &State, lease: &Lease, resolver: Option<Ipv4Addr>) -> Vec<DhcpOption> {
    let network = &state.network;
    let mut options = vec![
        DhcpOption::InterfaceMtu(network.mtu),
        DhcpOption::DomainName(network.domain.clone()),
    ];
    if let Some(subnet) = network.subnet {
        options.push(DhcpOption::SubnetMask(subnet.mask()));
        options.push(DhcpOption::BroadcastAddr(subnet.broadcast()));
    }
    options.extend(network.gateway.map(|one| DhcpOption::Router(vec![one])));
    options.extend(resolver.map(|one| DhcpOption::DomainNameServer(vec![one])));
    options.extend(lease.hostname.clone().map(DhcpOption::Hostname));
    let search: Vec<_> = network
        .search
        .iter()
        .filter_map(|domain| Name::from_ascii(format!("{domain}.")).ok())
        .collect();
    if !search.is_empty() {
        options.push(DhcpOption::DomainSearch(search));
    }
    options
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::net::state::tests::{example, state};

    const WEB: Mac = [2, 0, 0, 0, 0, 5];
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 5);

    fn request(kind: MessageType, mac: &[u8], options: Vec<DhcpOption>) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(77, none, none, none, none, mac);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option);
        }
        message
    }

    fn answered(message: &Message) -> Option<(MessageType, Message, SocketAddr)> {
        let state = state(example()).unwrap();
        let answer = answer(&state, Some(GATEWAY), &message.to_vec().unwrap())?;
        assert!(answer.bytes.len() >= ANSWER_BYTES_MIN);
        let message = Message::from_bytes(&answer.bytes).unwrap();
        assert_eq!(message.opcode(), Opcode::BootReply);
        assert_eq!(message.xid(), 77);
        assert_eq!(
            message.opts().get(OptionCode::MessageType),
            Some(&DhcpOption::MessageType(answer.kind))
        );
        Some((answer.kind, message, answer.to))
    }

    fn everyone() -> SocketAddr {
        (Ipv4Addr::BROADCAST, CLIENT_PORT).into()
    }

    #[test]
    fn a_discover_is_offered_the_lease_with_all_that_belongs_to_it() {
        let (kind, offer, to) = answered(&request(MessageType::Discover, &WEB, vec![])).unwrap();

        assert_eq!(
            (kind, offer.yiaddr(), to),
            (MessageType::Offer, ADDRESS, everyone())
        );
        for option in [
            DhcpOption::SubnetMask([255, 255, 255, 0].into()),
            DhcpOption::Router(vec![GATEWAY]),
            DhcpOption::DomainNameServer(vec![GATEWAY]),
            DhcpOption::Hostname("web".into()),
            DhcpOption::DomainName("default.aerie".into()),
            DhcpOption::InterfaceMtu(1450),
            DhcpOption::BroadcastAddr([10, 42, 0, 255].into()),
            DhcpOption::AddressLeaseTime(3600),
            DhcpOption::Renewal(1800),
            DhcpOption::Rebinding(3150),
            DhcpOption::ServerIdentifier(GATEWAY),
        ] {
            assert_eq!(offer.opts().get(OptionCode::from(&option)), Some(&option));
        }
        let Some(DhcpOption::DomainSearch(search)) = offer.opts().get(OptionCode::DomainSearch)
        else {
            panic!("no search domains");
        };
        assert_eq!(search.len(), 2);
        assert_eq!(search[1].to_ascii(), "corp.example.");
    }

    #[test]
    fn a_request_for_the_lease_is_acknowledged_and_any_other_is_refused() {
        for (wanted, expected) in [
            (ADDRESS, MessageType::Ack),
            ([10, 42, 0, 6].into(), MessageType::Nak),
            ([192, 168, 1, 5].into(), MessageType::Nak),
        ] {
            let options = vec![DhcpOption::RequestedIpAddress(wanted)];
            let (kind, answer, to) =
                answered(&request(MessageType::Request, &WEB, options)).unwrap();

            assert_eq!((kind, to), (expected, everyone()), "{wanted}");
            let lasting = answer.opts().get(OptionCode::AddressLeaseTime);
            assert_eq!(lasting.is_some(), expected == MessageType::Ack);
        }
    }

    #[test]
    fn a_renewal_is_answered_to_the_address_and_a_lie_to_everyone() {
        let mut renewal = request(MessageType::Request, &WEB, vec![]);
        renewal.set_ciaddr(ADDRESS);
        let (kind, answer, to) = answered(&renewal).unwrap();
        assert_eq!(
            (kind, answer.yiaddr(), answer.ciaddr()),
            (MessageType::Ack, ADDRESS, ADDRESS)
        );
        assert_eq!(to, (ADDRESS, CLIENT_PORT).into());

        let mut lie = request(
            MessageType::Request,
            &WEB,
            vec![DhcpOption::RequestedIpAddress(ADDRESS)],
        );
        lie.set_ciaddr([8, 8, 8, 8]);
        let (kind, _, to) = answered(&lie).unwrap();
        assert_eq!((kind, to), (MessageType::Nak, everyone()));
    }

    #[test]
    fn an_inform_is_told_everything_but_a_lease() {
        let mut inform = request(MessageType::Inform, &WEB, vec![]);
        assert!(answered(&inform).is_none());
        inform.set_ciaddr(ADDRESS);

        let (kind, answer, to) = answered(&inform).unwrap();

        assert_eq!(
            (kind, answer.yiaddr()),
            (MessageType::Ack, Ipv4Addr::UNSPECIFIED)
        );
        assert_eq!(to, (ADDRESS, CLIENT_PORT).into());
        assert!(answer.opts().get(OptionCode::AddressLeaseTime).is_none());
        assert!(answer.opts().get(OptionCode::DomainNameServer).is_some());
    }

    #[test]
    fn strangers_relays_other_servers_and_ends_are_not_answered() {
        let discover = |mac: &[u8]| request(MessageType::Discover, mac, vec![]);
        let mut relayed = discover(&WEB);
        relayed.set_giaddr([10, 42, 0, 9]);
        let mut reply = discover(&WEB);
        reply.set_opcode(Opcode::BootReply);
        let other = DhcpOption::ServerIdentifier([10, 42, 0, 9].into());
        let mut untold = discover(&WEB);
        untold.opts_mut().remove(OptionCode::MessageType);
        for (what, message) in [
            ("a MAC without a lease", discover(&[2, 0, 0, 0, 0, 9])),
            ("a lease without an address", discover(&[2, 0, 0, 0, 0, 7])),
            ("a short MAC", discover(&[2, 0, 0, 0, 0])),
            ("a long MAC", discover(&[2, 0, 0, 0, 0, 5, 0, 0])),
            ("a relay's", relayed),
            ("an answer", reply),
            ("BOOTP", untold),
            (
                "another server's",
                request(MessageType::Request, &WEB, vec![other]),
            ),
            ("a release", request(MessageType::Release, &WEB, vec![])),
            ("a decline", request(MessageType::Decline, &WEB, vec![])),
        ] {
            assert!(answered(&message).is_none(), "{what}");
        }
    }

    #[test]
    fn a_network_without_dhcp_says_nothing_and_one_without_a_gateway_names_no_router() {
        let packet = request(MessageType::Discover, &WEB, vec![])
            .to_vec()
            .unwrap();
        let mut whole = example();
        whole["network"]["gateway"] = json!(null);
        let alone = state(whole.clone()).unwrap();
        let resolver = Ipv4Addr::new(10, 42, 0, 2);

        let bytes = answer(&alone, Some(resolver), &packet).unwrap().bytes;
        let offer = Message::from_bytes(&bytes).unwrap();
        assert!(offer.opts().get(OptionCode::Router).is_none());
        assert_eq!(
            offer.opts().get(OptionCode::ServerIdentifier),
            Some(&DhcpOption::ServerIdentifier(resolver))
        );
        assert_eq!(answer(&alone, None, &packet), None);

        whole["network"]["dhcp"] = json!(false);
        assert_eq!(
            answer(&state(whole).unwrap(), Some(resolver), &packet),
            None
        );
    }

    #[test]
    fn no_mutation_of_a_packet_harms_and_none_is_told_of_another_address() {
        let state = state(example()).unwrap();
        let packet = request(
            MessageType::Request,
            &WEB,
            vec![
                DhcpOption::RequestedIpAddress(ADDRESS),
                DhcpOption::ParameterRequestList(vec![
                    OptionCode::Router,
                    OptionCode::DomainSearch,
                ]),
                DhcpOption::ClientIdentifier(vec![1, 2, 0, 0, 0, 0, 5]),
                DhcpOption::Hostname("x".repeat(40)),
            ],
        )
        .to_vec()
        .unwrap();
        for at in 0..packet.len() {
            assert!(answer(&state, Some(GATEWAY), &packet[..at.min(HEADER_BYTES - 1)]).is_none());
            let _ = answer(&state, Some(GATEWAY), &packet[..at]);
            for value in [0, 1, 5, 6, 7, 16, 17, 52, 119, 127, 128, 254, 255] {
                let mut mutant = packet.clone();
                mutant[at] = value;
                if let Some(answer) = answer(&state, Some(GATEWAY), &mutant) {
                    let reply = Message::from_bytes(&answer.bytes).unwrap();
                    assert!(
                        state
                            .lease_of_mac(reply.chaddr().try_into().unwrap())
                            .is_some()
                    );
                }
            }
        }
    }
}
