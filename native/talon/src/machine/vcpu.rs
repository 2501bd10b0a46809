//! A processor: one thread that runs the guest until it is told to park.
//!
//! ```text
//!            pause                     resume
//! Running ──────────▶ (exit pending) ──────────▶ …
//!    │  immediate_exit = 1, signal; KVM_RUN finishes the instruction under way and returns EINTR
//!    └──▶ Parked: the vCPU's lock is free, its state can be read and written by others
//! ```
//!
//! `immediate_exit` is set before the signal is sent, so a signal that arrives outside KVM_RUN is not lost: the next
//! KVM_RUN returns at once (Documentation/virt/kvm/api.rst, "immediate_exit").

use std::io;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::bus::{Bus, Request};

/// Why a processor stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The guest asked for it.
    Request(Request),
    /// The guest told of its panic; it goes on running.
    Panicked,
    /// A triple fault.
    TripleFault,
    /// KVM cannot go on; what it said.
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Parked,
    Running,
    Ended,
}

#[derive(Debug)]
struct RunState {
    wanted: Phase,
    actual: Phase,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<RunState>,
    changed: Condvar,
    vcpu: Mutex<VcpuFd>,
    immediate_exit: AtomicPtr<u8>,
}

/// Where stops are told.
pub trait StopSink: Send + Sync {
    /// A processor stopped.
    fn stopped(&self, cpu: u8, stop: Stop);
    /// A paused device has no request under way.
    fn quiet(&self);
}

/// A processor and its thread.
#[derive(Debug)]
pub struct Vcpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Signal that takes a thread out of KVM_RUN.
fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Installs the handler of the kick, which has nothing to do but to exist.
///
/// # Errors
/// When the host refuses.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn ignore(_: i32) {}
    // SAFETY: `action` is fully initialised, the handler does nothing and so is safe at any point.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        if libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

impl Vcpu {
    /// One without a thread, parked.
    #[must_use]
    pub fn new(mut vcpu: VcpuFd) -> Self {
        let immediate_exit = AtomicPtr::new(&raw mut vcpu.get_kvm_run().immediate_exit);
        let shared = Arc::new(Shared {
            state: Mutex::new(RunState {
                wanted: Phase::Parked,
                actual: Phase::Parked,
            }),
            changed: Condvar::new(),
            vcpu: Mutex::new(vcpu),
            immediate_exit,
        });
        Self {
            shared,
            thread: None,
        }
    }

    /// Begins the thread, the guest running at once or parked. `prepare` runs on it first (the thread's own jail).
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(
        &mut self,
        cpu: u8,
        bus: Arc<Bus>,
        stops: Arc<dyn StopSink>,
        prepare: fn() -> io::Result<()>,
        running: bool,
    ) -> io::Result<()> {
        if running {
            // So that the thread finds its order and nobody has to wake it.
            lock(&self.shared.state).wanted = Phase::Running;
        }
        let own = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{cpu}"))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                if let Err(error) = prepare() {
                    stops.stopped(
                        cpu,
                        Stop::Failed(format!("cannot shut the thread's jail: {error}")),
                    );
                    return;
                }
                own.live(cpu, &bus, &*stops);
            })?;
        self.thread = Some(thread);
        Ok(())
    }

    fn ask(&self, wanted: Phase) {
        let mut state = lock(&self.shared.state);
        if state.wanted != Phase::Ended {
            state.wanted = wanted;
        }
        self.shared.changed.notify_all();
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.shared.set_immediate_exit(0);
        self.ask(Phase::Running);
    }

    /// Asks the thread to park; [`Vcpu::wait_parked`] waits for it. Two calls, so that many processors stop at once.
    pub fn ask_park(&self) {
        self.ask(Phase::Parked);
        self.kick();
    }

    fn kick(&self) {
        self.shared.set_immediate_exit(1);
        if let Some(thread) = &self.thread {
            use std::os::unix::thread::JoinHandleExt;
            // SAFETY: the thread has not been joined, so its id is valid.
            unsafe { libc::pthread_kill(thread.as_pthread_t() as libc::pthread_t, kick_signal()) };
        }
    }

    /// Waits until the thread is parked.
    pub fn wait_parked(&self) {
        let mut state = lock(&self.shared.state);
        while state.actual == Phase::Running {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The processor's state; waits while it runs.
    pub fn state(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.shared.vcpu)
    }
}

/// A processor's thread calls little: exits are handled on the way.
pub const STACK_BYTES: usize = 256 << 10;

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.ask(Phase::Ended);
        self.kick();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been told already, by the process ending.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn set_immediate_exit(&self, value: u8) {
        let byte = self.immediate_exit.load(Ordering::Relaxed);
        // SAFETY: points into the kvm_run page of `self.vcpu`, which stays mapped as long as `self`; KVM and the other
        // thread only read the byte, so an atomic store is enough.
        unsafe { AtomicU8::from_ptr(byte) }.store(value, Ordering::SeqCst);
    }

    fn live(&self, cpu: u8, bus: &Bus, stops: &dyn StopSink) {
        loop {
            let mut state = lock(&self.state);
            while state.wanted == Phase::Parked {
                if state.actual != Phase::Parked {
                    state.actual = Phase::Parked;
                    self.changed.notify_all();
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.actual = state.wanted;
            if state.actual == Phase::Ended {
                return;
            }
            drop(state);
            if let Some(stop) = run(&mut lock(&self.vcpu), cpu, bus, stops) {
                // Parks itself first, so that whoever hears of the stop finds it parked.
                let mut state = lock(&self.state);
                if state.wanted == Phase::Running {
                    state.wanted = Phase::Parked;
                }
                state.actual = Phase::Parked;
                self.changed.notify_all();
                drop(state);
                stops.stopped(cpu, stop);
            }
        }
    }
}

/// Runs the guest until somebody kicks (none) or the guest stops.
fn run(vcpu: &mut VcpuFd, cpu: u8, bus: &Bus, stops: &dyn StopSink) -> Option<Stop> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if bus.write_memory(address, data) {
                    stops.stopped(cpu, Stop::Panicked);
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => bus.read_memory(address, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(request) = bus.write_port(port, data) {
                    return Some(Stop::Request(request));
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => bus.read_port(port, data),
            Ok(VcpuExit::Intr) => return None,
            Ok(VcpuExit::Shutdown) => return Some(Stop::TripleFault),
            Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => {}
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                return Some(match kind {
                    kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Stop::Request(Request::PowerOff),
                    kvm_bindings::KVM_SYSTEM_EVENT_RESET => Stop::Request(Request::Reset),
                    other => Stop::Failed(format!("system event {other}")),
                });
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Some(Stop::Failed(format!(
                    "entry failed, hardware reason {reason:#x}"
                )));
            }
            Ok(VcpuExit::InternalError) => {
                return Some(Stop::Failed("KVM internal error".to_owned()));
            }
            Ok(other) => return Some(Stop::Failed(format!("unexpected exit {other:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR => return None,
                libc::EAGAIN => {}
                // The host took the memory away under the guest: a file that was cut short.
                libc::EFAULT => {
                    return Some(Stop::Failed(
                        "guest memory is gone from the host".to_owned(),
                    ));
                }
                _ => return Some(Stop::Failed(format!("KVM_RUN failed: {error}"))),
            },
        }
    }
}
