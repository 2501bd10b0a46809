//! A thread that serves one device whose I/O may wait, so that no other device waits with it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::vcpu::StopSink;
use crate::virtio::{Next, VirtioPciDevice};

/// A worker's calls are shallow; its buffers are guest memory.
const STACK_BYTES: usize = 256 << 10;

/// The thread.
#[derive(Debug)]
pub struct Worker {
    device: Arc<VirtioPciDevice>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts serving. `prepare` runs on the thread first (its own jail).
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn spawn(
        device: Arc<VirtioPciDevice>,
        prepare: fn() -> io::Result<()>,
        stops: Arc<dyn StopSink>,
    ) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let (own, over) = (Arc::clone(&device), Arc::clone(&ended));
        let name = format!("io{}", device.slot());
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // Without its jail the thread serves nobody; the guest sees a disk that does not answer.
                if prepare().is_ok() {
                    work(&own, &over, &*stops);
                }
            })?;
        Ok(Self {
            device,
            ended,
            thread: Some(thread),
        })
    }
}

fn work(device: &VirtioPciDevice, ended: &AtomicBool, stops: &dyn StopSink) {
    // A backend that has a worker waits, so it is not served at once.
    let Some(doorbell) = device.doorbell() else {
        return;
    };
    let mut deadline: Option<Instant> = None;
    while !ended.load(Ordering::Acquire) {
        let mut ready = libc::pollfd {
            fd: doorbell.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| libc::timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one descriptor, a time that lives through the call or none, no signal mask.
        unsafe { libc::ppoll(&raw mut ready, 1, timeout, std::ptr::null()) };
        if ready.revents != 0 {
            let _ = doorbell.read();
        }
        deadline = match device.serve_waiting() {
            Ok(Next::Again) => Some(Instant::now()),
            Ok(Next::At(at)) => Some(at),
            // A broken device stands still until its driver resets it, which rings.
            Ok(Next::Wait) | Err(_) => None,
        };
        if device.is_paused() {
            stops.quiet();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.device.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
