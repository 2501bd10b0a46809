//! Beginnings: refused, cancelled, unanswered, too many.

use std::{io::Write, net::Shutdown, os::unix::net::UnixStream, thread, time::Duration};

use super::{A_WHILE, PORT, WINDOW};
use crate::{
    Limits,
    conformance::{
        guest::Guest,
        host::{ok, read_all},
        rig::{Bench, Rig},
    },
    header::{Op, shutdown},
};

fn short() -> Limits {
    let soon = Duration::from_millis(200);
    Limits {
        connect: soon,
        handshake: soon,
        ..Limits::default()
    }
}

pub fn a_cancelled_connect_is_taken_back<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));

    let stream = guest.host().ask(PORT);
    let request = guest.stray();
    assert_eq!(request.op(), Op::Request);
    drop(stream);

    let reset = guest.stray();
    assert_eq!(reset.op(), Op::Reset);
    assert_eq!(
        (reset.header.src_port, reset.header.dst_port),
        (request.header.src_port, PORT)
    );
    assert_eq!(guest.rig.streams(), 0);
    // A late answer finds nobody.
    guest.send((PORT, request.header.src_port), Op::Response, 0, &[]);
    assert_eq!(guest.stray().op(), Op::Reset);
}

pub fn a_port_nobody_listens_on_refuses_the_host<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let host = guest.host();
    let client = thread::spawn(move || ok(&mut host.ask(PORT)));

    let request = guest.stray();
    guest.send((PORT, request.header.src_port), Op::Reset, 0, &[]);

    assert_eq!(guest.join(client), None, "the stream ends without an OK");
    assert_eq!(guest.rig.streams(), 0);
}

pub fn a_port_nobody_listens_on_refuses_the_guest<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    // A socket file that nobody listens on any more, and none at all.
    drop(guest.host().listen(PORT));

    for port in [PORT, PORT + 1] {
        let name = guest.dial(port, WINDOW);
        assert!(!guest.connected(name));
    }
    assert_eq!(guest.rig.streams(), 0);
}

pub fn a_connect_that_is_never_answered_ends<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(short()));
    let host = guest.host();
    let client = thread::spawn(move || ok(&mut host.ask(PORT)));

    assert_eq!(guest.stray().op(), Op::Request);

    assert_eq!(guest.join(client), None);
    assert_eq!(guest.stray().op(), Op::Reset);
    assert_eq!(guest.rig.streams(), 0);
}

pub fn a_line_that_never_ends_ends<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(short()));
    let host = guest.host();
    let silent = UnixStream::connect(&host.socket).expect("the device listens");
    let half = UnixStream::connect(&host.socket).expect("the device listens");
    (&half).write_all(b"CONN").expect("the device takes it");

    let client = thread::spawn(move || [silent, half].map(|mut stream| read_all(&mut stream)));

    assert_eq!(guest.join(client), [b"", b""]);
    assert_eq!(guest.rig.streams(), 0);
}

pub fn a_half_close_with_the_connect_is_no_cancel<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || {
        let mut stream = host.ask(PORT);
        stream
            .write_all(b"all I have")
            .expect("the device takes it");
        stream.shutdown(Shutdown::Write).expect("a half-close");
        ok(&mut stream).expect("an OK");
        read_all(&mut stream)
    });

    let name = guest.accepted(PORT);
    guest.until("the host's end", |guest| {
        guest.sockets[&name].peer_shut == shutdown::SEND
    });
    let sock = guest.sockets.get_mut(&name).expect("connected");
    assert_eq!(sock.inbox, b"all I have");
    sock.outbox.extend(b"thanks");
    sock.closing = shutdown::BOTH;

    assert_eq!(guest.join(client), b"thanks");
}

pub fn a_full_backlog_is_waited_for<R: Rig>(bench: Bench<R>) {
    const DIALS: usize = 20;
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    // SAFETY: no pointers; listen(2) again only changes the backlog.
    let shrunk = unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 1) };
    assert_eq!(shrunk, 0);

    let names: Vec<_> = (0..DIALS).map(|_| guest.dial(PORT, WINDOW)).collect();
    guest.idle(A_WHILE);
    let connected = names
        .iter()
        .filter(|name| guest.sockets[name].established())
        .count();
    assert!(connected < DIALS, "the backlog is full");
    let server = thread::spawn(move || {
        (0..DIALS)
            .map(|_| listener.accept().expect("a guest").0)
            .collect::<Vec<_>>()
    });

    for name in names {
        assert!(guest.connected(name));
    }
    assert_eq!(guest.join(server).len(), DIALS);
}

pub fn beyond_its_limit_the_guest_is_refused_and_the_host_is_not<R: Rig>(bench: Bench<R>) {
    let limits = Limits::default();
    let mut guest = Guest::boot(bench(limits.clone()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let listener = host.listen(PORT);
    let server = thread::spawn(move || {
        let mut held = Vec::new();
        while held.len() < limits.guest_connections {
            held.push(listener.accept().expect("a guest").0);
        }
        (listener, held)
    });

    for _ in 0..Limits::default().guest_connections {
        let name = guest.dial(PORT, WINDOW);
        assert!(guest.connected(name));
    }
    let (listener, held) = guest.join(server);
    let one_more = guest.dial(PORT, WINDOW);
    assert!(!guest.connected(one_more), "one too many");

    let client = thread::spawn(move || host.connect(PORT));
    guest.join(client);
    drop(held);
    guest.until("the host's closes are told", |guest| {
        guest.rig.streams() <= 1
    });
    let again = guest.dial(PORT, WINDOW);
    assert!(guest.connected(again), "places come back");
    drop(listener);
}

pub fn beyond_its_limit_the_host_is_refused<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();

    let client = thread::spawn(move || {
        let held: Vec<_> = (0..Limits::default().host_connections)
            .map(|_| host.connect(PORT))
            .collect();
        // The line may be refused already while it is written.
        let mut stream = UnixStream::connect(&host.socket).expect("the device listens");
        let _ = stream.write_all(b"CONNECT 1024\n");
        (held.len(), ok(&mut stream))
    });

    assert_eq!(
        guest.join(client),
        (Limits::default().host_connections, None)
    );
}
