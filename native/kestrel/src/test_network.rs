//! Network namespaces of their own for tests: links and sockets of the machine are never touched.

use std::env;
use std::fs;
use std::process::Command;

use crate::test_folder::TestFolder;
use crate::test_reaper;

/// Set in the process that is in the namespace.
const INSIDE: &str = "KESTREL_TEST_NETWORK";

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
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {words}: {errors}");
    String::from_utf8(done.stdout).unwrap()
}
