//! What needs a link: DHCP and router advertisements on a tap in a network namespace of the test's own, where the test is
//! the guest and reads and writes frames.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixListener},
    },
    process::Command,
    thread,
    time::Instant,
};

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, Message, MessageType, OptionCode},
};
use serde_json::json;

use super::rig::{Controller, SOON, spawn};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
/// The header that a VMM would get before each frame (virtio 1.2, 5.1.6).
const VNET_HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;

/// Runs a test in a namespace of its own, where that is possible.
fn alone(test: fn()) {
    // SAFETY: takes no argument.
    if unsafe { libc::geteuid() } != 0 || !std::path::Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: a link needs root and /dev/net/tun");
        return;
    }
    let ran = thread::spawn(move || {
        // SAFETY: takes a number; the thread alone moves.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        test();
    });
    ran.join().unwrap();
}

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split(' ')).status().unwrap();
    assert!(status.success(), "ip {line}");
}

/// The host's end of the link, up, with addresses; what is read and written is the guest's end.
fn tap() -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"tap0");
    let flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    const TUNSETIFF: u64 = 0x4004_54ca;
    const TUNSETOFFLOAD: u64 = 0x4004_54d0;
    // SAFETY: the request is a struct ifreq and lives through the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, request.as_ptr()) };
    assert_eq!(made, 0, "{}", io::Error::last_os_error());
    // As with a VMM that leaves checksums to its guest.
    // SAFETY: takes numbers only.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, 1) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    ip("addr add 10.42.0.1/24 dev tap0");
    ip("addr add fd00:1::1/64 dev tap0 nodad");
    ip("link set tap0 up addrgenmode none");
    ip("addr add fe80::1/64 dev tap0 nodad");
    file
}

fn bind_to_tap(fd: &impl AsRawFd) {
    // SAFETY: the name is as long as is said.
    let bound = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            c"tap0".as_ptr().cast(),
            5,
        )
    };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
}

fn raw_icmpv6() -> OwnedFd {
    // SAFETY: takes numbers only; the descriptor is new.
    unsafe {
        let fd = libc::socket(
            libc::AF_INET6,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_ICMPV6,
        );
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

/// The next frame that is wanted, behind the header of the device.
fn frame<T>(tap: &mut File, wanted: impl Fn(&[u8], &[u8]) -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        let mut bytes = [0; 4096];
        match tap.read(&mut bytes) {
            Ok(len) => {
                if let Some(found) = wanted(&bytes[..VNET_HEADER], &bytes[VNET_HEADER..len]) {
                    return found;
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(start.elapsed() < SOON, "no such frame came");
                thread::yield_now();
            }
        }
    }
}

fn send(tap: &mut File, frame: &[u8]) {
    tap.write_all(&[&[0; VNET_HEADER], frame].concat()).unwrap();
}

fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap()
}

/// A DHCP packet of the guest's, as its first frame on the link.
fn dhcp_frame(message: &Message, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let payload = message.to_vec().unwrap();
    let udp_length = u16::try_from(payload.len() + 8).unwrap();
    let mut header = vec![0x45, 0];
    header.extend((udp_length + 20).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let checksum = sum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 0]);
    frame.extend(header);
    frame.extend([0, 68, 0, 67]);
    frame.extend(udp_length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

#[derive(Debug)]
struct Heard {
    mac: [u8; 6],
    from: Ipv4Addr,
    to: Ipv4Addr,
    message: Message,
}

/// The next DHCP answer, which must have a checksum that a raw client believes: none.
fn dhcp_answer(tap: &mut File) -> Heard {
    frame(tap, |vnet, frame| {
        let is_answer = frame.len() > 42
            && frame[12..14] == [8, 0]
            && frame[23] == 17
            && frame[34..38] == [0, 67, 0, 68];
        if !is_answer {
            return None;
        }
        assert_eq!(
            vnet[0] & NEEDS_CHECKSUM,
            0,
            "the checksum is left to a device"
        );
        assert_eq!(frame[40..42], [0, 0], "there is a checksum");
        let four = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
        Some(Heard {
            mac: frame[..6].try_into().unwrap(),
            from: four(26),
            to: four(30),
            message: Message::from_bytes(&frame[42..]).unwrap(),
        })
    })
}

fn request(kind: MessageType, requested: Option<Ipv4Addr>, ciaddr: Ipv4Addr) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(99, ciaddr, none, none, none, &MAC);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(address) = requested {
        message
            .opts_mut()
            .insert(DhcpOption::RequestedIpAddress(address));
    }
    message
}

fn kind(heard: &Heard) -> MessageType {
    match heard.message.opts().get(OptionCode::MessageType) {
        Some(DhcpOption::MessageType(kind)) => *kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_gets_its_lease_and_hears_of_the_router() {
    alone(|| {
        let mut tap = tap();
        let folder = tempfile::tempdir().unwrap();
        let control = UnixListener::bind(folder.path().join("control")).unwrap();
        let dhcp = UdpSocket::bind("0.0.0.0:67").unwrap();
        dhcp.set_broadcast(true).unwrap();
        bind_to_tap(&dhcp);
        let dns = UdpSocket::bind("10.42.0.1:53").unwrap();
        let dns6 = UdpSocket::bind("[fd00:1::1]:53").unwrap();
        let ra = raw_icmpv6();
        bind_to_tap(&ra);
        let mut child = spawn(&[
            ("--control-fd", control.as_fd()),
            ("--dhcp-fd", dhcp.as_fd()),
            ("--dns-udp-fd", dns.as_fd()),
            ("--dns-udp-fd", dns6.as_fd()),
            ("--ra-fd", ra.as_fd()),
        ]);
        let mut controller = Controller::connect(&folder);
        controller.say(&json!({
            "type": "state", "generation": 1,
            "network": {
                "name": "n", "domain": "n.aerie", "subnet": "10.42.0.0/24", "gateway": "10.42.0.1", "subnet6": "fd00:1::/64",
                "gateway6": "fd00:1::1", "mtu": 1400, "dhcp": true, "lease_s": 600, "search": ["n.aerie"],
            },
            "leases": [{"mac": "02:00:00:00:00:05", "address": "10.42.0.5", "hostname": "web", "running": true}],
        }));
        assert_eq!(controller.hear()["type"], "applied");
        let (gateway, own) = (Ipv4Addr::new(10, 42, 0, 1), Ipv4Addr::new(10, 42, 0, 5));
        let (none, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);

        send(
            &mut tap,
            &dhcp_frame(&request(MessageType::Discover, None, none), none, all),
        );
        let offer = dhcp_answer(&mut tap);
        assert_eq!(
            (kind(&offer), offer.message.yiaddr()),
            (MessageType::Offer, own)
        );
        assert_eq!((offer.mac, offer.from, offer.to), ([0xff; 6], gateway, all));

        send(
            &mut tap,
            &dhcp_frame(&request(MessageType::Request, Some(own), none), none, all),
        );
        let ack = dhcp_answer(&mut tap);
        assert_eq!((kind(&ack), ack.message.yiaddr()), (MessageType::Ack, own));
        let dns = DhcpOption::DomainNameServer(vec![gateway]);
        assert_eq!(
            ack.message.opts().get(OptionCode::DomainNameServer),
            Some(&dns)
        );

        let wrong = Ipv4Addr::new(10, 42, 0, 9);
        send(
            &mut tap,
            &dhcp_frame(&request(MessageType::Request, Some(wrong), none), none, all),
        );
        assert_eq!(kind(&dhcp_answer(&mut tap)), MessageType::Nak);

        // A renewal comes from the address and is answered to it; the guest's MAC is known by ARP.
        ip("neigh replace 10.42.0.5 lladdr 02:00:00:00:00:05 dev tap0");
        send(
            &mut tap,
            &dhcp_frame(&request(MessageType::Request, None, own), own, gateway),
        );
        let renewed = dhcp_answer(&mut tap);
        assert_eq!(
            (kind(&renewed), renewed.mac, renewed.to),
            (MessageType::Ack, MAC, own)
        );

        // The advertisement that goes out unasked, then one that was asked for.
        let advertisement = |to: Ipv6Addr| {
            move |_: &[u8], frame: &[u8]| {
                let is_one = frame.len() > 54
                    && frame[12..14] == [0x86, 0xdd]
                    && frame[20] == 58
                    && frame[54] == 134;
                (is_one && frame[38..54] == to.octets()).then(|| frame.to_vec())
            }
        };
        let unasked = frame(&mut tap, advertisement("ff02::1".parse().unwrap()));
        assert_eq!(unasked[21], 255, "hop limit");
        let length = u32::try_from(unasked.len() - 54).unwrap().to_be_bytes();
        let pseudo = [&unasked[22..54], &length, &[0, 0, 0, 58]].concat();
        assert_eq!(sum(&[&pseudo, &unasked[54..]]), 0, "checksum");
        assert_eq!(unasked[60..62], 1800u16.to_be_bytes());

        let guest: Ipv6Addr = "fe80::5".parse().unwrap();
        ip("neigh replace fe80::5 lladdr 02:00:00:00:00:05 dev tap0");
        let mut solicitation = vec![0x33, 0x33, 0, 0, 0, 2];
        solicitation.extend(MAC);
        solicitation.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 58, 255]);
        solicitation.extend(guest.octets());
        solicitation.extend("ff02::2".parse::<Ipv6Addr>().unwrap().octets());
        let pseudo = [&solicitation[22..54], &[0, 0, 0, 8, 0, 0, 0, 58]].concat();
        let checksum = sum(&[&pseudo, &[133, 0, 0, 0, 0, 0, 0, 0]]).to_be_bytes();
        solicitation.extend([133, 0, checksum[0], checksum[1], 0, 0, 0, 0]);
        send(&mut tap, &solicitation);
        let asked = frame(&mut tap, advertisement(guest));
        assert_eq!(
            (
                &asked[..6],
                IpAddr::from(<[u8; 16]>::try_from(&asked[22..38]).unwrap())
            ),
            (&MAC[..], "fe80::1".parse().unwrap())
        );

        let stats = controller.stats();
        assert_eq!(stats["dhcp"], json!({"acks": 2, "naks": 1, "ignored": 0}));
        assert_eq!(stats["ra"]["solicited"], 1);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}
