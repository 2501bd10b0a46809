//! `wing vsock` with a real kernel on the other side, under QEMU without KVM.
//!
//! `AERIE_TEST_KERNEL` is a bzImage, `AERIE_TEST_MODULES` a folder or a tar with its modules; without them the tests
//! say so and pass. Debian's cloud kernels from 6.1 on have all that is needed.

#![allow(
    clippy::unwrap_used,
    reason = "a machine that cannot be made fails its test"
)]

mod vsock_vm;

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use aerie_vsock::conformance::{Host, ok, pattern, read_all, write_all};
use vsock_vm::{Vm, boot};

const ECHO: u32 = 7;
const SINK: u32 = 9;
const SLOW_SINK: u32 = 10;
const SOURCE: u32 = 19;
const HALF: u32 = 20;
const DEAF: u32 = 21;
const MIB: usize = 1 << 20;

/// A guest takes a whole core.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// `<bytes> <fnv>` as the guest says it.
fn digest(bytes: &[u8]) -> String {
    format!("{} {:x}", bytes.len(), fnv(bytes))
}

fn echoes(host: &Host, bytes: &[u8]) {
    let (mut stream, _) = host.connect(ECHO);
    let writer = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || write_all(&writer, bytes));
        assert!(
            read_all(&mut stream) == bytes,
            "an echo of {} bytes",
            bytes.len()
        );
    });
}

fn sinks(host: &Host, port: u32, bytes: &[u8]) {
    let (mut stream, _) = host.connect(port);
    write_all(&stream, bytes);
    // The reply comes after our half-close.
    assert_eq!(
        String::from_utf8(read_all(&mut stream)).unwrap(),
        digest(bytes)
    );
}

fn rate(bytes: usize, since: Instant) -> u64 {
    (bytes as u64 * 1000 / u64::try_from(since.elapsed().as_millis()).unwrap().max(1)) >> 20
}

#[test]
fn a_real_guest_talks_both_ways() {
    let _one = ONE_AT_A_TIME.lock();
    let Some(mut vm) = boot("a_real_guest_talks_both_ways") else {
        return;
    };
    let big = pattern(64 * MIB);

    echoes(&vm.host, b"hello");
    echoes(&vm.host, &big[..MIB]);

    let since = Instant::now();
    sinks(&vm.host, SINK, &big);
    eprintln!("host to guest: {} MiB/s", rate(big.len(), since));
    let (mut stream, _) = vm.host.connect(SOURCE);
    let since = Instant::now();
    writeln!(stream, "{}", big.len()).unwrap();
    assert!(read_all(&mut stream) == big);
    eprintln!("guest to host: {} MiB/s", rate(big.len(), since));

    guest_writes_of_any_size_arrive(&vm);
    half_closes_keep_the_other_half(&vm);
    two_hundred_at_once(&vm);
    slow_and_deaf_readers_hold_only_themselves_up(&vm);
    refusals_and_cancels_leave_nothing(&vm);
    a_pause_keeps_connections(&vm);
    an_idle_second_wakes_nobody(&vm);
    a_driver_may_come_again(&mut vm);

    eprintln!(
        "wing: RSS {} kB, {} kB of its own",
        vm.status("VmRSS"),
        vm.status("RssAnon")
    );
    assert_eq!(vm.status("Threads"), 1);
    assert_eq!(vm.kill(), Some(0), "wing ends with its QEMU");
}

#[test]
fn a_guest_that_reboots_gets_its_device_back() {
    let _one = ONE_AT_A_TIME.lock();
    let Some(mut vm) = boot("a_guest_that_reboots_gets_its_device_back") else {
        return;
    };

    for round in 0..2 {
        let (mut open, _) = vm.host.connect(ECHO);
        open.write_all(b"before").unwrap();
        open.read_exact(&mut [0; 6]).unwrap();
        let (full, _) = vm.host.connect(DEAF);
        let writer = thread::spawn(move || (&full).write_all(&[0; 4 * MIB]));
        let (mut control, _) = vm.host.connect(1);
        control.write_all(b"reboot\n").unwrap();

        vm.wait_ready();

        assert_eq!(read_all(&mut open), b"", "round {round}");
        let refused = writer.join().unwrap().unwrap_err().kind();
        assert!(matches!(
            refused,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ));
        echoes(&vm.host, &pattern(MIB));
        sinks(&vm.host, SINK, &pattern(MIB));
    }
    assert!(
        vm.wing.try_wait().unwrap().is_none(),
        "it is the same process"
    );
}

/// The published back-end loses writes from 34,000 bytes on.
fn guest_writes_of_any_size_arrive(vm: &Vm) {
    let listener = vm.host.listen(2000);
    for chunk in [1, 4096, 32_000, 34_000, 60_000, 65_536, 65_537, MIB] {
        let bytes = if chunk == 1 { 2000 } else { 2 * MIB };
        let server = thread::spawn({
            let listener = listener.try_clone().unwrap();
            move || {
                let mut stream = listener.accept().unwrap().0;
                let got = read_all(&mut stream);
                write_all(&stream, b"got it");
                got
            }
        });
        let answer = vm.command(&format!("dial 2000 {bytes} {chunk}"));
        assert!(
            server.join().unwrap() == pattern(bytes),
            "writes of {chunk}"
        );
        assert_eq!(answer, format!("ok {}", digest(b"got it")));
    }
}

fn half_closes_keep_the_other_half(vm: &Vm) {
    let listener = vm.host.listen(HALF);
    let (mut stream, _) = vm.host.connect(HALF);
    assert_eq!(read_all(&mut stream), b"bye\n");
    // The guest has shut its half; ours still works.
    thread::sleep(Duration::from_millis(200));
    write_all(&stream, &pattern(MIB));
    let told = read_all(&mut listener.accept().unwrap().0);
    assert_eq!(String::from_utf8(told).unwrap(), digest(&pattern(MIB)));
}

fn two_hundred_at_once(vm: &Vm) {
    let bytes = pattern(20_000);
    let mut streams: Vec<_> = (0..200).map(|_| vm.host.connect(ECHO).0).collect();
    for stream in &streams {
        write_all(stream, &bytes);
    }
    assert!(streams.iter_mut().all(|stream| read_all(stream) == bytes));
}

fn slow_and_deaf_readers_hold_only_themselves_up(vm: &Vm) {
    let (deaf, _) = vm.host.connect(DEAF);
    deaf.set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let stuck = (&deaf).write_all(&[0; 4 * MIB]).unwrap_err();
    assert_eq!(
        stuck.kind(),
        ErrorKind::WouldBlock,
        "back-pressure reaches the host"
    );

    echoes(&vm.host, &pattern(MIB));
    sinks(&vm.host, SLOW_SINK, &pattern(MIB));
    // A host that reads nothing for a while.
    let (mut stream, _) = vm.host.connect(SOURCE);
    writeln!(stream, "{}", 4 * MIB).unwrap();
    thread::sleep(Duration::from_millis(500));
    assert!(read_all(&mut stream) == pattern(4 * MIB));
}

fn refusals_and_cancels_leave_nothing(vm: &Vm) {
    assert_eq!(ok(&mut vm.host.ask(4444)), None);
    // ECONNRESET
    assert_eq!(vm.command("dial 4445 1 1"), "err 104");
    for _ in 0..50 {
        drop(vm.host.ask(ECHO));
        let early = UnixStream::connect(&vm.host.socket).unwrap();
        early.shutdown(Shutdown::Both).unwrap();
    }
    echoes(&vm.host, b"after the cancels");
}

fn a_pause_keeps_connections(vm: &Vm) {
    let (mut stream, _) = vm.host.connect(ECHO);
    vm.qmp("stop");
    stream.write_all(b"asleep").unwrap();
    thread::sleep(Duration::from_millis(300));
    vm.qmp("cont");
    let mut back = [0; 6];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"asleep");
}

fn an_idle_second_wakes_nobody(vm: &Vm) {
    let (_open, _) = vm.host.connect(ECHO);
    thread::sleep(Duration::from_millis(500));
    let before = vm.status("voluntary_ctxt_switches");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(vm.status("voluntary_ctxt_switches"), before);
}

fn a_driver_may_come_again(vm: &mut Vm) {
    assert_eq!(vm.command("reload"), "ok");
    vm.wait_ready();
    echoes(&vm.host, &pattern(MIB));
}
