//! Clients that may reach named places only.

use std::net::{SocketAddr, UdpSocket};

use hickory_proto::op::ResponseCode;
use serde_json::{Value, json};

use super::{
    dns::{asked, upstream_answer},
    rig::{Answer, Controller, Helper, STRANGE, answer, has_nothing, question},
};

fn upstream() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Asks, lets the upstream answer, and gives what the daemon is told.
fn learn(
    guest: &UdpSocket,
    name: &str,
    upstream: &UdpSocket,
    controller: &mut Controller,
) -> Value {
    guest.send(&question(1, name, None)).unwrap();
    let (bytes, from) = asked(upstream);
    upstream
        .send_to(&upstream_answer(&bytes, &["93.184.216.34"], 45), from)
        .unwrap();
    let learned = controller.hear();
    assert_eq!(learned["type"], "learned");
    learned
}

#[test]
fn the_answer_leaves_when_the_daemon_has_committed_it() {
    let (upstream, address) = upstream();
    let (helper, mut controller) = Helper::told(&[address]);
    let guest = helper.guest(STRANGE);

    let learned = learn(&guest, "WWW.example.com.", &upstream, &mut controller);
    let expected = json!({
        "type": "learned", "id": learned["id"], "client": "127.0.0.6", "name": "www.example.com",
        "addresses": ["93.184.216.34"], "ttl": 45, "grace": 60,
    });
    assert_eq!(learned, expected);
    assert!(has_nothing(&guest));

    controller.say(&json!({"type": "commit", "id": learned["id"], "ok": true}));
    assert_eq!(answer(&guest), Answer::with(&["93.184.216.34"]));
}

#[test]
fn what_is_not_committed_or_too_late_is_a_failure() {
    let (upstream, address) = upstream();
    let (helper, mut controller) = Helper::told(&[address]);
    let guest = helper.guest(STRANGE);

    let learned = learn(&guest, "example.com.", &upstream, &mut controller);
    controller.say(&json!({"type": "commit", "id": learned["id"], "ok": false}));
    assert_eq!(answer(&guest), Answer::without(ResponseCode::ServFail));

    let learned = learn(&guest, "example.com.", &upstream, &mut controller);
    assert_eq!(answer(&guest), Answer::without(ResponseCode::ServFail));
    controller.say(&json!({"type": "commit", "id": learned["id"], "ok": true}));
    // What came too late was no commit.
    drop(controller);
    guest.send(&question(1, "example.com.", None)).unwrap();
    assert_eq!(answer(&guest), Answer::without(ResponseCode::ServFail));
}

#[test]
fn while_the_daemon_is_away_only_what_was_committed_is_answered() {
    let (upstream, address) = upstream();
    let (helper, mut controller) = Helper::told(&[address]);
    let guest = helper.guest(STRANGE);
    let learned = learn(&guest, "example.com.", &upstream, &mut controller);
    controller.say(&json!({"type": "commit", "id": learned["id"], "ok": true}));
    answer(&guest);
    let waiting = learn(&guest, "other.example.com.", &upstream, &mut controller);
    assert!(waiting["id"].is_u64());

    drop(controller);

    // The one that waited for a commit hears at once that there will be none.
    assert_eq!(answer(&guest), Answer::without(ResponseCode::ServFail));
    assert_eq!(
        helper.ask(STRANGE, "example.com."),
        Answer::with(&["93.184.216.34"])
    );
    assert_eq!(
        helper.ask(STRANGE, "new.example.com."),
        Answer::without(ResponseCode::ServFail)
    );
    assert_eq!(helper.ask(STRANGE, "web."), Answer::with(&["127.0.0.5"]));

    // Another lease of the same address has none of it.
    let mut next = helper.connect();
    let lease = json!({"mac": "02:00:00:00:00:06", "address": STRANGE, "running": true, "egress": {"names": ["example.com"]}});
    let applied = next.call(&json!({"type": "lease_put", "lease": lease, "seq": 3}));
    assert_eq!(applied, json!({"type": "applied", "seq": 3}));
    drop(next);
    assert_eq!(
        helper.ask(STRANGE, "example.com."),
        Answer::without(ResponseCode::ServFail)
    );
}

#[test]
fn names_that_no_rule_has_and_answers_that_lead_here_are_never_told() {
    let (upstream, address) = upstream();
    let (helper, mut controller) = Helper::told(&[address]);

    for name in ["example.org.", "notexample.com.", "9.9.9.9.in-addr.arpa."] {
        assert_eq!(
            helper.ask(STRANGE, name),
            Answer::without(ResponseCode::NXDomain),
            "{name}"
        );
    }
    for inside in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1"] {
        let guest = helper.guest(STRANGE);
        guest.send(&question(1, "example.com.", None)).unwrap();
        let (bytes, from) = asked(&upstream);
        let both = upstream_answer(&bytes, &["93.184.216.34", inside], 60);
        upstream.send_to(&both, from).unwrap();
        assert_eq!(
            answer(&guest),
            Answer::without(ResponseCode::NoError),
            "{inside}"
        );
    }

    // The next thing that the daemon hears is the answer to its own question: nothing was to be learned.
    let stats = controller.stats();
    assert_eq!(
        stats["dns"],
        json!({"answers": 7, "forwarded": 4, "refused": 7, "servfail": 0})
    );
}
