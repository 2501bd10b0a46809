//! Drivers that break the rules of virtio, one by one: each is a device that needs a reset and works after it, never a
//! panic, and never work without a bound. (What they do in combination, the fuzzer does.)

#![allow(
    clippy::unwrap_used,
    reason = "a rig that cannot be made fails its case"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use talon::config::BalloonConfig;
use talon::memory::{Backing, Ram};
use talon::pci::{MsiSink, Window};
use talon::virtio::balloon::Balloon;
use talon::virtio::chain::PIECES_MAX;
use talon::virtio::rng::Rng;
use talon::virtio::{Backend, Io, Next, ServeError, VirtioPciDevice};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const RAM: u64 = 4 << 20;
const TABLE: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const BUFFER: u64 = 0x10_0000;
const SIZE: u16 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl MsiSink for Count {
    fn signal(&self, _address: u64, _data: u32) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Rig {
    device: VirtioPciDevice,
    ram: Arc<Ram>,
    raised: Arc<Count>,
}

fn describe(memory: &GuestMemoryMmap, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
    let at = GuestAddress(TABLE + 16 * u64::from(index));
    memory.write_obj(address, at).unwrap();
    memory.write_obj(bytes, GuestAddress(at.0 + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
    memory.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
}

fn offer(memory: &GuestMemoryMmap, heads: &[u16], index: u16) {
    for (place, head) in (0u64..).zip(heads) {
        memory
            .write_obj(*head, GuestAddress(AVAIL + 4 + 2 * place))
            .unwrap();
    }
    memory.write_obj(index, GuestAddress(AVAIL + 2)).unwrap();
}

impl Rig {
    fn new() -> Self {
        let ram = Arc::new(Ram::new(RAM, Backing::Anonymous, false).unwrap());
        let raised = Arc::new(Count::default());
        let sink: Arc<dyn MsiSink> = Arc::<Count>::clone(&raised);
        let window = Arc::new(Window::new().unwrap());
        let backend = Box::new(Rng::default());
        let device =
            VirtioPciDevice::new(5, "rng".to_owned(), backend, Arc::clone(&ram), window, sink)
                .unwrap();
        let rig = Self {
            device,
            ram,
            raised,
        };
        rig.start();
        rig
    }

    fn set(&self, offset: usize, bytes: &[u8]) {
        self.device.write_registers(offset, bytes);
    }

    /// Reset, negotiation, one queue, ready; MSI-X with one vector.
    fn start(&self) {
        let memory = self.ram.guest();
        memory
            .write_slice(&[0; 0x3000], GuestAddress(TABLE))
            .unwrap();
        self.device.write_config(0x86, &[0, 0x80]);
        self.set(0x800 + 12, &[0; 4]);
        for status in [0, 3] {
            self.set(0x14, &[status]);
        }
        self.set(0x08, &1u32.to_le_bytes());
        self.set(0x0c, &1u32.to_le_bytes());
        self.set(0x14, &[11]);
        self.set(0x18, &SIZE.to_le_bytes());
        self.set(0x1a, &0u16.to_le_bytes());
        for (offset, address) in [(0x20, TABLE), (0x28, AVAIL), (0x30, USED)] {
            self.set(offset, &u32::try_from(address).unwrap().to_le_bytes());
        }
        self.set(0x1c, &1u16.to_le_bytes());
        self.set(0x14, &[15]);
    }

    /// The device stands still, says so, serves nothing, and works again after a reset.
    #[track_caller]
    fn assert_broken(&self, what: &str) {
        assert!(self.device.serve().is_err(), "{what}");
        assert!(self.device.is_broken(), "{what}");
        let memory = self.ram.guest();
        let before: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
        assert_eq!(self.device.serve().unwrap(), Next::Wait, "{what}");
        assert_eq!(
            memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(),
            before
        );
        self.start();
        self.assert_works(what);
    }

    #[track_caller]
    fn assert_works(&self, what: &str) {
        assert!(!self.device.is_broken(), "{what}");
        let memory = self.ram.guest();
        describe(memory, 0, BUFFER, 64, WRITE, 0);
        offer(memory, &[0], 1);
        assert_eq!(self.device.serve().unwrap(), Next::Wait, "{what}");
        assert_eq!(
            memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(),
            1,
            "{what}"
        );
    }
}

#[test]
fn a_loop_of_descriptors() {
    for (first, second) in [(0, 0), (1, 0)] {
        let rig = Rig::new();
        describe(rig.ram.guest(), 0, BUFFER, 16, WRITE | NEXT, first);
        describe(rig.ram.guest(), 1, BUFFER, 16, WRITE | NEXT, second);
        offer(rig.ram.guest(), &[0], 1);

        rig.assert_broken("a loop");
    }
}

#[test]
fn a_table_in_a_table_that_was_not_agreed_on() {
    let rig = Rig::new();
    describe(rig.ram.guest(), 0, TABLE, 16, INDIRECT, 0);
    offer(rig.ram.guest(), &[0], 1);

    // It points at itself; whether it is taken for a table or for a buffer, it has an end.
    let _ = rig.device.serve();
    rig.start();
    rig.assert_works("an indirect table");
}

#[test]
fn addresses_and_lengths_outside_memory() {
    for (address, bytes) in [
        (RAM, 1),
        (RAM - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 15, 32),
        (BUFFER, u32::MAX),
        (0xe000_0000, 4096),
        (1 << 52, 4096),
    ] {
        let rig = Rig::new();
        describe(rig.ram.guest(), 0, address, bytes, WRITE, 0);
        offer(rig.ram.guest(), &[0], 1);

        rig.assert_broken(&format!("{bytes} bytes at {address:#x}"));
    }
}

#[test]
fn lengths_of_zero_and_of_all_memory_have_an_end() {
    let rig = Rig::new();
    let memory = rig.ram.guest();
    describe(memory, 0, BUFFER, 0, WRITE, 0);
    describe(memory, 1, 0, 0, 0, 0);
    // All of memory, many times over, the queue's own rings among it.
    for index in 2..SIZE {
        let more = if index + 1 < SIZE { NEXT } else { 0 };
        describe(
            memory,
            index,
            BUFFER,
            u32::try_from(RAM - BUFFER).unwrap(),
            WRITE | more,
            index + 1,
        );
    }
    offer(memory, &[0, 1, 2], 3);

    assert_eq!(rig.device.serve().unwrap(), Next::Wait);

    assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 3);
    let written: u32 = memory.read_obj(GuestAddress(USED + 4 + 8 * 2 + 4)).unwrap();
    assert!(written <= 4096, "{written} bytes of one request");
}

#[test]
fn an_index_that_jumps() {
    for index in [SIZE + 1, 0x7fff, 0x8000, u16::MAX] {
        let rig = Rig::new();
        describe(rig.ram.guest(), 0, BUFFER, 16, WRITE, 0);
        offer(rig.ram.guest(), &[0], index);

        rig.assert_broken(&format!("an index of {index}"));
    }
}

#[test]
fn a_head_that_is_no_descriptor() {
    for head in [SIZE, 0x7fff, u16::MAX] {
        let rig = Rig::new();
        offer(rig.ram.guest(), &[head], 1);

        // It is refused, or is nothing; the device lives or says that it does not.
        let _ = rig.device.serve();
        rig.start();
        rig.assert_works(&format!("head {head}"));
    }
}

#[test]
fn rings_outside_memory_are_refused_when_the_driver_is_ready() {
    for register in [0x20, 0x28, 0x30] {
        for high in [0, u32::MAX] {
            let rig = Rig::new();
            rig.set(0x14, &[0]);
            for status in [3, 11] {
                rig.set(0x08, &1u32.to_le_bytes());
                rig.set(0x0c, &1u32.to_le_bytes());
                rig.set(0x14, &[status]);
            }
            rig.set(0x18, &SIZE.to_le_bytes());
            for (offset, address) in [(0x20, TABLE), (0x28, AVAIL), (0x30, USED)] {
                rig.set(offset, &u32::try_from(address).unwrap().to_le_bytes());
            }
            rig.set(register, &0xffff_f000u32.to_le_bytes());
            rig.set(register + 4, &high.to_le_bytes());
            rig.set(0x1c, &1u16.to_le_bytes());
            rig.set(0x14, &[15]);

            assert!(rig.device.is_broken(), "{register:#x} {high:#x}");
            rig.start();
            rig.assert_works("rings outside memory");
        }
    }
}

#[test]
fn a_storm_of_doorbells_costs_no_interrupt_and_no_work() {
    let rig = Rig::new();
    rig.assert_works("before the storm");
    let raised = rig.raised.0.load(Ordering::Relaxed);

    for _ in 0..100_000 {
        rig.device.ring();
    }

    // Entropy is served by who rings: its own time, and nothing to do.
    assert_eq!(rig.device.serve().unwrap(), Next::Wait);
    assert_eq!(rig.raised.0.load(Ordering::Relaxed), raised);
}

#[test]
fn any_write_to_the_configuration_leaves_a_function_that_works() {
    let rig = Rig::new();
    for offset in 0..0x1000 {
        for data in [&[0xff_u8; 8][..], &[0x00; 4], &[0xa5; 1]] {
            rig.device.write_config(offset, data);
            rig.device.write_registers(0x200 + offset % 0xe00, data);
        }
    }
    // Vectors, BARs and commands are the guest's to set wrongly; the device is not.
    rig.start();
    rig.assert_works("after all of it");
}

#[derive(Debug, Clone)]
struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![0..RAM, Just(RAM - 1), any::<u64>()];
    let bytes = prop_oneof![Just(0), 1u32..8192, any::<u32>()];
    let next = prop_oneof![0..SIZE, any::<u16>()];
    (address, bytes, 0u16..8, next).prop_map(|(address, bytes, flags, next)| Descriptor {
        address,
        bytes,
        flags,
        next,
    })
}

/// One turn of the balloon on a queue of these heads, each a chain of the same memory: pages given up, and what is wanted next.
fn balloon_turn(pieces: u16, bytes: u32, heads: u16) -> (u64, u16, Next) {
    let ram = Arc::new(Ram::new(RAM, Backing::Anonymous, false).unwrap());
    let memory = ram.guest();
    for index in 0..pieces {
        let flags = if index + 1 < pieces { NEXT } else { 0 };
        describe(memory, index, BUFFER, bytes, flags, index + 1);
    }
    // Every second page, so that none has a neighbour.
    for index in 0..u64::from(bytes / 4) {
        let page = u32::try_from(512 + index % 256 * 2).unwrap();
        memory
            .write_obj(page, GuestAddress(BUFFER + 4 * index))
            .unwrap();
    }
    offer(memory, &vec![0; usize::from(heads)], heads);
    let mut queues: Vec<Queue> = (0..4).map(|_| Queue::new(128).unwrap()).collect();
    let inflate = &mut queues[0];
    inflate.set_size(128);
    inflate.set_desc_table_address(Some(u32::try_from(TABLE).unwrap()), None);
    inflate.set_avail_ring_address(Some(u32::try_from(AVAIL).unwrap()), None);
    inflate.set_used_ring_address(Some(u32::try_from(USED).unwrap()), None);
    inflate.set_ready(true);
    let mut returned = VecDeque::new();
    let config = BalloonConfig {
        size: 0,
        deflate_on_oom: false,
        free_page_reporting: false,
    };
    let mut balloon = Balloon::new(Arc::clone(&ram), config);
    let next = balloon
        .serve(&mut Io::new(memory, &mut queues, &mut returned))
        .unwrap();
    let given_up = balloon
        .counters()
        .iter()
        .find(|(name, _)| *name == "inflated_pages")
        .map_or(0, |(_, count)| *count);
    let used: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
    (given_up, used, next)
}

#[test]
fn a_turn_of_the_balloon_is_bounded() {
    // What Linux sends is done in one turn.
    assert_eq!(balloon_turn(1, 1024, 1), (256, 1, Next::Wait));
    // Of a request that claims more, so much is taken and no more.
    assert_eq!(balloon_turn(100, 4096, 1), (1024, 1, Next::Again));
    // Many at once have several turns.
    assert_eq!(balloon_turn(1, 4096, 30), (1024, 1, Next::Again));
    assert_eq!(balloon_turn(1, 1024, 30), (1024, 4, Next::Again));
    // Requests without a page are bounded by their number.
    assert_eq!(balloon_turn(1, 3, 100), (0, 32, Next::Again));
}

proptest! {
    /// Whatever table, heads and index a driver writes: what comes out of the queue is guest memory, bounded, at most as
    /// often as the queue is long, and the errors are ours.
    #[test]
    fn any_queue_gives_memory_or_an_error(
        table in proptest::collection::vec(descriptor(), usize::from(SIZE)),
        heads in proptest::collection::vec(prop_oneof![0..SIZE, any::<u16>()], usize::from(SIZE)),
        index in prop_oneof![0..=SIZE, any::<u16>()],
    ) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(RAM).unwrap())]).unwrap();
        for (place, entry) in (0u16..).zip(&table) {
            describe(&memory, place, entry.address, entry.bytes, entry.flags, entry.next);
        }
        offer(&memory, &heads, index);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.set_desc_table_address(Some(u32::try_from(TABLE).unwrap()), None);
        queue.set_avail_ring_address(Some(u32::try_from(AVAIL).unwrap()), None);
        queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), None);
        queue.set_ready(true);
        let (mut queues, mut returned) = ([queue], VecDeque::new());
        let mut io = Io::new(&memory, &mut queues, &mut returned);
        let mut served = 0;
        loop {
            match io.pop(0) {
                Ok(None) => break,
                Err(error) => {
                    prop_assert!(matches!(error, ServeError::Queue { .. } | ServeError::Chain { .. } | ServeError::Buffer { .. }), "{error}");
                    break;
                }
                Ok(Some(chain)) => {
                    served += 1;
                    prop_assert!(served <= SIZE, "more chains than places");
                    prop_assert!(chain.readable.len() + chain.writable.len() <= PIECES_MAX);
                    for piece in chain.readable.iter().chain(&chain.writable) {
                        prop_assert!(piece.bytes > 0);
                        prop_assert!(memory.get_slice(piece.address, usize::try_from(piece.bytes).unwrap()).is_ok());
                    }
                    let total: u64 = chain.writable.iter().map(|piece| u64::from(piece.bytes)).sum();
                    prop_assert_eq!(chain.writable_bytes(), total);
                    // Given back and taken again it is the same.
                    io.unpop(0);
                    let again = io.pop(0).unwrap().unwrap();
                    prop_assert_eq!((again.head, again.readable, again.writable), (chain.head, chain.readable, chain.writable));
                    if io.push(0, chain.head, 0).is_err() {
                        // A head beyond the table.
                        break;
                    }
                }
            }
        }
    }
}
