//! The common configuration structure (virtio 1.2, section 4.1.4.3): negotiation, queues, and what the guest reads there.

use virtio_queue::QueueT;

use super::{
    COMMON_BYTES, DRIVER_OK, FEATURES_OK, Inner, NEEDS_RESET, VirtioPciDevice, new_queues,
};
use crate::pci::msix::{NO_VECTOR, VECTORS};
use crate::virtio::feature;

impl VirtioPciDevice {
    pub(super) fn publish_common(&self, inner: &Inner) {
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

    pub(super) fn write_common(&self, inner: &mut Inner, offset: usize, data: &[u8]) {
        if inner.reset_due {
            // A driver waits until it reads a status of 0 before it goes on (4.1.4.3.2).
            return;
        }
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
            // A request under way still writes to guest memory: the reset is done when it is.
            inner.reset_due = inner.in_flight;
            if !inner.reset_due {
                self.reset(inner);
            }
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
            return;
        }
        inner.status = next;
    }

    pub(super) fn reset(&self, inner: &mut Inner) {
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
}
