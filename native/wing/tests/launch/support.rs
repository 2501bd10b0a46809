//! Starts the built wing with chosen descriptors, as chosen users, and collects what came of it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

pub const NOBODY: u32 = 65534;

/// A specification that runs a shell script; `fields` go over the defaults.
pub fn sh(script: &str, fields: Value) -> Value {
    let mut spec =
        json!({"argv": ["sh", "-c", script], "exe": "/bin/sh", "env": {"PATH": "/usr/bin:/bin"}});
    for (name, value) in fields.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}

#[derive(Debug)]
pub struct Run {
    pub pid: u32,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn error_code(&self) -> String {
        let line: Value = serde_json::from_str(&self.stderr)
            .unwrap_or_else(|error| panic!("{error}: {:?}, stdout {:?}", self.stderr, self.stdout));
        assert!(
            line["message"].is_string() && line["chain"].is_array(),
            "{line}"
        );
        line["code"].as_str().unwrap().to_owned()
    }
}

#[derive(Debug)]
pub struct Running(
    Child,
    #[expect(dead_code, reason = "removed when the run ends")] Option<Folder>,
);

impl Running {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn finish(self) -> Run {
        let pid = self.0.id();
        let output = self.0.wait_with_output().unwrap();
        assert_eq!(
            output.status.signal(),
            None,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run {
            pid,
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

#[derive(Debug)]
pub struct Launch {
    command: Command,
    fds: Vec<(OwnedFd, RawFd)>,
    session: bool,
    block: bool,
    groups: Vec<u32>,
    uid: Option<u32>,
    files_max: Option<u64>,
    folder: Option<Folder>,
}

impl Launch {
    pub fn new(spec: &Value) -> Self {
        Self::raw(spec.to_string().as_bytes())
    }

    pub fn raw(spec: &[u8]) -> Self {
        Self::without_spec().fd(3, memfd(spec))
    }

    pub fn without_spec() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wing"));
        command
            .arg("launch")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            command,
            fds: Vec::new(),
            session: false,
            block: false,
            groups: Vec::new(),
            uid: None,
            files_max: None,
            folder: None,
        }
    }

    pub fn argument(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    /// The launcher gets `fd` under the number `to`.
    pub fn fd(mut self, to: RawFd, fd: OwnedFd) -> Self {
        self.fds.push((fd, to));
        self
    }

    pub fn leading_session(mut self) -> Self {
        self.session = true;
        self
    }

    pub fn blocking_signals(mut self) -> Self {
        self.block = true;
        self
    }

    pub fn groups(mut self, groups: &[u32]) -> Self {
        self.groups = groups.to_vec();
        self
    }

    /// With this limit of open files, soft and hard.
    pub fn files_max(mut self, limit: u64) -> Self {
        self.files_max = Some(limit);
        self
    }

    /// As this user, with the group of the same number, where the tests run as root. Of a copy that every user may
    /// run, whatever the modes of the build folder.
    pub fn uid(mut self, uid: u32) -> Self {
        if is_root() {
            let folder = Folder::make();
            // By another process: a fork of this one, meanwhile, would hold the file open for writing (ETXTBSY).
            let copy = folder.0.join("wing");
            let cp = Command::new("cp")
                .arg(env!("CARGO_BIN_EXE_wing"))
                .arg(&copy)
                .status();
            assert!(cp.unwrap().success());
            self.command = Command::new(copy);
            self.command.arg("launch").stdin(Stdio::null());
            self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
            self.uid = Some(uid);
            self.folder = Some(folder);
        }
        self
    }

    pub fn run(self) -> Run {
        self.spawn().finish()
    }

    pub fn spawn(mut self) -> Running {
        let (session, block, groups, uid) = (self.session, self.block, self.groups, self.uid);
        let files_max = self.files_max;
        let highest = self.fds.iter().map(|(_, to)| *to).max().unwrap_or(2);
        let fds: Vec<_> = self
            .fds
            .iter()
            .map(|(fd, to)| (fd.as_raw_fd(), *to))
            .collect();
        let mut lifted = vec![0; fds.len()];
        let prepare = move || {
            // SAFETY: between fork and exec only system calls on numbers and on memory that exists already.
            unsafe {
                for ((from, _), copy) in fds.iter().zip(&mut lifted) {
                    *copy = libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, highest + 1);
                }
                for ((_, to), copy) in fds.iter().zip(&lifted) {
                    libc::dup2(*copy, *to);
                }
                if let Some(limit) = files_max {
                    let limit = libc::rlimit {
                        rlim_cur: limit,
                        rlim_max: limit,
                    };
                    libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
                }
                if session {
                    libc::setsid();
                }
                if block {
                    let mut set = std::mem::zeroed();
                    libc::sigfillset(&raw mut set);
                    libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                    libc::signal(libc::SIGUSR1, libc::SIG_IGN);
                    libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                }
                if !groups.is_empty() || uid.is_some() {
                    libc::setgroups(groups.len(), groups.as_ptr());
                }
                if let Some(uid) = uid {
                    libc::setresgid(uid, uid, uid);
                    libc::setresuid(uid, uid, uid);
                }
            }
            Ok(())
        };
        // SAFETY: see `prepare`.
        unsafe { self.command.pre_exec(prepare) };
        let child = self.command.spawn().unwrap();
        drop(self.fds);
        Running(child, self.folder)
    }
}

pub fn is_root() -> bool {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The harness has no third result: the reason is printed, and the test passes without having said anything.
pub fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

pub fn memfd(content: &[u8]) -> OwnedFd {
    // SAFETY: the name ends in NUL.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made, owned by nobody else.
    let mut file = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(content).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file.into()
}

/// (read end, write end), close on exec.
pub fn pipe() -> (fs::File, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (fs::File::from(OwnedFd::from(reader)), writer.into())
}

/// Waits for a child of this process that was not started by std; its exit code.
pub fn reap(pid: u64) -> i32 {
    let pid = libc::pid_t::try_from(pid).unwrap();
    let mut status = 0;
    // SAFETY: `status` is an int to write to.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    libc::WEXITSTATUS(status)
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "aerie-test-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A temporary folder that everybody may enter, removed at the end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn make() -> Self {
        let path = std::env::temp_dir().join(unique());
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    pub fn file(&self, name: &str, content: &[u8], mode: u32) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where a group of one v1 controller, and of the v2 tree, could be made on this machine.
pub fn cgroup_roots() -> Vec<String> {
    let mut mounts = String::new();
    fs::File::open("/proc/self/mounts")
        .unwrap()
        .read_to_string(&mut mounts)
        .unwrap();
    let line = |kind: &str, option: &str| {
        mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find_map(|fields| {
                (fields[2] == kind
                    && fields[3]
                        .split(',')
                        .any(|o| option.is_empty() || o == option))
                .then(|| fields[1].to_owned())
            })
    };
    [
        line("cgroup", "pids"),
        line("cgroup", "memory"),
        line("cgroup2", ""),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[derive(Debug)]
pub struct Cgroup {
    pub name: String,
    pub path: String,
}

impl Cgroup {
    pub fn make(root: &str) -> Self {
        let name = unique();
        let path = format!("{root}/{name}");
        fs::create_dir(&path).unwrap();
        Self { name, path }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
