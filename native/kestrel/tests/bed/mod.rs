//! The host's side of a guest, as small as it can be.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aerie_protocol::message::{
    Attach, Configuration, Event, Exec, Exit, FileSpec, Network, NetworkMode, Nic, Reply, Request,
    Root, RootMode, SessionOpen, Volume, VolumeFs, Workload,
};
use aerie_protocol::{Decoder, Frame, GENERATION, Kind, encode, parse_json};
use serde::Serialize;
use serde::de::DeserializeOwned;

const TIMEOUT: Duration = Duration::from_secs(90);

/// What differs between tests.
pub struct Setup {
    pub workload: Option<Workload>,
    pub overlay_bytes: Option<u64>,
    pub memory_mib: u32,
    pub grace_ms: u64,
    /// Say in the configuration that there is an overlay disk where there is none.
    pub promise_overlay: bool,
    /// Two further disks, and QEMU's user network.
    pub extras: bool,
    /// The cards as the configuration has them, each with QEMU's side of it (`-netdev`, without its id).
    pub cards: Vec<(Nic, &'static str)>,
    /// Files of the configuration.
    pub files: Vec<FileSpec>,
    /// The payload is in the initramfs, and there is no disk.
    pub in_memory: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workload: None,
            overlay_bytes: Some(1 << 30),
            memory_mib: 256,
            grace_ms: 5000,
            promise_overlay: false,
            extras: false,
            cards: vec![],
            files: vec![],
            in_memory: false,
        }
    }
}

/// A frame that owns its bytes.
#[derive(Debug)]
pub enum Got {
    Ok(Vec<u8>),
    Error(String),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Eof,
    Exit(Exit),
    Event(Event),
    Reply(Reply),
    Window(u32),
    Log { stream: u8, data: Vec<u8> },
    Open(SessionOpen),
    Closed,
}

/// One connection.
pub struct Talk {
    stream: UnixStream,
    decoder: Decoder,
}

impl Talk {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self {
            stream,
            decoder: Decoder::new(),
        }
    }

    pub fn send(&mut self, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn next(&mut self) -> Got {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return own(&frame);
            }
            let mut chunk = vec![0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Got::Closed,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Got::Closed;
                }
                Err(error) => panic!("nothing from the guest: {error}"),
                Ok(count) => self.decoder.push(&chunk[..count]),
            }
        }
    }
}

impl Talk {
    /// Sends input under the window, to its end, and reads everything until `exit`.
    pub fn feed(&mut self, input: &[u8]) -> Done {
        let mut window = aerie_protocol::STDIN_WINDOW_BYTES as usize;
        let (mut rest, mut ended) = (input, false);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            while window > 0 && !rest.is_empty() {
                let (part, after) = rest.split_at(rest.len().min(window).min(30_000));
                self.send(&Frame::Stdin(part));
                window -= part.len();
                rest = after;
            }
            if rest.is_empty() && !ended {
                ended = true;
                self.send(&Frame::Eof);
            }
            match self.next() {
                Got::Stdout(bytes) => stdout.extend(bytes),
                Got::Stderr(bytes) => stderr.extend(bytes),
                Got::Window(bytes) => window += bytes as usize,
                Got::Exit(exit) => {
                    return Done {
                        stdout,
                        stderr,
                        exit,
                    };
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads output until it ends like this.
    pub fn until(&mut self, end: &str) {
        let mut seen = Vec::new();
        while !seen.ends_with(end.as_bytes()) {
            match self.next() {
                Got::Stdout(bytes) => seen.extend(bytes),
                Got::Window(_) => {}
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
            }
        }
    }

    pub fn log(&mut self) -> (u8, String) {
        match self.next() {
            Got::Log { stream, data } => (stream, String::from_utf8(data).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

fn own(frame: &Frame<'_>) -> Got {
    match frame {
        Frame::Ok(body) => Got::Ok(body.to_vec()),
        Frame::Error(body) => Got::Error(String::from_utf8(body.to_vec()).unwrap()),
        Frame::Stdout(bytes) => Got::Stdout(bytes.to_vec()),
        Frame::Stderr(bytes) => Got::Stderr(bytes.to_vec()),
        Frame::Eof => Got::Eof,
        Frame::Exit(body) => Got::Exit(parse_json(body).unwrap()),
        Frame::Event(body) => Got::Event(parse_json(body).unwrap()),
        Frame::Reply(body) => Got::Reply(parse_json(body).unwrap()),
        Frame::Window(bytes) => Got::Window(*bytes),
        Frame::Log { stream, data, .. } => Got::Log {
            stream: stream.byte(),
            data: data.to_vec(),
        },
        Frame::Open { body, .. } => Got::Open(parse_json(body).unwrap()),
        other => panic!("the guest sent {other:?}"),
    }
}

/// What an exec gave.
#[derive(Debug)]
pub struct Done {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Exit,
}

pub fn exec_default() -> Exec {
    Exec {
        argv: vec![],
        env: [("PATH".to_owned(), "/bin".to_owned())].into(),
        cwd: None,
        user: None,
        tty: false,
        cols: None,
        rows: None,
        stdin: false,
        timeout_ms: None,
    }
}

/// A running guest.
pub struct Bed {
    folder: PathBuf,
    qemu: Child,
    vsock: Child,
    listener: UnixListener,
    session: Option<Talk>,
    pub secret: String,
    requests: u64,
}

impl Bed {
    /// `None`, with the reason on stderr, where the machine lacks something.
    pub fn boot(setup: Setup) -> Option<Self> {
        let tool = |name: &str| match env::var_os(name) {
            Some(path) => Some(PathBuf::from(path)),
            None => {
                eprintln!("skipped: {name} is not set");
                None
            }
        };
        let kernel = tool("AERIE_TEST_KERNEL")?;
        let modules = tool("AERIE_TEST_MODULES")?;
        let kestrel = tool("AERIE_TEST_KESTREL")?;
        let wing = tool("AERIE_TEST_WING")?;
        static NEXT: AtomicU32 = AtomicU32::new(3);
        let cid = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() % 10_000 * 16;
        let folder = env::temp_dir().join(format!("kb{cid}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        disks(&folder, setup.overlay_bytes, setup.extras);
        initramfs(&folder, &kestrel, &modules, setup.in_memory);
        let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let listener = UnixListener::bind(at("v_1024")).unwrap();
        let vhost = UnixListener::bind(at("vhost")).unwrap();
        let hosts = UnixListener::bind(at("v")).unwrap();
        let memory = setup.memory_mib;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "q35,memory-backend=m0",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            &memory.to_string(),
        ])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args([
            "-object",
            &format!("memory-backend-memfd,id=m0,size={memory}M,share=on"),
        ])
        .args(["-chardev", &format!("socket,id=vs,path={}", at("vhost"))])
        .args(["-device", "vhost-user-vsock-pci,chardev=vs"])
        .args([
            "-kernel",
            &kernel.to_string_lossy(),
            "-initrd",
            &at("initrd"),
        ])
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable",
        ])
        .args(["-serial", &format!("file:{}", at("serial.log"))])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp"))]);
        let mut disk = |file: &str, serial: &str, options: &str| {
            let drive = format!("file={},if=none,id={serial},format=raw,{options}", at(file));
            qemu.args(["-drive", &drive]).args([
                "-device",
                &format!("virtio-blk-pci,drive={serial},serial={serial}"),
            ]);
        };
        if !setup.in_memory {
            disk("root.erofs", "root", "readonly=on");
        }
        if setup.extras {
            disk("volume.ext4", "vol0", "discard=unmap");
            disk("root.erofs", "vol1", "readonly=on,file.locking=off");
        }

        if setup.overlay_bytes.is_some() {
            disk("overlay.ext4", "overlay", "discard=unmap");
        }
        if setup.extras {
            qemu.args(["-netdev", "user,id=n0,restrict=on"])
                .args(["-device", "virtio-net-pci,netdev=n0,romfile="]);
        }
        for (index, (_, backend)) in setup.cards.iter().enumerate() {
            qemu.args(["-netdev", &format!("{backend},id=c{index}")])
                .args([
                    "-device",
                    &format!("virtio-net-pci,netdev=c{index},romfile="),
                ]);
        }
        let qemu = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("qemu.log")).unwrap())
            .spawn()
            .unwrap();
        // QEMU's end of the socket is connected to ours; the backend is given the accepted one and the host's listener.
        let (frontend, _) = vhost.accept().unwrap();
        let vsock = backend(&wing, cid, &folder, frontend.into(), hosts.into());
        let mut bed = Self {
            folder,
            qemu,
            vsock,
            listener,
            session: None,
            secret: "ab".repeat(32),
            requests: 0,
        };
        bed.first_session(setup);
        Some(bed)
    }

    fn accept(&mut self) -> Talk {
        self.listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    return Talk::new(stream);
                }
                Err(_) if Instant::now() < deadline && self.qemu.try_wait().unwrap().is_none() => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("the guest did not call: {error}\n{}", self.serial()),
            }
        }
    }

    fn first_session(&mut self, setup: Setup) {
        let mut talk = self.accept();
        let Got::Open(open) = talk.next() else {
            panic!("no open")
        };
        assert_eq!(open.secret, None);
        assert_eq!(open.last_event, 0);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let configuration = Configuration {
            resumed: false,
            secret: self.secret.clone(),
            time_ns: u64::try_from(now.as_nanos()).unwrap(),
            entropy: "5a".repeat(32),
            hostname: "guest".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            root: Root {
                mode: match setup.in_memory {
                    true => RootMode::Initramfs,
                    false => RootMode::Overlay,
                },
                overlay_size_bytes: match setup.promise_overlay {
                    true => Some(1 << 30),
                    false => setup.overlay_bytes,
                },
            },
            volumes: volumes(setup.extras),
            network: Network {
                mode: match setup.extras {
                    true => NetworkMode::User,
                    false => NetworkMode::None,
                },
                mac: None,
            },
            nics: setup.cards.iter().map(|(nic, _)| nic.clone()).collect(),
            files: setup.files,
            workload: setup.workload,
            grace_ms: setup.grace_ms,
            log_bytes: 1 << 20,
            shm_bytes: None,
        };
        talk.send(&Frame::Ok(&json(&configuration)));
        self.session = Some(talk);
    }

    /// The next event, acknowledged.
    pub fn event(&mut self) -> Event {
        let event = self.event_unacked();
        self.session().send(&Frame::Ack(event.seq));
        event
    }

    pub fn event_unacked(&mut self) -> Event {
        match self.session().next() {
            Got::Event(event) => event,
            other => panic!("no event but {other:?}\n{}", self.serial()),
        }
    }

    pub fn session(&mut self) -> &mut Talk {
        self.session.as_mut().unwrap()
    }

    /// Cuts the session, as a daemon that was killed, and takes the next call.
    pub fn cut_session(&mut self, acked: u64) -> SessionOpen {
        self.session = None;
        let mut talk = self.accept();
        let Got::Open(open) = talk.next() else {
            panic!("no open")
        };
        talk.send(&Frame::Ok(
            format!("{{\"resumed\":true,\"acked\":{acked}}}").as_bytes(),
        ));
        self.session = Some(talk);
        open
    }

    pub fn request(&mut self, op: &str, fill: impl FnOnce(&mut Request)) -> Reply {
        self.requests += 1;
        let mut request = Request {
            id: self.requests,
            op: op.to_owned(),
            grace_ms: None,
            signal: None,
            time_ns: None,
        };
        fill(&mut request);
        self.session().send(&Frame::Request(&json(&request)));
        match self.session().next() {
            Got::Reply(reply) => reply,
            other => panic!("no reply but {other:?}"),
        }
    }

    pub fn stop(&mut self, grace_ms: u64) {
        assert!(
            self.request("stop", |request| request.grace_ms = Some(grace_ms))
                .ok
        );
    }

    pub fn dial(&self) -> Talk {
        let mut stream = UnixStream::connect(self.folder.join("v")).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(b"CONNECT 1024\n").unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        assert!(line.starts_with(b"OK "), "{line:?}");
        Talk::new(stream)
    }

    pub fn open<T: Serialize>(&self, kind: Kind, body: &T) -> Talk {
        let mut talk = self.dial();
        talk.send(&Frame::Open {
            generation: GENERATION,
            kind: kind.byte(),
            body: &json(body),
        });
        talk
    }

    pub fn exec(&self, exec: &Exec) -> Done {
        let mut talk = self.open(Kind::Exec, exec);
        assert!(matches!(talk.next(), Got::Ok(_)));
        finish(&mut talk)
    }

    pub fn shell(&self, script: &str) -> String {
        let done = self.exec(&Exec {
            argv: ["sh", "-c", script].map(OsString::from).to_vec(),
            ..exec_default()
        });
        String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()
    }

    /// A conversation of one question.
    pub fn ask<T: DeserializeOwned>(&self, kind: Kind, body: &impl Serialize) -> T {
        match self.open(kind, body).next() {
            Got::Ok(body) => parse_json(&body).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Runs a script until it says what is expected.
    pub fn wait_for_shell(&self, script: &str, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let said = self.shell(script);
            if said == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{said}");
        }
    }

    /// As [`wait_for_shell`], for a guest that may be busy yet.
    pub fn wait_for_shell_retrying(&self, script: &str, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut talk = self.open(
                Kind::Exec,
                &Exec {
                    argv: ["sh", "-c", script].map(OsString::from).to_vec(),
                    ..exec_default()
                },
            );
            match talk.next() {
                Got::Ok(_) => {
                    assert_eq!(finish(&mut talk).stdout, expected.as_bytes());
                    return;
                }
                refused => assert!(Instant::now() < deadline, "{refused:?}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Attaches as soon as the last one with stdin is seen to be gone.
    pub fn wait_for_attach(&self, attach: &Attach) -> Talk {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut talk = self.open(Kind::Attach, attach);
            match talk.next() {
                Got::Ok(_) => return talk,
                refused => assert!(Instant::now() < deadline, "{refused:?}"),
            }
        }
    }

    /// A tar archive of what a script makes in an empty folder.
    pub fn tar(&self, script: &str) -> Vec<u8> {
        let tree = self.folder.join("copy");
        fs::create_dir_all(&tree).unwrap();
        shell(&format!("cd {} && {script}", tree.display()));
        let tarred = Command::new("tar")
            .args(["-C", &tree.to_string_lossy(), "-c", "."])
            .output()
            .unwrap();
        assert!(tarred.status.success());
        tarred.stdout
    }

    /// Asserts that an archive holds what [`tar`] made.
    pub fn same_tree(&self, archive: &[u8], name: &str) {
        let back = self.folder.join("back");
        fs::create_dir_all(&back).unwrap();
        fs::write(self.folder.join("back.tar"), archive).unwrap();
        shell(&format!(
            "tar -C {0} -xpf {1}/back.tar && diff -r {0}/{name} {1}/copy/{name} && test {0}/{name}/f -ef {0}/{name}/g",
            back.display(),
            self.folder.display()
        ));
    }

    pub fn serial(&self) -> String {
        fs::read_to_string(self.folder.join("serial.log")).unwrap_or_default()
    }

    pub fn powerdown(&self) {
        let mut qmp = UnixStream::connect(self.folder.join("qmp")).unwrap();
        qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"system_powerdown\"}\n")
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Waits for the machine to be off.
    pub fn wait_off(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < deadline,
                "the guest stays up\n{}",
                self.serial()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the overlay's file system was left as by an unmount: nothing to repair, no journal to replay.
    pub fn overlay_is_clean(&self) -> bool {
        let checked = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(self.folder.join("overlay.ext4"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        let is_clean = checked.status.success() && !said.contains("journal");
        if !is_clean {
            eprintln!("{said}");
        }
        is_clean
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("serial:\n{}", self.serial());
        }
        for process in [&mut self.qemu, &mut self.vsock] {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A program of the configuration.
pub fn file(path: &str, from: &Path) -> FileSpec {
    let encoded = Command::new("base64")
        .arg("-w0")
        .arg(from)
        .output()
        .unwrap();
    FileSpec {
        path: path.to_owned(),
        mode: 0o755,
        content_base64: String::from_utf8(encoded.stdout).unwrap(),
    }
}

/// A program of the configuration, of nothing but x86-64 instructions (hex): one page of code, no data.
pub fn program(path: &str, code: &str) -> FileSpec {
    let code: Vec<u8> = (0..code.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&code[at..at + 2], 16).unwrap())
        .collect();
    let size = 120 + code.len() as u64;
    let base = 0x40_0000_u64;
    let mut elf = Vec::new();
    // ELF64, little endian, executable, x86-64; then one segment, read and execute (elf(5)).
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    for number in [base + 120, 64, 0] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0");
    elf.extend(b"\x01\0\0\0\x05\0\0\0");
    for number in [0, base, base, size, size, 4096] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(code);
    let from = env::temp_dir().join(format!("kestrel-elf-{}", std::process::id()));
    fs::write(&from, elf).unwrap();
    let program = file(path, &from);
    fs::remove_file(from).unwrap();
    program
}

fn volumes(extras: bool) -> Vec<Volume> {
    let volume = |serial: &str, path: &str, fs| Volume {
        serial: serial.to_owned(),
        path: path.to_owned(),
        read_only: false,
        fs,
    };
    match extras {
        // The inner path is named first: kestrel sorts it out.
        true => vec![
            volume("vol1", "/data/base", VolumeFs::Erofs),
            volume("vol0", "/data", VolumeFs::Ext4),
        ],
        false => vec![],
    }
}

fn backend(wing: &Path, cid: u32, folder: &Path, frontend: OwnedFd, hosts: OwnedFd) -> Child {
    let (frontend, hosts) = (frontend.as_raw_fd(), hosts.as_raw_fd());
    let mut command = Command::new("sh");
    // The shell moves the two descriptors, which it inherits, to the numbers that wing wants.
    let script = format!(
        "exec {} vsock --cid {cid} --vhost-fd 3 --listen-fd 4 --connect-prefix {}/v 3<&{frontend} 4<&{hosts}",
        wing.display(),
        folder.display()
    );
    command
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("vsock.log")).unwrap());
    // SAFETY: between fork and exec, fcntl only.
    unsafe {
        command.pre_exec(move || {
            for fd in [frontend, hosts] {
                libc::fcntl(fd, libc::F_SETFD, 0);
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

/// Everything until `exit`.
pub fn finish(talk: &mut Talk) -> Done {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match talk.next() {
            Got::Stdout(bytes) => stdout.extend(bytes),
            Got::Stderr(bytes) => stderr.extend(bytes),
            Got::Window(_) => {}
            Got::Exit(exit) => {
                return Done {
                    stdout,
                    stderr,
                    exit,
                };
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn json<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body).unwrap()
}

/// Loaded in this order; a kernel that has one built in has no file of it.
const MODULES: [&str; 22] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
    "libcrc32c",
    "netfs",
    "erofs",
    "overlay",
    "virtio-rng",
    "button",
    "evdev",
    "inet_diag",
    "tcp_diag",
];

fn initramfs(folder: &Path, kestrel: &Path, modules: &Path, with_payload: bool) {
    let tree = folder.join("tree");
    if with_payload {
        shell(&format!("cp -a {0}/base {0}/tree", folder.display()));
    }
    fs::create_dir_all(tree.join("modules")).unwrap();
    fs::create_dir_all(tree.join("dev")).unwrap();
    fs::copy(kestrel, tree.join("init")).unwrap();
    shell(&format!(
        "chmod 755 {0}/init; mknod {0}/dev/console c 5 1",
        tree.display()
    ));
    for (number, name) in MODULES.iter().enumerate() {
        let to = tree.join(format!("modules/{number:02}-{name}.ko"));
        shell(&format!(
            "f=$(find {} -name {name}.ko -o -name {name}.ko.xz | head -1); case $f in *.xz) xz -dc $f > {to};; *.ko) cp $f {to};; esac",
            modules.display(),
            to = to.display()
        ));
    }
    shell(&format!(
        "cd {} && find . | cpio -o -H newc --quiet > {}",
        tree.display(),
        folder.join("initrd").display()
    ));
}

fn disks(folder: &Path, overlay: Option<u64>, extras: bool) {
    let base = folder.join("base");
    shell(&format!(
        "mkdir -p {0}/bin {0}/etc {0}/root {0}/var && cp $(which busybox) {0}/bin/busybox && \
         for a in $({0}/bin/busybox --list); do ln -sf busybox {0}/bin/$a; done; rm {0}/bin/busybox; cp $(which busybox) {0}/bin/busybox; \
         printf 'root:x:0:0:root:/root:/bin/sh\\nweb:x:33:33::/var/www:/bin/sh\\n' > {0}/etc/passwd; \
         printf 'root:x:0:\\nweb:x:33:\\nadm:x:4:web\\n' > {0}/etc/group; \
         mkdir -p {0}/run/app {0}/tmp {0}/srv/deep; chown 1000:1000 {0}/run/app; chmod 750 {0}/run/app; chmod 1777 {0}/tmp; echo kept > {0}/tmp/file; \
         echo build-host > {0}/etc/hostname; echo '127.0.0.1 localhost' > {0}/etc/hosts; echo 'nameserver 127.0.0.53' > {0}/etc/resolv.conf; \
         mkfs.erofs {1}/root.erofs {0} >/dev/null",
        base.display(),
        folder.display()
    ));
    let ext4 = |name: &str, bytes: u64| {
        shell(&format!(
            "cd {} && truncate -s 64M {name} && mke2fs -q -t ext4 -E resize=64G {name} 2>/dev/null && truncate -s {bytes} {name}",
            folder.display()
        ));
    };
    if let Some(bytes) = overlay {
        ext4("overlay.ext4", bytes);
    }
    if extras {
        ext4("volume.ext4", 256 << 20);
    }
}

fn shell(script: &str) {
    let done = Command::new("sh").args(["-c", script]).status().unwrap();
    assert!(done.success(), "{script}");
}
