//! `wing vsock` as a rig of the conformance suite: a VMM that speaks vhost-user and has no CPU.

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use aerie_vsock::{
    Limits,
    conformance::{QUEUE_SIZE, Rig, Scratch, Setup},
};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures},
    },
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const MEMORY_BYTES: usize = 32 << 20;
const CID: u64 = 42;

pub struct Wing {
    pub child: Child,
    /// `None` once the VMM is gone.
    pub frontend: Option<Frontend>,
    memory: GuestMemoryMmap,
    file: File,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    setup: Option<Setup>,
    limits: Limits,
    socket: PathBuf,
    prefix: PathBuf,
    _scratch: Scratch,
}

fn spawn(
    limits: &Limits,
    listener: UnixListener,
    prefix: &Path,
    more: &[&str],
) -> (Child, Frontend) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_wing"))
        .args(["vsock", "--vhost-fd", "0", "--listen-fd", "1"])
        .args(["--cid", &CID.to_string()])
        .args([
            "--connect-timeout-ms",
            &limits.connect.as_millis().to_string(),
        ])
        .arg("--connect-prefix")
        .arg(prefix)
        .args(more)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(OwnedFd::from(listener)))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (child, Frontend::from_stream(ours, 2))
}

impl Wing {
    /// Starts the program; only the timeout of connects can be said on its command line.
    pub fn new(limits: Limits) -> Self {
        let scratch = Scratch::new();
        let (socket, prefix) = (scratch.join("v"), scratch.join("g"));
        let listener = UnixListener::bind(&socket).unwrap();
        let (child, frontend) = spawn(&limits, listener, &prefix, &[]);
        // SAFETY: the name is a C string; the result is checked by the first use.
        let file =
            unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(MEMORY_BYTES as u64).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            child,
            frontend: Some(frontend),
            memory: GuestMemoryMmap::from_ranges_with_files([(
                GuestAddress(0),
                MEMORY_BYTES,
                Some(mapped),
            )])
            .unwrap(),
            file,
            kicks: [event(), event()],
            calls: [event(), event()],
            setup: None,
            limits: Limits {
                connect: limits.connect,
                ..Limits::default()
            },
            socket,
            prefix,
            _scratch: scratch,
        }
    }

    /// Another host's device for the guest, as after a restore: nothing of the first one is known to it.
    pub fn restore(&mut self) {
        self.frontend = None;
        assert_eq!(self.end(), (Some(0), String::new()));
        std::fs::remove_file(&self.socket).unwrap();
        let listener = UnixListener::bind(&self.socket).unwrap();
        let (child, frontend) = spawn(&self.limits, listener, &self.prefix, &["--restored"]);
        frontend.set_owner().unwrap();
        self.child = child;
        self.frontend = Some(frontend);
    }

    /// The messages of a VMM whose guest starts its device, or goes on with it at `bases`.
    pub fn start_at(&mut self, bases: [u16; 2]) {
        let setup = self.setup.expect("set up before");
        let frontend = self.frontend.as_mut().unwrap();
        let host = self.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_ne!(frontend.get_features().unwrap() & protocol, 0);
        frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(VhostUserProtocolFeatures::CONFIG)
            .unwrap();
        let event_idx = if setup.event_idx { EVENT_IDX } else { 0 };
        frontend
            .set_features(VERSION_1 | protocol | event_idx)
            .unwrap();
        let region = self.memory.iter().next().unwrap();
        frontend
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: 0,
                memory_size: region.len(),
                userspace_addr: host,
                mmap_offset: 0,
                mmap_handle: self.file.as_raw_fd(),
            }])
            .unwrap();
        for (index, base) in bases.into_iter().enumerate() {
            let place = setup.queues[index];
            frontend.set_vring_num(index, QUEUE_SIZE).unwrap();
            frontend.set_vring_base(index, base).unwrap();
            frontend
                .set_vring_addr(
                    index,
                    &VringConfigData {
                        queue_max_size: QUEUE_SIZE,
                        queue_size: QUEUE_SIZE,
                        flags: 0,
                        desc_table_addr: host + place.descriptors,
                        used_ring_addr: host + place.used,
                        avail_ring_addr: host + place.avail,
                        log_addr: None,
                    },
                )
                .unwrap();
        }
        self.give_events();
    }

    /// The kick and call descriptors, and the word that the rings run.
    pub fn give_events(&mut self) {
        let frontend = self.frontend.as_mut().unwrap();
        for index in 0..2 {
            frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
            frontend.set_vring_call(index, &self.calls[index]).unwrap();
            frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Stops the rings, as for a reset or a pause of the guest; where they were.
    pub fn stop(&mut self) -> [u16; 2] {
        let frontend = self.frontend.as_mut().unwrap();
        [0, 1].map(|index| {
            frontend.set_vring_enable(index, false).unwrap();
            u16::try_from(frontend.get_vring_base(index).unwrap()).unwrap()
        })
    }

    /// A line of `/proc/PID/status`, in kB or as a count.
    pub fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The exit code, soon, and what was said on stderr.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut said = String::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    stderr.read_to_string(&mut said).unwrap();
                }
                return (status.code(), said);
            }
            assert!(Instant::now() < until, "wing outlives its VMM");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Rig for Wing {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn cid(&self) -> u64 {
        CID
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn socket(&self) -> &Path {
        &self.socket
    }

    fn prefix(&self) -> &Path {
        &self.prefix
    }

    fn start(&mut self, setup: &Setup) {
        if self.setup.is_none() {
            self.frontend.as_mut().unwrap().set_owner().unwrap();
        }
        self.setup = Some(*setup);
        self.start_at([0, 0]);
    }

    fn reset(&mut self) {
        self.stop();
    }

    fn kick(&mut self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    fn wait(&mut self, timeout: Duration) -> [bool; 2] {
        let mut polls = [0, 1].map(|index| libc::pollfd {
            fd: self.calls[index].as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        let ms = i32::try_from(timeout.as_millis()).unwrap();
        // SAFETY: two pollfds that live through the call.
        assert!(unsafe { libc::poll(polls.as_mut_ptr(), 2, ms) } >= 0);
        [0, 1].map(|index| self.calls[index].read().is_ok())
    }

    fn streams(&self) -> usize {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let links = folder.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        // All sockets but the VMM's stream and the listener.
        links
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
            - 2
    }
}

impl Drop for Wing {
    fn drop(&mut self) {
        self.frontend = None;
        if std::thread::panicking() {
            let _ = self.child.kill();
        } else {
            let (code, said) = self.end();
            assert_eq!(
                (code, said.as_str()),
                (Some(0), ""),
                "wing ends with its VMM"
            );
        }
    }
}
