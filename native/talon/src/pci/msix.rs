//! MSI-X of one function (PCI 3.0, section 6.8.2). Messages go to KVM directly by `KVM_SIGNAL_MSI`, so there is no
//! routing table to keep, to change at every unmask, or to restore.

use super::window::Window;
use crate::snapshot::codec::{Decoder, Encoder, StateError};

/// Vectors of a function: one for configuration changes, one for all queues.
pub const VECTORS: usize = 2;
/// Offset of the table in BAR 0.
pub const TABLE: usize = 0x800;
/// Offset of the pending bits in BAR 0.
pub const PENDING: usize = 0xc00;
/// Bytes of the table.
pub const TABLE_BYTES: usize = VECTORS * 16;
/// "No vector" in a virtio register.
pub const NO_VECTOR: u16 = 0xffff;
const MASKED: u32 = 1;

/// Takes an interrupt message to a processor.
pub trait MsiSink: Send + Sync + std::fmt::Debug {
    /// Delivers `data` to `address`. A guest that wrote nonsense there loses its interrupt and nobody else's.
    fn signal(&self, address: u64, data: u32);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// Table, pending bits and the two bits of the control word.
#[derive(Debug)]
pub struct Msix {
    slot: u8,
    entries: [Entry; VECTORS],
    pending: u8,
    enabled: bool,
    function_masked: bool,
}

impl Msix {
    /// All vectors masked, as after a reset.
    #[must_use]
    pub fn new(slot: u8) -> Self {
        let entry = Entry {
            address: 0,
            data: 0,
            control: MASKED,
        };
        Self {
            slot,
            entries: [entry; VECTORS],
            pending: 0,
            enabled: false,
            function_masked: false,
        }
    }

    /// Shows table and pending bits.
    pub fn publish(&self, window: &Window) {
        for index in 0..VECTORS {
            self.publish_entry(window, index);
        }
        window.write_registers(self.slot, PENDING, &[self.pending, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn publish_entry(&self, window: &Window, index: usize) {
        let entry = self.entries[index];
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
        bytes[12..].copy_from_slice(&entry.control.to_le_bytes());
        window.write_registers(self.slot, TABLE + 16 * index, &bytes);
    }

    /// The guest wrote the control word.
    pub fn set_control(&mut self, control_high: u8, window: &Window, sink: &dyn MsiSink) {
        self.enabled = control_high & 0x80 != 0;
        self.function_masked = control_high & 0x40 != 0;
        self.deliver_pending(window, sink);
    }

    /// The guest wrote `data` at `offset` of the table. Only aligned doublewords and quadwords have a meaning.
    pub fn write(&mut self, offset: usize, data: &[u8], window: &Window, sink: &dyn MsiSink) {
        if !offset.is_multiple_of(4) || !data.len().is_multiple_of(4) {
            return;
        }
        for (index, word) in data.chunks_exact(4).enumerate() {
            let at = offset + 4 * index;
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let Some(entry) = self.entries.get_mut(at / 16) else {
                return;
            };
            match at % 16 {
                0 => entry.address = entry.address & !0xffff_ffff | u64::from(value & !3),
                4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
                8 => entry.data = value,
                _ => entry.control = value & MASKED,
            }
            self.publish_entry(window, at / 16);
        }
        self.deliver_pending(window, sink);
    }

    /// Raises a vector, or notes it as pending where it is masked.
    pub fn raise(&mut self, vector: u16, window: &Window, sink: &dyn MsiSink) {
        let Some(entry) = self.entries.get(usize::from(vector)).copied() else {
            return;
        };
        if !self.enabled {
            return;
        }
        if self.function_masked || entry.control & MASKED != 0 {
            self.pending |= 1 << vector;
            window.write_registers(self.slot, PENDING, &[self.pending]);
        } else {
            sink.signal(entry.address, entry.data);
        }
    }

    fn deliver_pending(&mut self, window: &Window, sink: &dyn MsiSink) {
        if self.pending == 0 || !self.enabled || self.function_masked {
            return;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let bit = 1 << index;
            if self.pending & bit != 0 && entry.control & MASKED == 0 {
                self.pending &= !bit;
                sink.signal(entry.address, entry.data);
            }
        }
        window.write_registers(self.slot, PENDING, &[self.pending]);
    }

    /// For a snapshot.
    pub fn save(&self, out: &mut Encoder) {
        for entry in &self.entries {
            out.u64(entry.address);
            out.u32(entry.data);
            out.u32(entry.control);
        }
        out.u8(self.pending);
        out.bool(self.enabled);
        out.bool(self.function_masked);
    }

    /// From a snapshot.
    ///
    /// # Errors
    /// When the bytes end early or are no state of ours.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        for entry in &mut self.entries {
            *entry = Entry {
                address: from.u64()?,
                data: from.u32()?,
                control: from.u32()? & MASKED,
            };
        }
        self.pending = from.u8()? & ((1 << VECTORS) - 1);
        self.enabled = from.bool()?;
        self.function_masked = from.bool()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<(u64, u32)>>);

    impl MsiSink for Seen {
        fn signal(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    #[test]
    fn a_masked_vector_is_delivered_once_when_it_is_unmasked() {
        let (window, seen) = (Window::new().unwrap(), Seen::default());
        let mut msix = Msix::new(1);
        msix.set_control(0x80, &window, &seen);
        msix.write(16, &0xfee0_0000u32.to_le_bytes(), &window, &seen);
        msix.write(24, &0x41u32.to_le_bytes(), &window, &seen);

        msix.raise(1, &window, &seen);
        msix.raise(1, &window, &seen);
        assert!(seen.0.lock().unwrap().is_empty());

        msix.write(28, &0u32.to_le_bytes(), &window, &seen);
        assert_eq!(*seen.0.lock().unwrap(), [(0xfee0_0000, 0x41)]);
    }

    #[test]
    fn a_vector_that_is_not_there_is_ignored() {
        let (window, seen) = (Window::new().unwrap(), Seen::default());
        let mut msix = Msix::new(1);
        msix.set_control(0x80, &window, &seen);

        msix.raise(NO_VECTOR, &window, &seen);
        msix.write(4096, &[0; 8], &window, &seen);
        msix.write(TABLE_BYTES - 4, &[0; 8], &window, &seen);

        assert!(seen.0.lock().unwrap().is_empty());
    }
}
