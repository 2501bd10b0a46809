//! Answers of servers, good and bad.

use super::*;

fn asker() -> Asker {
    Asker {
        mac: [2, 0, 0, 0, 0, 5],
        exchange: 0x0102_0304,
        hostname: "web".to_owned(),
    }
}

/// A server's answer with these options.
fn answer(kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = asker().say(Question::Discover, 0);
    bytes.truncate(OPTIONS_AT);
    bytes[0] = REPLY;
    bytes[YOUR_ADDRESS_AT..YOUR_ADDRESS_AT + 4].copy_from_slice(&[10, 42, 0, 9]);
    option(&mut bytes, TYPE, &[kind]);
    for (code, value) in options {
        option(&mut bytes, *code, value);
    }
    bytes.push(END);
    bytes
}

const HOUR: (u8, &[u8]) = (LEASE_SECONDS, &[0, 0, 14, 16]);

fn lease(options: &[(u8, &[u8])]) -> Option<Lease> {
    let all: Vec<_> = [HOUR].iter().chain(options).copied().collect();
    match asker().hear(&answer(ACK, &all)) {
        Some(Answer::Lease(lease)) => Some(lease),
        None => None,
        other => panic!("{other:?}"),
    }
}

fn way(destination: &str, via: &str) -> Way {
    Way {
        destination: Subnet::of_network(destination),
        via: via.parse().ok(),
    }
}

#[test]
fn a_question_is_a_message_of_a_client() {
    let bytes = asker().say(Question::Discover, 3);

    assert_eq!(bytes.len(), MESSAGE_BYTES_MIN);
    assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 3, 0x80, 0]);
    assert_eq!(bytes[28..34], [2, 0, 0, 0, 0, 5]);
    assert_eq!(bytes[236..243], [99, 130, 83, 99, 53, 1, 1]);
    let (ip, server) = ([10, 42, 0, 9].into(), [10, 42, 0, 1].into());
    let renew = asker().say(Question::Renew { ip }, 0);
    assert_eq!(renew[10..16], [0, 0, 10, 42, 0, 9]);
    let take = Options::read(&asker().say(Question::Take { ip, server }, 0)).unwrap();
    assert_eq!(take.address(WANTED_ADDRESS), Some(ip));
    assert_eq!(take.address(SERVER), Some(server));
    assert_eq!(take.0[&HOST_NAME], b"web");
}

#[test]
fn an_offer_and_a_lease_are_read_whole() {
    let offer = answer(OFFER, &[(SERVER, &[10, 42, 0, 1])]);
    assert_eq!(
        asker().hear(&offer),
        Some(Answer::Offer {
            ip: [10, 42, 0, 9].into(),
            server: [10, 42, 0, 1].into()
        })
    );
    assert_eq!(asker().hear(&answer(NAK, &[])), Some(Answer::Refused));

    let lease = lease(&[
        (SERVER, &[10, 42, 0, 1]),
        (MASK, &[255, 255, 255, 0]),
        (ROUTER, &[10, 42, 0, 1, 10, 42, 0, 2]),
        (RESOLVERS, &[10, 42, 0, 1]),
        (RESOLVERS, &[10, 42, 0, 3]),
        (MTU, &[5, 120]),
        (DOMAIN, b"default.aerie\0"),
        (RENEW_SECONDS, &[0, 0, 1, 0]),
    ])
    .unwrap();

    assert_eq!(
        lease,
        Lease {
            address: Subnet::of_host("10.42.0.9/24").unwrap(),
            server: Some([10, 42, 0, 1].into()),
            ways: vec![way("", "10.42.0.1")],
            mtu: Some(1400),
            dns: vec![[10, 42, 0, 1].into(), [10, 42, 0, 3].into()],
            search: vec!["default.aerie".to_owned()],
            times: Times {
                renew: Some(Duration::from_secs(256)),
                rebind: Some(Duration::from_secs(3150)),
                end: Some(Duration::from_secs(3600)),
            },
        }
    );
}

#[test]
fn routes_without_classes_take_the_place_of_the_router() {
    let lease = lease(&[
        (ROUTER, &[10, 42, 0, 1]),
        (
            ROUTES,
            &[
                0, 10, 42, 0, 7, 9, 10, 128, 10, 42, 0, 8, 16, 172, 20, 0, 0, 0, 0, 32, 1, 2, 3, 4,
                224, 0, 0, 1, 0, 0, 0, 0, 0, 24, 9, 9,
            ],
        ),
    ]);

    assert_eq!(
        lease.unwrap().ways,
        [
            way("", "10.42.0.7"),
            way("10.128.0.0/9", "10.42.0.8"),
            way("172.20.0.0/16", "")
        ]
    );
}

#[test]
fn a_list_of_domains_is_unpacked() {
    for (bytes, expected) in [
        (
            &b"\x03one\x05aerie\0\x03two\xc0\x04"[..],
            &["one.aerie", "two.aerie"][..],
        ),
        (b"\x01a\0\xc0\x00", &["a", "a"]),
        (b"\x01a\0\xc0\x03", &["a"]),
        (b"\xc0\x00", &[]),
        (b"\x01a\xc0\x00", &[]),
        (b"\x40a", &[]),
        (b"\x05a", &[]),
        (b"\x03a b\0\x01c\0", &["c"]),
        (b"\x0ba\nnameserve\0", &[]),
        (b"\0", &[]),
    ] {
        let found = lease(&[(SEARCH, bytes)]).unwrap().search;

        assert_eq!(found, expected, "{bytes:?}");
    }
    let many = b"\x01a\0".repeat(80);
    assert_eq!(
        lease(&[(SEARCH, &many[..240])]).unwrap().search.len(),
        LIST_MAX
    );
}

#[test]
fn what_no_server_of_ours_would_say_is_not_believed() {
    let good = answer(OFFER, &[(SERVER, &[10, 42, 0, 1])]);
    for (at, byte) in [(0, 1), (1, 6), (2, 7), (4, 9), (28, 3), (236, 0)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(asker().hear(&bad), None, "{at}");
    }
    for ip in [
        [0; 4],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [255; 4],
        [0, 1, 2, 3],
    ] {
        let mut bad = good.clone();
        bad[16..20].copy_from_slice(&ip);
        assert_eq!(asker().hear(&bad), None, "{ip:?}");
        assert_eq!(asker().hear(&answer(OFFER, &[(SERVER, &ip)])), None);
        let lease = lease(&[(ROUTER, &ip), (RESOLVERS, &ip)]).unwrap();
        assert!(lease.ways.is_empty() && lease.dns.is_empty(), "{ip:?}");
    }
    for options in [
        &[(MASK, &[255, 0, 255, 0][..])][..],
        &[(MASK, &[0, 0, 0, 0])],
    ] {
        assert_eq!(lease(options), None, "{options:?}");
    }
    assert_eq!(asker().hear(&answer(ACK, &[])), None, "for no time");
    assert_eq!(lease(&[(MTU, &[0, 68])]).unwrap().mtu, None);
    let times = |options| lease(options).unwrap().times;
    let short = times(&[(LEASE_SECONDS, &[])]);
    assert_eq!(short.end, Some(Duration::from_secs(3600)));
    match asker().hear(&answer(
        ACK,
        &[(LEASE_SECONDS, &[0, 0, 0, 1]), (RENEW_SECONDS, &[0; 4])],
    )) {
        Some(Answer::Lease(lease)) => assert_eq!(
            lease.times,
            Times {
                renew: Some(LEASE_MIN / 2),
                rebind: Some(LEASE_MIN * 7 / 8),
                end: Some(LEASE_MIN),
            }
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whatever_the_bytes_are_the_reading_ends() {
    let good = answer(
        ACK,
        &[
            HOUR,
            (OVERLOAD, &[3]),
            (SEARCH, b"\x03one\x05aerie\0\x03two\xc0\x04"),
            (ROUTES, &[9, 10, 128, 10, 42, 0, 8]),
            (MASK, &[255, 255, 255, 0]),
        ],
    );
    for length in 0..good.len() {
        let _ = asker().hear(&good[..length]);
    }
    for at in 0..good.len() {
        for byte in [0, 1, 63, 64, 127, 192, 255] {
            let mut bad = good.clone();
            bad[at] = byte;
            let _ = asker().hear(&bad);
        }
    }
    let mut full = good;
    full.resize(OPTIONS_AT, 0);
    full.extend([SEARCH, 255].repeat(3000));
    assert_eq!(asker().hear(&full), None);
}
