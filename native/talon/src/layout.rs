//! The guest-physical map of *machine generation 1*. A snapshot carries the generation, so nothing here may move
//! under a number that was released: a new map is a new number.
//!
//! ```text
//! 0x0000_0000  RAM (boot tables, page tables, command line below 640 KiB; ACPI at 0xe0000)
//! 0xc000_0000  hole: room for more platform devices
//! 0xd000_0000  ECAM of bus 0, 1 MiB                     ┐ one read-only memory slot: reads
//! 0xd010_0000  BAR 0 of functions 0–31, 4 KiB each      ┘ never leave KVM, writes exit
//! 0xd012_0000  BAR 2 of functions 0–31, 4 KiB each: doorbells, taken by ioeventfds
//! 0xd100_0000  window for hot-plugged and passed-through BARs
//! 0xe000_0000  pvpanic
//! 0xfec0_0000  IOAPIC, 0xfee0_0000 LAPICs (both in the kernel)
//! 0x1_0000_0000 RAM above 3 GiB
//! ```

/// Number of this map.
pub const GENERATION: u16 = 1;

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

/// Functions on the one bus.
pub const SLOTS: u8 = 32;
/// Configuration space of bus 0.
pub const ECAM: u64 = 0xd000_0000;
/// Bytes of [`ECAM`]: one bus.
pub const ECAM_BYTES: u64 = 0x10_0000;
/// BAR 0 of slot 0.
pub const REGISTERS: u64 = 0xd010_0000;
/// Bytes of one function's BAR 0.
pub const REGISTERS_BYTES: u64 = 0x1000;
/// BAR 2 of slot 0.
pub const DOORBELLS: u64 = 0xd012_0000;
/// Bytes of one function's BAR 2.
pub const DOORBELL_BYTES: u64 = 0x1000;
/// Bytes of the read-only slot: ECAM, then every BAR 0.
pub const READ_ONLY_BYTES: u64 = ECAM_BYTES + REGISTERS_BYTES * SLOTS as u64;
/// Last byte of the PCI window that the root bridge decodes.
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
/// First network slot.
pub const SLOT_NET: u8 = 5;
/// Network devices at most.
pub const NETS_MAX: u8 = 4;
/// First block slot.
pub const SLOT_DISK: u8 = 9;
/// Block devices at most; slots from 25 on are for hot-plug and passthrough.
pub const DISKS_MAX: u8 = 16;

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
const _: () = assert!(SLOT_DISK == SLOT_NET + NETS_MAX);
const _: () = assert!(SLOT_DISK + DISKS_MAX <= SLOTS);
