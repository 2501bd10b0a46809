//! What the daemon says, and what it may not.

use std::{
    io::Read,
    net::{TcpListener, UdpSocket},
    os::fd::AsFd,
    os::unix::net::UnixListener,
};

use hickory_proto::op::ResponseCode;
use serde_json::{Value, json};

use super::rig::{Answer, Helper, WEB, frame, spawn, state};

#[test]
fn changes_are_seen_by_the_next_question() {
    let (helper, mut controller) = Helper::told(&[]);
    let applied = |seq: &Value| json!({"type": "applied", "seq": seq});

    let put = json!({"type": "name_put", "name": "db", "addresses": ["127.0.0.9"], "seq": 1});
    assert_eq!(controller.call(&put), applied(&json!(1)));
    assert_eq!(helper.ask(WEB, "db."), Answer::with(&["127.0.0.9"]));

    let remove = json!({"type": "name_remove", "name": "db", "seq": "two"});
    assert_eq!(controller.call(&remove), applied(&json!("two")));
    assert_eq!(
        helper.ask(WEB, "db."),
        Answer::without(ResponseCode::NXDomain)
    );

    let mut whole = state(&[]);
    whole["generation"] = json!(8);
    whole["names"] = json!([]);
    whole["seq"] = json!(3);
    assert_eq!(
        controller.call(&whole),
        json!({"type": "applied", "generation": 8, "seq": 3})
    );
    assert_eq!(
        helper.ask(WEB, "web."),
        Answer::without(ResponseCode::NXDomain)
    );
    assert_eq!(controller.stats()["generation"], 8);

    // In one write, and without a word when none is asked for.
    let several = [
        frame(&json!({"type": "name_put", "name": "a", "addresses": ["127.0.0.7"]})),
        frame(&json!({"type": "lease_remove", "mac": "02:00:00:00:00:05"})),
        frame(&json!({"type": "upstreams", "upstreams": ["127.0.0.1:9"]})),
        frame(&json!({"type": "name_remove", "name": "never", "seq": 4})),
    ];
    controller.say_bytes(&several.concat());
    assert_eq!(controller.hear(), applied(&json!(4)));
    assert_eq!(helper.ask(WEB, "a."), Answer::with(&["127.0.0.7"]));
    // It has no lease any more, so nothing is forwarded for it.
    assert_eq!(
        helper.ask(WEB, "example.com."),
        Answer::without(ResponseCode::Refused)
    );
}

#[test]
fn frames_may_come_in_any_portions() {
    let (_helper, mut controller) = Helper::told(&[]);
    let bytes = frame(&state(&[]));
    for size in [1, 3, 700] {
        for piece in bytes.chunks(size) {
            controller.say_bytes(piece);
        }
        assert_eq!(controller.hear()["type"], "applied");
    }
}

#[test]
fn what_cannot_be_followed_is_said_and_changes_nothing() {
    let helper = Helper::new();
    let mut controller = helper.connect();
    let before =
        controller.call(&json!({"type": "name_put", "name": "a", "addresses": [], "seq": 1}));
    assert_eq!(
        (&before["code"], &before["seq"]),
        (&json!("state_invalid"), &json!(1))
    );
    assert_eq!(controller.call(&state(&[]))["type"], "applied");

    let mut wrong = state(&[]);
    wrong["generation"] = json!(9);
    wrong["network"]["subnet"] = json!("127.0.0.0/40");
    for (message, code) in [
        (wrong, "state_invalid"),
        (json!({"type": "state", "generation": 9}), "message_invalid"),
        (json!({"type": "sing", "id": "x"}), "message_invalid"),
        (
            json!({"type": "listen", "id": "p", "proto": "sctp", "target": null}),
            "message_invalid",
        ),
        (
            json!({"type": "listen", "id": "p", "proto": "tcp", "target": null}),
            "fd_missing",
        ),
        (json!({"type": "unlisten", "id": "p"}), "listener_unknown"),
        (
            json!({"type": "retarget", "id": "p", "target": null}),
            "listener_unknown",
        ),
        (
            json!({"type": "lease_put", "lease": {"mac": "x"}}),
            "state_invalid",
        ),
        (
            json!({"type": "lease_put", "lease": {"mac": "02:00:00:00:00:09", "address": "10.0.0.1"}}),
            "state_invalid",
        ),
        (json!({"type": "lease_remove", "mac": ""}), "state_invalid"),
        (
            json!({"type": "name_put", "name": "a b", "addresses": []}),
            "state_invalid",
        ),
        (
            json!({"type": "upstreams", "upstreams": ["1.1.1.1"]}),
            "message_invalid",
        ),
    ] {
        let told = controller.call(&message);
        assert_eq!(
            (&told["type"], &told["code"]),
            (&json!("error"), &json!(code)),
            "{message}"
        );
        assert_eq!(
            (&told["of"], &told["id"]),
            (&message["type"], &message["id"]),
            "{message}"
        );
        assert!(
            told["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
    }

    // A commit of what nobody asked is nothing.
    controller.say(&json!({"type": "commit", "id": 77, "ok": true}));
    assert_eq!(controller.stats()["generation"], 7);
    assert_eq!(helper.ask(WEB, "web."), Answer::with(&["127.0.0.5"]));
}

#[test]
fn descriptors_of_another_kind_are_refused() {
    let (_helper, mut controller) = Helper::told(&[]);
    let folder = tempfile::tempdir().unwrap();
    let (mut ours, theirs) = std::io::pipe().unwrap();
    let listen = |proto: &str| json!({"type": "listen", "id": "p", "proto": proto, "target": null});

    controller.say_with(&listen("tcp"), theirs);
    assert_eq!(controller.hear()["code"], "fd_invalid");
    controller.say_with(&listen("tcp"), UdpSocket::bind("127.0.0.1:0").unwrap());
    assert_eq!(controller.hear()["code"], "fd_invalid");
    controller.say_with(&listen("udp"), TcpListener::bind("127.0.0.1:0").unwrap());
    assert_eq!(controller.hear()["code"], "fd_invalid");
    controller.say_with(
        &listen("tcp"),
        UnixListener::bind(folder.path().join("x")).unwrap(),
    );
    assert_eq!(controller.hear()["code"], "fd_invalid");
    // It closed what it did not take.
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);

    // A descriptor of a message that wants none is not kept for the next.
    let stray = TcpListener::bind("127.0.0.1:0").unwrap();
    controller.say_with(&json!({"type": "stats", "seq": 1}), stray);
    assert_eq!(controller.hear()["type"], "stats");
    assert_eq!(controller.call(&listen("tcp"))["code"], "fd_missing");
    assert_eq!(controller.stats()["listeners"], json!([]));
}

#[test]
fn a_frame_that_is_none_ends_the_connection_and_nothing_else() {
    let (helper, _controller) = Helper::told(&[]);
    for bytes in [
        &[0, 0, 0, 0][..],
        &[0xff, 0xff, 0xff, 0xff],
        &[0, 0x10, 0, 1],
        &[0, 0, 0, 1, b'x'],
        &[0, 0, 0, 2, b'[', b']'],
        &[0, 0, 0, 2, b'{', b'}'],
        &[0, 0, 0, 2, 0xff, 0xff],
    ] {
        let mut controller = helper.connect();
        controller.say_bytes(bytes);
        assert!(controller.is_closed(), "{bytes:?}");
    }
    assert_eq!(helper.ask(WEB, "web."), Answer::with(&["127.0.0.5"]));
    assert_eq!(helper.connect().stats()["generation"], 7);
}

#[test]
fn the_newest_controller_wins_and_without_one_all_goes_on() {
    let (helper, mut first) = Helper::told(&[]);
    let mut second = helper.connect();
    assert_eq!(second.stats()["generation"], 7);
    assert!(first.is_closed());

    drop(second);
    assert_eq!(helper.ask(WEB, "web."), Answer::with(&["127.0.0.5"]));
    assert_eq!(helper.connect().stats()["generation"], 7);
}

#[test]
fn it_ends_when_its_control_socket_does() {
    let (helper, _controller) = Helper::told(&[]);

    assert_eq!(helper.shut_down(), Some(0));
}

#[test]
fn sockets_that_are_not_what_they_should_be_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let control = UnixListener::bind(folder.path().join("control")).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp6 = UdpSocket::bind("[::1]:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    for sockets in [
        vec![("--control-fd", udp.as_fd())],
        vec![("--control-fd", tcp.as_fd())],
        vec![
            ("--control-fd", control.as_fd()),
            ("--dns-udp-fd", tcp.as_fd()),
        ],
        vec![
            ("--control-fd", control.as_fd()),
            ("--dns-tcp-fd", udp.as_fd()),
        ],
        vec![
            ("--control-fd", control.as_fd()),
            ("--dhcp-fd", udp6.as_fd()),
        ],
        vec![("--control-fd", control.as_fd()), ("--ra-fd", udp6.as_fd())],
    ] {
        let output = spawn(&sockets).wait_with_output().unwrap();
        let line: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), &line["code"]),
            (Some(1), &json!("fd_invalid")),
            "{sockets:?}"
        );
        assert!(line["message"].is_string() && line["chain"].is_array());
    }
    let output = spawn(&[("--what-fd", control.as_fd())])
        .wait_with_output()
        .unwrap();
    let line: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), &line["code"]),
        (Some(2), &json!("usage"))
    );
}
