//! Data: all of it, in order, within the credit, for any reader and any descriptors.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
    time::Duration,
};

use super::{A_WHILE, PORT, WINDOW};
use crate::{
    Limits,
    conformance::{
        guest::{Guest, Layout},
        host::{ok, pattern, read_all, write_all},
        rig::{Bench, Rig},
    },
    header::shutdown,
};

const MIB: usize = 1 << 20;

pub fn a_mebibyte_from_the_host_arrives<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();

    let client = thread::spawn(move || {
        let (stream, _) = host.connect(PORT);
        write_all(&stream, &pattern(MIB));
        stream
    });
    let name = guest.accepted(PORT);
    guest.until("the end of the stream", |guest| {
        guest.sockets[&name].peer_shut == shutdown::SEND
    });

    assert!(guest.sockets[&name].inbox == pattern(MIB));
    guest.join(client);
}

pub fn a_mebibyte_from_the_guest_arrives<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let server = thread::spawn(move || read_all(&mut listener.accept().expect("a guest").0));

    let name = guest.dial(PORT, WINDOW);
    assert!(guest.connected(name));
    let sock = guest.sockets.get_mut(&name).expect("connected");
    sock.outbox.extend(pattern(MIB));
    sock.closing = shutdown::SEND;

    assert!(guest.join(server) == pattern(MIB));
}

pub fn sixty_four_mebibytes_cross_both_ways_at_once<R: Rig>(bench: Bench<R>) {
    const ROUNDS: usize = 32;
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || {
        let (stream, _) = host.connect(PORT);
        let mut reader = stream.try_clone().expect("a second handle");
        let reading = thread::spawn(move || {
            let (want, mut got) = (pattern(MIB), vec![0; MIB]);
            for round in 0..ROUNDS {
                reader.read_exact(&mut got).expect("the guest's bytes");
                assert!(got == want, "round {round}");
            }
            assert_eq!(reader.read(&mut got).expect("the end"), 0);
        });
        let block = pattern(MIB);
        for _ in 0..ROUNDS {
            (&stream).write_all(&block).expect("the device takes it");
        }
        stream.shutdown(Shutdown::Write).expect("a half-close");
        reading.join().expect("the reader");
    });

    let name = guest.accepted(PORT);
    let want = pattern(MIB);
    let (mut sent, mut checked) = (0, 0);
    guest.until("both streams end", |guest| {
        let sock = guest.sockets.get_mut(&name).expect("connected");
        if sock.outbox.is_empty() && sent < ROUNDS {
            sock.outbox.extend(&want);
            sent += 1;
        }
        if sent == ROUNDS {
            sock.closing = shutdown::SEND;
        }
        while sock.inbox.len() >= MIB {
            assert!(
                sock.inbox.drain(..MIB).eq(want.iter().copied()),
                "block {checked}"
            );
            checked += 1;
        }
        sent == ROUNDS && checked == ROUNDS && sock.peer_shut != 0
    });

    assert_eq!(guest.sockets[&name].total_in, (ROUNDS * MIB) as u64);
    guest.join(client);
}

pub fn a_host_that_reads_slowly_holds_the_guest_back<R: Rig>(bench: Bench<R>) {
    let limits = Limits::default();
    let mut guest = Guest::boot(bench(limits.clone()));
    let listener = guest.host().listen(PORT);
    let name = guest.dial(PORT, WINDOW);
    assert!(guest.connected(name));
    let (mut stream, _) = listener.accept().expect("the guest");

    let sock = guest.sockets.get_mut(&name).expect("connected");
    sock.outbox.extend(pattern(4 * MIB));
    sock.closing = shutdown::SEND;
    guest.idle(A_WHILE);

    let held = guest.sockets[&name].in_flight();
    assert!(held <= limits.window_max_bytes, "{held} bytes are held");
    assert!(
        !guest.sockets[&name].outbox.is_empty(),
        "the guest must wait"
    );
    let server = thread::spawn(move || {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 10_000]);
        loop {
            match stream.read(&mut chunk).expect("the guest's bytes") {
                0 => return bytes,
                len => bytes.extend_from_slice(&chunk[..len]),
            }
            thread::sleep(Duration::from_micros(200));
        }
    });
    assert!(guest.join(server) == pattern(4 * MIB));
}

pub fn a_guest_that_reads_slowly_holds_the_host_back<R: Rig>(bench: Bench<R>) {
    const SMALL: u32 = 10_000;
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, SMALL);
    guest.reads = false;
    let host = guest.host();
    let client = thread::spawn(move || write_all(&host.connect(PORT).0, &pattern(MIB)));

    let name = guest.accepted(PORT);
    guest.until("the window is full", |guest| {
        guest.sockets[&name].inbox.len() == SMALL as usize
    });
    guest.idle(A_WHILE);
    assert_eq!(guest.sockets[&name].inbox.len(), SMALL as usize);
    // The answer to the one question was "nothing": to ask again at once would never end.
    assert!(
        guest.sockets[&name].asked <= 1,
        "asked {} times",
        guest.sockets[&name].asked
    );

    let mut bytes = Vec::new();
    guest.until("the end of the stream", |guest| {
        bytes.extend(guest.read(name, 3_333));
        let sock = &guest.sockets[&name];
        sock.inbox.is_empty() && sock.peer_shut != 0
    });
    assert!(bytes == pattern(MIB));
    guest.join(client);
}

pub fn bytes_behind_the_connect_line_are_data<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();

    let client = thread::spawn(move || {
        let mut stream = host.ask(PORT);
        stream.write_all(b"early").expect("the device takes it");
        ok(&mut stream).expect("an OK");
        stream.write_all(b" and late").expect("the device takes it");
        stream
    });
    let name = guest.accepted(PORT);
    guest.until("all bytes", |guest| {
        guest.sockets[&name].inbox == b"early and late"
    });

    guest.join(client);
}

pub fn two_hundred_connections_carry_data_at_once<R: Rig>(bench: Bench<R>) {
    const EACH: u32 = 100;
    const BYTES: usize = 30_000;
    let mut guest = Guest::boot(bench(Limits::default()));
    let host = guest.host();
    for port in 0..EACH {
        guest.listening.insert(2000 + port, WINDOW);
    }
    let listener = host.listen(PORT);
    let clients: Vec<_> = (0..EACH)
        .map(|port| {
            let host = host.clone();
            thread::spawn(move || {
                let (mut stream, _) = host.connect(2000 + port);
                write_all(&stream, &pattern(BYTES));
                read_all(&mut stream)
            })
        })
        .collect();
    let server = thread::spawn(move || {
        let streams: Vec<_> = (0..EACH)
            .map(|_| listener.accept().expect("a guest").0)
            .collect();
        // All are open before the first is read.
        streams
            .into_iter()
            .map(|mut stream| read_all(&mut stream))
            .all(|bytes| bytes == pattern(BYTES))
    });

    let dialed: Vec<_> = (0..EACH).map(|_| guest.dial(PORT, WINDOW)).collect();
    guest.until("all are connected", |guest| {
        guest.sockets.len() == 2 * EACH as usize
            && guest
                .sockets
                .values()
                .all(super::super::guest::Sock::established)
    });
    for name in dialed {
        let sock = guest.sockets.get_mut(&name).expect("connected");
        sock.outbox.extend(pattern(BYTES));
        sock.closing = shutdown::SEND;
    }
    guest.until("the host's bytes are there", |guest| {
        (0..EACH).all(|port| {
            let range = (2000 + port, 0)..=(2000 + port, u32::MAX);
            guest
                .sockets
                .range(range)
                .all(|(_, sock)| sock.inbox.len() == BYTES)
        })
    });
    for (_, sock) in guest
        .sockets
        .iter_mut()
        .filter(|((port, _), _)| *port >= 2000)
    {
        assert!(sock.inbox == pattern(BYTES));
        sock.outbox.extend(pattern(BYTES));
        sock.closing = shutdown::BOTH;
    }

    assert!(guest.join(server), "the guest's bytes");
    for client in clients {
        assert!(guest.join(client) == pattern(BYTES));
    }
}

pub fn any_layout_of_descriptors_is_a_packet<R: Rig>(bench: Bench<R>) {
    let layouts = [
        (
            Layout {
                tx: 44,
                rx: 44,
                indirect: false,
            },
            true,
        ),
        (
            Layout {
                tx: 7,
                rx: 1000,
                indirect: true,
            },
            true,
        ),
        (
            Layout {
                tx: 1,
                rx: 100,
                indirect: true,
            },
            false,
        ),
        (
            Layout {
                tx: 4096,
                rx: 45,
                indirect: true,
            },
            false,
        ),
        (
            Layout {
                tx: 40_000,
                rx: 4096,
                indirect: true,
            },
            true,
        ),
    ];
    for (layout, event_idx) in layouts {
        // Chains are no longer than the queue (virtio 1.2, section 2.7.5.3.1), so that the smallest cuts carry least.
        let bytes = if layout.tx < 1000 { 80 } else { MIB };
        let mut guest = Guest::boot_with(bench(Limits::default()), layout, event_idx);
        guest.listening.insert(PORT, WINDOW);
        let host = guest.host();
        let client = thread::spawn(move || {
            let (mut stream, _) = host.connect(PORT);
            write_all(&stream, &pattern(100_000));
            read_all(&mut stream)
        });

        let name = guest.accepted(PORT);
        guest.until("the host's bytes", |guest| {
            guest.sockets[&name].peer_shut != 0
        });
        let sock = guest.sockets.get_mut(&name).expect("connected");
        assert!(sock.inbox == pattern(100_000), "{layout:?}");
        sock.outbox.extend(pattern(bytes));
        sock.closing = shutdown::BOTH;

        assert!(guest.join(client) == pattern(bytes), "{layout:?}");
    }
}
