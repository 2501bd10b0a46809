//! The vsock suite on `wing vsock`, and what only a vhost-user device has to do.

#![allow(
    clippy::unwrap_used,
    reason = "a rig that cannot be made fails its case"
)]

#[path = "vsock_rig/mod.rs"]
mod rig;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::Command,
    thread,
    time::Duration,
};

use aerie_vsock::{
    Limits, Op,
    conformance::{Guest, Rig},
};
use rig::Wing;
use vhost::{
    VhostBackend, VringConfigData,
    vhost_user::{VhostUserFrontend, message::VhostUserConfigFlags},
};
use vm_memory::{GuestAddress, GuestMemoryBackend};

aerie_vsock::conformance!(Wing::new);

const PORT: u32 = 1024;
const WINDOW: u32 = 256 * 1024;

#[test]
fn a_pause_keeps_connections() {
    let mut guest = Guest::boot(Wing::new(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || host.connect(PORT).0);
    let name = guest.accepted(PORT);
    let mut stream = guest.join(client);

    let at = guest.rig.stop();
    stream.write_all(b"while it sleeps").unwrap();
    guest.idle(Duration::from_millis(50));
    assert_eq!(guest.sockets[&name].inbox, b"");
    guest.rig.start_at(at);

    guest.until("what was written", |guest| {
        guest.sockets[&name].inbox == b"while it sleeps"
    });
    guest
        .sockets
        .get_mut(&name)
        .unwrap()
        .outbox
        .extend(b"awake");
    let reader = thread::spawn(move || {
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    });
    assert_eq!(&guest.join(reader), b"awake");
}

/// One connection from the host to the guest, some packets after the start.
fn connect(guest: &mut Guest<Wing>) -> (UnixStream, (u32, u32)) {
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || host.connect(PORT).0);
    let name = guest.accepted(PORT);
    (guest.join(client), name)
}

#[test]
fn a_device_that_is_taken_out_and_put_back_keeps_connections() {
    let mut guest = Guest::boot(Wing::new(Limits::default()));
    let (mut stream, name) = connect(&mut guest);

    let at = guest.rig.stop();
    assert_ne!(at, [0, 0]);
    guest.rig.frontend.as_mut().unwrap().set_owner().unwrap();
    guest.rig.start_at([0, 0]);

    stream.write_all(b"still here").unwrap();
    guest.until("what was written", |guest| {
        guest.sockets[&name].inbox == b"still here"
    });
    // Once: at the next start the VMM knows, and says 0 for a guest that was reset.
    guest.reboot();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    connect(&mut guest);
}

#[test]
fn a_restored_guest_goes_on_with_its_rings_and_without_its_connections() {
    let mut guest = Guest::boot(Wing::new(Limits::default()));
    let (mut stream, name) = connect(&mut guest);

    let at = guest.rig.stop();
    assert_ne!(at, [0, 0]);
    guest.rig.restore();
    guest.rig.start_at([0, 0]);

    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    guest.send(name, Op::ReadWrite, 0, b"who are you");
    guest.until("a reset", |guest| guest.sockets[&name].reset);
    guest.sockets.clear();
    let (mut stream, name) = connect(&mut guest);
    stream.write_all(b"new").unwrap();
    guest.until("what was written", |guest| {
        guest
            .sockets
            .get(&name)
            .is_some_and(|socket| socket.inbox == b"new")
    });
}

#[test]
fn a_driver_that_places_its_rings_wrongly_may_try_again() {
    let mut guest = Guest::boot(Wing::new(Limits::default()));
    let base = guest
        .rig
        .memory()
        .get_host_address(GuestAddress(0))
        .unwrap() as u64;
    for (size, at) in [(100, base), (128, 0), (128, base + (32 << 20) - 16)] {
        guest.rig.stop();
        let frontend = guest.rig.frontend.as_mut().unwrap();
        frontend.set_vring_num(0, size).unwrap();
        let place = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: at,
            used_ring_addr: at,
            avail_ring_addr: at,
            log_addr: None,
        };
        frontend.set_vring_addr(0, &place).unwrap();
        guest.rig.give_events();
        guest.idle(Duration::from_millis(20));

        guest.reboot();
        guest.listening.insert(PORT, WINDOW);
        let host = guest.host();
        let client = thread::spawn(move || host.connect(PORT));
        guest.join(client);
    }
}

#[test]
fn the_configuration_is_the_cid() {
    let mut guest = Guest::boot(Wing::new(Limits::default()));
    let frontend = guest.rig.frontend.as_mut().unwrap();

    let (_, bytes) = frontend
        .get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
        .unwrap();

    assert_eq!(bytes, 42u64.to_le_bytes());
}

#[test]
fn one_thread_is_enough_and_idle_it_sleeps() {
    let mut guest = Guest::boot(Wing::new(Limits::default()));
    guest.listening.insert(PORT, WINDOW);
    let host = guest.host();
    let client = thread::spawn(move || host.connect(PORT).0);
    guest.accepted(PORT);
    let _open = guest.join(client);
    guest.idle(Duration::from_millis(100));

    let wakes = |rig: &Wing| rig.status("voluntary_ctxt_switches");
    let before = wakes(&guest.rig);
    thread::sleep(Duration::from_secs(1));

    assert_eq!(
        wakes(&guest.rig),
        before,
        "wake-ups in an idle second with an open connection"
    );
    assert_eq!(guest.rig.status("Threads"), 1);
    assert!(
        guest.rig.status("RssAnon") < 1024,
        "{} kB of its own",
        guest.rig.status("RssAnon")
    );
}

#[test]
fn it_is_confined_before_it_hears_the_vmm() {
    let wing = Wing::new(Limits::default());
    // Any answer comes after the filter.
    wing.frontend.as_ref().unwrap().get_features().unwrap();

    assert_eq!(wing.status("Seccomp"), 2, "a filter");
    assert_eq!(wing.status("NoNewPrivs"), 1);
}

#[test]
fn slow_readers_do_not_grow_it() {
    let mut guest = Guest::boot(Wing::new(Limits::default()));
    let listener = guest.host().listen(PORT);
    let mut streams = Vec::new();
    for _ in 0..400 {
        let name = guest.dial(PORT, WINDOW);
        assert!(guest.connected(name));
        streams.push(listener.accept().unwrap());
        guest
            .sockets
            .get_mut(&name)
            .unwrap()
            .outbox
            .extend(std::iter::repeat_n(7, 1 << 20));
    }
    guest.idle(Duration::from_millis(500));

    let limits = guest.rig.limits();
    let bound = u64::from(limits.windows_bytes) + 400 * u64::from(limits.window_min_bytes);
    // The buffers grow in steps of 64 KiB at most, and a connection itself is small.
    let kb = guest.rig.status("RssAnon");
    assert!(kb < (bound + 400 * 68 * 1024) / 1024, "{kb} kB");
}

#[test]
fn a_wrong_command_line_is_one_json_line() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_wing"))
            .arg("vsock")
            .args(args)
            .output()
            .unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        (
            output.status.code(),
            said["code"].as_str().unwrap().to_owned(),
        )
    };

    assert_eq!(run(&[]), (Some(2), "usage".into()));
    let fds = [
        "--vhost-fd",
        "0",
        "--listen-fd",
        "1",
        "--connect-prefix",
        "/tmp/x",
    ];
    assert_eq!(
        run(&[&["--cid", "42"], &fds[..]].concat()),
        (Some(1), "fd_invalid".into())
    );
}
