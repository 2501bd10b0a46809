//! A device into a snapshot, and back.

use virtio_queue::{Queue, QueueState, QueueT};

use super::{DRIVER_OK, VirtioPciDevice};
use crate::pci::msix::{NO_VECTOR, VECTORS};
use crate::snapshot::codec::{Decoder, Encoder, StateError};
use crate::virtio::feature;

impl VirtioPciDevice {
    /// State for a snapshot; the caller has paused the device.
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

    /// Takes a state over; the device is left paused.
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
