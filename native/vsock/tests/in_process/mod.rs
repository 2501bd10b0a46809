//! A device in this process: a muxer and two queues, in the one thread of the guest.

#![allow(
    clippy::unwrap_used,
    reason = "a rig that cannot be made fails its case"
)]

use std::{
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aerie_vsock::{
    Config, Limits, Muxer, Rings,
    conformance::{QUEUE_SIZE, QueuePlace, Rig, Scratch, Setup},
    serve,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

#[derive(Debug)]
pub struct InProcess {
    pub muxer: Muxer,
    queues: Option<[Queue; 2]>,
    memory: GuestMemoryMmap,
    socket: PathBuf,
    prefix: PathBuf,
    kicked: bool,
    limits: Limits,
    _scratch: Scratch,
}

pub fn in_process(limits: Limits) -> InProcess {
    let scratch = Scratch::new();
    let (socket, prefix) = (scratch.join("v"), scratch.join("g"));
    let listener = UnixListener::bind(&socket).unwrap();
    let config = Config {
        cid: 42,
        connect_prefix: prefix.clone(),
        limits: limits.clone(),
    };
    InProcess {
        muxer: Muxer::new(config, listener).unwrap(),
        queues: None,
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap(),
        socket,
        prefix,
        kicked: false,
        limits,
        _scratch: scratch,
    }
}

fn queue(place: QueuePlace, event_idx: bool) -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(place.descriptors))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(place.avail))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(place.used))
        .unwrap();
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    queue
}

impl InProcess {
    /// What the loop of a VMM does after it was woken. `None` where nothing wants it awake.
    fn work(&mut self) -> [bool; 2] {
        self.muxer.on_event().unwrap();
        let mut interrupts = [false; 2];
        let Some([rx, tx]) = &mut self.queues else {
            return interrupts;
        };
        loop {
            let served = serve(&mut self.muxer, &self.memory, Rings { rx, tx }).unwrap();
            interrupts[0] |= served.rx;
            interrupts[1] |= served.tx;
            if !served.more {
                return interrupts;
            }
        }
    }
}

impl Rig for InProcess {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn cid(&self) -> u64 {
        self.muxer.cid()
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
        self.queues = Some([
            queue(setup.queues[0], setup.event_idx),
            queue(setup.queues[1], setup.event_idx),
        ]);
        self.kicked = true;
    }

    fn reset(&mut self) {
        self.queues = None;
        self.muxer.reset();
    }

    fn kick(&mut self, _queue: usize) {
        self.kicked = true;
    }

    /// Strict: the queues are served only after a kick or an event of the muxer.
    fn wait(&mut self, timeout: Duration) -> [bool; 2] {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = if std::mem::take(&mut self.kicked) {
                Some(Duration::ZERO)
            } else {
                Some(left)
            };
            let woken = readable(self.muxer.poll_fd(), left.unwrap_or_default());
            if !woken && Instant::now() < until && left != Some(Duration::ZERO) {
                continue;
            }
            let interrupts = if woken || left == Some(Duration::ZERO) {
                self.work()
            } else {
                [false; 2]
            };
            if interrupts != [false; 2] || Instant::now() >= until {
                return interrupts;
            }
        }
    }

    fn streams(&self) -> usize {
        self.muxer.connections()
    }
}

fn readable(fd: i32, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one pollfd that lives through the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, ms) };
    assert!(ready >= 0, "poll: {}", std::io::Error::last_os_error());
    ready > 0
}
