//! A virtio device as a PCI function (virtio 1.2, section 4.1): registers, negotiation, queues and interrupts.
//!
//! All registers lie in one page of the read-only slot: common configuration at 0, ISR at 0x80, device configuration at
//! 0x100, MSI-X table at 0x800, pending bits at 0xc00. Doorbells are BAR 2, one address for all queues, so one ioeventfd
//! serves the function.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Io, Returned, ServeError};
use super::{Backend, CONFIG_BYTES, Command, Next, Source, feature};
use crate::memory::Ram;
use crate::pci::msix::{NO_VECTOR, PENDING, TABLE, TABLE_BYTES, VECTORS};
use crate::pci::{ConfigSpace, MsiSink, Msix, Window, config::Identity};
use crate::state::{Decoder, Encoder, StateError};

const COMMON_BYTES: usize = 0x38;
const ISR: usize = 0x80;
const DEVICE: usize = 0x100;
const VENDOR: u16 = 0x1af4;

const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 64;

/// Serves without a wait between them before other work gets its turn.
const ROUNDS_MAX: usize = 16;

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
    returned: VecDeque<Returned>,
    broken: u64,
}

/// One virtio PCI function.
pub struct Function {
    slot: u8,
    id: String,
    ram: Arc<Ram>,
    window: Arc<Window>,
    sink: Arc<dyn MsiSink>,
    kick: EventFd,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Function")
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

impl Function {
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
        let mut config = ConfigSpace::new(slot, identity, true);
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
            returned: VecDeque::new(),
            broken: 0,
        };
        let function = Self {
            slot,
            id,
            ram,
            window,
            sink,
            kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            inner: Mutex::new(inner),
        };
        let inner = function.lock();
        inner.config.publish(&function.window);
        inner.msix.publish(&function.window);
        function.publish_config(&inner);
        function.publish_common(&inner);
        drop(inner);
        Ok(function)
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

    /// The doorbell: KVM writes it when the guest rings.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Descriptors that the loop watches for the backend.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        self.lock().backend.sources()
    }

    fn features(inner: &Inner) -> u64 {
        inner.backend.features() | feature::VERSION_1 | feature::EVENT_IDX
    }

    fn publish_common(&self, inner: &Inner) {
        let mut page = [0u8; COMMON_BYTES];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        let half = |value: u64, select: u32| match select {
            0 => (value & 0xffff_ffff) as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        put(0x00, &inner.device_feature_select.to_le_bytes());
        put(
            0x04,
            &half(Self::features(inner), inner.device_feature_select).to_le_bytes(),
        );
        put(0x08, &inner.driver_feature_select.to_le_bytes());
        put(
            0x0c,
            &half(inner.driver_features, inner.driver_feature_select).to_le_bytes(),
        );
        put(0x10, &inner.config_vector.to_le_bytes());
        put(
            0x12,
            &u16::try_from(inner.queues.len()).unwrap_or(0).to_le_bytes(),
        );
        put(0x14, &[inner.status, inner.generation]);
        put(0x16, &inner.queue_select.to_le_bytes());
        let selected = usize::from(inner.queue_select);
        if let (Some(queue), Some(vector)) =
            (inner.queues.get(selected), inner.vectors.get(selected))
        {
            put(0x18, &queue.size().to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ready()).to_le_bytes());
            put(0x1e, &inner.queue_select.to_le_bytes());
            put(0x20, &queue.desc_table().to_le_bytes());
            put(0x28, &queue.avail_ring().to_le_bytes());
            put(0x30, &queue.used_ring().to_le_bytes());
        }
        self.window.write_registers(self.slot, 0, &page);
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
                self.write_common(&mut inner, offset, data);
                self.publish_common(&inner);
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

    fn write_common(&self, inner: &mut Inner, offset: usize, data: &[u8]) {
        let mut raw = [0u8; 8];
        let length = data.len().min(8);
        raw[..length].copy_from_slice(&data[..length]);
        let value = u64::from_le_bytes(raw);
        let (low, half, byte) = (
            (value & 0xffff_ffff) as u32,
            (value & 0xffff) as u16,
            (value & 0xff) as u8,
        );
        // Queues are set up before the driver is ready and stay until it resets (2.1.2, 4.1.5.1.3).
        let selected = usize::from(inner.queue_select);
        let open = inner.status & DRIVER_OK == 0;
        match (offset, length) {
            (0x00, 4) => inner.device_feature_select = low,
            (0x08, 4) => inner.driver_feature_select = low,
            (0x0c, 4) if inner.status & FEATURES_OK == 0 => match inner.driver_feature_select {
                0 => inner.driver_features = inner.driver_features & !0xffff_ffff | u64::from(low),
                1 => {
                    inner.driver_features =
                        inner.driver_features & 0xffff_ffff | u64::from(low) << 32
                }
                _ => {}
            },
            (0x10, 2) => {
                inner.config_vector = if usize::from(half) < VECTORS {
                    half
                } else {
                    NO_VECTOR
                }
            }
            (0x14, 1) => self.write_status(inner, byte),
            (0x16, 2) => inner.queue_select = half,
            (0x1a, 2) => {
                if let Some(vector) = inner.vectors.get_mut(selected) {
                    *vector = if usize::from(half) < VECTORS {
                        half
                    } else {
                        NO_VECTOR
                    };
                }
            }
            (0x18..COMMON_BYTES, _) if open => {
                let Some(queue) = inner.queues.get_mut(selected) else {
                    return;
                };
                match (offset, length) {
                    (0x18, 2) => queue.set_size(half),
                    (0x1c, 2) => queue.set_ready(half == 1),
                    (0x20, 4) => queue.set_desc_table_address(Some(low), None),
                    (0x24, 4) => queue.set_desc_table_address(None, Some(low)),
                    (0x28, 4) => queue.set_avail_ring_address(Some(low), None),
                    (0x2c, 4) => queue.set_avail_ring_address(None, Some(low)),
                    (0x30, 4) => queue.set_used_ring_address(Some(low), None),
                    (0x34, 4) => queue.set_used_ring_address(None, Some(low)),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn write_status(&self, inner: &mut Inner, status: u8) {
        if status == 0 {
            self.reset(inner);
            return;
        }
        let mut next = inner.status | status & !NEEDS_RESET;
        if next & FEATURES_OK != 0 && inner.status & FEATURES_OK == 0 {
            let offered = Self::features(inner);
            if inner.driver_features & !offered != 0
                || inner.driver_features & feature::VERSION_1 == 0
            {
                next &= !FEATURES_OK;
            }
        }
        if next & DRIVER_OK != 0 && inner.status & DRIVER_OK == 0 {
            if next & FEATURES_OK == 0 {
                return;
            }
            let event_idx = inner.driver_features & feature::EVENT_IDX != 0;
            let memory = self.ram.guest();
            let mut valid = true;
            for queue in inner.queues.iter_mut().filter(|queue| queue.ready()) {
                queue.set_event_idx(event_idx);
                valid &= queue.is_valid(memory);
            }
            if !valid {
                self.fail(inner);
                return;
            }
            inner.status = next;
            let features = inner.driver_features;
            inner.backend.start(features);
            self.publish_config(inner);
            // Whatever the device has to say first must not wait for a doorbell.
            let _ = self.kick.write(1);
            return;
        }
        inner.status = next;
    }

    fn reset(&self, inner: &mut Inner) {
        inner.backend.reset();
        inner.queues = new_queues(inner.backend.queue_sizes());
        inner.vectors.fill(NO_VECTOR);
        inner.config_vector = NO_VECTOR;
        inner.device_feature_select = 0;
        inner.driver_feature_select = 0;
        inner.driver_features = 0;
        inner.status = 0;
        inner.queue_select = 0;
        inner.returned.clear();
        self.publish_config(inner);
    }

    /// The guest broke the device: it stands still until the driver resets it (2.1.2).
    fn fail(&self, inner: &mut Inner) {
        inner.status |= NEEDS_RESET;
        inner.broken += 1;
        self.config_changed(inner);
    }

    /// Serves until nothing is left to do now. Returns what the backend wants next, or the error that broke the device.
    ///
    /// # Errors
    /// When the guest broke a rule; the device then needs a reset and serves nothing.
    pub fn serve(&self) -> Result<Next, ServeError> {
        let mut inner = self.lock();
        if inner.paused || inner.status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            return Ok(Next::Wait);
        }
        let inner = &mut *inner;
        for _ in 0..ROUNDS_MAX {
            let mut io = Io::new(self.ram.guest(), &mut inner.queues, &mut inner.returned);
            let served = inner.backend.serve(&mut io);
            let changed = io.config_changed;
            let interrupted = self.interrupt(inner);
            if changed {
                self.config_changed(inner);
            }
            match served.and_then(|next| interrupted.map(|()| next)) {
                Ok(Next::Again) => {}
                Ok(next) => return Ok(next),
                Err(error) => {
                    self.fail(inner);
                    return Err(error);
                }
            }
        }
        Ok(Next::Again)
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

    /// Stops serving. When this returns, no request is under way.
    pub fn pause(&self) {
        self.lock().paused = true;
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

    /// State for a snapshot; the caller has paused the function.
    pub fn save(&self, out: &mut Encoder) {
        let inner = self.lock();
        out.u8(self.slot);
        out.u16(inner.backend.kind() as u16);
        out.bytes(inner.config.save());
        inner.msix.save(out);
        out.u16(inner.config_vector);
        out.u32(inner.device_feature_select);
        out.u32(inner.driver_feature_select);
        out.u64(inner.driver_features);
        out.u8(inner.status);
        out.u8(inner.generation);
        out.u16(inner.queue_select);
        out.u32(u32::try_from(inner.queues.len()).unwrap_or(0));
        for (queue, vector) in inner.queues.iter().zip(&inner.vectors) {
            let state = queue.state();
            out.u16(*vector);
            out.u16(state.size);
            out.bool(state.ready);
            out.u16(state.next_avail);
            out.u16(state.next_used);
            out.u64(state.desc_table);
            out.u64(state.avail_ring);
            out.u64(state.used_ring);
        }
        let mut backend = Encoder::new();
        inner.backend.save(&mut backend);
        out.bytes(&backend.into_bytes());
    }

    /// Takes a state over; the function is left paused.
    ///
    /// # Errors
    /// When the state is of another device or impossible.
    pub fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if from.u16()? != inner.backend.kind() as u16 {
            return Err(StateError::Invalid("device kind in its slot"));
        }
        inner.config.load(from.bytes()?);
        inner.msix.load(from)?;
        let vector = |raw: u16| {
            if usize::from(raw) < VECTORS {
                raw
            } else {
                NO_VECTOR
            }
        };
        inner.config_vector = vector(from.u16()?);
        inner.device_feature_select = from.u32()?;
        inner.driver_feature_select = from.u32()?;
        inner.driver_features = from.u64()?;
        inner.status = from.u8()?;
        inner.generation = from.u8()?;
        inner.queue_select = from.u16()?;
        if inner.driver_features & !Self::features(inner) != 0 {
            return Err(StateError::Invalid("device features"));
        }
        let sizes = inner.backend.queue_sizes();
        if from.count(64, "number of queues")? as usize != sizes.len() {
            return Err(StateError::Invalid("number of queues"));
        }
        for (index, max_size) in sizes.iter().enumerate() {
            inner.vectors[index] = vector(from.u16()?);
            let state = QueueState {
                max_size: *max_size,
                event_idx_enabled: inner.driver_features & feature::EVENT_IDX != 0,
                size: from.u16()?,
                ready: from.bool()?,
                next_avail: from.u16()?,
                next_used: from.u16()?,
                desc_table: from.u64()?,
                avail_ring: from.u64()?,
                used_ring: from.u64()?,
            };
            let queue = Queue::try_from(state).map_err(|_| StateError::Invalid("queue"))?;
            if queue.ready() && inner.status & DRIVER_OK != 0 && !queue.is_valid(self.ram.guest()) {
                return Err(StateError::Invalid("queue outside memory"));
            }
            inner.queues[index] = queue;
        }
        if inner.status & DRIVER_OK != 0 {
            let features = inner.driver_features;
            inner.backend.start(features);
        }
        let mut backend = Decoder::new(from.bytes()?);
        inner.backend.load(&mut backend)?;
        backend.finish()?;
        inner.paused = true;
        inner.returned.clear();
        inner.config.publish(&self.window);
        inner.msix.publish(&self.window);
        self.publish_config(inner);
        self.publish_common(inner);
        Ok(())
    }
}
