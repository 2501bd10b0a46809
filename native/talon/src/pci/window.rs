//! The host's side of the read-only memory slot: ECAM of both buses, then BAR 0 of every slot.

use std::io;

use crate::bytes::to_usize;
use crate::layout::{self, BUS_SLOTS, READ_ONLY_BYTES, REGISTERS_BYTES, SLOTS};

/// Bytes of one function in ECAM, of which function 0 is the first page.
const ECAM_SLOT_BYTES: u64 = 1 << 15;
/// Bytes of a configuration space.
pub const CONFIG_BYTES: usize = 4096;

/// Memory that the guest reads and only we write.
#[derive(Debug)]
pub struct Window {
    base: *mut u8,
}

// SAFETY: the mapping lives as long as `Window`. Writers of one function hold that function's lock, and the only other
// reader is the guest, which may see a register half written just as on a bus.
unsafe impl Send for Window {}
// SAFETY: as above; all accesses are volatile byte copies.
unsafe impl Sync for Window {}

const BYTES: usize = to_usize(READ_ONLY_BYTES);

impl Window {
    /// Maps the window with nothing in it.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A large page for the few small ones that are ever touched would cost every machine 2 MiB.
        // SAFETY: the range is the mapping; a kernel without large pages refuses, and nothing is lost.
        unsafe { libc::madvise(base, BYTES, libc::MADV_NOHUGEPAGE) };
        Ok(Self { base: base.cast() })
    }

    /// Shows every function of the first `buses` as absent: it reads all ones (PCI 3.0, section 6.1). That costs a page each, for a guest that
    /// is about to look; one that was restored has looked already, and zeroes are as absent to Linux (`pci/probe.c`).
    pub fn show_absent(&self, buses: u8) {
        for slot in 0..(BUS_SLOTS * buses).min(SLOTS) {
            // Only the first doubleword is read of an absent function; the rest of the page stays untouched.
            self.write_config(slot, 0, &[0xff; 64]);
        }
    }

    /// Address for KVM.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    fn copy(&self, offset: u64, bytes: &[u8]) {
        let Ok(start) = usize::try_from(offset) else {
            return;
        };
        if start.checked_add(bytes.len()).is_none_or(|end| end > BYTES) {
            return;
        }
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: the range was checked to lie in the mapping; a byte has no alignment.
            unsafe { self.base.add(start + index).write_volatile(*byte) };
        }
    }

    /// Shows `bytes` at `offset` of a slot's configuration space.
    pub fn write_config(&self, slot: u8, offset: usize, bytes: &[u8]) {
        debug_assert!(slot < SLOTS && offset + bytes.len() <= CONFIG_BYTES);
        self.copy(u64::from(slot) * ECAM_SLOT_BYTES + offset as u64, bytes);
    }

    /// Shows `bytes` at `offset` of a slot's BAR 0.
    pub fn write_registers(&self, slot: u8, offset: usize, bytes: &[u8]) {
        debug_assert!(slot < SLOTS && offset + bytes.len() <= to_usize(REGISTERS_BYTES));
        self.copy(
            layout::ECAM_BYTES + u64::from(slot) * REGISTERS_BYTES + offset as u64,
            bytes,
        );
    }

    /// What the guest reads at `address`, for accesses that reach us as exits, and for tests.
    pub fn read(&self, address: u64, out: &mut [u8]) {
        out.fill(0xff);
        let Some(offset) = address
            .checked_sub(layout::ECAM)
            .and_then(|offset| usize::try_from(offset).ok())
        else {
            return;
        };
        if offset.checked_add(out.len()).is_none_or(|end| end > BYTES) {
            return;
        }
        for (index, byte) in out.iter_mut().enumerate() {
            // SAFETY: the range was checked to lie in the mapping.
            *byte = unsafe { self.base.add(offset + index).read_volatile() };
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping of this size; KVM's slot is gone with the VM that used it.
        unsafe { libc::munmap(self.base.cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_function_reads_all_ones() {
        let window = Window::new().unwrap();
        window.show_absent(layout::BUSES);

        for slot in [7, 33, 63] {
            let mut id = [0; 4];
            window.read(layout::ECAM + slot * ECAM_SLOT_BYTES, &mut id);
            assert_eq!(id, [0xff; 4]);
        }
    }

    #[test]
    fn reads_past_the_end_are_all_ones() {
        let window = Window::new().unwrap();

        let mut bytes = [0; 8];
        window.read(layout::ECAM + READ_ONLY_BYTES - 4, &mut bytes);

        assert_eq!(bytes, [0xff; 8]);
    }
}
