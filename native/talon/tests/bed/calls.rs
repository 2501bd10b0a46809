//! What the tables of system calls allow and nobody needs is a gift to whoever has taken a thread over: every entry is
//! used by a machine at its work, under strace, or the test names it. (That what is not listed kills is tested beside
//! the tables.)

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use talon::jail::seccomp::{Role, Rule, tables};

use crate::harness::Suite;
use crate::machine::Context;
use crate::{console, jail};

pub fn add(suite: &mut Suite) {
    suite.test(
        "every allowed system call is one that its threads make",
        justified,
    );
}

type Exercise = fn(&Context);

/// Machines at their work, in the jail.
const EXERCISES: &[(&str, Exercise)] = &[
    ("traced devices", jail::devices),
    ("traced life", jail::life),
    ("traced consoles", console::trickle),
];

/// Entries that a machine of a test may not happen to need, and why they stay.
const UNTRACED: &[(Role, libc::c_long, Option<u64>, &str)] = &[
    (Role::Main, libc::SYS_clock_gettime, None, CLOCK),
    (Role::Vcpu, libc::SYS_clock_gettime, None, CLOCK),
    (Role::Worker, libc::SYS_clock_gettime, None, CLOCK),
    (Role::Vcpu, libc::SYS_exit_group, None, SIGBUS),
    (Role::Worker, libc::SYS_exit_group, None, SIGBUS),
    (Role::Worker, libc::SYS_write, None, SIGBUS),
    (Role::Vcpu, libc::SYS_mmap, Some(3), MEMORY),
    (Role::Worker, libc::SYS_mmap, Some(3), MEMORY),
    (Role::Vcpu, libc::SYS_munmap, None, MEMORY),
    (Role::Worker, libc::SYS_munmap, None, MEMORY),
    (
        Role::Main,
        libc::SYS_ioctl,
        Some(SET_DEBUGREGS),
        "a snapshot of a guest that is debugging something",
    ),
    (
        Role::Main,
        libc::SYS_ioctl,
        Some(SET_TSC_KHZ),
        "a snapshot from a host whose clock runs at another rate",
    ),
    (
        Role::Worker,
        libc::SYS_futex,
        None,
        "a lock that another thread holds",
    ),
    (
        Role::Vcpu,
        libc::SYS_timerfd_settime,
        None,
        "a connection that waits with a time-out when its device is reset",
    ),
];

const CLOCK: &str = "a host whose clock is not in the vDSO";
const SIGBUS: &str = "the last words of a thread whose memory file was cut short";
const MEMORY: &str = "the allocator, when the block in the program is used up";
const SET_DEBUGREGS: u64 = 0x4080_aea2;
const SET_TSC_KHZ: u64 = 0xaea2;

const SECCOMP: libc::c_long = libc::SYS_seccomp;
const PR_SET_NAME: u64 = 15;

/// What threads of each kind have called: the number with its arguments.
type Seen = BTreeMap<u8, BTreeSet<(libc::c_long, Vec<u64>)>>;

fn key(role: Role) -> u8 {
    match role {
        Role::Main => 0,
        Role::Vcpu => 1,
        Role::Worker => 2,
    }
}

/// One line of strace: the thread, the number of the call, and its arguments.
fn parse(line: &str) -> Option<(u32, libc::c_long, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (number, rest) = rest.trim_start().strip_prefix('[')?.split_once(']')?;
    let (_, arguments) = rest.split_once('(')?;
    Some((thread.parse().ok()?, number.trim().parse().ok()?, arguments))
}

fn numbers(arguments: &str) -> Vec<u64> {
    let end = arguments.find([')', '<']).unwrap_or(arguments.len());
    arguments[..end]
        .split(", ")
        .map(|word| match word.trim() {
            "PR_SET_NAME" => PR_SET_NAME,
            word => word
                .strip_prefix("0x")
                .map_or_else(|| word.parse(), |hex| u64::from_str_radix(hex, 16))
                .unwrap_or(u64::MAX),
        })
        .collect()
}

/// Calls count for a kind from the moment on when its filter is loaded: a thread has the main thread's until its own is.
fn read(trace: &Path, seen: &mut Seen) {
    let text = fs::read_to_string(trace).expect("a trace");
    let (mut jailed, mut names, mut roles) = (false, BTreeMap::new(), BTreeMap::new());
    for (thread, call, arguments) in text.lines().filter_map(parse) {
        if call == libc::SYS_prctl
            && let Some(name) = arguments.split('"').nth(1)
        {
            names.insert(thread, name.to_owned());
        }
        if jailed {
            let role = roles.get(&thread).copied().unwrap_or(Role::Main);
            seen.entry(key(role))
                .or_default()
                .insert((call, numbers(arguments)));
        }
        if call == SECCOMP && numbers(arguments).first() == Some(&1) {
            match names.get(&thread).map(String::as_str) {
                Some(name) if name.starts_with("vcpu") => drop(roles.insert(thread, Role::Vcpu)),
                Some(name) if name.starts_with("io") => drop(roles.insert(thread, Role::Worker)),
                _ => jailed = true,
            }
        }
    }
    assert!(jailed, "{} shows no jail", trace.display());
}

fn used(seen: &Seen, role: Role, call: libc::c_long, value: Option<(u8, u64)>) -> bool {
    // Filters add up, so the main thread's must allow what the others make.
    let kinds = match role {
        Role::Main => 0..=2,
        _ => key(role)..=key(role),
    };
    seen.range(kinds).any(|(_, calls)| {
        calls.iter().any(|(number, arguments)| {
            *number == call
                && value.is_none_or(|(argument, wanted)| {
                    // The filter looks at 32 bits.
                    arguments
                        .get(usize::from(argument))
                        .is_some_and(|found| found & 0xffff_ffff == wanted)
                })
        })
    })
}

fn justified(_: &Context) {
    let mut seen = Seen::new();
    for (name, exercise) in EXERCISES {
        let context = Context::traced(name);
        exercise(&context);
        for trace in context.traces() {
            read(&trace, &mut seen);
        }
    }
    let mut unused = Vec::new();
    for role in [Role::Main, Role::Vcpu, Role::Worker] {
        let rules = tables(role).into_iter().flatten();
        let entries = rules.flat_map(|&(call, condition): &Rule| match condition {
            None => vec![(call, None)],
            Some((argument, values)) => values
                .iter()
                .map(|value| (call, Some((argument, *value))))
                .collect(),
        });
        for (call, value) in entries {
            let known = UNTRACED
                .iter()
                .any(|(a, b, c, _)| (*a, *b, *c) == (role, call, value.map(|(_, value)| value)));
            if !used(&seen, role, call, value) && !known {
                unused.push(format!(
                    "{role:?} {call} {:x?}",
                    value.map(|(_, value)| value)
                ));
            }
        }
    }
    assert!(unused.is_empty(), "allowed and never made: {unused:#?}");
}
