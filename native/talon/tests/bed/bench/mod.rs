//! Counters, not times: a bed's clock says little, its exits, calls, faults and pages say the same as anywhere.
//!
//! `--bench` prints one JSON object. The kernel is the one that `AERIE_BED_GUEST` holds: compare only runs of one kernel.

mod exits;
mod race;
mod restore;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::jail::Launch;
use crate::machine::{Context, Talon};
use crate::snapshot::memfd;
pub use exits::{Counted, Exits};
pub use restore::Saved;

pub const MIB: u64 = 1 << 20;

pub fn quiet(context: &Context, name: &str, ram: u64) -> Value {
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
pub fn five(context: &Context, name: &str, ram: u64) -> Value {
    let mut config = quiet(context, name, ram);
    config["disks"] = json!([{ "path": context.image("disk", 64 * MIB) }]);
    config["net"] = json!([{ "fds": [30], "mac": "02:00:00:00:00:10" }]);
    config["rng"] = json!({ "src": "/dev/urandom" });
    config["balloon"] = json!({ "size": 0 });
    config
}

pub fn start(context: &Context, name: &str, config: &Value, fds: &[(i32, i32)]) -> Talon {
    let mut talon = context.talon_with(name, &[], fds);
    let up = talon.expect_up();
    talon.put("vm.create", config).expect_status(204);
    talon.put("vm.boot", &json!({})).expect_status(204);
    talon.wait_up(&up);
    talon
}

/// Five devices to init. `shared` puts the guest's memory into a memfd.
pub fn boot(context: &Context, name: &str, shared: bool) -> Counted {
    let tap = crate::devices::tap("tapbench", "10.9.3.1/24");
    let mut config = five(context, name, 128 * MIB);
    config["memory"]["shared"] = shared.into();
    let exits = Exits::begin();
    let talon = start(context, name, &config, &[(tap.as_raw_fd(), 30)]);
    let counted = exits.read(context, name);
    drop(talon);
    counted
}

/// No device at all, to init.
pub fn bare(context: &Context) -> Counted {
    let mut config = quiet(context, "bare", 128 * MIB);
    config["payload"]["cmdline"] =
        "quiet panic=-1 8250.nr_uarts=0 mitigations=off pci=noearly guest.off".into();
    config.as_object_mut().expect("an object").remove("vsock");
    let exits = Exits::begin();
    let mut talon = context.talon("bare");
    talon.put("vm.create", &config).expect_status(204);
    talon.put("vm.boot", &json!({})).expect_status(204);
    let status = talon.end();
    assert!(status.success(), "{}", talon.last_words());
    exits.read(context, "bare")
}

/// Whether the host gives shared memory huge pages where it is asked for them.
fn huge_shared_memory(given: bool) {
    let word = if given { "advise" } else { "never" };
    fs::write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", word)
        .expect("the host's switch");
}

pub fn sibling(config: &Value, context: &Context, name: &str) -> Value {
    let mut config = config.clone();
    config["vsock"] = context.config(name)["vsock"].clone();
    config
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

/// Wake-ups of threads that are no processors, in `time`, of a machine that has nothing to do.
pub fn woken(context: &Context, name: &str, time: Duration) -> (u64, u64) {
    let tap = crate::devices::tap("tapidle", "10.9.5.1/24");
    let config = five(context, name, 128 * MIB);
    let talon = start(context, name, &config, &[(tap.as_raw_fd(), 30)]);
    talon.uuid();
    // Longer than any deadline of the connection that just ended.
    std::thread::sleep(Duration::from_secs(12));
    let before = switches(&talon);
    std::thread::sleep(time);
    (switches(&talon) - before, private_kib(&talon, 128 * MIB))
}

fn idle(context: &Context) -> Value {
    let time = Duration::from_secs(20);
    let (woken, private) = woken(context, "idle", time);
    json!({ "vmm_wakeups_s": woken as f64 / time.as_secs_f64(), "private_kib": private })
}

/// Measures everything and prints it.
pub fn run() {
    let context = Context::new("bench");
    let bare = bare(&context).json();
    let mut booted = boot(&context, "five", false).json();
    huge_shared_memory(false);
    booted["memfd"] = boot(&context, "memfd", true).json();
    huge_shared_memory(true);
    booted["memfd_huge"] = boot(&context, "memfdhuge", true).json();
    huge_shared_memory(false);
    let (ours, qemu) = race::run(&context);
    booted["ms"] = ours.into();
    booted["qemu_ms"] = qemu.into();
    let mut restored = restore::measure(&context, 128 * MIB);
    let large = restore::measure(&context, 4096 * MIB);
    restored["ms_4gib"] = large["ms"].clone();
    restored["at_4gib"] = large;
    let tap = crate::devices::tap("tapbench6", "10.9.4.1/24");
    let six = Saved::six(&context, tap.as_raw_fd());
    restored["syscalls_six"] = six.syscalls(&context, "six2", true).into();
    let binary = fs::metadata(std::env::var_os("AERIE_BED_TALON").expect("set"))
        .map_or(0, |found| found.len() / 1024);
    let result = json!({
        "guest": std::env::var("AERIE_BED_GUEST_KERNEL").unwrap_or_default(),
        "boot": booted,
        "bare": bare,
        "restore": restored,
        "fork": fork(&context),
        "idle": idle(&context),
        "binary_kib": binary,
    });
    // The histograms and traces behind the numbers.
    context.keep();
    println!("{result}");
}
