//! A talon under test, its guest, and what is left of them when a test fails.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest wait for anything that a test waits for; the bed is slow, a hang is for ever.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Whether a talon runs under strace, and how its trace reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    No,
    /// Calls and arguments as numbers.
    Numbers,
    /// As a person reads them, with what was sent.
    Words,
}

/// One test's place on the host.
pub struct Context {
    name: String,
    folder: PathBuf,
    trace: Cell<Trace>,
}

fn variable(name: &str) -> PathBuf {
    PathBuf::from(
        std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: use test/bed/run")),
    )
}

/// talon itself, or under strace where its calls are to be looked at (`AERIE_BED_STRACE=1`).
fn program(how: Trace, trace: &Path) -> Command {
    let talon = variable("AERIE_BED_TALON");
    if how == Trace::No {
        return Command::new(talon);
    }
    let mut command = Command::new("strace");
    // The tracer as a grandchild: the child is talon, and ends when it is killed.
    command.args(["-D", "-f"]);
    if how == Trace::Numbers {
        command.args(["-n", "-e", "raw=!prctl"]);
    }
    command.arg("-o").arg(trace).arg(talon);
    command
}

impl Context {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!(
            "talon-{}-{}",
            std::process::id(),
            name.replace(' ', "-")
        ));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder for the test");
        Self {
            name: name.to_owned(),
            folder,
            trace: Cell::new(match std::env::var_os("AERIE_BED_STRACE") {
                None => Trace::No,
                Some(_) => Trace::Numbers,
            }),
        }
    }

    /// One whose talons are watched: every call of theirs is in `NAME.strace`.
    pub fn traced(name: &str) -> Self {
        let context = Self::new(name);
        context.trace(Trace::Numbers);
        context
    }

    /// How talons that are started from now on are watched.
    pub fn trace(&self, how: Trace) {
        self.trace.set(how);
    }

    /// The traces of its talons.
    pub fn traces(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "strace"))
            .collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Keeps what a failure needs: consoles, last words, KVM's counters.
    pub fn keep(&self) -> PathBuf {
        let kept = variable("AERIE_BED_ARTEFACTS").join(self.name.replace(' ', "-"));
        let _ = fs::create_dir_all(&kept);
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let small = entry
                .metadata()
                .is_ok_and(|found| found.is_file() && found.len() < 16 << 20);
            if small {
                let _ = fs::copy(entry.path(), kept.join(entry.file_name()));
            }
        }
        kept
    }

    /// A file of `bytes`, sparse.
    pub fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path)
            .and_then(|file| file.set_len(bytes))
            .expect("an image");
        path
    }

    /// The configuration of a small guest with vsock, whose console is a file of the test.
    pub fn config(&self, name: &str) -> Value {
        let guest = variable("AERIE_BED_GUEST");
        json!({
            "payload": {
                "kernel": guest.join("vmlinux"),
                "initramfs": guest.join("initramfs"),
                "cmdline": "console=hvc0 panic=-1 quiet loglevel=3 8250.nr_uarts=0",
            },
            "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
            "memory": { "size": 192u64 << 20 },
            "rng": { "src": "/dev/urandom" },
            "console": { "mode": "File", "file": self.path(&format!("{name}.console")) },
            "vsock": { "cid": 3, "socket": self.path(&format!("{name}.vsock")) },
        })
    }

    /// Starts a talon without a machine.
    pub fn talon(&self, name: &str) -> Talon {
        self.talon_with(name, &[], &[])
    }

    /// Starts a talon with more arguments and inherited descriptors `(ours, its)`.
    pub fn talon_with(&self, name: &str, arguments: &[&str], fds: &[(RawFd, RawFd)]) -> Talon {
        let mut all = vec!["--jail", "off"];
        all.extend_from_slice(arguments);
        self.jailed_with(name, &all, fds)
    }

    /// Starts a talon in its jail.
    pub fn jailed_with(&self, name: &str, arguments: &[&str], fds: &[(RawFd, RawFd)]) -> Talon {
        let api = self.path(&format!("{name}.api"));
        let stderr = File::create(self.path(&format!("{name}.stderr"))).expect("a log");
        let mut command = program(self.trace.get(), &self.path(&format!("{name}.strace")));
        command.arg("run");
        if !arguments.contains(&"--api-fd") {
            command.arg("--api-socket").arg(&api);
        }
        command.args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        inherit(&mut command, fds);
        let (mut faults, told) = std::io::pipe().expect("a pipe");
        // SAFETY: between fork and exec only getrusage and write are called.
        unsafe {
            command.pre_exec(move || {
                let mut usage: libc::rusage = std::mem::zeroed();
                libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
                (&told).write_all(&usage.ru_minflt.to_le_bytes())
            });
        }
        let child = command.spawn().expect("talon starts");
        let mut before = [0; 8];
        faults.read_exact(&mut before).expect("a number");
        let mut talon = self.adopt(name, child);
        talon.faults_before = u64::from_le_bytes(before);
        talon
    }

    /// A process that was started otherwise, with the usual names of its files.
    pub fn adopt(&self, name: &str, child: Child) -> Talon {
        Talon {
            child,
            api: self.path(&format!("{name}.api")),
            vsock: self.path(&format!("{name}.vsock")),
            stderr: self.path(&format!("{name}.stderr")),
            faults_before: 0,
        }
    }

    /// Makes the socket that the guest of this name connects to when it is up, before there is a talon.
    pub fn expect_up(&self, name: &str) -> UnixListener {
        expect_up(&self.path(&format!("{name}.vsock")))
    }

    /// Boots a guest of this configuration and waits until it is up.
    pub fn boot(&self, name: &str, config: &Value) -> Talon {
        let mut talon = self.talon(name);
        let up = talon.expect_up();
        talon.put("vm.create", config).expect_status(204);
        talon.put("vm.boot", &json!({})).expect_status(204);
        talon.wait_up(&up);
        talon
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if std::env::var_os("AERIE_BED_STRACE").is_some() {
            self.keep();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn expect_up(vsock: &Path) -> UnixListener {
    let path = PathBuf::from(format!("{}_53", vsock.display()));
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(path).expect("a socket");
    listener
        .set_nonblocking(true)
        .expect("a non-blocking socket");
    listener
}

/// Gives a command inherited descriptors `(ours, its)`.
pub fn inherit(command: &mut Command, fds: &[(RawFd, RawFd)]) {
    let fds = fds.to_vec();
    // SAFETY: between fork and exec only dup2 is called.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in &fds {
                if libc::dup2(*from, *to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Waits until `done`, or panics.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    #[track_caller]
    pub fn expect_status(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }
}

/// A running talon; killed when it is dropped.
pub struct Talon {
    pub child: Child,
    pub api: PathBuf,
    pub vsock: PathBuf,
    pub stderr: PathBuf,
    /// Page faults of the process between fork and exec: this test's, not talon's.
    faults_before: u64,
}

impl Talon {
    pub fn put(&self, verb: &str, body: &Value) -> Answer {
        self.call("PUT", verb, Some(body), &[])
    }

    pub fn put_fds(&self, verb: &str, body: &Value, fds: &[RawFd]) -> Answer {
        self.call("PUT", verb, Some(body), fds)
    }

    pub fn get(&self, verb: &str) -> Answer {
        self.call("GET", verb, None, &[])
    }

    pub fn call(&self, method: &str, verb: &str, body: Option<&Value>, fds: &[RawFd]) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} /api/v1/{verb} HTTP/1.1\r\nHost: talon\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = None;
        wait_for("the API socket", || {
            stream = UnixStream::connect(&self.api).ok();
            stream.is_some()
        });
        let mut stream = stream.expect("it was waited for");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        send_with_fds(&stream, head.as_bytes(), fds);
        // An answer may come before all is read, as for a body that is too long.
        let _ = stream.write_all(body.as_bytes());
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer to {verb}: {text:?}"));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .expect("a status");
        Answer {
            status,
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        }
    }

    /// Makes the socket that a guest connects to when it is up.
    pub fn expect_up(&self) -> UnixListener {
        expect_up(&self.vsock)
    }

    pub fn wait_up(&mut self, up: &UnixListener) {
        let stderr = self.stderr.clone();
        let child = &mut self.child;
        wait_for("the guest", || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!(
                    "talon ended with {status}: {}",
                    fs::read_to_string(&stderr).unwrap_or_default()
                );
            }
            up.accept().is_ok()
        });
    }

    /// Page faults without I/O since the exec.
    pub fn faults(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a stat");
        let fields = stat.rsplit(") ").next().expect("fields");
        let all: u64 = fields
            .split(' ')
            .nth(7)
            .and_then(|field| field.parse().ok())
            .expect("a number");
        all - self.faults_before
    }

    /// A vsock connection to the guest.
    pub fn connect(&self) -> UnixStream {
        connect(&self.vsock, 52)
    }

    fn ask(&self, line: &str) -> String {
        let mut stream = self.connect();
        stream
            .write_all(format!("{line}\n").as_bytes())
            .expect("the guest takes a line");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("the guest answers");
        answer
    }

    /// Runs a command in the guest; its output, and its exit code.
    pub fn sh(&self, command: &str) -> (String, i32) {
        let answer = self.ask(&format!("sh {command}"));
        let (output, code) = answer
            .trim_end()
            .rsplit_once("exit ")
            .unwrap_or_else(|| panic!("no exit in {answer:?}"));
        (output.to_owned(), code.parse().expect("an exit code"))
    }

    /// Runs a command; its exit code, or none when the connection was cut off.
    pub fn try_sh(&self, command: &str) -> Option<i32> {
        let mut stream = UnixStream::connect(&self.vsock).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream
            .write_all(format!("CONNECT 52\nsh {command}\n").as_bytes())
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.trim_end().rsplit_once("exit ")?.1.parse().ok()
    }

    /// Runs a command in the guest that must succeed.
    #[track_caller]
    pub fn ok(&self, command: &str) -> String {
        let (output, code) = self.sh(command);
        assert_eq!(code, 0, "{command}: {output}");
        output.trim().to_owned()
    }

    /// Has the first MiB of a disk of the guest's written as zeroes.
    #[track_caller]
    pub fn zero(&self, device: &str) {
        let answer = self.ask(&format!("zero {device}"));
        assert!(answer.ends_with("exit 0\n"), "{answer}");
    }

    pub fn uuid(&self) -> String {
        self.ask("uuid").trim().to_owned()
    }

    pub fn clock(&self) -> u64 {
        self.ask("clock").trim().parse().expect("nanoseconds")
    }

    /// Sends a command that has no answer.
    pub fn tell(&self, line: &str) {
        let _ = self.connect().write_all(format!("{line}\n").as_bytes());
    }

    /// Waits for the end of the process.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        wait_for("talon's end", || {
            status = child.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("it ended")
    }

    pub fn last_words(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits for an event and returns it.
    pub fn event(&self, name: &str) -> Value {
        let mut found = None;
        wait_for(name, || {
            let events = self.get("vm.events?after=0").expect_status(200);
            found = events["events"]
                .as_array()
                .and_then(|all| all.iter().find(|event| event["event"] == name).cloned());
            found.is_some()
        });
        found.expect("it was found")
    }
}

impl Drop for Talon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.stderr.with_extension("kvm");
            let _ = fs::write(kept, kvm_counters(self.child.id()));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What KVM counted for a process (`/sys/kernel/debug/kvm/PID-FD`, each processor in a folder of its own), a line each: they
/// go with the machine, so they are read before it is killed.
fn kvm_counters(pid: u32) -> String {
    let entries = |folder: &Path| {
        let mut paths: Vec<_> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        paths
    };
    let (all, own) = (Path::new("/sys/kernel/debug/kvm"), format!("{pid}-"));
    let mut folders: Vec<_> = entries(all)
        .into_iter()
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&own))
        })
        .collect();
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(value) = fs::read_to_string(&path) {
                let name = path.strip_prefix(all).unwrap_or(&path).display();
                text.push_str(&format!("{name} {}\n", value.trim()));
            }
        }
    }
    text
}

/// A connection through a vsock device's Unix socket.
pub fn connect(socket: &Path, port: u32) -> UnixStream {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut stream = UnixStream::connect(socket).expect("the vsock socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .expect("a line");
        let mut line = String::new();
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            if byte[0] == b'\n' {
                break;
            }
            line.push(char::from(byte[0]));
        }
        if line.starts_with("OK ") {
            return stream;
        }
        assert!(
            Instant::now() < until,
            "the guest does not listen on port {port}: {line:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    if fds.is_empty() {
        let mut stream = stream;
        stream.write_all(bytes).expect("the API takes a request");
        return;
    }
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = [0u64; 64];
    let data = u32::try_from(size_of_val(fds)).expect("few descriptors");
    // SAFETY: the control buffer has room for the descriptors; all pointers live through the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(data) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(data) as _;
        std::ptr::copy_nonoverlapping(
            fds.as_ptr().cast::<u8>(),
            libc::CMSG_DATA(header),
            size_of_val(fds),
        );
        let sent = libc::sendmsg(stream.as_raw_fd(), &raw const message, 0);
        assert_eq!(sent, bytes.len().cast_signed(), "the API takes a request");
    }
}

/// A descriptor that a child inherits.
pub fn inheritable(file: impl Into<OwnedFd>) -> OwnedFd {
    let fd = file.into();
    // SAFETY: fcntl with integers on our own descriptor.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) };
    fd
}

/// Sends `bytes` through an echoing guest and checks that they come back.
pub fn echo(stream: UnixStream, bytes: &[u8]) {
    let mut back = Vec::with_capacity(bytes.len());
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = &stream;
            writer.write_all(b"echo\n").expect("a line");
            writer.write_all(bytes).expect("bytes");
            writer.shutdown(Shutdown::Write).expect("a half-close");
        });
        reader.read_to_end(&mut back).expect("bytes back");
    });
    assert_eq!(back.len(), bytes.len());
    assert!(back == bytes, "bytes were changed on the way");
    let _ = reader.fill_buf();
}
