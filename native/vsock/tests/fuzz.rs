//! Any guest at all: packets of every shape in any order, hosts that come and go, and a device that serves on.

#![allow(
    clippy::unwrap_used,
    reason = "a rig that cannot be made fails its case"
)]

mod in_process;

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    thread,
};

use aerie_vsock::{
    Header, Limits,
    conformance::{Guest, Layout, Packet, Rig},
};
use in_process::{InProcess, in_process};
use proptest::prelude::*;

const PORT: u32 = 1024;

/// One step of the guest or of the host.
#[derive(Clone, Debug)]
enum Step {
    Packet {
        header: Header,
        payload: usize,
        answer: bool,
    },
    Raw(Vec<u8>),
    Refill(bool),
    Connect,
    Write {
        at: usize,
        bytes: usize,
    },
    Read(usize),
    HalfClose(usize),
    Close(usize),
}

fn counter() -> impl Strategy<Value = u32> {
    prop_oneof![
        0..4u32,
        Just(44),
        Just(262_144),
        Just(1 << 31),
        Just(u32::MAX),
        any::<u32>()
    ]
}

fn packet() -> impl Strategy<Value = Step> {
    let cids = (
        prop_oneof![9 => Just(42u64), 1 => any::<u64>()],
        prop_oneof![9 => Just(2u64), 1 => any::<u64>()],
    );
    let ports = (1000..1004u32, prop_oneof![4 => Just(PORT), 1 => 0..3u32]);
    let what = (
        prop_oneof![9 => Just(1u16), 1 => any::<u16>()],
        prop_oneof![9 => 0..9u16, 1 => any::<u16>()],
        0..5u32,
    );
    let sizes = (
        prop_oneof![Just(0usize), 0..2000usize, Just(65_536)],
        any::<bool>(),
        counter(),
    );
    let answer = prop_oneof![1 => Just(true), 2 => Just(false)];
    (cids, ports, what, sizes, (counter(), counter()), answer).prop_map(
        |(
            (src_cid, dst_cid),
            (src_port, dst_port),
            (kind, op, flags),
            (payload, honest, lie),
            (buf_alloc, fwd_cnt),
            answer,
        )| {
            let len = if honest {
                u32::try_from(payload).unwrap()
            } else {
                lie
            };
            let header = Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            };
            Step::Packet {
                header,
                payload,
                answer,
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => packet(),
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Step::Raw),
        2 => any::<bool>().prop_map(Step::Refill),
        3 => Just(Step::Connect),
        4 => (0..8usize, 0..100_000usize).prop_map(|(at, bytes)| Step::Write { at, bytes }),
        3 => (0..8usize).prop_map(Step::Read),
        1 => (0..8usize).prop_map(Step::HalfClose),
        1 => (0..8usize).prop_map(Step::Close),
    ]
}

/// Does a step; nothing of it waits.
fn act(guest: &mut Guest<InProcess>, streams: &mut Vec<UnixStream>, seen: &[Packet], step: Step) {
    match step {
        Step::Packet {
            mut header,
            payload,
            answer,
        } => {
            // Half of the time it is about something that the device itself has said.
            if let Some(packet) = seen.last().filter(|_| answer) {
                (header.src_port, header.dst_port) =
                    (packet.header.dst_port, packet.header.src_port);
            }
            guest.push(&header, &vec![7; payload]);
        }
        Step::Raw(bytes) if !bytes.is_empty() => drop(guest.push_raw(&bytes)),
        Step::Raw(_) => {}
        Step::Refill(on) => guest.refills = on,
        Step::Connect => {
            let stream = guest.host().ask(PORT);
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
        Step::Write { at, bytes } => {
            if let Some(mut stream) = streams.get(at) {
                let _ = stream.write(&vec![9; bytes]);
            }
        }
        Step::Read(at) => {
            if let Some(mut stream) = streams.get(at) {
                let _ = stream.read(&mut [0; 4096]);
            }
        }
        Step::HalfClose(at) => {
            if let Some(stream) = streams.get(at) {
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
        Step::Close(at) if at < streams.len() => drop(streams.swap_remove(at)),
        Step::Close(_) => {}
    }
}

proptest! {
    #[test]
    fn the_device_serves_on_after_any_guest(steps in prop::collection::vec(step(), 1..150), event_idx: bool) {
        let limits = Limits { host_connections: 6, guest_connections: 6, resets: 16, ..Limits::default() };
        let mut guest = Guest::boot_with(in_process(limits.clone()), Layout::WHOLE, event_idx);
        let listener = guest.host().listen(PORT);
        listener.set_nonblocking(true).unwrap();
        let (mut streams, mut seen) = (Vec::new(), Vec::new());

        for step in steps {
            act(&mut guest, &mut streams, &seen, step);
            guest.rig_turn();
            seen.extend(guest.stray.drain(..));
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                streams.push(stream);
            }
            prop_assert!(guest.rig.streams() <= limits.host_connections + limits.guest_connections);
        }

        // The guest reboots, its hosts are gone: nothing may be left, and everything must work.
        drop((streams, listener));
        guest.refills = true;
        guest.reboot();
        guest.listening.insert(PORT, 4096);
        guest.until("nothing is left", |guest| {
            guest.sockets.clear();
            guest.rig.streams() == 0
        });
        let host = guest.host();
        let client = thread::spawn(move || {
            let (mut stream, _) = host.connect(PORT);
            stream.write_all(&[5; 10_000]).unwrap();
            stream.read_exact(&mut [0]).unwrap();
        });
        let name = guest.accepted(PORT);
        guest.until("all bytes", |guest| guest.sockets[&name].total_in == 10_000);
        guest.sockets.get_mut(&name).unwrap().outbox.push_back(1);
        guest.join(client);
    }
}
