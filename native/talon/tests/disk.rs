//! A disk whose host is slow, and a guest that asks too much of it: nobody but the disk's own thread waits for a request, and
//! no request is longer than a bound.

#![allow(
    clippy::unwrap_used,
    reason = "a rig that cannot be made fails its case"
)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use talon::config::{BucketConfig, RateConfig};
use talon::memory::{Backing, Ram};
use talon::pci::{MsiSink, Window};
use talon::virtio::block::{Block, Engine};
use talon::virtio::rate::Limiter;
use talon::virtio::{Next, VirtioPciDevice};
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 4 << 20;
const TABLE: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const HEADER: u64 = 0x2_0000;
const STATUS: u64 = 0x2_1000;
const DATA: u64 = 0x10_0000;
const DATA_BYTES: u32 = 1 << 20;
const DISK_BYTES: u64 = 16 << 30;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl MsiSink for Count {
    fn signal(&self, _address: u64, _data: u32) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A host's disk that says when a request has come, and waits for a word before it is done.
#[derive(Debug)]
struct Slow {
    came: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

impl Slow {
    fn wait(&self) -> io::Result<()> {
        self.came.lock().unwrap().send(()).unwrap();
        self.go_on
            .lock()
            .unwrap()
            .recv()
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Engine for Slow {
    fn read(&self, _into: &mut [libc::iovec], _offset: u64) -> io::Result<()> {
        self.wait()
    }
    fn write(&self, _from: &mut [libc::iovec], _offset: u64) -> io::Result<()> {
        self.wait()
    }
    fn flush(&self) -> io::Result<()> {
        self.wait()
    }
    fn discard(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        self.wait()
    }
    fn zero(&self, _offset: u64, _bytes: u64, _unmap: bool) -> io::Result<()> {
        self.wait()
    }
}

/// One that is done at once.
#[derive(Debug)]
struct Fast;

impl Engine for Fast {
    fn read(&self, _into: &mut [libc::iovec], _offset: u64) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _from: &mut [libc::iovec], _offset: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, _offset: u64, _bytes: u64, _unmap: bool) -> io::Result<()> {
        Ok(())
    }
}

struct Rig {
    device: Arc<VirtioPciDevice>,
    window: Arc<Window>,
    ram: Arc<Ram>,
    raised: Arc<Count>,
}

impl Rig {
    fn new(engine: Arc<dyn Engine>, rate: &RateConfig) -> Self {
        let ram = Arc::new(Ram::new(RAM, Backing::Anonymous, false).unwrap());
        let raised = Arc::new(Count::default());
        let sink: Arc<dyn MsiSink> = Arc::<Count>::clone(&raised);
        let window = Arc::new(Window::new().unwrap());
        let backend = Block::new(engine, DISK_BYTES, false, "disk", Limiter::new(rate));
        let device = VirtioPciDevice::new(
            8,
            "disk".to_owned(),
            Box::new(backend),
            Arc::clone(&ram),
            Arc::clone(&window),
            sink,
        );
        let rig = Self {
            device: Arc::new(device.unwrap()),
            window,
            ram,
            raised,
        };
        rig.start();
        rig
    }

    fn set(&self, offset: usize, bytes: &[u8]) {
        self.device.write_registers(offset, bytes);
    }

    fn start(&self) {
        self.device.write_config(0x86, &[0, 0x80]);
        self.set(0x800 + 12, &[0; 4]);
        for status in [0, 3] {
            self.set(0x14, &[status]);
        }
        self.set(0x08, &1u32.to_le_bytes());
        self.set(0x0c, &1u32.to_le_bytes());
        self.set(0x14, &[11]);
        self.set(0x18, &256u16.to_le_bytes());
        self.set(0x1a, &0u16.to_le_bytes());
        for (offset, address) in [(0x20, TABLE), (0x28, AVAIL), (0x30, USED)] {
            self.set(offset, &u32::try_from(address).unwrap().to_le_bytes());
        }
        self.set(0x1c, &1u16.to_le_bytes());
        self.set(0x14, &[15]);
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.window
            .read(talon::layout::registers(8) + 0x14, &mut status);
        status[0]
    }

    fn describe(&self, index: u16, address: u64, bytes: u32, flags: u16) {
        let memory = self.ram.guest();
        let at = TABLE + 16 * u64::from(index);
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(bytes, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(index + 1, GuestAddress(at + 14)).unwrap();
    }

    /// Offers one request: so many times the same data, which the device reads or writes.
    fn offer(&self, kind: u32, sector: u64, data: &[u32]) {
        let memory = self.ram.guest();
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        self.describe(0, HEADER, 16, NEXT);
        let side = if kind == IN { WRITE } else { 0 };
        let mut index = 1;
        for bytes in data {
            self.describe(index, DATA, *bytes, NEXT | side);
            index += 1;
        }
        self.describe(index, STATUS, 1, WRITE);
        let offered: u16 = memory.read_obj(GuestAddress(AVAIL + 2)).unwrap();
        memory
            .write_obj(0u16, GuestAddress(AVAIL + 4 + 2 * u64::from(offered % 256)))
            .unwrap();
        memory
            .write_obj(offered + 1, GuestAddress(AVAIL + 2))
            .unwrap();
    }

    fn used(&self) -> u16 {
        self.ram.guest().read_obj(GuestAddress(USED + 2)).unwrap()
    }

    fn answer(&self) -> u8 {
        self.ram.guest().read_obj(GuestAddress(STATUS)).unwrap()
    }
}

/// A request that the host has begun and not done.
struct Stuck {
    rig: Rig,
    go_on: Sender<()>,
    thread: JoinHandle<Next>,
}

fn stuck(kind: u32, data: &[u32]) -> Stuck {
    let ((came, has_come), (go_on, word)) = (channel(), channel());
    let engine = Slow {
        came: Mutex::new(came),
        go_on: Mutex::new(word),
    };
    let rig = Rig::new(Arc::new(engine), &RateConfig::default());
    if kind == DISCARD || kind == WRITE_ZEROES {
        rig.ram
            .guest()
            .write_slice(&range(0, 8), GuestAddress(DATA))
            .unwrap();
    }
    rig.offer(kind, 0, data);
    let device = Arc::clone(&rig.device);
    let thread = std::thread::spawn(move || device.serve_waiting().unwrap());
    has_come.recv().unwrap();
    Stuck { rig, go_on, thread }
}

fn range(sector: u64, sectors: u32) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&sector.to_le_bytes());
    raw[8..12].copy_from_slice(&sectors.to_le_bytes());
    raw
}

/// Every kind of request that waits for the host.
const KINDS: [(u32, &[u32]); 5] = [
    (IN, &[4096]),
    (OUT, &[4096]),
    (FLUSH, &[]),
    (DISCARD, &[16]),
    (WRITE_ZEROES, &[16]),
];

#[test]
fn a_pause_waits_for_no_disk_and_the_request_is_done_meanwhile() {
    for (kind, data) in KINDS {
        let Stuck { rig, go_on, thread } = stuck(kind, data);

        // All of these would never return if they waited.
        rig.device.pause();
        assert!(!rig.device.is_quiet(), "kind {kind}");
        assert!(!rig.device.is_broken() && rig.device.is_paused());
        assert!(!rig.device.counters().is_empty());
        assert_eq!(rig.used(), 0, "kind {kind}");

        go_on.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), Next::Wait);
        assert!(rig.device.is_quiet(), "kind {kind}");
        assert_eq!((rig.used(), rig.answer()), (1, OK), "kind {kind}");
        assert_eq!(
            rig.raised.0.load(Ordering::Relaxed),
            1,
            "the guest is told before the device is quiet, kind {kind}"
        );
    }
}

#[test]
fn what_comes_during_a_pause_waits_for_its_end() {
    let rig = Rig::new(Arc::new(Fast), &RateConfig::default());
    rig.device.pause();
    rig.offer(OUT, 0, &[512]);

    assert_eq!(rig.device.serve_waiting().unwrap(), Next::Wait);
    assert_eq!(rig.used(), 0);
    rig.device.resume();
    assert_eq!(rig.device.serve_waiting().unwrap(), Next::Wait);

    assert_eq!((rig.used(), rig.answer()), (1, OK));
}

#[test]
fn a_reset_is_done_when_the_request_is() {
    for (kind, data) in KINDS {
        let Stuck { rig, go_on, thread } = stuck(kind, data);

        rig.set(0x14, &[0]);
        assert_ne!(
            rig.status(),
            0,
            "memory is still being written, kind {kind}"
        );
        // A driver that does not wait is not heard.
        rig.set(0x14, &[3]);
        go_on.send(()).unwrap();
        thread.join().unwrap();

        assert_eq!(rig.status(), 0, "kind {kind}");
        assert_eq!(rig.used(), 0, "a driver that reset expects no answer");
        rig.start();
        assert_eq!(rig.status(), 15);
    }
}

#[test]
fn a_request_is_bounded_however_often_it_names_its_memory() {
    let mib = |count: usize| vec![DATA_BYTES; count];
    let rig = Rig::new(Arc::new(Fast), &RateConfig::default());
    let cases: [(u32, Vec<u32>, u8); 7] = [
        (IN, mib(4), OK),
        (OUT, mib(4), OK),
        (IN, [mib(4), vec![512]].concat(), IOERR),
        (OUT, [mib(4), vec![512]].concat(), IOERR),
        (IN, mib(200), IOERR),
        (OUT, mib(200), IOERR),
        (IN, vec![100], IOERR),
    ];
    for (count, (kind, data, answer)) in (1u16..).zip(cases) {
        rig.offer(kind, 0, &data);
        rig.device.serve_waiting().unwrap();

        let what = format!("kind {kind}, {} pieces", data.len());
        assert_eq!((rig.used(), rig.answer()), (count, answer), "{what}");
    }
}

#[test]
fn ranges_are_bounded_as_the_configuration_says() {
    let rig = Rig::new(Arc::new(Fast), &RateConfig::default());
    let read = |offset: u64| {
        let mut raw = [0; 4];
        let at = talon::layout::registers(8) + 0x100 + offset;
        rig.window.read(at, &mut raw);
        u32::from_le_bytes(raw)
    };
    let (size_max, seg_max) = (read(8), read(12));
    assert!(u64::from(size_max) * u64::from(seg_max) <= 4 << 20);
    let cases = [
        (DISCARD, read(36), read(40), OK),
        (DISCARD, read(36) + 1, 1, IOERR),
        (DISCARD, 8, read(40) + 1, IOERR),
        (WRITE_ZEROES, read(48), read(52), OK),
        (WRITE_ZEROES, read(48) + 1, 1, IOERR),
        (WRITE_ZEROES, 8, read(52) + 1, IOERR),
    ];
    for (count, (kind, sectors, ranges, answer)) in (1u16..).zip(cases) {
        for index in 0..ranges {
            let at = GuestAddress(DATA + 16 * u64::from(index));
            let raw = range(u64::from(index) * u64::from(sectors), sectors);
            rig.ram.guest().write_slice(&raw, at).unwrap();
        }
        rig.offer(kind, 0, &[16 * ranges]);
        rig.device.serve_waiting().unwrap();

        let what = format!("kind {kind}, {ranges} ranges of {sectors}");
        assert_eq!((rig.used(), rig.answer()), (count, answer), "{what}");
    }
}

#[test]
fn flushes_wait_for_their_rate_and_data_does_not() {
    let flushes = Some(BucketConfig {
        size: 1,
        one_time_burst: 0,
        refill_time_ms: 3_600_000,
    });
    let rate = RateConfig {
        flushes,
        ..RateConfig::default()
    };
    let rig = Rig::new(Arc::new(Fast), &rate);

    rig.offer(FLUSH, 0, &[]);
    assert_eq!(rig.device.serve_waiting().unwrap(), Next::Wait);
    rig.offer(OUT, 0, &[512]);
    assert_eq!(rig.device.serve_waiting().unwrap(), Next::Wait);
    rig.offer(FLUSH, 0, &[]);
    let later = rig.device.serve_waiting().unwrap();

    assert!(matches!(later, Next::At(_)), "{later:?}");
    assert_eq!(rig.used(), 2);
}
