//! Counters, not times: a bed's clock says little, its exits, calls, faults and pages say the same as anywhere.
//!
//! `--bench` prints one JSON object. The kernel is the one that `AERIE_BED_GUEST` holds: compare only runs of one kernel.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::jail::Launch;
use crate::machine::{Context, Talon, wait_for};
use crate::snapshot::memfd;

const TRACING: &str = "/sys/kernel/tracing/events/kvm";
const MIB: u64 = 1 << 20;

/// Counts KVM's exits from now until the guest's mark.
struct Exits;

impl Exits {
    const TRIGGERS: [(&'static str, &'static str); 5] = [
        ("kvm_userspace_exit", "hist:keys=reason"),
        ("kvm_exit", "hist:keys=exit_reason"),
        (
            "kvm_mmio",
            "hist:keys=type if gpa >= 0xd0000000 && gpa < 0xd0100000",
        ),
        (
            "kvm_pio",
            "disable_hist:kvm:kvm_userspace_exit if port == 0x80",
        ),
        ("kvm_pio", "disable_hist:kvm:kvm_exit if port == 0x80"),
    ];

    fn begin() -> Self {
        let _ = Self;
        for (event, trigger) in Self::TRIGGERS {
            let path = format!("{TRACING}/{event}/trigger");
            let mut file = File::options()
                .append(true)
                .open(&path)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            std::io::Write::write_all(&mut file, trigger.as_bytes())
                .unwrap_or_else(|error| panic!("{trigger}: {error}"));
        }
        Self
    }

    fn count(event: &str) -> u64 {
        let text = fs::read_to_string(format!("{TRACING}/{event}/hist")).unwrap_or_default();
        text.lines()
            .filter(|line| line.starts_with('{'))
            .filter_map(|line| line.rsplit("hitcount:").next()?.trim().parse::<u64>().ok())
            .sum()
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        for (event, trigger) in Self::TRIGGERS.into_iter().rev() {
            let path = format!("{TRACING}/{event}/trigger");
            if let Ok(mut file) = File::options().append(true).open(path) {
                let _ = std::io::Write::write_all(&mut file, format!("!{trigger}").as_bytes());
            }
        }
    }
}

fn quiet(context: &Context, name: &str, ram: u64) -> Value {
    let mut config = context.config(name);
    config["payload"]["cmdline"] =
        "quiet panic=-1 8250.nr_uarts=0 mitigations=off pci=noearly".into();
    config["memory"]["size"] = ram.into();
    let map = config.as_object_mut().expect("an object");
    map.remove("console");
    map.remove("rng");
    config
}

/// Block, net, vsock, rng, balloon.
fn five(context: &Context, name: &str, ram: u64) -> Value {
    let mut config = quiet(context, name, ram);
    config["disks"] = json!([{ "path": context.image("disk", 64 * MIB) }]);
    config["net"] = json!([{ "fds": [30], "mac": "02:00:00:00:00:10" }]);
    config["rng"] = json!({ "src": "/dev/urandom" });
    config["balloon"] = json!({ "size": 0 });
    config
}

fn start(context: &Context, name: &str, config: &Value, fds: &[(i32, i32)]) -> Talon {
    let mut talon = context.talon_with(name, &[], fds);
    let up = talon.expect_up();
    talon.put("vm.create", config).expect_status(204);
    talon.put("vm.boot", &json!({})).expect_status(204);
    talon.wait_up(&up);
    talon
}

fn boot(context: &Context) -> Value {
    let tap = crate::devices::tap("tapbench", "10.9.3.1/24");
    let exits = Exits::begin();
    let talon = start(
        context,
        "five",
        &five(context, "five", 128 * MIB),
        &[(tap.as_raw_fd(), 30)],
    );
    let found = json!({
        "user_exits": Exits::count("kvm_userspace_exit"),
        "exits": Exits::count("kvm_exit"),
        "pci_exits": Exits::count("kvm_mmio"),
    });
    drop((talon, exits));
    found
}

fn bare(context: &Context) -> Value {
    let exits = Exits::begin();
    let mut config = quiet(context, "bare", 128 * MIB);
    config["payload"]["cmdline"] =
        "quiet panic=-1 8250.nr_uarts=0 mitigations=off pci=noearly guest.off".into();
    config.as_object_mut().expect("an object").remove("vsock");
    let mut talon = context.talon("bare");
    talon.put("vm.create", &config).expect_status(204);
    talon.put("vm.boot", &json!({})).expect_status(204);
    let status = talon.end();
    assert!(status.success(), "{}", talon.last_words());
    let found = json!({ "user_exits": Exits::count("kvm_userspace_exit"), "exits": Exits::count("kvm_exit") });
    drop(exits);
    found
}

/// Milliseconds from exec to power-off, talon against QEMU's microvm, interleaved; medians.
fn against_qemu(context: &Context) -> Option<(f64, f64)> {
    let guest = PathBuf::from(std::env::var_os("AERIE_BED_GUEST")?);
    let image = context.image("race", 64 * MIB);
    let _ = Command::new("modprobe").arg("vhost_vsock").status();
    let line = "quiet panic=-1 8250.nr_uarts=0 mitigations=off guest.off";
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let name = format!("race{round}");
        let mut config = quiet(context, &name, 128 * MIB);
        config["payload"]["cmdline"] = line.into();
        config["disks"] = json!([{ "path": image }]);
        config["rng"] = json!({ "src": "/dev/urandom" });
        config["balloon"] = json!({ "size": 0 });
        let began = Instant::now();
        let mut talon = context.talon(&name);
        talon.put("vm.create", &config).expect_status(204);
        talon.put("vm.boot", &json!({})).expect_status(204);
        assert!(talon.end().success(), "{}", talon.last_words());
        ours.push(began.elapsed().as_secs_f64() * 1000.0);
        let began = Instant::now();
        let done = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "microvm,pit=off,pic=off,rtc=off",
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-m",
                "128",
                "-nodefaults",
            ])
            .args([
                "-display",
                "none",
                "-no-reboot",
                "-append",
                line,
                "-device",
                "virtio-rng-device",
            ])
            .args([
                "-device",
                "virtio-balloon-device",
                "-device",
                "virtio-blk-device,drive=d",
                "-device",
                "vhost-vsock-device,guest-cid=77",
            ])
            .arg("-drive")
            .arg(format!("id=d,if=none,format=raw,file={}", image.display()))
            .arg("-kernel")
            .arg(guest.join("vmlinux"))
            .arg("-initrd")
            .arg(guest.join("initramfs"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .ok()?;
        if !done.success() {
            eprintln!("QEMU ended with {done}: no comparison");
            return None;
        }
        theirs.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    ours.sort_by(f64::total_cmp);
    theirs.sort_by(f64::total_cmp);
    Some((ours[2], theirs[2]))
}

fn faults(talon: &Talon) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", talon.child.id())).expect("a stat");
    let fields = stat.rsplit(") ").next().expect("fields");
    fields
        .split(' ')
        .nth(7)
        .and_then(|field| field.parse().ok())
        .expect("a number")
}

/// Calls of a jailed restore from exec to the first answer, by strace.
fn restore_calls(
    context: &Context,
    name: &str,
    launch: &Launch,
    wrap: impl FnOnce(Value) -> Value,
    fds: &[(i32, i32)],
) -> u64 {
    let trace = context.path(&format!("{name}.strace"));
    // SAFETY: no other thread reads the environment now.
    unsafe { std::env::set_var("AERIE_BED_STRACE", "1") };
    let talon = launch.start(context, name, wrap, fds);
    talon.uuid();
    // SAFETY: as above.
    unsafe { std::env::remove_var("AERIE_BED_STRACE") };
    let count = || {
        fs::read_to_string(&trace)
            .unwrap_or_default()
            .lines()
            .filter(|line| !line.contains("resumed>"))
            .count()
    };
    let mut last = 0;
    wait_for("the trace", || {
        std::mem::replace(&mut last, count()) == last && last > 0
    });
    drop(talon);
    u64::try_from(last).expect("few")
}

fn restore(context: &Context, ram: u64) -> Value {
    let label = ram / MIB;
    let config = quiet(context, &format!("source{label}"), ram);
    let talon = start(context, &format!("source{label}"), &config, &[]);
    talon.put("vm.pause", &json!({})).expect_status(204);
    let (state, memory) = (memfd(c"state", 0), memfd(c"memory", 0));
    let url = json!({ "destination_url": "fd:" });
    talon
        .put_fds(
            "vm.snapshot",
            &url,
            &[state.as_raw_fd(), memory.as_raw_fd()],
        )
        .expect_status(200);
    drop(talon);
    let more = [(state.as_raw_fd(), 41), (memory.as_raw_fd(), 42)];
    let wrap = |resume: bool| move |config: Value| json!({ "restore": { "state_fd": 41, "memory_fd": 42, "resume": resume, "config": config } });

    let name = format!("paused{label}");
    let launch = Launch::new(context, &name, &sibling(&config, context, &name));
    let talon = launch.start(context, &name, wrap(false), &more);
    wait_for("the restore", || talon.get("vm.info").status == 200);
    let own = faults(&talon);
    let began = Instant::now();
    talon.put("vm.resume", &json!({})).expect_status(204);
    talon.uuid();
    let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
    let all = faults(&talon);
    drop(talon);
    let name = format!("traced{label}");
    let launch = Launch::new(context, &name, &sibling(&config, context, &name));
    let calls = restore_calls(context, &name, &launch, wrap(true), &more);
    json!({ "syscalls": calls, "faults_vmm": own, "faults": all, "resume_to_answer_ms": milliseconds })
}

fn sibling(config: &Value, context: &Context, name: &str) -> Value {
    let mut config = config.clone();
    config["vsock"] = context.config(name)["vsock"].clone();
    config
}

fn restore_six(context: &Context) -> u64 {
    let tap = crate::devices::tap("tapbench6", "10.9.4.1/24");
    let mut config = five(context, "six", 128 * MIB);
    config["console"] = json!({ "mode": "Null" });
    let talon = start(context, "six", &config, &[(tap.as_raw_fd(), 30)]);
    talon.put("vm.pause", &json!({})).expect_status(204);
    let (state, memory) = (memfd(c"state", 0), memfd(c"memory", 0));
    let fds = [state.as_raw_fd(), memory.as_raw_fd()];
    talon
        .put_fds("vm.snapshot", &json!({ "destination_url": "fd:" }), &fds)
        .expect_status(200);
    drop(talon);
    let launch = Launch::new(context, "six2", &sibling(&config, context, "six2"));
    let more = [
        (state.as_raw_fd(), 41),
        (memory.as_raw_fd(), 42),
        (tap.as_raw_fd(), 30),
    ];
    let wrap = |config: Value| json!({ "restore": { "state_fd": 41, "memory_fd": 42, "resume": true, "config": config } });
    restore_calls(context, "six2", &launch, wrap, &more)
}

fn rollup(talon: &Talon, field: &str) -> u64 {
    let text =
        fs::read_to_string(format!("/proc/{}/smaps_rollup", talon.child.id())).expect("smaps");
    let line = text
        .lines()
        .find(|line| line.starts_with(field))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

fn fork(context: &Context) -> Value {
    let ram = memfd(c"ram", 128 * MIB);
    let mut config = quiet(context, "parent", 128 * MIB);
    config["memory"] = json!({ "size": 0, "zones": [{ "id": "r", "size": 128 * MIB, "shared": true, "file": "/dev/fd/40" }] });
    let parent = start(context, "parent", &config, &[(ram.as_raw_fd(), 40)]);
    parent.put("vm.pause", &json!({})).expect_status(204);
    let state = memfd(c"state", 0);
    let began = Instant::now();
    let outcome = parent
        .put_fds(
            "vm.fork",
            &json!({ "destination_url": "fd:" }),
            &[state.as_raw_fd()],
        )
        .expect_status(200);
    let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
    config["memory"] = json!({ "size": 128 * MIB });
    let launch = Launch::new(context, "clone", &sibling(&config, context, "clone"));
    let wrap = |config: Value| json!({ "restore": { "state_fd": 41, "memory_fd": 42, "resume": true, "config": config } });
    let clone = launch.start(
        context,
        "clone",
        wrap,
        &[(state.as_raw_fd(), 41), (ram.as_raw_fd(), 42)],
    );
    clone.uuid();
    json!({ "pages_copied": outcome["pages_copied"], "anon_kib": rollup(&clone, "Anonymous:"), "ms": milliseconds })
}

/// Voluntary switches of every thread that is no processor.
fn switches(talon: &Talon) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", talon.child.id())).expect("threads");
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
        .filter(|status| {
            !status
                .lines()
                .next()
                .is_some_and(|line| line.contains("vcpu") || line.contains("kvm-"))
        })
        .filter_map(|status| {
            let line = status
                .lines()
                .find(|line| line.starts_with("voluntary_ctxt_switches"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .sum()
}

/// Private KiB outside the mapping of guest memory, by mapping.
fn private_kib(talon: &Talon, ram: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps", talon.child.id())).expect("smaps");
    let (mut total, mut size_kib) = (BTreeMap::new(), 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        match name {
            "Size:" => size_kib = value.parse::<u64>().unwrap_or(0),
            "Private_Clean:" | "Private_Dirty:" if size_kib * 1024 != ram => {
                *total.entry(name).or_insert(0) += value.parse::<u64>().unwrap_or(0);
            }
            _ => {}
        }
    }
    total.values().sum()
}

fn idle(context: &Context) -> Value {
    let tap = crate::devices::tap("tapidle", "10.9.5.1/24");
    let config = five(context, "idle", 128 * MIB);
    let talon = start(context, "idle", &config, &[(tap.as_raw_fd(), 30)]);
    talon.uuid();
    // Longer than any deadline of the connection that just ended.
    std::thread::sleep(Duration::from_secs(12));
    let before = switches(&talon);
    std::thread::sleep(Duration::from_secs(10));
    let woken = switches(&talon) - before;
    json!({ "vmm_wakeups_s": woken as f64 / 10.0, "private_kib": private_kib(&talon, 128 * MIB) })
}

/// Measures everything and prints it.
pub fn run() {
    let context = Context::new("bench");
    let with = |mut value: Value, key: &str, found: Value| {
        value[key] = found;
        value
    };
    let mut booted = boot(&context);
    if let Some((ours, qemu)) = against_qemu(&context) {
        booted["ms"] = ours.into();
        booted["qemu_ms"] = qemu.into();
    }
    let restored = restore(&context, 128 * MIB);
    let large = restore(&context, 4096 * MIB);
    let restored = with(restored, "at_4gib", large);
    let restored = with(restored, "syscalls_six", restore_six(&context).into());
    let binary = fs::metadata(std::env::var_os("AERIE_BED_TALON").expect("set"))
        .map_or(0, |found| found.len() / 1024);
    let result = json!({
        "guest": std::env::var("AERIE_BED_GUEST_KERNEL").unwrap_or_default(),
        "boot": booted,
        "bare": bare(&context),
        "restore": restored,
        "fork": fork(&context),
        "idle": idle(&context),
        "binary_kib": binary,
    });
    // The traces behind the numbers.
    context.keep();
    println!("{result}");
}
