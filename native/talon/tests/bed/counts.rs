//! What must not grow: counts that are the same on a slow machine and on a busy one. `scripts/bench/talon` prints them all.

use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::bench::{self, MIB, Saved};
use crate::harness::Suite;
use crate::machine::Context;

pub fn add(suite: &mut Suite) {
    suite.test("a boot exits for what Linux asks and no more", boot);
    suite.test("a restore makes few calls and touches few pages", restore);
    suite.test("an idle machine wakes nobody", idle);
}

/// Linux's own configuration writes for a function with two BARs and MSI-X.
const CONFIG_WRITES: u64 = 22;
const DEVICES: u64 = 5;

fn boot(context: &Context) {
    let bare = bench::bare(context);
    let five = bench::boot(context, "five", false);

    assert_eq!(bare.pci, 0, "nothing is on the bus");
    assert!(bare.user <= 25, "bare: {}", bare.json());
    // A kernel whose drivers are modules has made fewer by the time of init.
    assert!(five.pci <= CONFIG_WRITES * DEVICES, "five: {}", five.json());
    assert!(five.user <= 550, "five: {}", five.json());
}

fn restore(context: &Context) {
    let small = Saved::small(context, 128 * MIB);
    let large = Saved::small(context, 1024 * MIB);

    let calls = small.syscalls(context, "calls", false);
    assert!(calls <= 120, "{calls} system calls");
    let jailed = small.syscalls(context, "jailed", true);
    assert!(jailed <= 140, "{jailed} system calls in the jail");
    let faults = small.own_faults(context, "faults");
    assert!(faults <= 100, "{faults} page faults");
    let of_large = large.own_faults(context, "largefaults");
    assert!(
        of_large <= faults + faults / 10,
        "{of_large} page faults with eight times the memory, {faults} without"
    );

    let tap = crate::devices::tap("tapcounts", "10.9.7.1/24");
    let six = Saved::six(context, tap.as_raw_fd()).syscalls(context, "six2", true);
    assert!(six <= 220, "{six} system calls with six devices");
}

fn idle(context: &Context) {
    let (woken, private) = bench::woken(context, "idle", Duration::from_secs(10));

    assert_eq!(woken, 0, "wake-ups of threads that are no processors");
    assert!(private <= 1536, "{private} KiB beyond the guest's memory");
}
