//! Ends: half, whole, clean, sudden; no byte that was taken is lost by one.

use std::{io::Write, net::Shutdown, thread, time::Duration};

use super::{A_WHILE, PORT, WINDOW};
use crate::{
    Limits,
    conformance::{
        guest::Guest,
        host::{pattern, read_all, write_all},
        rig::{Bench, Rig},
    },
    header::{Op, shutdown},
};

pub fn a_half_close_by_the_host_leaves_the_reply<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || {
        let (mut stream, _) = host.connect(PORT);
        write_all(&stream, b"question");
        read_all(&mut stream)
    });

    let name = guest.accepted(PORT);
    guest.until("the host's end", |guest| {
        guest.sockets[&name].peer_shut != 0
    });
    assert_eq!(
        guest.sockets[&name].peer_shut,
        shutdown::SEND,
        "the host still reads"
    );
    guest.idle(A_WHILE);
    let sock = guest.sockets.get_mut(&name).expect("connected");
    assert_eq!(sock.inbox, b"question");
    sock.outbox.extend(pattern(500_000));
    sock.closing = shutdown::BOTH;

    assert!(guest.join(client) == pattern(500_000));
    guest.until("the guest's close is answered", |guest| {
        guest.sockets[&name].reset
    });
}

pub fn a_half_close_by_the_guest_leaves_the_reply<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the guest");
        let question = read_all(&mut stream);
        write_all(&stream, &pattern(500_000));
        question
    });

    let name = guest.dial(PORT, WINDOW);
    assert!(guest.connected(name));
    let sock = guest.sockets.get_mut(&name).expect("connected");
    sock.outbox.extend(b"question");
    sock.closing = shutdown::SEND;

    assert_eq!(guest.join(server), b"question");
    guest.until("the reply ends", |guest| {
        guest.sockets[&name].peer_shut & shutdown::SEND != 0
    });
    assert!(guest.sockets[&name].inbox == pattern(500_000));
    guest.until("the host is let go", |guest| guest.rig.streams() == 0);
}

pub fn a_guest_that_closes_hears_reset_while_the_host_still_reads<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let name = guest.dial(PORT, WINDOW);
    assert!(guest.connected(name));
    let (mut stream, _) = listener.accept().expect("the guest");
    // Bytes that the guest never reads: its close must not turn the host's end into an error.
    stream.write_all(b"unread").expect("the device takes it");

    let sock = guest.sockets.get_mut(&name).expect("connected");
    sock.outbox.extend(pattern(400_000));
    sock.closing = shutdown::BOTH;
    guest.until("what fits is sent", |guest| {
        guest.sockets[&name].inbox == b"unread"
    });
    guest.idle(A_WHILE);
    let server = thread::spawn(move || {
        // Waits until the guest has long been answered.
        let mut bytes = vec![0; 200_000];
        std::io::Read::read_exact(&mut stream, &mut bytes).expect("the first half");
        thread::sleep(2 * A_WHILE);
        std::io::Read::read_to_end(&mut stream, &mut bytes).expect("a clean end");
        bytes
    });
    guest.until("the close is answered", |guest| guest.sockets[&name].reset);
    assert!(
        !server.is_finished(),
        "the answer does not wait for the host"
    );

    assert!(guest.join(server) == pattern(400_000));
    guest.until("the host is let go", |guest| guest.rig.streams() == 0);
}

pub fn a_host_that_closes_shuts_both_halves<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || {
        let (mut stream, _) = host.connect(PORT);
        stream
            .write_all(&pattern(300_000))
            .expect("the device takes it");
    });

    let name = guest.accepted(PORT);
    guest.until("the end of both", |guest| {
        guest.sockets[&name].peer_shut == shutdown::BOTH
    });

    assert!(
        guest.sockets[&name].inbox == pattern(300_000),
        "what was written before is not lost"
    );
    guest.until("nothing is held", |guest| guest.rig.streams() == 0);
    guest.join(client);
}

pub fn a_guest_that_never_answers_a_shutdown_is_reset<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits {
        close: Duration::from_millis(100),
        ..Limits::default()
    }));
    guest.listening.insert(PORT, WINDOW);
    guest.reads = false;
    let host = guest.host();
    let client = thread::spawn(move || drop(host.connect(PORT)));

    let name = guest.accepted(PORT);
    guest.join(client);
    guest.until("the end of both", |guest| {
        guest.sockets[&name].peer_shut == shutdown::BOTH
    });

    guest.until("the device's patience ends", |guest| {
        guest.sockets[&name].reset
    });
    assert_eq!(guest.rig.streams(), 0);
}

pub fn a_guest_that_stops_receiving_ends_the_hosts_writes<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || {
        let (mut stream, _) = host.connect(PORT);
        let refused = loop {
            if let Err(error) = stream.write_all(&[0; 1000]) {
                break error;
            }
            thread::sleep(Duration::from_millis(1));
        };
        (refused.kind(), read_all(&mut stream))
    });

    let name = guest.accepted(PORT);
    guest.until("some bytes", |guest| !guest.sockets[&name].inbox.is_empty());
    guest.sockets.get_mut(&name).expect("connected").closing = shutdown::RECEIVE;
    guest.idle(A_WHILE);
    let sock = guest.sockets.get_mut(&name).expect("connected");
    sock.outbox.extend(b"still talking");
    sock.closing = shutdown::BOTH;

    let (refused, heard) = guest.join(client);
    assert_eq!(refused, std::io::ErrorKind::BrokenPipe);
    assert_eq!(heard, b"still talking");
}

pub fn a_reset_by_the_guest_ends_the_hosts_stream<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || read_all(&mut host.connect(PORT).0));

    let name = guest.accepted(PORT);
    guest
        .sockets
        .get_mut(&name)
        .expect("connected")
        .outbox
        .extend(b"last words");
    guest.until("they are sent", |guest| {
        guest.sockets[&name].outbox.is_empty()
    });
    guest.sockets.get_mut(&name).expect("connected").reset = true;
    guest.send(name, Op::Reset, 0, &[]);

    assert_eq!(guest.join(client), b"last words");
    guest.idle(A_WHILE);
    assert_eq!(guest.stray, [], "a reset is not answered");
    assert_eq!(guest.rig.streams(), 0);
}

pub fn ports_may_be_used_again_at_once<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let name = (777, PORT);
    for round in 0..50u8 {
        guest.dial_as(name, WINDOW);
        assert!(guest.connected(name), "round {round}");
        let (mut stream, _) = listener.accept().expect("the guest");
        stream.write_all(&[round]).expect("the device takes it");
        guest.until("its own byte", |guest| {
            guest.sockets[&name].inbox == [round]
        });
        stream.shutdown(Shutdown::Write).expect("a half-close");
        guest.sockets.get_mut(&name).expect("connected").closing = shutdown::BOTH;
        guest.until("the close is answered", |guest| guest.sockets[&name].reset);
    }
}
