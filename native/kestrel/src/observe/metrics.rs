//! metrics: how the guest does, out of /proc.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;

use aerie_protocol::message::{Cpu, DiskUse, Memory, Metrics, WorkloadState};

use crate::sys::check;

/// Lines of /proc/mounts that are looked at.
const MOUNTS_MAX: usize = 1000;
/// Disks that are told.
const DISKS_MAX: usize = 64;

/// Reads everything now.
pub fn read(workload: WorkloadState) -> Metrics {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    // SAFETY: sysconf touches no memory.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Metrics {
        uptime_ms: uptime_ms(&text("/proc/uptime")),
        cpu: cpu(&text("/proc/stat"), u64::try_from(ticks).unwrap_or(100)),
        load: load(&text("/proc/loadavg")),
        memory: memory(&text("/proc/meminfo")),
        disks: disk_mounts(&text("/proc/mounts"))
            .into_iter()
            .filter_map(disk_use)
            .collect(),
        processes: processes(),
        workload,
    }
}

fn uptime_ms(text: &str) -> u64 {
    let mut parts = text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .splitn(2, '.');
    let mut number = || {
        parts
            .next()
            .and_then(|part| part.parse::<u64>().ok())
            .unwrap_or(0)
    };
    // "12.34": seconds and hundredths.
    number() * 1000 + number() * 10
}

fn cpu(text: &str, ticks_per_second: u64) -> Cpu {
    let mut cpu = Cpu::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("cpu") => {
                let field: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
                let ms = |indexes: &[usize]| {
                    let ticks: u64 = indexes
                        .iter()
                        .map(|&index| field.get(index).copied().unwrap_or(0))
                        .fold(0, u64::saturating_add);
                    ticks.saturating_mul(1000) / ticks_per_second.max(1)
                };
                // proc(5): user nice system idle iowait irq softirq steal; guest time is in user already.
                cpu.user_ms = ms(&[0, 1]);
                cpu.system_ms = ms(&[2, 5, 6]);
                cpu.idle_ms = ms(&[3, 4]);
                cpu.steal_ms = ms(&[7]);
            }
            Some(name) if name.starts_with("cpu") => cpu.count += 1,
            _ => {}
        }
    }
    cpu
}

fn load(text: &str) -> [f64; 3] {
    let mut fields = text.split_whitespace();
    [(); 3].map(|()| {
        fields
            .next()
            .and_then(|field| field.parse().ok())
            .unwrap_or(0.0)
    })
}

fn memory(text: &str) -> Memory {
    let bytes = |name: &str| -> u64 {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            .saturating_mul(1024)
    };
    let (total, available) = (bytes("MemTotal"), bytes("MemAvailable"));
    Memory {
        total,
        available,
        used: total.saturating_sub(available),
        cached: bytes("Cached"),
        swap: bytes("SwapTotal").saturating_sub(bytes("SwapFree")),
    }
}

/// The mount points of disks: the root, and what is on a device; each once.
fn disk_mounts(text: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    text.lines()
        .take(MOUNTS_MAX)
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (source, mount) = (fields.next()?, fields.next()?);
            let mount = unescape(mount);
            (mount == "/" || source.starts_with("/dev/")).then_some(mount)
        })
        .filter(|mount| seen.insert(mount.clone()))
        .take(DISKS_MAX)
        .collect()
}

/// proc(5) writes space, tab, line feed and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, after) = rest.split_at(at);
        plain.push_str(before);
        let code = after
            .get(1..4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = after.get(4..).unwrap_or_default();
            }
            None => {
                plain.push('\\');
                rest = after.get(1..).unwrap_or_default();
            }
        }
    }
    plain.push_str(rest);
    plain
}

fn disk_use(mount: String) -> Option<DiskUse> {
    let path = CString::new(mount.as_str()).ok()?;
    // SAFETY: statvfs is plain integers; zero is a value of it.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a valid C string and room for a statvfs.
    check(unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) }).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(DiskUse {
        mount,
        size: bytes(stat.f_blocks),
        used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        available: bytes(stat.f_bavail),
    })
}

fn processes() -> u32 {
    let count = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read() {
        assert_eq!(uptime_ms("12.34 20.00\n"), 12_340);
        assert_eq!(load("0.50 0.25 0.00 1/80 123\n"), [0.5, 0.25, 0.0]);
        assert_eq!(
            cpu(
                "cpu  10 5 20 100 3 1 2 4 0 0\ncpu0 1\ncpu1 1\nintr 5\n",
                100
            ),
            Cpu {
                user_ms: 150,
                system_ms: 230,
                idle_ms: 1030,
                steal_ms: 40,
                count: 2
            }
        );
        assert_eq!(
            memory(
                "MemTotal: 100 kB\nMemAvailable: 60 kB\nCached: 7 kB\nSwapTotal: 9 kB\nSwapFree: 4 kB\n"
            ),
            Memory {
                total: 102_400,
                available: 61_440,
                used: 40_960,
                cached: 7168,
                swap: 5120
            }
        );
    }

    #[test]
    fn disks_are_the_root_and_devices_each_once() {
        let mounts = "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n/dev/vdc /my\\040data ext4 rw 0 0\n\
            /dev/vdc /my\\040data ext4 rw 0 0\n";

        assert_eq!(disk_mounts(mounts), ["/", "/my data"]);
    }

    #[test]
    fn this_machine_has_metrics() {
        let metrics = read(WorkloadState::default());

        assert!(metrics.uptime_ms > 0 && metrics.cpu.count > 0 && metrics.memory.total > 0);
        assert!(metrics.memory.used <= metrics.memory.total && metrics.processes > 0);
        assert!(metrics.disks.iter().any(|disk| disk.mount == "/"));
    }

    #[test]
    fn what_is_no_file_of_proc_is_zeros() {
        for junk in ["", "x", "cpu\n", "..\n", "MemTotal\n"] {
            assert_eq!(uptime_ms(junk), 0);
            assert_eq!(cpu(junk, 100), Cpu::default());
            assert_eq!(memory(junk), Memory::default());
        }
        assert_eq!(unescape("a\\"), "a\\");
        assert_eq!(unescape("\\0401\\9"), " 1\\9");
    }
}
