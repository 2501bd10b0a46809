//! A type 0 configuration space (PCI 3.0, section 6.1) of which the guest may change what a driver must change, and
//! nothing else.

use super::window::Window;
use crate::layout;

/// Bytes of configuration space that have a meaning here.
const BYTES: usize = 256;
const COMMAND: usize = 0x04;
const BARS: [usize; 2] = [0x10, 0x18];
const CAPABILITIES: usize = 0x34;

/// Identity of a function.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass, programming interface.
    pub class: [u8; 3],
    /// Revision.
    pub revision: u8,
    /// Subsystem.
    pub subsystem: u16,
}

/// Configuration space of one function and the bits of it that the guest can write.
#[derive(Debug)]
pub struct ConfigSpace {
    slot: u8,
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    bars: [(u32, u32); 2],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A function with BAR 0 and BAR 2 where the layout wants them.
    #[must_use]
    pub fn new(slot: u8, identity: Identity) -> Self {
        let bars = [
            (
                (layout::registers(slot) & 0xffff_ffff) as u32,
                (layout::REGISTERS_BYTES & 0xffff_ffff) as u32,
            ),
            (
                (layout::doorbell(slot) & 0xffff_ffff) as u32,
                (layout::DOORBELL_BYTES & 0xffff_ffff) as u32,
            ),
        ];
        let mut space = Self {
            slot,
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bars,
            next_capability: 0x40,
            last_link: CAPABILITIES,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(
            0x08,
            &[
                identity.revision,
                identity.class[2],
                identity.class[1],
                identity.class[0],
            ],
        );
        space.put(0x2c, &identity.vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        // Command: memory, bus master, INTx disable. Cache line, latency, interrupt line: the guest's notes to itself.
        space.writable[COMMAND] = 0x06;
        space.writable[COMMAND + 1] = 0x04;
        space.writable[0x0c] = 0xff;
        space.writable[0x0d] = 0xff;
        space.writable[0x3c] = 0xff;
        for (index, at) in BARS.into_iter().enumerate() {
            let (address, bytes) = space.bars[index];
            space.put(at, &address.to_le_bytes());
            space.writable[at..at + 4].copy_from_slice(&(!(bytes - 1)).to_le_bytes());
        }
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends a capability: `body` follows the id and the link. Returns its offset.
    ///
    /// # Panics
    /// When the 256 bytes are full, which is a mistake in this program.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next_capability;
        assert!(
            at + 2 + body.len() <= BYTES,
            "capabilities fill configuration space"
        );
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.bytes[self.last_link] = u8::try_from(at).expect("offset is below 256");
        self.last_link = at + 1;
        self.bytes[0x06] |= 0x10;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest write the bits `mask` of the byte at `at`.
    pub fn allow(&mut self, at: usize, mask: u8) {
        self.writable[at] |= mask;
    }

    /// Shows the whole space to the guest.
    pub fn publish(&self, window: &Window) {
        window.write_config(self.slot, 0, &self.bytes);
    }

    /// A byte as the guest sees it.
    #[must_use]
    pub fn byte(&self, at: usize) -> u8 {
        self.bytes[at]
    }

    /// The guest writes `data` at `offset`. Bits that are not its own keep their value.
    pub fn write(&mut self, window: &Window, offset: usize, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let at = offset + index;
            if at >= BYTES {
                return;
            }
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
        self.settle_bars();
        let start = offset.min(BYTES) & !3;
        let end = (offset + data.len()).next_multiple_of(4).min(BYTES);
        window.write_config(self.slot, start, &self.bytes[start..end]);
    }

    /// The bytes for a snapshot.
    #[must_use]
    pub fn save(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes over what the guest may have written, from a snapshot that may be hostile.
    pub fn load(&mut self, saved: &[u8]) {
        for (at, byte) in saved.iter().enumerate().take(BYTES) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
        self.settle_bars();
    }

    /// All ones asks for a BAR's size; any other value is its address, which is fixed in this generation.
    fn settle_bars(&mut self) {
        for (index, at) in BARS.into_iter().enumerate() {
            let (address, size) = self.bars[index];
            let asks = self.bytes[at..at + 4] == (!(size - 1)).to_le_bytes();
            if !asks {
                self.put(at, &address.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> (Window, ConfigSpace) {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: [1, 0, 0],
            revision: 1,
            subsystem: 2,
        };
        (Window::new().unwrap(), ConfigSpace::new(3, identity))
    }

    #[test]
    fn a_bar_tells_its_size_and_goes_back_to_its_place() {
        let (window, mut space) = space();
        let read = |window: &Window| {
            let mut bar = [0; 4];
            window.read(layout::ECAM + (3 << 15) + 0x10, &mut bar);
            u32::from_le_bytes(bar)
        };

        space.write(&window, 0x10, &[0xff; 4]);
        assert_eq!(read(&window), 0xffff_f000);

        space.write(&window, 0x12, &[0x12]);
        assert_eq!(u64::from(read(&window)), layout::registers(3));
        space.write(&window, 0x10, &0xdead_0000u32.to_le_bytes());
        assert_eq!(u64::from(read(&window)), layout::registers(3));
    }

    #[test]
    fn the_guest_cannot_change_what_is_not_its_own() {
        let (window, mut space) = space();
        let before = *space.save().first_chunk::<4>().unwrap();

        for offset in 0..4095 {
            space.write(&window, offset, &[0xff; 8]);
        }

        assert_eq!(space.save()[..4], before);
        assert_eq!(space.byte(COMMAND), 0x06);
        assert_eq!(space.byte(0x14), 0);
    }
}
