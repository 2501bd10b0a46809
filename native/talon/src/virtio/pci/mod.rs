//! A virtio device as a PCI device (virtio 1.2, section 4.1): registers, negotiation, queues and interrupts.
//!
//! All registers lie in one page of the read-only slot: common configuration at 0, ISR at 0x80, device configuration at
//! 0x100, MSI-X table at 0x800, pending bits at 0xc00. Doorbells are BAR 2, one address for all queues, so one ioeventfd
//! serves the device.

mod common;
mod state;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Ram;
use crate::pci::msix::{NO_VECTOR, PENDING, TABLE, TABLE_BYTES, VECTORS};
use crate::pci::{ConfigSpace, MsiSink, Msix, Window, config::Identity};
use crate::virtio::chain::{Io, Returned, ServeError};
use crate::virtio::{Backend, CONFIG_BYTES, Command, Next, Source, Taken, feature};

const COMMON_BYTES: usize = 0x38;
const ISR: usize = 0x80;
const DEVICE: usize = 0x100;
const VENDOR: u16 = 0x1af4;

const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 64;

/// Serves without a wait between them before other work gets its turn.
const ROUNDS_MAX: usize = 16;
/// How long these may go on: a round is bounded by its device, and a guest can make each as long as it may be.
const TURN_MAX: Duration = Duration::from_millis(2);

struct Inner {
    config: ConfigSpace,
    msix: Msix,
    msix_control: usize,
    backend: Box<dyn Backend>,
    queues: Vec<Queue>,
    vectors: Vec<u16>,
    config_vector: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    generation: u8,
    queue_select: u16,
    paused: bool,
    /// A request is under way on the worker's thread, outside the lock.
    in_flight: bool,
    /// The driver reset the device meanwhile: done, and shown, when the request is.
    reset_due: bool,
    returned: VecDeque<Returned>,
    broken: u64,
}

impl Inner {
    /// Whether requests are served: the driver is ready, and neither it nor the host said stop.
    fn serves(&self) -> bool {
        !self.paused && !self.reset_due && self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }
}

/// One virtio PCI device.
pub struct VirtioPciDevice {
    slot: u8,
    id: String,
    ram: Arc<Ram>,
    window: Arc<Window>,
    sink: Arc<dyn MsiSink>,
    doorbell: Option<EventFd>,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for VirtioPciDevice {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("VirtioPciDevice")
            .field("slot", &self.slot)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A queue of a wrong size is a mistake in a backend, found by its first test.
fn new_queues(sizes: &[u16]) -> Vec<Queue> {
    sizes
        .iter()
        .map(|size| Queue::new(*size).expect("queue sizes are powers of two"))
        .collect()
}

impl VirtioPciDevice {
    /// Puts `backend` in `slot` and shows it to the guest.
    ///
    /// # Errors
    /// When no eventfd is to be had.
    pub fn new(
        slot: u8,
        id: String,
        backend: Box<dyn Backend>,
        ram: Arc<Ram>,
        window: Arc<Window>,
        sink: Arc<dyn MsiSink>,
    ) -> io::Result<Self> {
        let kind = backend.kind();
        let device = 0x1040 + kind as u16;
        let identity = Identity {
            vendor: VENDOR,
            device,
            class: kind.class(),
            revision: 1,
            subsystem: device,
        };
        let mut config = ConfigSpace::new(slot, identity);
        let capability = |kind: u8, bar: u8, offset: usize, bytes: usize| {
            let mut body = [0u8; 14];
            body[0] = 16;
            body[1] = kind;
            body[2] = bar;
            body[6..10].copy_from_slice(&u32::try_from(offset).unwrap_or(0).to_le_bytes());
            body[10..14].copy_from_slice(&u32::try_from(bytes).unwrap_or(0).to_le_bytes());
            body
        };
        config.add_capability(9, &capability(1, 0, 0, COMMON_BYTES));
        config.add_capability(9, &capability(3, 0, ISR, 4));
        config.add_capability(9, &capability(4, 0, DEVICE, CONFIG_BYTES));
        let mut notify = [0u8; 18];
        notify[..14].copy_from_slice(&capability(2, 2, 0, 4));
        // A multiplier of zero in the last four bytes: every queue rings at the same address (4.1.4.4).
        notify[0] = 20;
        config.add_capability(9, &notify);
        let mut msix = [0u8; 10];
        msix[..2].copy_from_slice(&u16::try_from(VECTORS - 1).unwrap_or(0).to_le_bytes());
        msix[2..6].copy_from_slice(&u32::try_from(TABLE).unwrap_or(0).to_le_bytes());
        msix[6..10].copy_from_slice(&u32::try_from(PENDING).unwrap_or(0).to_le_bytes());
        let msix_control = config.add_capability(0x11, &msix) + 3;
        config.allow(msix_control, 0xc0);

        let doorbell = if backend.at_once() {
            None
        } else {
            Some(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?)
        };
        let sizes = backend.queue_sizes();
        let inner = Inner {
            config,
            msix: Msix::new(slot),
            msix_control,
            queues: new_queues(sizes),
            vectors: vec![NO_VECTOR; sizes.len()],
            backend,
            config_vector: NO_VECTOR,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            generation: 0,
            queue_select: 0,
            paused: false,
            in_flight: false,
            reset_due: false,
            returned: VecDeque::new(),
            broken: 0,
        };
        let device = Self {
            slot,
            id,
            ram,
            window,
            sink,
            doorbell,
            inner: Mutex::new(inner),
        };
        let inner = device.lock();
        inner.config.publish(&device.window);
        inner.msix.publish(&device.window);
        device.publish_config(&inner);
        device.publish_common(&inner);
        drop(inner);
        Ok(device)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic ends the process in release builds; in tests the state is still whole enough to look at.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slot on the bus.
    #[must_use]
    pub fn slot(&self) -> u8 {
        self.slot
    }

    /// Name of the device in the configuration.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The doorbell: KVM writes it when the guest rings. None for a device that is served by who rings.
    #[must_use]
    pub fn doorbell(&self) -> Option<&EventFd> {
        self.doorbell.as_ref()
    }

    /// Rings: whoever serves the device looks at it, which may be the caller, before this returns.
    pub fn ring(&self) {
        match &self.doorbell {
            Some(doorbell) => drop(doorbell.write(1)),
            // Ends: what the guest adds meanwhile comes from its other processors, which a pause stops first. A broken
            // device stands still until its driver resets it.
            None => while matches!(self.serve(), Ok(Next::Again)) {},
        }
    }

    /// Descriptors that the loop watches for the backend.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        self.lock().backend.sources()
    }

    fn features(inner: &Inner) -> u64 {
        inner.backend.features() | feature::VERSION_1 | feature::EVENT_IDX
    }

    fn publish_config(&self, inner: &Inner) {
        let mut config = [0u8; CONFIG_BYTES];
        inner.backend.config(&mut config);
        self.window.write_registers(self.slot, DEVICE, &config);
    }

    fn raise(&self, inner: &mut Inner, vector: u16) {
        inner.msix.raise(vector, &self.window, &*self.sink);
    }

    fn config_changed(&self, inner: &mut Inner) {
        inner.generation = inner.generation.wrapping_add(1);
        self.publish_config(inner);
        self.publish_common(inner);
        if inner.status & DRIVER_OK != 0 {
            let vector = inner.config_vector;
            self.raise(inner, vector);
        }
    }

    /// The guest wrote to the configuration space.
    pub fn write_config(&self, offset: usize, data: &[u8]) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.config.write(&self.window, offset, data);
        if offset <= inner.msix_control && inner.msix_control < offset + data.len() {
            let control = inner.config.byte(inner.msix_control);
            inner.msix.set_control(control, &self.window, &*self.sink);
        }
    }

    /// The guest wrote to BAR 0.
    pub fn write_registers(&self, offset: usize, data: &[u8]) {
        let mut inner = self.lock();
        match offset {
            0..COMMON_BYTES => {
                let was = inner.status;
                self.write_common(&mut inner, offset, data);
                self.publish_common(&inner);
                if !was & inner.status & DRIVER_OK != 0 {
                    drop(inner);
                    // Whatever the device has to say first must not wait for the guest.
                    self.ring();
                }
            }
            DEVICE..TABLE if offset + data.len() <= DEVICE + CONFIG_BYTES => {
                inner.backend.write_config(offset - DEVICE, data);
                self.publish_config(&inner);
            }
            TABLE..PENDING if offset + data.len() <= TABLE + TABLE_BYTES => {
                inner
                    .msix
                    .write(offset - TABLE, data, &self.window, &*self.sink);
            }
            _ => {}
        }
    }

    /// The guest broke the device: it stands still until the driver resets it (2.1.2).
    fn fail(&self, inner: &mut Inner) {
        inner.status |= NEEDS_RESET;
        inner.broken += 1;
        inner.returned.clear();
        self.config_changed(inner);
    }

    /// Serves until nothing is left to do now. Returns what the backend wants next, or the error that broke the device.
    ///
    /// # Errors
    /// When the guest broke a rule; the device then needs a reset and serves nothing.
    pub fn serve(&self) -> Result<Next, ServeError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !inner.serves() {
            return Ok(Next::Wait);
        }
        let began = Instant::now();
        for _ in 0..ROUNDS_MAX {
            let mut io = Io::new(self.ram.guest(), &mut inner.queues, &mut inner.returned);
            let served = inner.backend.serve(&mut io);
            let changed = io.config_changed;
            let interrupted = self.interrupt(inner);
            if changed {
                self.config_changed(inner);
            }
            match served.and_then(|next| interrupted.map(|()| next)) {
                Ok(Next::Again) if began.elapsed() < TURN_MAX => {}
                Ok(next) => return Ok(next),
                Err(error) => {
                    self.fail(inner);
                    return Err(error);
                }
            }
        }
        Ok(Next::Again)
    }

    /// Does the requests of a device that waits for the host, on the thread that is there for it. The lock is free while
    /// one is under way.
    ///
    /// # Errors
    /// As of [`VirtioPciDevice::serve`].
    pub fn serve_waiting(&self) -> Result<Next, ServeError> {
        for _ in 0..ROUNDS_MAX {
            let work = match self.take_work()? {
                Taken::Work { work, .. } => work,
                Taken::Nothing(next) => return Ok(next),
            };
            let outcome = work();
            let mut inner = self.lock();
            let inner = &mut *inner;
            inner.in_flight = false;
            if inner.reset_due {
                inner.reset_due = false;
                self.reset(inner);
                self.publish_common(inner);
                return Ok(Next::Wait);
            }
            let mut io = Io::new(self.ram.guest(), &mut inner.queues, &mut inner.returned);
            let finished = inner.backend.finish(&mut io, outcome);
            self.judge(inner, finished)?;
        }
        let mut inner = self.lock();
        let told = self.interrupt(&mut inner);
        self.judge(&mut inner, told)?;
        Ok(Next::Again)
    }

    fn take_work(&self) -> Result<Taken, ServeError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !inner.serves() {
            // What was done before a pause is told: a guest that goes on waits for it.
            let told = self.interrupt(inner);
            self.judge(inner, told)?;
            return Ok(Taken::Nothing(Next::Wait));
        }
        let mut io = Io::new(self.ram.guest(), &mut inner.queues, &mut inner.returned);
        let taken = inner.backend.take(&mut io);
        let taken = self.judge(inner, taken)?;
        match &taken {
            Taken::Work { slow: false, .. } => {}
            Taken::Work { slow: true, .. } | Taken::Nothing(_) => {
                let told = self.interrupt(inner);
                self.judge(inner, told)?;
            }
        }
        inner.in_flight = matches!(taken, Taken::Work { .. });
        Ok(taken)
    }

    /// Breaks the device over an error.
    fn judge<T>(&self, inner: &mut Inner, done: Result<T, ServeError>) -> Result<T, ServeError> {
        if done.is_err() {
            self.fail(inner);
        }
        done
    }

    fn interrupt(&self, inner: &mut Inner) -> Result<(), ServeError> {
        let mut raised = 0u32;
        while let Some(Returned { queue, decided }) = inner.returned.pop_front() {
            let wanted = decided
                || inner.queues[queue]
                    .needs_notification(self.ram.guest())
                    .map_err(|source| ServeError::Queue { queue, source })?;
            let vector = inner.vectors[queue];
            if wanted && vector != NO_VECTOR && raised & 1 << vector == 0 {
                raised |= 1 << vector;
                self.raise(inner, vector);
            }
        }
        Ok(())
    }

    /// One of the sources is ready; the caller serves next.
    pub fn source_ready(&self) {
        self.lock().backend.source_ready();
    }

    /// Asks something of the backend.
    pub fn command(&self, command: &Command) {
        let mut inner = self.lock();
        if inner.backend.command(command) {
            self.config_changed(&mut inner);
        }
    }

    /// Stops serving: no request begins any more. One of a device that waits for the host may be under way still, which
    /// [`VirtioPciDevice::is_quiet`] tells.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Whether it is paused, so that somebody may be waiting for it to be quiet.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Whether no request is under way, and the guest was told of those that were.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let inner = self.lock();
        !inner.in_flight && inner.returned.is_empty()
    }

    /// Goes on; the caller serves once, for whatever came meanwhile.
    pub fn resume(&self) {
        self.lock().paused = false;
    }

    /// Number of its queues.
    #[must_use]
    pub fn queues(&self) -> u16 {
        u16::try_from(self.lock().queues.len()).unwrap_or(u16::MAX)
    }

    /// Whether the guest broke the device and has not reset it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.lock().status & NEEDS_RESET != 0
    }

    /// Numbers for `vm.counters`.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let inner = self.lock();
        let mut counters = inner.backend.counters();
        counters.push(("device_resets_needed", inner.broken));
        counters
    }
}
