//! The device: guest memory, three rings, the muxer, and when they run.
//!
//! vhost-user has no message for "the guest was reset". QEMU stops the rings with `GET_VRING_BASE` both when its
//! guest reboots and when it is merely paused (`stop`, a snapshot), and starts them again with `SET_VRING_BASE`: at 0
//! after a reset, at the place where they stopped after a pause. So the difference is made at the start: rings that
//! go on where they were keep their connections, all others lose them. Both rings back at 0 after 65,536 packets each
//! would look like a reset, which costs connections and no correctness.
//!
//! A device that QEMU has just plugged in knows of no positions and gives 0 for each, though the guest's driver may have
//! been at work for long: when its guest was restored, and when the device was taken out and put back around a save
//! (a second `SET_OWNER`). Then a ring goes on where it was stopped, or where its used ring stands in guest memory: a
//! stopped ring holds no buffer that was taken and not given back.

use std::{io, sync::Arc};

use aerie_vsock::{Muxer, MuxerError, Rings, serve};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::Epoll;

use super::{error::VsockError, ring::Ring};

/// The queues of the specification. QEMU keeps the event queue to itself; another VMM may offer it, and it stays idle.
pub const RINGS: usize = 3;
const RX: usize = 0;
const TX: usize = 1;

/// One region of guest memory in the VMM's own addresses, in which it names the rings.
#[derive(Debug)]
pub struct Mapping {
    pub vmm: u64,
    pub guest: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub struct Device {
    pub muxer: Muxer,
    pub rings: [Ring; RINGS],
    pub memory: Option<GuestMemoryMmap>,
    pub mappings: Vec<Mapping>,
    /// Both data rings are served.
    running: bool,
    /// A VMM has taken it.
    owned: bool,
    /// The VMM does not know the positions of the rings at their next start.
    replugged: bool,
}

impl Device {
    /// A device whose rings' kicks arrive in `epoll` under the numbers of the rings.
    pub fn new(muxer: Muxer, epoll: &Arc<Epoll>, restored: bool) -> Result<Self, VsockError> {
        let ring = |token| {
            Ring::new(Arc::clone(epoll), token).map_err(|source| VsockError::Io {
                what: "make a queue",
                source: io::Error::other(source),
            })
        };
        Ok(Self {
            muxer,
            rings: [ring(0)?, ring(1)?, ring(2)?],
            memory: None,
            mappings: Vec::new(),
            running: false,
            owned: false,
            replugged: restored,
        })
    }

    /// A VMM takes the device, or plugs it in once more.
    pub fn own(&mut self) {
        self.replugged |= self.owned;
        self.owned = true;
    }

    /// Finds where an address of the VMM lies in guest memory.
    pub fn guest_address(&self, vmm: u64) -> Option<u64> {
        self.mappings.iter().find_map(|mapping| {
            let at = vmm
                .checked_sub(mapping.vmm)
                .filter(|at| *at < mapping.bytes)?;
            mapping.guest.checked_add(at)
        })
    }

    /// Starts or stops serving; must be called after every change of a ring.
    pub fn update(&mut self) {
        let complete = self.memory.is_some() && self.rings[..2].iter().all(Ring::is_complete);
        if complete && !self.running {
            self.start();
        }
        self.running = complete;
    }

    fn start(&mut self) {
        let Some(memory) = &self.memory else { return };
        let data = &mut self.rings[..2];
        if std::mem::take(&mut self.replugged) {
            for ring in data.iter_mut().filter(|ring| ring.base == 0) {
                let used = || {
                    ring.queue
                        .used_idx(memory, std::sync::atomic::Ordering::Acquire)
                };
                ring.base = ring
                    .stopped_at
                    .or_else(|| used().ok().map(|at| at.0))
                    .unwrap_or(0);
            }
        }
        let goes_on = data.iter().all(|ring| ring.stopped_at == Some(ring.base))
            && data.iter().any(|ring| ring.base != 0);
        if !goes_on {
            self.muxer.reset();
        }
        for ring in data {
            ring.queue.set_next_avail(ring.base);
            ring.queue.set_ready(true);
            // The VMM says nothing of the used ring: its index is in the guest, where the last back-end left it.
            let used = ring
                .queue
                .used_idx(memory, std::sync::atomic::Ordering::Acquire);
            let usable = ring.queue.is_valid(memory);
            match used {
                Ok(used) if usable => ring.queue.set_next_used(used.0),
                _ => ring.queue.set_ready(false),
            }
        }
    }

    /// Stops a ring; gives back its position.
    pub fn stop(&mut self, index: usize) -> io::Result<u16> {
        let ring = self
            .rings
            .get_mut(index)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let at = ring.stop()?;
        self.update();
        Ok(at)
    }

    /// The whole device is reset, as `RESET_DEVICE` says.
    pub fn reset(&mut self) {
        self.replugged = false;
        for ring in &mut self.rings {
            ring.enabled = false;
            ring.queue.set_ready(false);
        }
        self.muxer.reset();
        self.update();
    }

    pub fn on_muxer(&mut self) -> Result<(), MuxerError> {
        self.muxer.on_event()
    }

    pub fn on_kick(&mut self, index: usize) {
        if let Some(ring) = self.rings.get(index) {
            ring.clear_kick();
        }
    }

    /// Moves packets and interrupts the guest. Whether there is more to do at once.
    pub fn serve(&mut self) -> bool {
        let Some(memory) = self.memory.as_ref().filter(|_| self.running) else {
            return false;
        };
        let [rx, tx, _] = &mut self.rings;
        match serve(
            &mut self.muxer,
            memory,
            Rings {
                rx: &mut rx.queue,
                tx: &mut tx.queue,
            },
        ) {
            Ok(served) => {
                if served.rx {
                    self.rings[RX].call();
                }
                if served.tx {
                    self.rings[TX].call();
                }
                served.more
            }
            Err(_) => {
                // A driver that breaks its rings has no device until it resets it; its host peers need not wait.
                for ring in &mut self.rings {
                    ring.queue.set_ready(false);
                }
                self.muxer.reset();
                false
            }
        }
    }
}
