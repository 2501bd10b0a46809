//! Questions of guests, over the wire.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record},
};
use serde_json::json;

use super::rig::{
    Answer, Helper, SOON, WEB, answer, answer_by_tcp, ask_by_tcp, has_nothing, pair_of_sockets,
    question,
};

/// The answer of an upstream: so many addresses, as bytes.
pub fn upstream_answer(asked: &[u8], addresses: &[&str], ttl: u32) -> Vec<u8> {
    let mut message = Message::from_vec(asked).unwrap().into_response();
    message.metadata.recursion_available = true;
    let name = message.queries[0].name().clone();
    for address in addresses {
        let address: Ipv4Addr = address.parse().unwrap();
        message.add_answer(Record::from_rdata(
            name.clone(),
            ttl,
            RData::A(address.into()),
        ));
    }
    message.to_vec().unwrap()
}

/// Reads what came to an upstream, and from where.
pub fn asked(upstream: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    upstream.set_read_timeout(Some(SOON)).unwrap();
    let mut bytes = [0; 4096];
    let (len, from) = upstream.recv_from(&mut bytes).unwrap();
    (bytes[..len].to_vec(), from)
}

fn upstream() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn names_of_ours_are_answered_by_udp_and_by_tcp() {
    let (helper, _controller) = Helper::told(&[]);
    let web = WEB.to_string();

    assert_eq!(helper.ask(WEB, "web.default.aerie."), Answer::with(&[&web]));
    assert_eq!(helper.ask(WEB, "WEB."), Answer::with(&[&web]));
    assert_eq!(
        helper.ask(WEB, "no.default.aerie."),
        Answer::without(ResponseCode::NXDomain)
    );
    assert_eq!(
        helper.ask(WEB, "example.com."),
        Answer::without(ResponseCode::Refused)
    );

    let mut stream = TcpStream::connect(helper.dns).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    for id in 0..40 {
        ask_by_tcp(&mut stream, &question(id, "web.", None));
    }
    for id in 0..40 {
        let bytes = answer_by_tcp(&mut stream);
        assert_eq!(
            Answer::of(&bytes),
            Answer {
                id,
                ..Answer::with(&[&web])
            }
        );
    }
    // A client that says no more still hears what it asked for.
    ask_by_tcp(&mut stream, &question(1, "web.", None));
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        Answer::of(&answer_by_tcp(&mut stream)),
        Answer::with(&[&web])
    );
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn who_is_outside_the_network_hears_not_a_byte() {
    let (helper, _controller) = Helper::told(&[]);
    let outside = helper.guest(Ipv4Addr::new(127, 1, 0, 5));
    outside.send(&question(1, "web.", None)).unwrap();

    assert_eq!(helper.ask(WEB, "web."), Answer::with(&["127.0.0.5"]));

    assert!(has_nothing(&outside));
}

#[test]
fn names_of_others_are_asked_of_the_upstream_and_its_answer_has_the_clients_id() {
    let (upstream, address) = upstream();
    let (helper, mut controller) = Helper::told(&[address]);
    let guest = helper.guest(WEB);
    guest
        .send(&question(0x4242, "www.MiXed.example.", None))
        .unwrap();

    let (bytes, from) = asked(&upstream);
    let mut forged = upstream_answer(&bytes, &["6.6.6.6"], 60);
    forged[0] ^= 1;
    upstream.send_to(&forged, from).unwrap();
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other
        .send_to(&upstream_answer(&bytes, &["6.6.6.6"], 60), from)
        .unwrap();
    upstream
        .send_to(&upstream_answer(&bytes, &["93.184.216.34"], 60), from)
        .unwrap();

    let mut packet = [0; 512];
    let len = guest.recv(&mut packet).unwrap();
    assert_eq!(
        Answer::of(&packet[..len]),
        Answer {
            id: 0x4242,
            ..Answer::with(&["93.184.216.34"])
        }
    );
    assert_eq!(packet[12..30], *b"\x03www\x05MiXed\x07example");
    let stats = controller.stats();
    assert_eq!(
        stats["dns"],
        json!({"answers": 1, "forwarded": 1, "refused": 0, "servfail": 0})
    );
}

#[test]
fn a_truncated_answer_is_fetched_by_tcp_and_cut_to_what_the_client_takes() {
    let (udp, tcp) = pair_of_sockets();
    let (helper, _controller) = Helper::told(&[udp.local_addr().unwrap()]);
    let many: Vec<String> = (0..60).map(|last| format!("93.184.216.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let serve = |guest: &UdpSocket| {
        let (bytes, from) = asked(&udp);
        let mut short = upstream_answer(&bytes, &[], 60);
        short[2] |= 2;
        udp.send_to(&short, from).unwrap();
        let (mut stream, _) = tcp.accept().unwrap();
        let again = answer_by_tcp(&mut stream);
        let long = upstream_answer(&again, &many, 60);
        // In pieces, as networks do.
        let framed = [&u16::try_from(long.len()).unwrap().to_be_bytes()[..], &long].concat();
        for piece in framed.chunks(100) {
            stream.write_all(piece).unwrap();
        }
        answer(guest)
    };

    let small = helper.guest(WEB);
    small.send(&question(1, "many.example.", None)).unwrap();
    let cut = serve(&small);
    assert!(cut.is_truncated && cut.addresses.is_empty());

    let large = helper.guest(WEB);
    large
        .send(&question(1, "many.example.", Some(4096)))
        .unwrap();
    assert_eq!(serve(&large), Answer::with(&many));

    let mut by_tcp = TcpStream::connect(helper.dns).unwrap();
    ask_by_tcp(&mut by_tcp, &question(1, "many.example.", None));
    let (mut stream, _) = tcp.accept().unwrap();
    let again = answer_by_tcp(&mut stream);
    ask_by_tcp(&mut stream, &upstream_answer(&again, &many, 60));
    assert_eq!(Answer::of(&answer_by_tcp(&mut by_tcp)), Answer::with(&many));
}

#[test]
fn an_upstream_that_is_dead_silent_or_broken_is_passed_over() {
    let dead = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (silent, silent_at) = upstream();
    let (broken, broken_at) = upstream();
    let (good, good_at) = upstream();
    let (helper, _controller) = Helper::told(&[dead, silent_at, broken_at, good_at]);
    let guest = helper.guest(WEB);

    guest.send(&question(1, "example.com.", None)).unwrap();
    asked(&silent);
    let (bytes, from) = asked(&broken);
    let mut failure = upstream_answer(&bytes, &[], 0);
    failure[3] |= 2;
    broken.send_to(&failure, from).unwrap();
    let (bytes, from) = asked(&good);
    good.send_to(&upstream_answer(&bytes, &["93.184.216.34"], 60), from)
        .unwrap();
    assert_eq!(answer(&guest), Answer::with(&["93.184.216.34"]));

    // The next one begins where the last was answered.
    guest.send(&question(1, "example.org.", None)).unwrap();
    let (bytes, from) = asked(&good);
    good.send_to(&upstream_answer(&bytes, &["93.184.216.35"], 60), from)
        .unwrap();
    assert_eq!(answer(&guest), Answer::with(&["93.184.216.35"]));
}

#[test]
fn when_all_are_silent_or_too_many_wait_the_client_is_told() {
    let (silent, address) = upstream();
    let (helper, mut controller) = Helper::told(&[address]);
    let flood = helper.guest(WEB);
    for id in 0..70 {
        flood.send(&question(id, "example.com.", None)).unwrap();
    }

    let first: Vec<_> = (0..6).map(|_| answer(&flood)).collect();
    assert!(
        first
            .iter()
            .all(|one| one.id >= 64 && one.code == ResponseCode::ServFail),
        "{first:?}"
    );
    // Another client is served all the while.
    let other = helper.guest(Ipv4Addr::LOCALHOST);
    other.send(&question(500, "other.example.", None)).unwrap();
    let from = loop {
        let (bytes, from) = asked(&silent);
        if bytes[12] == 5 {
            silent
                .send_to(&upstream_answer(&bytes, &["93.184.216.34"], 60), from)
                .unwrap();
            break from;
        }
    };
    assert_eq!(answer(&other).addresses.len(), 1, "{from}");
    let late: Vec<_> = (0..64).map(|_| answer(&flood)).collect();
    assert!(late.iter().all(|one| one.code == ResponseCode::ServFail));
    assert_eq!(controller.stats()["dns"]["servfail"], 70);
}

#[test]
fn packets_of_nonsense_are_survived() {
    let (helper, _controller) = Helper::told(&[]);
    let guest = helper.guest(WEB);
    let good = question(1, "web.default.aerie.", Some(1232));
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % u64::try_from(below).unwrap()).unwrap()
    };
    for _ in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..=next(6) {
            let at = next(bytes.len());
            bytes[at] = u8::try_from(next(256)).unwrap();
        }
        bytes.truncate(bytes.len() - next(bytes.len()));
        guest.send(&bytes).unwrap();
        let mut stranger = [0; 2048];
        if next(50) == 0 {
            for byte in &mut stranger {
                *byte = u8::try_from(next(256)).unwrap();
            }
            guest.send(&stranger).unwrap();
        }
    }
    let connections: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(helper.dns).unwrap();
            let junk: Vec<u8> = (0..300).map(|_| u8::try_from(next(256)).unwrap()).collect();
            thread::spawn(move || {
                let _ = stream.write_all(&junk);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            })
        })
        .collect();
    for connection in connections {
        connection.join().unwrap();
    }

    assert_eq!(helper.ask(WEB, "web."), Answer::with(&["127.0.0.5"]));
}
