//! A real guest: QEMU without KVM, a stock kernel, `wing vsock` beside it.

pub mod initramfs;

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use aerie_vsock::conformance::{Host, Scratch};

/// The host port on which the guest says that it is ready.
const READY: u32 = 1024;

pub struct Vm {
    pub wing: Child,
    pub qemu: Child,
    pub host: Host,
    ready: UnixListener,
    scratch: Scratch,
}

/// What the environment gives; `None`, with the reason printed, where a real guest cannot be had.
pub fn boot(test: &str) -> Option<Vm> {
    let given = |name: &str| {
        let value = std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.exists());
        if value.is_none() {
            eprintln!("{test}: skipped, {name} does not name a file or folder");
        }
        value
    };
    let (kernel, modules) = (given("AERIE_TEST_KERNEL")?, given("AERIE_TEST_MODULES")?);
    if Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("{test}: skipped, there is no qemu-system-x86_64");
        return None;
    }
    Some(Vm::start(&kernel, &modules))
}

impl Vm {
    fn start(kernel: &Path, modules: &Path) -> Self {
        let scratch = Scratch::new();
        let unpacked = scratch.join("modules");
        let folder = if modules.is_dir() {
            modules
        } else {
            untar(modules, &unpacked)
        };
        let initramfs = scratch.join("initramfs");
        std::fs::write(&initramfs, initramfs::build(&guest(), folder)).unwrap();

        let host = Host {
            socket: scratch.join("v"),
            prefix: scratch.join("g"),
        };
        let ready = host.listen(READY);
        let listener = UnixListener::bind(&host.socket).unwrap();
        let (qemu_end, wing_end) = UnixStream::pair().unwrap();
        let wing = Command::new(env!("CARGO_BIN_EXE_wing"))
            .args([
                "vsock",
                "--cid",
                "42",
                "--vhost-fd",
                "0",
                "--listen-fd",
                "1",
                "--connect-prefix",
            ])
            .arg(&host.prefix)
            .stdin(Stdio::from(OwnedFd::from(wing_end)))
            .stdout(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .unwrap();
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "256M",
                "-M",
                "q35,memory-backend=m0",
            ])
            .args(["-object", "memory-backend-memfd,id=m0,size=256M,share=on"])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-append",
                "console=ttyS0 quiet panic=-1",
            ])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&initramfs)
            .arg("-serial")
            .arg(format!("file:{}", scratch.join("serial").display()))
            .arg("-qmp")
            .arg(format!(
                "unix:{},server=on,wait=off",
                scratch.join("qmp").display()
            ))
            .args([
                "-chardev",
                "socket,id=vs,fd=0",
                "-device",
                "vhost-user-vsock-pci,chardev=vs",
            ])
            .stdin(Stdio::from(OwnedFd::from(qemu_end)))
            .spawn()
            .unwrap();
        let mut vm = Self {
            wing,
            qemu,
            host,
            ready,
            scratch,
        };
        vm.wait_ready();
        vm
    }

    /// Waits until the guest's program has said that it serves.
    pub fn wait_ready(&mut self) {
        self.ready.set_nonblocking(true).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok((mut stream, _)) = self.ready.accept() {
                stream.set_nonblocking(false).unwrap();
                let mut said = String::new();
                stream.read_to_string(&mut said).unwrap();
                assert_eq!(said, "ready\n");
                return;
            }
            let serial =
                || std::fs::read_to_string(self.scratch.join("serial")).unwrap_or_default();
            assert!(
                self.qemu.try_wait().unwrap().is_none(),
                "QEMU ended: {}",
                serial()
            );
            assert!(
                Instant::now() < until,
                "the guest does not come up: {}",
                serial()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A line to the guest's port 1 and its answer.
    pub fn command(&self, line: &str) -> String {
        let (mut stream, _) = self.host.connect(1);
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// One QMP command after the greeting.
    pub fn qmp(&self, command: &str) {
        let stream = UnixStream::connect(self.scratch.join("qmp")).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut answer = || loop {
            let line = lines.next().unwrap().unwrap();
            if line.contains("\"return\"") || line.contains("\"error\"") {
                return line;
            }
        };
        for name in ["qmp_capabilities", command] {
            writeln!(&stream, "{{\"execute\": \"{name}\"}}").unwrap();
            let said = answer();
            assert!(said.contains("return"), "{name}: {said}");
        }
    }

    /// A number of wing's `/proc/PID/status`.
    pub fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.wing.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Kills QEMU as a crash would; the exit code of wing.
    pub fn kill(&mut self) -> Option<i32> {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.wing.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "wing outlives its QEMU");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.wing] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn untar<'a>(archive: &Path, into: &'a Path) -> &'a Path {
    std::fs::create_dir(into).unwrap();
    let status = Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(into)
        .status()
        .unwrap();
    assert!(status.success(), "tar: {status}");
    into
}

/// The guest's program: what `AERIE_TEST_GUEST` names, or the example of the vsock crate, built now, static.
fn guest() -> PathBuf {
    if let Some(path) = std::env::var_os("AERIE_TEST_GUEST") {
        return path.into();
    }
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--package",
            "aerie-vsock",
            "--example",
            "guest",
        ])
        .args([
            "--target",
            "x86_64-unknown-linux-musl",
            "--message-format",
            "json",
        ])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "the guest's program does not build"
    );
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let built = messages.filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    let mut paths = built.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    paths.next().expect("cargo says where it put the program")
}
