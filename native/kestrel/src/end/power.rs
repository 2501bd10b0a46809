//! What is asked of the supervisor: an end, a standstill for a snapshot; and the power itself.

use std::io;
use std::os::fd::RawFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::end::freeze;
use crate::setup::mounts::Mounted;
use crate::sys::{Wake, lock};

/// A snapshot that takes longer than this was forgotten: writers go on.
const FROZEN_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Inner {
    stop: Option<Stop>,
    thaw_at: Option<Instant>,
}

/// An end that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// `None`: the configuration's.
    pub grace: Option<Duration>,
    pub restart: bool,
}

/// Keeps what other threads tell the supervisor.
#[derive(Debug)]
pub struct Power {
    inner: Mutex<Inner>,
    wake: Wake,
}

impl Power {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inner: Mutex::default(),
            wake: Wake::new()?,
        })
    }

    /// Asks for the guest's end. A second, shorter grace shortens the first.
    pub fn stop(&self, grace: Option<Duration>) {
        self.ask(Stop {
            grace,
            restart: false,
        });
    }

    pub fn ask(&self, stop: Stop) {
        lock(&self.inner).stop = Some(stop);
        self.wake.set();
    }

    /// Gives the end that was asked for, if one was.
    pub fn asked(&self) -> Option<Stop> {
        lock(&self.inner).stop
    }

    /// Gives the moment at which writers go on by themselves, while disks are frozen.
    pub fn thaw_at(&self) -> Option<Instant> {
        lock(&self.inner).thaw_at
    }

    /// Becomes readable when something was asked of the supervisor, or may have happened.
    pub fn wake_fd(&self) -> RawFd {
        self.wake.fd()
    }

    pub fn clear_wake(&self) {
        self.wake.clear();
    }

    /// Something that the supervisor waits for may have happened.
    pub fn nudge(&self) {
        self.wake.set();
    }

    /// Freezes every writable disk until [`thaw`](Self::thaw), at most [`FROZEN_MAX`].
    ///
    /// # Errors
    /// A file system that refuses; none is frozen then.
    pub fn quiesce(&self, mounted: &Mutex<Mounted>) -> io::Result<()> {
        // SAFETY: sync touches no memory.
        unsafe { libc::sync() };
        lock(&self.inner).thaw_at = Some(Instant::now() + FROZEN_MAX);
        self.wake.set();
        let frozen: io::Result<()> = lock(mounted)
            .writable
            .iter()
            .try_for_each(|held| freeze::freeze(&held.folder));
        if frozen.is_err() {
            self.thaw(mounted);
        }
        frozen
    }

    /// Undoes [`quiesce`](Self::quiesce); fine when there was none.
    pub fn thaw(&self, mounted: &Mutex<Mounted>) {
        lock(&self.inner).thaw_at = None;
        for held in &lock(mounted).writable {
            // Not frozen is thawed; nothing else can be done about a refusal.
            let _ = freeze::thaw(&held.folder);
        }
    }
}

/// The end, whatever the kernel makes of it.
pub fn power_off(restart: bool) -> ! {
    if !restart {
        // SAFETY: reboot touches no memory.
        unsafe { libc::reboot(libc::RB_POWER_OFF) };
    }
    // Also for a machine without a way to power off: a hypervisor that forbids reboots ends there.
    // SAFETY: as above.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    loop {
        std::thread::park();
    }
}
