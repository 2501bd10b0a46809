//! What the Linux/x86 64-bit boot protocol wants in memory and in the registers at entry
//! (Documentation/arch/x86/boot.rst, zero-page.rst; struct boot_params of arch/x86/include/uapi/asm/bootparam.h).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout;
use crate::memory::regions;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of the seed, as much as Linux's pool takes.
pub const SEED_BYTES: usize = 32;
const _: () = assert!(SEED_BYTES == 32);

/// Code and data descriptors at the selectors that the protocol names: `__BOOT_CS` 0x10, `__BOOT_DS` 0x18, and a TSS.
pub const GDT: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

/// What the kernel is told.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a> {
    /// Bytes of RAM.
    pub ram: u64,
    /// Command line, without a zero.
    pub command_line: &'a str,
    /// Address and bytes of the initramfs.
    pub initramfs: Option<(u64, u64)>,
    /// Fresh random bytes for the kernel's generator.
    pub seed: [u8; SEED_BYTES],
}

/// Writes the zero page, the command line, the seed, the descriptor table and the page tables.
///
/// # Errors
/// When guest memory is too small for them.
pub fn write(memory: &GuestMemoryMmap, params: &Params<'_>) -> Result<(), GuestMemoryError> {
    let mut page = [0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x70, &layout::ACPI.to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x210, &[0xff]);
    put(0x211, &[1]);
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x228, &layout::COMMAND_LINE.to_le_bytes()[..4]);
    put(
        0x238,
        &u32::try_from(params.command_line.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    put(0x250, &layout::SETUP_DATA.to_le_bytes());
    if let Some((address, bytes)) = params.initramfs {
        put(0x218, &address.to_le_bytes()[..4]);
        put(0xc0, &address.to_le_bytes()[4..]);
        put(0x21c, &bytes.to_le_bytes()[..4]);
        put(0xc4, &bytes.to_le_bytes()[4..]);
    }
    let map = e820(params.ram);
    put(0x1e8, &[u8::try_from(map.len()).unwrap_or(u8::MAX)]);
    for (index, (start, bytes, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + 20 * index;
        put(at, &start.to_le_bytes());
        put(at + 8, &bytes.to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    memory.write_slice(&page, GuestAddress(layout::ZERO_PAGE))?;
    memory.write_slice(
        params.command_line.as_bytes(),
        GuestAddress(layout::COMMAND_LINE),
    )?;
    memory.write_obj(
        0u8,
        GuestAddress(layout::COMMAND_LINE + params.command_line.len() as u64),
    )?;

    let mut seed = [0u8; 16 + SEED_BYTES];
    seed[8..12].copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    seed[12..16].copy_from_slice(&32u32.to_le_bytes());
    seed[16..].copy_from_slice(&params.seed);
    memory.write_slice(&seed, GuestAddress(layout::SETUP_DATA))?;

    memory.write_slice(&reset_code(), GuestAddress(layout::RESET_VECTOR))?;
    for (index, descriptor) in GDT.iter().enumerate() {
        memory.write_obj(
            *descriptor,
            GuestAddress(layout::BOOT_GDT + 8 * index as u64),
        )?;
    }
    write_page_tables(memory)
}

/// What a firmware has at the reset vector. A Linux on hardware-reduced ACPI takes it for granted that there is EFI to
/// reboot with, and where there is none it jumps here (arch/x86/kernel/reboot.c, `efi_reboot_required`, `BOOT_BIOS`).
const fn reset_code() -> [u8; 9] {
    let port = layout::RESET.to_le_bytes();
    // mov dx, RESET; mov al, RESET_VALUE; out dx, al; hlt; jmp back to hlt
    [
        0xba,
        port[0],
        port[1],
        0xb0,
        layout::RESET_VALUE,
        0xee,
        0xf4,
        0xeb,
        0xfd,
    ]
}

/// Identity map of the first GiB in 2 MiB pages: all that the entry code touches before it maps itself.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let (pml4, pdpt, pd) = (
        layout::PAGE_TABLES,
        layout::PAGE_TABLES + 0x1000,
        layout::PAGE_TABLES + 0x2000,
    );
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(pd | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    let mut table = [0u8; 4096];
    for (index, entry) in table.chunks_exact_mut(8).enumerate() {
        entry.copy_from_slice(&((index as u64) << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes());
    }
    memory.write_slice(&table, GuestAddress(pd))
}

/// The memory map: start, bytes, kind. ECAM must be reserved here or Linux does not trust it.
fn e820(ram: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::EBDA_START, E820_RAM),
        (
            layout::ACPI,
            layout::KERNEL_START - layout::ACPI,
            E820_RESERVED,
        ),
    ];
    for region in regions(ram) {
        let start = region.guest.max(layout::KERNEL_START);
        map.push((start, region.guest + region.bytes - start, E820_RAM));
    }
    map.push((layout::ECAM, layout::ECAM_BYTES, E820_RESERVED));
    map.sort_unstable();
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_is_sorted_and_has_no_overlap() {
        for ram in [128 << 20, 3 << 30, 6 << 30] {
            let map = e820(ram);

            assert!(
                map.windows(2)
                    .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0),
                "{map:x?}"
            );
            let usable: u64 = map
                .iter()
                .filter(|entry| entry.2 == E820_RAM)
                .map(|entry| entry.1)
                .sum();
            assert_eq!(usable, ram - (layout::KERNEL_START - layout::EBDA_START));
        }
    }

    #[test]
    fn the_command_line_ends_with_a_zero() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        memory
            .write_slice(&[0xff; 16], GuestAddress(layout::COMMAND_LINE))
            .unwrap();

        write(
            &memory,
            &Params {
                ram: 4 << 20,
                command_line: "quiet",
                initramfs: None,
                seed: [1; 32],
            },
        )
        .unwrap();

        let mut line = [0; 6];
        memory
            .read_slice(&mut line, GuestAddress(layout::COMMAND_LINE))
            .unwrap();
        assert_eq!(&line, b"quiet\0");
    }
}
