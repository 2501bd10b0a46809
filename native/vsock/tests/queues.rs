//! Queues that a driver broke: an error for the caller, never a thread that does not come back.

#![allow(
    clippy::unwrap_used,
    reason = "a queue that cannot be made fails its test"
)]

use std::os::unix::net::UnixListener;

use aerie_vsock::{Config, Limits, Muxer, Rings, Served, conformance::Scratch, serve};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 0x1_0000;

fn queue(avail: u64, used: u64) -> Queue {
    let mut queue = Queue::new(16).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(0x1000))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(avail))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
    queue.set_ready(true);
    queue
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

fn muxer(scratch: &Scratch) -> Muxer {
    let listener = UnixListener::bind(scratch.join("v")).unwrap();
    let config = Config {
        cid: 3,
        connect_prefix: scratch.join("g"),
        limits: Limits::default(),
    };
    Muxer::new(config, listener).unwrap()
}

#[test]
fn a_ring_that_leaves_memory_is_broken() {
    let scratch = Scratch::new();
    let mem = memory();
    // The index is the last thing in memory; what it counts lies behind.
    let end = MEMORY as u64 - 4;
    mem.write_obj(1u16, GuestAddress(end + 2)).unwrap();
    for event_idx in [false, true] {
        let (mut rx, mut tx) = (queue(0x2000, 0x3000), queue(end, 0x4000));
        tx.set_event_idx(event_idx);

        serve(
            &mut muxer(&scratch),
            &mem,
            Rings {
                rx: &mut rx,
                tx: &mut tx,
            },
        )
        .unwrap_err();
        std::fs::remove_file(scratch.join("v")).unwrap();
    }
}

#[test]
fn an_index_that_runs_away_is_broken() {
    let scratch = Scratch::new();
    let mem = memory();
    mem.write_obj(17u16, GuestAddress(0x5002)).unwrap();
    let (mut rx, mut tx) = (queue(0x2000, 0x3000), queue(0x5000, 0x4000));

    serve(
        &mut muxer(&scratch),
        &mem,
        Rings {
            rx: &mut rx,
            tx: &mut tx,
        },
    )
    .unwrap_err();
}

#[test]
fn a_head_beyond_the_queue_is_broken() {
    let scratch = Scratch::new();
    let mem = memory();
    mem.write_obj(1u16, GuestAddress(0x5002)).unwrap();
    mem.write_obj(16u16, GuestAddress(0x5004)).unwrap();
    let (mut rx, mut tx) = (queue(0x2000, 0x3000), queue(0x5000, 0x4000));

    serve(
        &mut muxer(&scratch),
        &mem,
        Rings {
            rx: &mut rx,
            tx: &mut tx,
        },
    )
    .unwrap_err();
}

#[test]
fn chains_in_a_circle_end() {
    let scratch = Scratch::new();
    let mem = memory();
    // Descriptor 0: 8 bytes, next is 0 again.
    mem.write_obj([0x6000u64, 8 | 1 << 32], GuestAddress(0x1000))
        .unwrap();
    mem.write_obj(1u16, GuestAddress(0x5002)).unwrap();
    let (mut rx, mut tx) = (queue(0x2000, 0x3000), queue(0x5000, 0x4000));

    let served = serve(
        &mut muxer(&scratch),
        &mem,
        Rings {
            rx: &mut rx,
            tx: &mut tx,
        },
    )
    .unwrap();

    assert_eq!(
        served,
        Served {
            rx: false,
            tx: true,
            more: false
        },
        "it went back"
    );
}
