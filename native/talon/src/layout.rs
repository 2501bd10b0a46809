//! The guest-physical map of *machine generation 2*. A snapshot carries the generation, so nothing here may move
//! under a number that was released: a new map is a new number. (Generation 1 had one bus, 16 disks and 4 network cards.)
//!
//! ```text
//! 0x0000_0000  RAM (boot tables, page tables, command line below 640 KiB; ACPI at 0xe0000)
//! 0xc000_0000  hole: room for more platform devices
//! 0xd000_0000  ECAM of buses 0 and 1, 1 MiB each        ┐ one read-only memory slot: reads
//! 0xd020_0000  BAR 0 of slots 0–63, 4 KiB each          ┘ never leave KVM, writes exit
//! 0xd024_0000  BAR 2 of slots 0–63, 4 KiB each: doorbells, taken by ioeventfds
//! 0xd100_0000  window of bus 0 for passed-through BARs
//! 0xe000_0000  pvpanic
//! 0xfec0_0000  IOAPIC, 0xfee0_0000 LAPICs (both in the kernel)
//! 0x1_0000_0000 RAM above 3 GiB
//! ```
//!
//! A *slot* is a device number on one of the two buses, each with a root bridge of its own: slots 0–31 are bus 0, slots
//! 32–63 are bus 1. Bus 1 is there for volumes alone, and a machine without any has no bridge for it: nothing scans it.
//!
//! ```text
//!  0      none: Linux needs no host bridge        16–23  network cards 0–7
//!  1–4    entropy, balloon, vsock, console        24–31  passed-through devices 0–7
//!  5–7    free, for other devices of one kind     32     none
//!  8–11   disks: root, overlay, seed, runtime     33–55  volumes 0–22
//! 12–15   free, for other disks of one kind       56–63  free
//! ```

/// Number of this map.
pub const GENERATION: u16 = 2;

/// RAM below this address comes first, the rest from [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM beyond [`LOW_RAM_END`] continues.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Global descriptor table of the boot processor at entry.
pub const BOOT_GDT: u64 = 0x500;
/// `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// `struct setup_data` that carries the RNG seed.
pub const SETUP_DATA: u64 = 0x8000;
/// First of the identity-mapping page tables (PML4, PDPT, PD).
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line with its closing zero (`COMMAND_LINE_SIZE` of x86 Linux).
pub const COMMAND_LINE_BYTES_MAX: usize = 2048;
/// End of conventional memory.
pub const EBDA_START: u64 = 0x9_fc00;
/// Root of the ACPI tables; they stay below [`VMGENID`].
pub const ACPI: u64 = 0xe_0000;
/// The 16 bytes of the generation id, in reserved RAM (Microsoft, "Virtual Machine Generation ID").
pub const VMGENID: u64 = 0xf_f000;
/// Where a processor starts after a reset, in real mode at f000:fff0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// First byte above the 1 MiB of old.
pub const KERNEL_START: u64 = 0x10_0000;

/// Slots on one bus.
pub const BUS_SLOTS: u8 = 32;
/// Buses at most.
pub const BUSES: u8 = 2;
/// Slots on all buses.
pub const SLOTS: u8 = BUS_SLOTS * BUSES;
/// Configuration space of bus 0; that of bus 1 follows.
pub const ECAM: u64 = 0xd000_0000;
/// Bytes of one bus in [`ECAM`].
pub const ECAM_BUS_BYTES: u64 = 0x10_0000;
/// Bytes of [`ECAM`].
pub const ECAM_BYTES: u64 = ECAM_BUS_BYTES * BUSES as u64;
/// BAR 0 of slot 0.
pub const REGISTERS: u64 = 0xd020_0000;
/// Bytes of one device's BAR 0.
pub const REGISTERS_BYTES: u64 = 0x1000;
/// BAR 2 of slot 0.
pub const DOORBELLS: u64 = 0xd024_0000;
/// Bytes of one device's BAR 2.
pub const DOORBELL_BYTES: u64 = 0x1000;
/// Bytes of the read-only slot: ECAM, then every BAR 0.
pub const READ_ONLY_BYTES: u64 = ECAM_BYTES + REGISTERS_BYTES * SLOTS as u64;
/// First byte of the window of bus 0 for BARs that are not ours.
pub const PCI_WINDOW: u64 = 0xd100_0000;
/// Last byte of [`PCI_WINDOW`].
pub const PCI_WINDOW_LAST: u64 = 0xdfff_ffff;
/// pvpanic's one register (QEMU docs/specs/pvpanic).
pub const PVPANIC: u64 = 0xe000_0000;

/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// IOAPIC with GSI 0–23.
pub const IOAPIC: u32 = 0xfec0_0000;

/// First port of the serial console.
pub const SERIAL: u16 = 0x3f8;
/// Line of the serial console.
pub const SERIAL_GSI: u32 = 4;
/// ACPI sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS: u16 = 0x604;
/// ACPI reset register.
pub const RESET: u16 = 0x608;
/// Value that [`RESET`] takes.
pub const RESET_VALUE: u8 = 1;
/// SLP_EN and SLP_TYP 5 in [`SLEEP_CONTROL`] (ACPI 6.5, table 4.19).
pub const SLEEP_S5: u8 = 1 << 5 | 5 << 2;
/// Generic event device: the power button was pressed.
pub const POWER_BUTTON_GSI: u32 = 5;
/// Generic event device: the generation id has changed.
pub const VMGENID_GSI: u32 = 6;

/// Slot of the entropy device.
pub const SLOT_RNG: u8 = 1;
/// Slot of the balloon.
pub const SLOT_BALLOON: u8 = 2;
/// Slot of vsock.
pub const SLOT_VSOCK: u8 = 3;
/// Slot of the console.
pub const SLOT_CONSOLE: u8 = 4;
/// First slot of the disks that a machine has one of: root, overlay, seed, runtime.
pub const SLOT_DISK: u8 = 8;
/// Disks that a machine has one of.
pub const OWN_DISKS: u8 = 4;
/// First network slot.
pub const SLOT_NET: u8 = 16;
/// Network devices at most.
pub const NETS_MAX: u8 = 8;
/// First slot of passed-through devices.
pub const SLOT_PASSED: u8 = 24;
/// Passed-through devices at most.
pub const PASSED_MAX: u8 = 8;
/// First slot of volumes.
pub const SLOT_VOLUME: u8 = BUS_SLOTS + 1;
/// Volumes at most.
pub const VOLUMES_MAX: u8 = 23;
/// Block devices at most.
pub const DISKS_MAX: u8 = OWN_DISKS + VOLUMES_MAX;

/// Slot of a block device by its place: first those of which there is one, then the volumes.
#[must_use]
pub const fn disk_slot(place: u8) -> u8 {
    if place < OWN_DISKS {
        SLOT_DISK + place
    } else {
        SLOT_VOLUME + (place - OWN_DISKS)
    }
}

/// Bus of a slot.
#[must_use]
pub const fn bus_of(slot: u8) -> u8 {
    slot / BUS_SLOTS
}

/// BAR 0 of a slot.
#[must_use]
pub const fn registers(slot: u8) -> u64 {
    REGISTERS + REGISTERS_BYTES * slot as u64
}

/// BAR 2 of a slot.
#[must_use]
pub const fn doorbell(slot: u8) -> u64 {
    DOORBELLS + DOORBELL_BYTES * slot as u64
}

const _: () = assert!(REGISTERS == ECAM + ECAM_BYTES);
const _: () = assert!(DOORBELLS == ECAM + READ_ONLY_BYTES);
const _: () = assert!(DOORBELLS + DOORBELL_BYTES * SLOTS as u64 <= PCI_WINDOW);
const _: () = assert!(SLOT_CONSOLE < SLOT_DISK && SLOT_DISK + OWN_DISKS <= SLOT_NET);
const _: () = assert!(SLOT_NET + NETS_MAX <= SLOT_PASSED && SLOT_PASSED + PASSED_MAX <= BUS_SLOTS);
const _: () = assert!(SLOT_VOLUME + VOLUMES_MAX <= SLOTS);

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that was saved finds its devices where they were: these numbers were released and stay.
    #[test]
    fn no_slot_of_generation_2_moves() {
        assert_eq!(GENERATION, 2);
        assert_eq!(
            [SLOT_RNG, SLOT_BALLOON, SLOT_VSOCK, SLOT_CONSOLE],
            [1, 2, 3, 4]
        );
        let disks: Vec<u8> = (0..DISKS_MAX).map(disk_slot).collect();
        assert_eq!(disks[..4], [8, 9, 10, 11]);
        assert_eq!(disks[4..], (33..56).collect::<Vec<u8>>());
        assert_eq!(
            (SLOT_NET, NETS_MAX, SLOT_PASSED, PASSED_MAX),
            (16, 8, 24, 8)
        );
        assert_eq!((registers(1), doorbell(1)), (0xd020_1000, 0xd024_1000));
        assert_eq!((registers(33), doorbell(33)), (0xd022_1000, 0xd026_1000));
    }
}
