//! Network namespaces of their own for tests: links and sockets of the machine are never touched.

use std::env;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use crate::test_folder::TestFolder;
use crate::test_reaper;

/// Set in the process that is in the namespace.
const INSIDE: &str = "KESTREL_TEST_NETWORK";
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Runs `body` in a network namespace, in a process of its own, in which the test `name` is run once more. `name` is the test's
/// full path. The process is root of a user namespace where it is not root anyway.
pub fn alone(name: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    // SAFETY: getuid touches no memory.
    let unshare = match unsafe { libc::getuid() } {
        0 => "unshare -n",
        _ => "unshare -Urn",
    };
    let folder = TestFolder::new();
    let said = folder.path().join("said");
    let program = env::current_exe().unwrap();
    let script = format!(
        "{INSIDE}=1 exec {unshare} {} --exact {name} --test-threads=1 --nocapture >{} 2>&1",
        program.display(),
        said.display()
    );
    // Without a search path `sh` has one of its own.
    let code = test_reaper::run(&["/bin/sh", "-c", &script]);
    let said = fs::read_to_string(said).unwrap_or_default();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("1 passed"), "no test is called {name}");
}

/// Runs `ip` with these words and gives what it says.
pub fn ip(words: &str) -> String {
    let done = Command::new("ip")
        .args(words.split_ascii_whitespace())
        .env("PATH", PATH)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {words}: {errors}");
    String::from_utf8(done.stdout).unwrap()
}

/// Another network namespace, in which a process waits to be killed.
#[derive(Debug)]
pub struct Other(Child);

impl Other {
    pub fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["-n", "/bin/sh", "-c", "echo; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It is there as soon as something runs in it.
        let read = child.stdout.as_mut().unwrap().read_exact(&mut [0]);
        read.unwrap();
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// A command that runs in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-n", "-t", &self.pid().to_string(), program])
            .env("PATH", PATH);
        command
    }

    pub fn ip(&self, words: &str) {
        let done = self
            .command("ip")
            .args(words.split_ascii_whitespace())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "ip {words}: {errors}");
    }

    /// Takes this thread into it, for good.
    pub fn enter(&self) {
        let file = fs::File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        // SAFETY: setns touches no memory of ours.
        let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0);
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
