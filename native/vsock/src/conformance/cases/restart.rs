//! The guest goes and comes back; the device stays.

use std::thread;

use super::{A_WHILE, PORT, WINDOW};
use crate::{
    Limits,
    conformance::{
        guest::Guest,
        host::{ok, pattern, read_all, write_all},
        rig::{Bench, Rig},
    },
    header::shutdown,
};

pub fn the_hosts_streams_end_when_the_guest_goes<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let listener = host.listen(PORT);
    let client = thread::spawn(move || read_all(&mut host.connect(PORT).0));
    let server = thread::spawn(move || read_all(&mut listener.accept().expect("the guest").0));
    guest.accepted(PORT);
    let name = guest.dial(PORT, WINDOW);
    assert!(guest.connected(name));
    guest.idle(A_WHILE);

    guest.reboot();

    assert_eq!(guest.join(client), b"");
    assert_eq!(guest.join(server), b"");
    assert_eq!(guest.rig.streams(), 0);
}

pub fn the_device_works_after_a_restart<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    for round in 0..5 {
        // Some rounds are left with data under way.
        guest.reads = round % 2 == 0;
        let host = guest.host();
        let client = thread::spawn(move || {
            let (mut stream, _) = host.connect(PORT);
            if round % 2 == 0 {
                write_all(&stream, &pattern(200_000));
            } else {
                let writer = stream.try_clone().expect("a second handle");
                thread::spawn(move || {
                    // Fails when the guest goes.
                    let _ = std::io::Write::write_all(&mut { writer }, &pattern(10_000_000));
                });
            }
            read_all(&mut stream)
        });
        let name = guest.accepted(PORT);
        if round % 2 == 0 {
            guest.until("the host's bytes", |guest| {
                guest.sockets[&name].peer_shut != 0
            });
            let sock = guest.sockets.get_mut(&name).expect("connected");
            assert!(sock.inbox == pattern(200_000), "round {round}");
            sock.outbox.extend(pattern(200_000));
            sock.closing = shutdown::BOTH;
            assert!(guest.join(client) == pattern(200_000), "round {round}");
            guest.reboot();
        } else {
            guest.until("some bytes", |guest| !guest.sockets[&name].inbox.is_empty());
            guest.reboot();
            assert_eq!(guest.join(client), b"");
        }
    }
}

pub fn what_the_guest_said_last_arrives_after_it_is_gone<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let name = guest.dial(PORT, WINDOW);
    assert!(guest.connected(name));
    let (mut stream, _) = listener.accept().expect("the guest");

    // More than the socket takes, so that the device holds some of it.
    guest
        .sockets
        .get_mut(&name)
        .expect("connected")
        .outbox
        .extend(pattern(400_000));
    guest.until("it is sent", |guest| {
        guest.sockets[&name].outbox.is_empty() && guest.tx_pending() == 0
    });
    guest.reboot();
    guest.idle(A_WHILE);

    let server = thread::spawn(move || read_all(&mut stream));
    assert!(guest.join(server) == pattern(400_000));
}

pub fn a_connect_before_the_driver_waits_for_it<R: Rig>(bench: Bench<R>) {
    let mut rig = bench(Limits::default());
    let host = crate::conformance::Host {
        socket: rig.socket().to_owned(),
        prefix: rig.prefix().to_owned(),
    };
    let client = thread::spawn(move || ok(&mut host.ask(PORT)));
    let until = std::time::Instant::now() + A_WHILE;
    while std::time::Instant::now() < until {
        rig.wait(A_WHILE / 10);
    }

    let mut guest = Guest::boot(rig);
    guest.listening.insert(PORT, WINDOW);

    assert!(guest.join(client).is_some());
}
