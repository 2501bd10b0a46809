//! The one reaper of the test process: a second one would steal statuses, as would `std::process`.

use std::sync::OnceLock;

use crate::process::reap::Reaper;

pub fn reaper() -> &'static Reaper {
    static REAPER: OnceLock<&'static Reaper> = OnceLock::new();
    REAPER.get_or_init(|| Reaper::start().unwrap())
}

/// Runs a program to its end by the reaper.
pub fn run(argv: &[&str]) -> i32 {
    use std::os::fd::AsFd;

    use crate::process::spawn::{Program, Stdio, spawn};
    use crate::setup::users::User;
    use crate::sys::{poll, poll_entry};

    let argv: Vec<std::ffi::OsString> = argv.iter().map(std::ffi::OsString::from).collect();
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let program = Program {
        argv: &argv,
        env: &std::collections::BTreeMap::new(),
        cwd: None,
        user: None,
        tty: false,
    };
    // SAFETY: both touch no memory.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let user = User {
        uid,
        gid,
        groups: vec![],
        home: "/".to_owned(),
    };
    let null = null.as_fd();
    let stdio = Stdio {
        stdin: null,
        stdout: null,
        stderr: null,
        cgroup: None,
    };
    let child = spawn(reaper(), &program, &user, stdio).unwrap();
    poll(&mut [poll_entry(child.wake_fd(), libc::POLLIN)], None).unwrap();
    child.status().unwrap().code()
}
