//! Snapshot, restore and fork: what goes on, what is new, and what is refused.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::Suite;
use crate::machine::{Context, Talon, inheritable, wait_for};

pub fn add(suite: &mut Suite) {
    suite.test("a restored guest goes on where it stood", restore);
    suite.test(
        "two clones of a snapshot differ in what must be secret",
        clones,
    );
    suite.test("a snapshot goes through descriptors", through_descriptors);
    suite.test("a snapshot of two processors is restored", two_processors);
    suite.test("a snapshot that was cut short is refused", cut_short);
    suite.test("a snapshot of another machine is refused", other_machine);
    suite.test(
        "memory that is cut short under a guest ends it with a reason",
        memory_lost,
    );
    suite.test("ten clones are forked from one running guest", fork);
    suite.test("a child is forked by copying", fork_of_child);
    suite.test("a clone's link is down until it is told", link);
}

fn folder(context: &Context, name: &str) -> (PathBuf, Value) {
    let path = context.path(name);
    fs::create_dir_all(&path).expect("a folder");
    let url = json!({ "destination_url": format!("file://{}", path.display()) });
    (path, url)
}

/// The same machine with a CID, sockets and console of its own.
fn sibling(context: &Context, config: &Value, name: &str) -> Value {
    static NEXT_CID: AtomicU32 = AtomicU32::new(100);
    let fresh = context.config(name);
    let mut config = config.clone();
    config["vsock"] = fresh["vsock"].clone();
    config["vsock"]["cid"] = NEXT_CID.fetch_add(1, Ordering::Relaxed).into();
    config["console"] = fresh["console"].clone();
    config
}

fn restore_from(context: &Context, name: &str, folder: &Path, config: &Value) -> Talon {
    let talon = context.talon(name);
    let body = json!({
        "source_url": format!("file://{}", folder.display()),
        "resume": true,
        "config": sibling(context, config, name),
    });
    talon.put("vm.restore", &body).expect_status(204);
    talon
}

fn restore(context: &Context) {
    let image = context.image("disk", 4 << 20);
    let mut config = context.config("vm");
    config["disks"] = json!([{ "path": image }]);
    config["balloon"] = json!({ "size": 0 });
    config["serial"] = json!({ "mode": "Null" });
    let talon = context.boot("vm", &config);
    talon.ok("echo kept > /mark");
    let mut open = talon.connect();
    open.write_all(b"echo\nhello").expect("bytes");
    open.read_exact(&mut [0; 5]).expect("an echo");
    let (path, url) = folder(context, "snapshot");
    talon.put("vm.snapshot", &url).expect_status(409);
    let before = talon.clock();
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.snapshot", &url).expect_status(200);
    drop(talon);
    let began = Instant::now();

    let talon = restore_from(context, "again", &path, &config);
    let after = talon.clock();

    assert_eq!(talon.ok("cat /mark"), "kept");
    let passed = after
        .checked_sub(before)
        .expect("the monotonic clock went back");
    let host = u64::try_from(began.elapsed().as_nanos()).expect("small");
    assert!(
        passed < host + 20_000_000_000,
        "the guest's clock jumped by {} s",
        passed / 1_000_000_000
    );
    talon.ok("dd if=/dev/urandom of=/dev/vda bs=64k count=8 conv=fsync 2>/dev/null");
    talon.ok("sleep 1");
    talon
        .put("vm.resize", &json!({ "desired_balloon": 8 << 20 }))
        .expect_status(204);
    wait_for("inflation", || {
        talon.get("vm.counters").expect_status(200)["balloon"]["actual_bytes"].as_u64()
            == Some(8 << 20)
    });
    let counters = talon.get("vm.counters").expect_status(200);
    assert_eq!(counters["vsock"]["transport_resets"], 1, "{counters}");
    // And once more, from the restored machine.
    let (path, url) = folder(context, "second");
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.snapshot", &url).expect_status(200);
    drop(talon);
    let talon = restore_from(context, "third", &path, &config);
    assert_eq!(talon.ok("cat /mark"), "kept");
}

fn clones(context: &Context) {
    let config = context.config("vm");
    let talon = context.boot("vm", &config);
    let (path, url) = folder(context, "snapshot");
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.snapshot", &url).expect_status(200);
    drop(talon);

    let one = restore_from(context, "one", &path, &config);
    let two = restore_from(context, "two", &path, &config);

    // Linux 6.1's cloud kernel has no VMGENID: there the agent's entropy makes the difference.
    if std::env::var("AERIE_BED_GUEST_KERNEL").as_deref() != Ok("6.1") {
        assert_ne!(one.uuid(), two.uuid());
    }
    one.ok("echo one > /mark");
    assert_eq!(two.sh("cat /mark").1, 1);
}

pub fn memfd(name: &std::ffi::CStr, bytes: u64) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: a valid name; the descriptor is fresh and ours.
    let fd = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_ALLOW_SEALING);
        assert!(fd >= 0, "memfd_create");
        OwnedFd::from_raw_fd(fd)
    };
    File::from(fd.try_clone().expect("a copy"))
        .set_len(bytes)
        .expect("a size");
    inheritable(fd)
}

fn through_descriptors(context: &Context) {
    let config = context.config("vm");
    let talon = context.boot("vm", &config);
    talon.ok("echo kept > /mark");
    talon.put("vm.pause", &json!({})).expect_status(204);
    let (state, memory) = (memfd(c"state", 0), memfd(c"memory", 0));
    let fds = [state.as_raw_fd(), memory.as_raw_fd()];
    let missing = talon
        .put_fds(
            "vm.snapshot",
            &json!({ "destination_url": "fd:" }),
            &fds[..1],
        )
        .expect_status(400);
    assert_eq!(missing["path"], "destination_url");
    talon
        .put_fds("vm.snapshot", &json!({ "destination_url": "fd:" }), &fds)
        .expect_status(200);
    drop(talon);

    let talon = context.talon("again");
    let body = json!({ "source_url": "fd:", "resume": true, "config": sibling(context, &config, "again") });
    talon.put_fds("vm.restore", &body, &fds).expect_status(204);

    assert_eq!(talon.ok("cat /mark"), "kept");
}

fn two_processors(context: &Context) {
    let mut config = context.config("vm");
    config["cpus"] = json!({ "boot_vcpus": 2, "max_vcpus": 2 });
    let talon = context.boot("vm", &config);
    talon.ok("(while true; do :; done) >/dev/null 2>&1 &");
    let (path, url) = folder(context, "snapshot");
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.snapshot", &url).expect_status(200);
    drop(talon);

    let talon = restore_from(context, "again", &path, &config);

    assert_eq!(talon.ok("grep -c ^processor /proc/cpuinfo"), "2");
    for cpu in ["1", "2"] {
        assert_eq!(talon.ok(&format!("taskset {cpu} echo here")), "here");
    }
}

fn cut_short(context: &Context) {
    let config = context.config("vm");
    let talon = context.boot("vm", &config);
    let (path, url) = folder(context, "snapshot");
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.snapshot", &url).expect_status(200);
    drop(talon);
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path.join(name))
            .expect("a file")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("state"), mode("memory")), (0o400, 0o400));
    assert_eq!(fs::read_dir(&path).expect("a folder").count(), 2);
    let whole = fs::metadata(path.join("state")).expect("a file").len();
    let talon = context.talon("again");
    let body = json!({
        "source_url": format!("file://{}", path.display()),
        "config": sibling(context, &config, "again"),
    });
    let resize = |name: &str, bytes: u64| {
        File::options()
            .write(true)
            .open(path.join(name))
            .and_then(|file| file.set_len(bytes))
            .expect("a cut");
    };

    let original = fs::read(path.join("state")).expect("a state");
    resize("state", whole - 1);
    assert_eq!(
        talon.put("vm.restore", &body).expect_status(400)["code"],
        "snapshot_invalid"
    );
    let mut damaged = original.clone();
    damaged[original.len() / 2] ^= 1;
    let rewrite = |bytes: &[u8]| {
        let file = File::options()
            .write(true)
            .open(path.join("state"))
            .expect("a state");
        file.set_len(bytes.len() as u64)
            .and_then(|()| file.write_all_at(bytes, 0))
            .expect("bytes");
    };
    rewrite(&damaged);
    assert_eq!(
        talon.put("vm.restore", &body).expect_status(400)["code"],
        "snapshot_invalid"
    );
    rewrite(&original);
    resize(
        "memory",
        fs::metadata(path.join("memory")).expect("a file").len() - 4096,
    );
    assert_eq!(
        talon.put("vm.restore", &body).expect_status(400)["code"],
        "snapshot_invalid"
    );
    talon.get("vm.info").expect_status(404);
}

fn other_machine(context: &Context) {
    let config = context.config("vm");
    let talon = context.boot("vm", &config);
    let (path, url) = folder(context, "snapshot");
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.snapshot", &url).expect_status(200);
    drop(talon);
    let talon = context.talon("again");
    let mut other = sibling(context, &config, "again");
    let body = |config: &Value| json!({ "source_url": format!("file://{}", path.display()), "config": config });

    other["memory"]["size"] = (256u64 << 20).into();
    assert_eq!(
        talon.put("vm.restore", &body(&other)).expect_status(400)["path"],
        "config"
    );
    other["memory"]["size"] = config["memory"]["size"].clone();
    other["disks"] = json!([{ "path": context.image("other", 1 << 20), "serial": "another" }]);
    assert_eq!(
        talon.put("vm.restore", &body(&other)).expect_status(400)["path"],
        "config"
    );
    other["disks"] = json!([]);
    other["balloon"] = json!({ "size": 0 });
    assert_eq!(
        talon.put("vm.restore", &body(&other)).expect_status(400)["code"],
        "snapshot_invalid"
    );
    talon.get("vm.info").expect_status(404);
}

fn memory_lost(context: &Context) {
    let config = context.config("vm");
    let talon = context.boot("vm", &config);
    let (path, url) = folder(context, "snapshot");
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.snapshot", &url).expect_status(200);
    drop(talon);
    let mut talon = restore_from(context, "again", &path, &config);
    talon.ok("true");

    File::options()
        .write(true)
        .open(path.join("memory"))
        .and_then(|file| file.set_len(4096))
        .expect("a cut");
    let status = talon.end();

    assert_eq!(status.code(), Some(1), "{}", talon.last_words());
    assert!(
        talon.last_words().contains("gone from the host"),
        "{}",
        talon.last_words()
    );
}

/// A guest whose RAM is a memfd of the launcher's.
fn forkable(context: &Context) -> (Talon, OwnedFd, Value) {
    const BYTES: u64 = 192 << 20;
    let ram = memfd(c"ram", BYTES);
    let mut config = context.config("vm");
    config["memory"] = json!({ "size": 0, "zones": [{ "id": "ram", "size": BYTES, "shared": true, "file": "/dev/fd/40" }] });
    let mut talon = context.talon_with("vm", &[], &[(ram.as_raw_fd(), 40)]);
    let up = talon.expect_up();
    talon.put("vm.create", &config).expect_status(204);
    talon.put("vm.boot", &json!({})).expect_status(204);
    talon.wait_up(&up);
    config["memory"] = json!({ "size": BYTES });
    (talon, ram, config)
}

fn fork(context: &Context) {
    let (parent, ram, config) = forkable(context);
    parent.ok("echo kept > /mark");
    let state = memfd(c"state", 0);
    parent.put("vm.pause", &json!({})).expect_status(204);

    let body = json!({ "destination_url": "fd:" });
    let outcome = parent
        .put_fds("vm.fork", &body, &[state.as_raw_fd()])
        .expect_status(200);
    assert_eq!(
        (&outcome["memory"], &outcome["pages_copied"]),
        (&json!("template"), &json!(0))
    );
    assert_eq!(parent.get("vm.info").expect_status(200)["state"], "Paused");
    let file = File::from(ram.try_clone().expect("a copy"));
    assert!(
        file.write_at(b"x", 0).is_err(),
        "the template is not sealed"
    );

    let mut clones = Vec::new();
    for index in 0..10 {
        let name = format!("clone{index}");
        let clone = context.talon(&name);
        let body = json!({ "source_url": "fd:", "resume": true, "config": sibling(context, &config, &name) });
        clone
            .put_fds("vm.restore", &body, &[state.as_raw_fd(), ram.as_raw_fd()])
            .expect_status(204);
        clones.push(clone);
    }
    parent.put("vm.resume", &json!({})).expect_status(204);
    parent.ok("echo parent > /mark");

    let mut seen = BTreeSet::new();
    for clone in &clones {
        assert_eq!(clone.ok("cat /mark"), "kept");
        clone.ok("echo clone > /mark");
        seen.insert(clone.uuid());
    }
    assert_eq!(parent.ok("cat /mark"), "parent");
    if std::env::var("AERIE_BED_GUEST_KERNEL").as_deref() != Ok("6.1") {
        assert_eq!(seen.len(), 10, "{seen:?}");
    }
}

fn fork_of_child(context: &Context) {
    let (parent, ram, config) = forkable(context);
    let state = memfd(c"state", 0);
    parent.put("vm.pause", &json!({})).expect_status(204);
    let body = json!({ "destination_url": "fd:" });
    parent
        .put_fds("vm.fork", &body, &[state.as_raw_fd()])
        .expect_status(200);
    let child = context.talon("child");
    let restore = json!({ "source_url": "fd:", "resume": true, "config": sibling(context, &config, "child") });
    child
        .put_fds(
            "vm.restore",
            &restore,
            &[state.as_raw_fd(), ram.as_raw_fd()],
        )
        .expect_status(204);
    child.ok("echo child > /mark");

    child.put("vm.pause", &json!({})).expect_status(204);
    let (second, memory) = (memfd(c"state", 0), memfd(c"memory", 0));
    let outcome = child
        .put_fds("vm.fork", &body, &[second.as_raw_fd(), memory.as_raw_fd()])
        .expect_status(200);
    assert_eq!(outcome["memory"], "copy");
    assert!(outcome["pages_copied"].as_u64() > Some(0));

    let grandchild = context.talon("grandchild");
    let restore = json!({ "source_url": "fd:", "resume": true, "config": sibling(context, &config, "grandchild") });
    grandchild
        .put_fds(
            "vm.restore",
            &restore,
            &[second.as_raw_fd(), memory.as_raw_fd()],
        )
        .expect_status(204);
    assert_eq!(grandchild.ok("cat /mark"), "child");
}

fn link(context: &Context) {
    let tap = crate::devices::tap("taptest1", "10.9.1.1/24");
    let mut config = context.config("vm");
    config["net"] = json!([{ "fds": [30], "mac": "02:00:00:00:00:08" }]);
    let mut talon = context.talon_with("vm", &[], &[(tap.as_raw_fd(), 30)]);
    let up = talon.expect_up();
    talon.put("vm.create", &config).expect_status(204);
    talon.put("vm.boot", &json!({})).expect_status(204);
    talon.wait_up(&up);
    talon.ok("ifconfig eth0 10.9.1.2 netmask 255.255.255.0 up");
    talon.ok("ping -c 1 -W 5 10.9.1.1 >/dev/null");
    let (path, url) = folder(context, "snapshot");
    talon.put("vm.pause", &json!({})).expect_status(204);
    talon.put("vm.snapshot", &url).expect_status(200);
    drop(talon);

    let clone = context.talon_with("again", &[], &[(tap.as_raw_fd(), 30)]);
    let body = json!({
        "source_url": format!("file://{}", path.display()),
        "resume": true,
        "config": sibling(context, &config, "again"),
    });
    clone.put("vm.restore", &body).expect_status(204);
    wait_for("the link to go down", || {
        clone.sh("grep -q 0 /sys/class/net/eth0/carrier").1 == 0
    });
    assert_ne!(clone.sh("ping -c 1 -W 1 10.9.1.1 >/dev/null").1, 0);

    clone
        .put("vm.link", &json!({ "id": "net0", "up": true }))
        .expect_status(204);

    wait_for("the link to come up", || {
        clone.sh("grep -q 1 /sys/class/net/eth0/carrier").1 == 0
    });
    clone.ok("ping -c 1 -W 5 10.9.1.1 >/dev/null");
}
