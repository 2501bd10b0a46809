//! Tells a workload that the kernel killed for memory from one that was killed by somebody.
//!
//! With cgroup v2 the workload has a group of its own whose `memory.events` counts the OOM killer's victims; without it
//! the count of the whole guest in `/proc/vmstat` has to do.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

const GROUP: &str = "/sys/fs/cgroup/workload";

/// The count before the workload ran.
#[derive(Debug)]
pub struct OomWatch {
    before: u64,
}

impl OomWatch {
    /// Makes the group, if it can be, and notes where the counts stand.
    pub fn start() -> Self {
        // Absent in a kernel without the controller; then the guest's count is used.
        let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
        let _ = fs::create_dir(GROUP);
        Self { before: kills() }
    }

    /// Opens the file by which a process enters the group.
    pub fn procs(&self) -> Option<File> {
        OpenOptions::new()
            .write(true)
            .open(Path::new(GROUP).join("cgroup.procs"))
            .ok()
    }

    pub fn has_killed(&self) -> bool {
        kills() > self.before
    }
}

fn kills() -> u64 {
    let own = fs::read_to_string(Path::new(GROUP).join("memory.events"));
    let text = own.or_else(|_| fs::read_to_string("/proc/vmstat"));
    text.map_or(0, |text| count(&text))
}

fn count(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn both_files_have_the_line() {
        let events = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n";
        let vmstat = "nr_free_pages 1\noom_kill 2\nunevictable 0\n";

        assert_eq!(count(events), 3);
        assert_eq!(count(vmstat), 2);
        assert_eq!(count("oom 5\n"), 0);
    }
}
