//! What a device under test has to offer.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use vm_memory::GuestMemoryMmap;

use crate::Limits;

/// Entries of the queues that the suite sets up; QEMU's vsock has as many.
pub const QUEUE_SIZE: u16 = 128;

/// The place of a queue in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct QueuePlace {
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
}

/// What a driver tells a device at its start.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// rx, tx, event; all of [`QUEUE_SIZE`] entries.
    pub queues: [QueuePlace; 3],
    /// `VIRTIO_RING_F_EVENT_IDX`
    pub event_idx: bool,
}

/// A device with its guest's memory and its place on the host.
pub trait Rig {
    /// The guest's memory: at least 16 MiB from address 0.
    fn memory(&self) -> &GuestMemoryMmap;

    fn cid(&self) -> u64;

    /// The limits that it really has: not every device can be given others.
    fn limits(&self) -> Limits;

    /// The socket to which the host's programs connect.
    fn socket(&self) -> &Path;

    /// The prefix of the sockets to which the guest's connections go.
    fn prefix(&self) -> &Path;

    /// The driver starts the device, from reset.
    fn start(&mut self, setup: &Setup);

    /// The guest is reset.
    fn reset(&mut self);

    fn kick(&mut self, queue: usize);

    /// Lets the device work until it interrupts or the time is over; which of rx and tx it interrupted for.
    fn wait(&mut self, timeout: Duration) -> [bool; 2];

    /// Streams of the host that the device holds.
    fn streams(&self) -> usize;
}

/// Makes the rigs of a suite.
pub type Bench<'a, R> = &'a mut dyn FnMut(Limits) -> R;

/// A folder of its own for the sockets of a rig; gone with it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    #[expect(clippy::new_without_default, reason = "it has an effect")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "aerie-vsock-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a folder for sockets");
        Self(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
