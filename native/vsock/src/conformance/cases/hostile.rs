//! A guest that wants to break its host. The device answers or drops, keeps what it holds bounded, and serves on.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::Duration,
};

use super::{A_WHILE, PORT, WINDOW};
use crate::{
    Limits,
    conformance::{
        guest::{Guest, Name},
        host::{pattern, read_all},
        rig::{Bench, Rig},
        ring::Part,
    },
    header::{Header, Op, shutdown},
};

/// A connection to a stream of the host.
fn pair<R: Rig>(guest: &mut Guest<R>, listener: &UnixListener) -> (Name, UnixStream) {
    let name = guest.dial(PORT, WINDOW);
    assert!(guest.connected(name));
    (name, listener.accept().expect("the guest").0)
}

/// The device still does what it is for.
fn works<R: Rig>(guest: &mut Guest<R>, listener: &UnixListener) {
    let (name, mut stream) = pair(guest, listener);
    stream.write_all(b"ping").expect("the device takes it");
    guest.until("a ping", |guest| guest.sockets[&name].inbox == b"ping");
    let sock = guest.sockets.get_mut(&name).expect("connected");
    sock.outbox.extend(b"pong");
    sock.closing = shutdown::BOTH;
    let server = thread::spawn(move || read_all(&mut stream));
    assert_eq!(guest.join(server), b"pong");
    guest.until("the close is answered", |guest| guest.sockets[&name].reset);
}

/// Sends a packet and expects the RST that answers it.
fn refused<R: Rig>(guest: &mut Guest<R>, header: &Header, payload: &[u8]) {
    assert!(guest.push(header, payload));
    let reset = guest.stray().header;
    assert_eq!(reset.op, Op::Reset as u16, "the answer to {header:?}");
    assert_eq!(
        (reset.src_cid, reset.src_port),
        (header.dst_cid, header.dst_port)
    );
    assert_eq!(
        (reset.dst_cid, reset.dst_port),
        (header.src_cid, header.src_port)
    );
    assert_eq!(reset.kind, header.kind);
}

pub fn packets_for_nobody_are_answered_with_reset<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let name = (555, 666);

    for op in [
        Op::Response,
        Op::Shutdown,
        Op::ReadWrite,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        let header = guest.header(name, op, 0, 0);
        refused(&mut guest, &header, &[]);
    }
    for raw in [0, 8, 255, u16::MAX] {
        let header = Header {
            op: raw,
            ..guest.header(name, Op::Request, 0, 0)
        };
        refused(&mut guest, &header, &[]);
    }
    for kind in [0, 2, 3, u16::MAX] {
        let header = Header {
            kind,
            ..guest.header((555, PORT), Op::Request, 0, 0)
        };
        refused(&mut guest, &header, &[]);
    }
    for cid in [0, 1, 3, u64::MAX, 1 << 32 | 2] {
        let header = Header {
            dst_cid: cid,
            ..guest.header((555, PORT), Op::Request, 0, 0)
        };
        refused(&mut guest, &header, &[]);
    }
    let header = guest.header(name, Op::Reset, 0, 0);
    assert!(guest.push(&header, &[]));
    guest.idle(A_WHILE);
    assert_eq!(guest.stray, [], "a reset is never answered");
    works(&mut guest, &listener);
}

pub fn packets_in_anothers_name_are_dropped<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);

    for cid in [0, 1, 2, 4, u64::MAX, 1 << 32 | guest.rig.cid()] {
        let header = Header {
            src_cid: cid,
            ..guest.header((555, PORT), Op::Request, 0, 0)
        };
        assert!(guest.push(&header, &[]));
    }
    guest.idle(A_WHILE);

    assert_eq!(guest.stray, []);
    assert_eq!(guest.rig.streams(), 0);
    works(&mut guest, &listener);
}

pub fn malformed_packets_cost_one_connection<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let (other, mut kept) = pair(&mut guest, &listener);

    type Break = fn(Header) -> Header;
    let breaks: [Break; 7] = [
        |h| Header {
            op: Op::ReadWrite as u16,
            len: 101,
            ..h
        },
        |h| Header {
            op: Op::ReadWrite as u16,
            len: u32::MAX,
            ..h
        },
        |h| Header {
            op: Op::Request as u16,
            ..h
        },
        |h| Header {
            op: Op::Response as u16,
            ..h
        },
        |h| Header { op: 0, ..h },
        |h| Header { op: u16::MAX, ..h },
        |h| Header {
            op: Op::CreditUpdate as u16,
            len: u32::MAX,
            ..h
        },
    ];
    for (at, change) in breaks.into_iter().enumerate() {
        let (name, mut stream) = pair(&mut guest, &listener);
        let header = change(guest.header(name, Op::ReadWrite, 0, 100));
        assert!(guest.push(&header, &[7; 100]));
        guest.until("the connection is reset", |guest| {
            guest.sockets[&name].reset
        });
        let server = thread::spawn(move || read_all(&mut stream));
        assert_eq!(guest.join(server), b"", "break {at}");
    }

    kept.write_all(b"still here").expect("the device takes it");
    guest.until("the other connection lives", |guest| {
        guest.sockets[&other].inbox == b"still here"
    });
}

pub fn unreadable_chains_go_back<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);

    let beyond = 1 << 45;
    assert!(guest.push_raw(&[1; 43]), "less than a header");
    assert!(
        guest.push_chain(&[Part {
            at: beyond,
            len: 44
        }]),
        "outside of memory"
    );
    assert!(
        guest.push_chain(&[
            Part {
                at: 0x1000,
                len: 20
            },
            Part {
                at: beyond,
                len: 4096
            }
        ]),
        "half outside"
    );
    assert!(
        guest.push_chain(&[Part {
            at: u64::MAX - 4,
            len: 100
        }]),
        "around the end of all addresses"
    );
    assert!(
        guest.push_chain(&[Part { at: 0x1000, len: 0 }]),
        "nothing at all"
    );
    assert!(
        guest.push_chain(&[
            Part {
                at: 0x1000,
                len: u32::MAX
            },
            Part {
                at: 0x1000,
                len: u32::MAX
            }
        ]),
        "more than 4 GiB"
    );

    guest.until("all chains are back", |guest| guest.tx_pending() == 0);
    assert_eq!(guest.stray, []);
    works(&mut guest, &listener);
}

pub fn data_beyond_the_credit_is_refused<R: Rig>(bench: Bench<R>) {
    let limits = Limits::default();
    let mut guest = Guest::boot(bench(limits.clone()));
    let listener = guest.host().listen(PORT);
    let (name, mut stream) = pair(&mut guest, &listener);

    // The host does not read, and the guest does not look at what it may send.
    let packet = pattern(32_768);
    let mut pushed = 0;
    while !guest.sockets[&name].reset {
        pushed += if guest.overrun(name, &packet) {
            packet.len()
        } else {
            0
        };
        // The window and what the kernel holds for the socket (`net.core.wmem_default`, 208 KiB in a Debian).
        assert!(pushed < 16 << 20, "the device took {pushed} bytes");
        guest.rig_turn();
    }

    let server = thread::spawn(move || read_all(&mut stream));
    let got = guest.join(server).len();
    assert!(
        got <= pushed && got.is_multiple_of(packet.len()),
        "whole packets, as far as there was credit: {got}"
    );
    works(&mut guest, &listener);
}

pub fn credit_that_was_never_given_is_not_used<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    guest.reads = false;
    let listener = guest.host().listen(PORT);
    // A window of 1,000 bytes and counters that lie: ahead of what was sent, far behind it, around the wrap.
    for lie in [
        1001,
        1 << 20,
        1 << 31,
        (1 << 31) + 1,
        u32::MAX,
        u32::MAX - 999,
    ] {
        let name = guest.dial(PORT, 1000);
        assert!(guest.connected(name));
        let (mut stream, _) = listener.accept().expect("the guest");
        stream
            .write_all(&pattern(5000))
            .expect("the device takes it");
        guest.until("the window is full", |guest| {
            guest.sockets[&name].inbox.len() == 1000
        });
        let header = Header {
            fwd_cnt: lie,
            ..guest.header(name, Op::CreditUpdate, 0, 0)
        };
        assert!(guest.push(&header, &[]));
        guest.idle(A_WHILE / 2);
        assert_eq!(
            guest.sockets[&name].inbox.len(),
            1000,
            "after the lie {lie}"
        );
        assert_eq!(guest.read(name, 1000), pattern(5000)[..1000]);
        guest.until("the truth helps", |guest| {
            guest.sockets[&name].inbox.len() == 1000
        });
    }
    // A window that covers everything is only a number, too.
    let header = guest.header((400, PORT), Op::Request, 0, 0);
    assert!(guest.push(
        &Header {
            buf_alloc: u32::MAX,
            fwd_cnt: u32::MAX,
            ..header
        },
        &[]
    ));
    assert_eq!(guest.stray().op(), Op::Response);
}

pub fn a_window_of_nothing_is_asked_about_once<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let name = (400, PORT);
    let header = guest.header(name, Op::Request, 0, 0);
    assert!(guest.push(&header, &[]));
    assert_eq!(guest.stray().op(), Op::Response);
    let (mut stream, _) = listener.accept().expect("the guest");

    for _ in 0..20 {
        stream
            .write_all(b"more and more")
            .expect("the device takes it");
        guest.turn(Duration::from_millis(2));
    }
    guest.idle(A_WHILE);

    let asked: Vec<_> = guest.stray.drain(..).map(|packet| packet.op()).collect();
    assert_eq!(asked, [Op::CreditRequest]);
    let header = Header {
        buf_alloc: 13,
        ..guest.header(name, Op::CreditUpdate, 0, 0)
    };
    assert!(guest.push(&header, &[]));
    assert_eq!(guest.stray().payload, b"more and more");
}

pub fn a_flood_without_receive_buffers_stops_at_the_bound<R: Rig>(bench: Bench<R>) {
    const FLOOD: u32 = 5000;
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    guest.refills = false;

    let mut pushed = 0;
    for port in 0..FLOOD {
        let header = guest.header((port, 9), Op::Request, 0, 0);
        pushed += u32::from(guest.push(&header, &[]));
        guest.rig_turn();
    }
    let limits = Limits::default();
    let bound = u32::try_from(limits.resets).expect("small")
        + 2 * u32::from(crate::conformance::QUEUE_SIZE);
    assert!(
        pushed <= bound + u32::from(crate::conformance::QUEUE_SIZE),
        "the device took {pushed} packets"
    );
    guest.refills = true;

    let mut resets = 0;
    guest.until("every packet is answered", |guest| {
        resets += u32::try_from(
            guest
                .stray
                .drain(..)
                .filter(|packet| packet.op() == Op::Reset)
                .count(),
        )
        .expect("small");
        resets == pushed
    });
    works(&mut guest, &listener);
}

pub fn held_bytes_are_bounded<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits {
        windows_bytes: 1 << 20,
        ..Limits::default()
    }));
    let limits = guest.rig.limits();
    let listener = guest.host().listen(PORT);
    let mut streams = Vec::new();
    let mut names = Vec::new();
    for _ in 0..128 {
        let (name, stream) = pair(&mut guest, &listener);
        guest
            .sockets
            .get_mut(&name)
            .expect("connected")
            .outbox
            .extend(pattern(600_000));
        names.push(name);
        streams.push(stream);
    }
    guest.idle(10 * A_WHILE);

    let held: u64 = names
        .iter()
        .map(|name| u64::from(guest.sockets[name].in_flight()))
        .sum();
    let bound = u64::from(limits.windows_bytes) + 128 * u64::from(limits.window_min_bytes);
    assert!(held <= bound, "{held} of {bound} bytes");
    let server = thread::spawn(move || {
        let mut bytes = vec![0; 600_000];
        streams.into_iter().all(|mut stream| {
            stream.read_exact(&mut bytes).expect("the guest's bytes");
            bytes == pattern(600_000)
        })
    });
    assert!(guest.join(server), "held, not lost");
}

pub fn receive_buffers_too_small_go_back_empty<R: Rig>(bench: Bench<R>) {
    let mut guest = Guest::boot(bench(Limits::default()));
    let listener = guest.host().listen(PORT);
    let (name, mut stream) = pair(&mut guest, &listener);
    guest.idle(A_WHILE);

    // The 128 good buffers are used up first; those that come back are too small for a header, then just right for it.
    for bytes in [43, 44] {
        guest.refills = false;
        for round in 0u8..=255 {
            stream.write_all(&[round]).expect("the device takes it");
            guest.rig_turn();
        }
        guest.resize_rx(bytes);
        guest.refill();
        guest.idle(A_WHILE);
        guest.resize_rx(4096);
        guest.refills = true;
        guest.idle(A_WHILE);
    }

    guest.rig_turn();
    drop(stream);
    guest.until("the end", |guest| {
        guest.sockets[&name].peer_shut != 0 || guest.sockets[&name].reset
    });
    works(&mut guest, &listener);
}
