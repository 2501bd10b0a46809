//! What the kernel allows the programs of this guest. It has one tenant, and its walls are its machine's: the kernel's defaults
//! are for hosts of many users.

use std::fs;
use std::io;
use std::path::Path;

/// `/proc/sys`, and why.
const SETTINGS: [(&str, &str); 7] = [
    // As container engines have it: a server need not be root for its port, nor anybody for a ping.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // Watchers of whole trees (editors, bundlers, log shippers); what is used is counted against the guest's memory.
    ("fs/inotify/max_user_watches", "1048576"),
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_queued_events", "65536"),
    // The kernel's most on 64 bits. `threads-max` is what memory bears already, and the kernel takes no more.
    ("kernel/pid_max", "4194304"),
    // Databases and search engines map that many pieces.
    ("vm/max_map_count", "1048576"),
];

/// Sets them all; gives those that the kernel refused. One that it does not know is no limit.
pub fn apply() -> Vec<(&'static str, io::Error)> {
    apply_in(Path::new("/proc/sys"))
}

fn apply_in(sys: &Path) -> Vec<(&'static str, io::Error)> {
    SETTINGS
        .into_iter()
        .filter_map(|(name, value)| match fs::write(sys.join(name), value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Some((name, error)),
            _ => None,
        })
        .collect()
}
