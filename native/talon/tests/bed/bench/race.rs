//! A cold boot against QEMU's `microvm`: the same kernel, initramfs, command line, memory and five devices; from just
//! before the program is started to the guest's mark in init, which the host's kernel sees and stamps for both alike.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;

use super::{MIB, five};
use crate::jail::Launch;
use crate::machine::{Context, inherit, wait_for};

const TRACING: &str = "/sys/kernel/tracing";
const LINE: &str = "quiet panic=-1 8250.nr_uarts=0 mitigations=off pci=noearly guest.off";
const ROUNDS: usize = 5;
/// What `guest` writes when init begins, and how many virtio devices it must see afterwards.
const MARK_INIT: u64 = 0x41;
const DEVICES: u64 = 5;

fn set(file: &str, text: &str) {
    fs::write(format!("{TRACING}/{file}"), text).unwrap_or_else(|error| panic!("{file}: {error}"));
}

/// Seconds of the monotonic clock, which the trace uses too.
fn now() -> f64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Stamps and values of the guest's marks: `… 31.415926: kvm_pio: pio_write at 0x80 size 1 count 1 val 0x41`.
fn marks() -> Vec<(f64, u64)> {
    let text = fs::read_to_string(format!("{TRACING}/trace")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (head, value) = line.split_once(": kvm_pio: pio_write at 0x80 ")?;
            let value = value.split("val 0x").nth(1)?.split_whitespace().next()?;
            let stamp = head.rsplit(' ').next()?.parse().ok()?;
            Some((stamp, u64::from_str_radix(value, 16).ok()?))
        })
        .collect()
}

/// Milliseconds from now, through `run`, to init; and that the guest had its devices.
fn time(name: &str, run: impl FnOnce()) -> f64 {
    set("trace", "");
    let began = now();
    run();
    let marks = marks();
    let init = marks.iter().find(|(_, value)| *value == MARK_INIT);
    let init = init
        .unwrap_or_else(|| panic!("{name}: no mark among {marks:?}"))
        .0;
    let devices = marks.last().map(|(_, value)| *value);
    assert_eq!(devices, Some(DEVICES), "{name}: virtio devices");
    (init - began) * 1000.0
}

fn qemu(guest: &std::path::Path, image: &std::path::Path, tap: i32, trace: &std::path::Path) {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-M",
            "microvm,pit=off,pic=off,rtc=off",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "128",
        ])
        .args([
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-append",
            LINE,
        ])
        .args([
            "-device",
            "virtio-rng-device",
            "-device",
            "virtio-balloon-device",
        ])
        .args([
            "-device",
            "vhost-vsock-device,guest-cid=77",
            "-device",
            "virtio-blk-device,drive=d",
        ])
        .args([
            "-netdev",
            "tap,id=n,fd=31",
            "-device",
            "virtio-net-device,netdev=n",
        ])
        .arg("-drive")
        .arg(format!("id=d,if=none,format=raw,file={}", image.display()))
        .arg("-kernel")
        .arg(guest.join("vmlinux"))
        .arg("-initrd")
        .arg(guest.join("initramfs"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(trace).expect("a log"));
    inherit(&mut command, &[(tap, 31)]);
    let done = command.status().expect("qemu-system-x86_64 is there");
    assert!(
        done.success(),
        "QEMU ended with {done}, see {}",
        trace.display()
    );
}

/// Medians of milliseconds, ours and QEMU's; interleaved.
pub fn run(context: &Context) -> (f64, f64) {
    let guest = PathBuf::from(std::env::var_os("AERIE_BED_GUEST").expect("set"));
    let image = context.image("race", 64 * MIB);
    let done = Command::new("modprobe").arg("vhost_vsock").status();
    assert!(
        done.is_ok_and(|done| done.success()),
        "QEMU's vsock needs vhost_vsock"
    );
    set("trace_clock", "mono");
    set("events/kvm/kvm_pio/filter", "port == 0x80");
    set("events/kvm/kvm_pio/enable", "1");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let name = format!("race{round}");
        let tap = crate::devices::tap(&format!("taprace{round}"), "10.9.6.1/24");
        let mut config = five(context, &name, 128 * MIB);
        config["payload"]["cmdline"] = LINE.into();
        config["disks"] = json!([{ "path": image }]);
        let launch = Launch::new(context, &name, &config);
        ours.push(time("talon", || {
            let mut talon = launch.start(context, &name, |config| config, &[(tap.as_raw_fd(), 30)]);
            assert!(talon.end().success(), "{}", talon.last_words());
        }));
        let trace = context.path(&format!("{name}.qemu"));
        theirs.push(time("QEMU", || {
            qemu(&guest, &image, tap.as_raw_fd(), &trace)
        }));
        drop(tap);
        wait_for("the tap to go", || {
            !std::path::Path::new(&format!("/sys/class/net/taprace{round}")).exists()
        });
    }
    set("events/kvm/kvm_pio/enable", "0");
    set("events/kvm/kvm_pio/filter", "0");
    ours.sort_by(f64::total_cmp);
    theirs.sort_by(f64::total_cmp);
    (ours[ROUNDS / 2], theirs[ROUNDS / 2])
}
