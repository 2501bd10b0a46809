//! Booting, ending, and the control interface.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::harness::Suite;
use crate::machine::{Context, inheritable, wait_for};

pub fn add(suite: &mut Suite) {
    suite.test(
        "a launched machine boots from inherited descriptors and powers off",
        launch,
    );
    suite.test(
        "the guest has the processors and memory it was given",
        shape,
    );
    suite.test("reboot gives a fresh guest in the same process", reboot);
    suite.test("a guest that resets itself is booted again", guest_reset);
    suite.test("a panic is told apart from a reset", panic);
    suite.test("the power button reaches the guest", power_button);
    suite.test("a paused guest stands still and goes on", pause);
    suite.test("nothing is half-created by a bad configuration", refusals);
    suite.test("verbs are refused in the wrong state", states);
    suite.test("events are numbered and waited for", events);
}

fn launch(context: &Context) {
    let mut config = context.config("vm");
    let guest = std::path::PathBuf::from(std::env::var_os("AERIE_BED_GUEST").expect("set"));
    let kernel = inheritable(std::fs::File::open(guest.join("vmlinux")).expect("a kernel"));
    let initramfs =
        inheritable(std::fs::File::open(guest.join("initramfs")).expect("an initramfs"));
    config["payload"]["kernel"] = "/dev/fd/20".into();
    config["payload"]["initramfs"] = "/dev/fd/21".into();
    config["payload"]["cmdline"] = "console=hvc0 guest.off".into();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let theirs = inheritable(theirs);
    let fds = [
        (kernel.as_raw_fd(), 20),
        (initramfs.as_raw_fd(), 21),
        (theirs.as_raw_fd(), 22),
    ];
    let mut talon = context.talon_with("vm", &["--config-fd", "22"], &fds);
    drop(theirs);
    (&ours)
        .write_all(config.to_string().as_bytes())
        .expect("a configuration");
    drop(ours);

    let status = talon.end();

    assert!(status.success(), "{status}: {}", talon.last_words());
    let console = std::fs::read_to_string(context.path("vm.console")).expect("a console");
    assert!(console.contains("GUEST UP"), "{console}");
}

fn shape(context: &Context) {
    let mut config = context.config("vm");
    config["cpus"] = json!({ "boot_vcpus": 2, "max_vcpus": 2 });
    let talon = context.boot("vm", &config);

    assert_eq!(talon.ok("grep -c ^processor /proc/cpuinfo"), "2");
    let kib: u64 = talon
        .ok("awk '/MemTotal/ {print $2}' /proc/meminfo")
        .parse()
        .expect("a number");
    assert!((120_000..192 << 10).contains(&kib), "{kib} KiB");
    assert_eq!(talon.ok("grep -cwE 'svm|vmx' /proc/cpuinfo || true"), "0");
    let devices = talon.ok("ls /sys/bus/pci/devices");
    assert_eq!(
        devices.lines().count(),
        3,
        "rng, console and vsock: {devices}"
    );
    assert_eq!(talon.ok("cat /sys/devices/system/clocksource/clocksource0/available_clocksource | grep -c kvm-clock"), "1");
}

fn reboot(context: &Context) {
    let mut talon = context.boot("vm", &context.config("vm"));
    talon.ok("touch /mark");
    let pid = talon.get("vmm.ping").expect_status(200)["pid"].clone();

    let up = talon.expect_up();
    talon.put("vm.reboot", &json!({})).expect_status(204);
    talon.wait_up(&up);

    assert_eq!(talon.sh("test -e /mark").1, 1);
    assert_eq!(talon.get("vmm.ping").expect_status(200)["pid"], pid);
}

fn guest_reset(context: &Context) {
    let mut talon = context.boot("vm", &context.config("vm"));

    let up = talon.expect_up();
    talon.tell("sh echo b > /proc/sysrq-trigger");
    talon.wait_up(&up);

    assert_eq!(talon.event("reset")["source"], "vm");
    assert_eq!(talon.get("vm.info").expect_status(200)["state"], "Running");
}

fn panic(context: &Context) {
    let mut talon = context.boot("vm", &context.config("vm"));

    talon.tell("panic");
    let status = talon.end();

    assert_eq!(status.code(), Some(3), "{}", talon.last_words());
    assert!(talon.last_words().contains("guest_panicked"));
}

fn power_button(context: &Context) {
    let talon = context.boot("vm", &context.config("vm"));
    talon.ok(
        "(dd if=/dev/input/event0 bs=24 count=1 2>/dev/null | wc -c > /pressed) >/dev/null 2>&1 &",
    );
    wait_for("a reader", || talon.sh("pidof dd").1 == 0);

    talon.put("vm.power-button", &json!({})).expect_status(204);

    wait_for("the event", || talon.sh("grep -q 24 /pressed").1 == 0);
}

fn pause(context: &Context) {
    let talon = context.boot("vm", &context.config("vm"));
    talon.put("vm.pause", &json!({})).expect_status(204);
    assert_eq!(talon.get("vm.info").expect_status(200)["state"], "Paused");
    talon.put("vm.pause", &json!({})).expect_status(409);
    let mut waiting = UnixStream::connect(&talon.vsock).expect("a socket");
    waiting.write_all(b"CONNECT 52\n").expect("a line");

    talon.put("vm.resume", &json!({})).expect_status(204);

    let mut answer = [0; 3];
    waiting
        .read_exact(&mut answer)
        .expect("an answer after the pause");
    assert_eq!(&answer, b"OK ");
    assert_eq!(talon.ok("echo here"), "here");
}

fn refusals(context: &Context) {
    let talon = context.talon("vm");
    let mut config = context.config("vm");
    config["disks"] = json!([{ "path": "/nowhere" }]);
    let body = talon.put("vm.create", &config).expect_status(400);
    assert_eq!(body["path"], "disks[0].path");
    config["disks"] = json!([]);
    config["colour"] = "red".into();
    assert_eq!(
        talon.put("vm.create", &config).expect_status(400)["path"],
        "colour"
    );
    config["colour"] = json!(null);
    config.as_object_mut().expect("an object").remove("colour");
    config["tpm"] = json!({ "socket": "/x" });
    assert_eq!(
        talon.put("vm.create", &config).expect_status(400)["code"],
        "not_supported"
    );
    talon.get("vm.info").expect_status(404);

    config.as_object_mut().expect("an object").remove("tpm");
    let _ = std::fs::remove_file(&talon.vsock);
    talon.put("vm.create", &config).expect_status(204);
    talon.put("vm.create", &config).expect_status(409);
    assert_eq!(talon.get("vm.info").expect_status(200)["state"], "Created");
    talon.put("vm.delete", &json!({})).expect_status(204);
    talon.get("vm.info").expect_status(404);
}

fn states(context: &Context) {
    let talon = context.talon("vm");
    for verb in [
        "vm.boot",
        "vm.reboot",
        "vm.resume",
        "vm.pause",
        "vm.shutdown",
        "vm.power-button",
    ] {
        let status = talon.put(verb, &json!({})).status;
        assert!(matches!(status, 404 | 409), "{verb}: {status}");
    }
    talon.get("vm.boot").expect_status(405);
    talon.put("vm.dance", &json!({})).expect_status(404);
    talon.get("vmm.ping").expect_status(200);
    let mut stream = UnixStream::connect(&talon.api).expect("a socket");
    stream.write_all(b"nonsense\r\n\r\n").expect("bytes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

fn events(context: &Context) {
    let talon = context.boot("vm", &context.config("vm"));
    let seen = talon.get("vm.events?after=0").expect_status(200);
    let last = seen["last"].as_u64().expect("a number");
    assert_eq!(talon.event("booted")["source"], "vm");

    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            talon
                .get(&format!("vm.events?after={last}&timeout_ms=60000"))
                .expect_status(200)
        });
        talon.put("vm.pause", &json!({})).expect_status(204);
        let found = waiting.join().expect("an answer");
        assert_eq!(found["events"][0]["event"], "paused");
        assert_eq!(found["events"][0]["seq"].as_u64(), Some(last + 1));
    });

    let nothing = talon
        .get("vm.events?after=999999&timeout_ms=50")
        .expect_status(200);
    assert_eq!(nothing["events"].as_array().map(Vec::len), Some(0));
}
