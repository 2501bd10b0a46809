//! KVM's exits by reason, from a moment of ours to the moment that init says it begins.
//!
//! Histograms of the kernel's tracing count, so nothing is lost and nothing is slowed down. The guest's mark (a write to
//! port 0x80) pauses them all.

use std::fs::{self, File};
use std::io::Write;

use serde_json::{Value, json};

use crate::machine::Context;

const KVM: &str = "/sys/kernel/tracing/events/kvm";

/// A physical interrupt of the host: SVM's VMEXIT_INTR, VMX's external interrupt. Mostly the host's own tick, so their
/// number tells how long a boot took and nothing of the machine monitor.
const HOST_INTERRUPTS: [&str; 2] = ["96", "1"];

const COUNTED: [(&str, &str); 6] = [
    ("kvm_userspace_exit", "hist:keys=reason"),
    ("kvm_exit", "hist:keys=exit_reason"),
    ("kvm_mmio", "hist:keys=type,gpa"),
    ("kvm_pio", "hist:keys=rw,port"),
    ("kvm_msr", "hist:keys=write,ecx"),
    ("kvm_cpuid", "hist:keys=function,index"),
];

/// `kvm_mmio`'s type of a write, and the configuration pages.
const WRITE: &str = "2";
const ECAM: std::ops::Range<u64> = 0xd000_0000..0xd010_0000;

fn trigger(event: &str, text: &str) {
    let path = format!("{KVM}/{event}/trigger");
    let done = File::options()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    done.unwrap_or_else(|error| panic!("{path}: {text}: {error}"));
}

fn stops() -> impl DoubleEndedIterator<Item = String> {
    COUNTED
        .iter()
        .map(|(event, _)| format!("disable_hist:kvm:{event} if port == 0x80"))
}

/// A count under way; ends when it is dropped.
pub struct Exits;

/// What was counted.
pub struct Counted {
    /// Exits that reached the process.
    pub user: u64,
    /// All exits.
    pub all: u64,
    /// Those for the host's own interrupts.
    pub host_interrupts: u64,
    /// Writes to configuration space.
    pub pci: u64,
}

impl Counted {
    pub fn json(&self) -> Value {
        json!({
            "user_exits": self.user,
            "exits": self.all,
            "host_interrupts": self.host_interrupts,
            "pci_exits": self.pci,
        })
    }
}

fn histogram(event: &str) -> String {
    fs::read_to_string(format!("{KVM}/{event}/hist")).unwrap_or_default()
}

/// The keys and the count of each line: `{ type: 2, gpa: 3489660932 } hitcount: 2`.
fn counts(event: &str) -> Vec<(Vec<String>, u64)> {
    histogram(event)
        .lines()
        .filter_map(|line| {
            let (keys, count) = line.strip_prefix('{')?.split_once("} hitcount:")?;
            let keys = keys
                .split(',')
                .filter_map(|key| Some(key.split_once(':')?.1.trim().to_owned()))
                .collect();
            Some((keys, count.trim().parse().ok()?))
        })
        .collect()
}

fn sum(event: &str, wanted: impl Fn(&[String]) -> bool) -> u64 {
    counts(event)
        .iter()
        .filter(|(keys, _)| wanted(keys))
        .map(|(_, count)| count)
        .sum()
}

impl Exits {
    pub fn begin() -> Self {
        for (event, histogram) in COUNTED {
            trigger(event, histogram);
        }
        for stop in stops() {
            trigger("kvm_pio", &stop);
        }
        Self
    }

    /// What there is so far. The histograms behind it go to the test's folder as `<name>.exits`.
    pub fn read(&self, context: &Context, name: &str) -> Counted {
        let mut text = String::new();
        for (event, _) in COUNTED {
            text += &format!("{event}\n{}\n", histogram(event));
        }
        let _ = fs::write(context.path(&format!("{name}.exits")), text);
        Counted {
            user: sum("kvm_userspace_exit", |_| true),
            all: sum("kvm_exit", |_| true),
            host_interrupts: sum("kvm_exit", |keys| {
                HOST_INTERRUPTS.contains(&keys[0].as_str())
            }),
            pci: sum("kvm_mmio", |keys| {
                keys[0] == WRITE && keys[1].parse().is_ok_and(|gpa| ECAM.contains(&gpa))
            }),
        }
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        for stop in stops().rev() {
            trigger("kvm_pio", &format!("!{stop}"));
        }
        for (event, histogram) in COUNTED {
            trigger(event, &format!("!{histogram}"));
        }
    }
}
