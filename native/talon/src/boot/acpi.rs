//! Hardware-reduced ACPI (ACPI 6.5, section 3.11.1): what the guest is told of the platform, and nothing that is not
//! there. No PIC, PIT, RTC, i8042 or PM timer is described, so no kernel waits for them.

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink, aml};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout;

const OEM: [u8; 6] = *b"AERIE ";
const OEM_TABLE: [u8; 8] = *b"TALON   ";

/// What of the platform is there.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// Processors.
    pub cpus: u8,
    /// Serial port.
    pub serial: bool,
    /// Buses with devices; the first is always there.
    pub buses: u8,
}

struct Bytecode(Vec<u8>);

impl AmlSink for Bytecode {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

const fn low(address: u64) -> u32 {
    (address & 0xffff_ffff) as u32
}

fn dsdt(platform: Platform) -> Sdt {
    let mut code = Bytecode(Vec::new());
    for bus in 0..platform.buses {
        pci_root(&mut code, bus);
    }
    ecam(&mut code, platform.buses);
    events(&mut code);
    if platform.serial {
        serial(&mut code);
    }
    // S5 takes sleep type 5; the other states are not there.
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&5u8])).to_aml_bytes(&mut code);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, 1);
    table.append_slice(&code.0);
    table
}

/// A root bridge: each decodes the registers and doorbells of its own slots, the first the passed-through devices too.
fn pci_root(code: &mut Bytecode, bus: u8) {
    let number = aml::AddressSpace::new_bus_number(u16::from(bus), u16::from(bus));
    let window = |first: u64, last: u64| {
        aml::AddressSpace::new_memory(
            aml::AddressSpaceCacheable::NotCacheable,
            true,
            low(first),
            low(last),
            None,
        )
    };
    let first = bus * layout::BUS_SLOTS;
    let end = first + layout::BUS_SLOTS;
    let registers = window(layout::registers(first), layout::registers(end) - 1);
    let doorbells = window(layout::doorbell(first), layout::doorbell(end) - 1);
    let passed = window(layout::PCI_WINDOW, layout::PCI_WINDOW_LAST);
    let mut resources: Vec<&dyn Aml> = vec![&number, &registers, &doorbells];
    if bus == 0 {
        resources.push(&passed);
    }
    aml::Device::new(
        format!("_SB_.PCI{bus}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &bus),
            &aml::Name::new("_BBN".into(), &bus),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(resources)),
        ],
    )
    .to_aml_bytes(code);
}

/// Linux 6.1 takes ECAM only when a motherboard resource claims it besides the memory map.
fn ecam(code: &mut Bytecode, buses: u8) {
    let bytes = layout::ECAM_BUS_BYTES * u64::from(buses);
    let ecam = aml::Memory32Fixed::new(true, low(layout::ECAM), low(bytes));
    aml::Device::new(
        "_SB_.MBRD".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(code);
}

/// Power button, generation id and pvpanic. Each event has a line of its own, so no register tells them apart and an
/// event costs no exit.
fn events(code: &mut Bytecode) {
    aml::Device::new(
        "_SB_.PWRB".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
            &aml::Name::new("_UID".into(), &0u8),
        ],
    )
    .to_aml_bytes(code);
    let (address_low, address_high) = (low(layout::VMGENID), 0u32);
    let guid = aml::Package::new(vec![&address_low, &address_high]);
    aml::Device::new(
        "_SB_.VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"VMGENCTR"),
            &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new("ADDR".into(), &guid),
        ],
    )
    .to_aml_bytes(code);
    let register = aml::Memory32Fixed::new(true, low(layout::PVPANIC), 2);
    aml::Device::new(
        "_SB_.PEVT".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&register])),
        ],
    )
    .to_aml_bytes(code);

    let button = aml::Interrupt::new(true, true, false, false, layout::POWER_BUTTON_GSI);
    let generation = aml::Interrupt::new(true, true, false, false, layout::VMGENID_GSI);
    let (button_gsi, generation_gsi) =
        (layout::POWER_BUTTON_GSI & 0xff, layout::VMGENID_GSI & 0xff);
    let (button_path, generation_path) =
        (aml::Path::new("\\_SB_.PWRB"), aml::Path::new("\\_SB_.VGEN"));
    let (is_button, is_generation) = (
        aml::Equal::new(&aml::Arg(0), &button_gsi),
        aml::Equal::new(&aml::Arg(0), &generation_gsi),
    );
    let (notify_button, notify_generation) = (
        aml::Notify::new(&button_path, &0x80u8),
        aml::Notify::new(&generation_path, &0x80u8),
    );
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&button, &generation]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &aml::If::new(&is_button, vec![&notify_button]),
                    &aml::If::new(&is_generation, vec![&notify_generation]),
                ],
            ),
        ],
    )
    .to_aml_bytes(code);
}

fn serial(code: &mut Bytecode) {
    let ports = aml::IO::new(layout::SERIAL, layout::SERIAL, 0, 8);
    let line = aml::Interrupt::new(true, true, false, false, layout::SERIAL_GSI);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&ports, &line]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// A byte-wide register in port space as a generic address (ACPI 6.5, table 5.1).
fn port(table: &mut Sdt, at: usize, port: u16) {
    table.write_u8(at, 1);
    table.write_u8(at + 1, 8);
    table.write_u8(at + 2, 0);
    table.write_u8(at + 3, 1);
    table.write_u64(at + 4, u64::from(port));
}

fn fadt(dsdt: u64) -> Sdt {
    let mut table = Sdt::new(*b"FACP", 276, 6, OEM, OEM_TABLE, 1);
    table.write_u32(40, low(dsdt));
    // IAPC_BOOT_ARCH: no VGA, no ASPM, no CMOS RTC, and neither legacy devices nor an i8042.
    table.write_u16(109, 1 << 2 | 1 << 4 | 1 << 5);
    // Flags: WBINVD, no fixed power or sleep button, reset register, hardware-reduced.
    table.write_u32(112, 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20);
    port(&mut table, 116, layout::RESET);
    table.write_u8(128, layout::RESET_VALUE);
    table.write_u8(131, 5);
    table.write_u64(140, dsdt);
    port(&mut table, 244, layout::SLEEP_CONTROL);
    port(&mut table, 256, layout::SLEEP_STATUS);
    table.write_bytes(268, b"aerie\0\0\0");
    table
}

fn madt(cpus: u8) -> Sdt {
    let mut table = Sdt::new(*b"APIC", 44, 5, OEM, OEM_TABLE, 1);
    table.write_u32(36, layout::LAPIC);
    for cpu in 0..cpus {
        table.append_slice(&[0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    let address = layout::IOAPIC.to_le_bytes();
    table.append_slice(&[
        1, 12, 0, 0, address[0], address[1], address[2], address[3], 0, 0, 0, 0,
    ]);
    table
}

fn mcfg(buses: u8) -> Sdt {
    let mut table = Sdt::new(*b"MCFG", 44, 1, OEM, OEM_TABLE, 1);
    table.append_slice(&layout::ECAM.to_le_bytes());
    // Segment 0, first and last bus.
    table.append_slice(&[0, 0, 0, buses - 1, 0, 0, 0, 0]);
    table
}

/// Writes all tables from [`layout::ACPI`] on.
///
/// # Errors
/// When guest memory ends below them.
pub fn write(memory: &GuestMemoryMmap, platform: Platform) -> Result<(), GuestMemoryError> {
    let mut at = layout::ACPI + 64;
    let mut place = |table: &Sdt| -> Result<u64, GuestMemoryError> {
        let here = at;
        memory.write_slice(table.as_slice(), GuestAddress(here))?;
        at = (at + table.len() as u64).next_multiple_of(64);
        Ok(here)
    };
    let dsdt = place(&dsdt(platform))?;
    let tables = [
        place(&fadt(dsdt))?,
        place(&madt(platform.cpus))?,
        place(&mcfg(platform.buses))?,
    ];
    let mut xsdt = Sdt::new(*b"XSDT", 36, 1, OEM, OEM_TABLE, 1);
    for table in tables {
        xsdt.append_slice(&table.to_le_bytes());
    }
    let xsdt = place(&xsdt)?;

    let mut root = [0u8; 36];
    root[..8].copy_from_slice(b"RSD PTR ");
    root[9..15].copy_from_slice(&OEM);
    root[15] = 2;
    root[20] = 36;
    root[24..32].copy_from_slice(&xsdt.to_le_bytes());
    let checksum = |bytes: &[u8]| {
        0u8.wrapping_sub(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)))
    };
    root[8] = checksum(&root[..20]);
    root[32] = checksum(&root);
    memory.write_slice(&root, GuestAddress(layout::ACPI))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_sums_to_zero() {
        for table in [
            dsdt(Platform {
                cpus: 4,
                serial: true,
                buses: 2,
            }),
            fadt(0xe_0040),
            madt(32),
            mcfg(2),
        ] {
            assert_eq!(
                table
                    .as_slice()
                    .iter()
                    .fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
                0
            );
            assert_eq!(
                u32::from_le_bytes(table.as_slice()[4..8].try_into().unwrap()) as usize,
                table.len()
            );
        }
    }

    #[test]
    fn tables_of_the_largest_machine_stay_below_the_generation_id() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();

        write(
            &memory,
            Platform {
                cpus: 254,
                serial: true,
                buses: 2,
            },
        )
        .unwrap();

        let mut page = [1; 4096];
        memory
            .read_slice(&mut page, GuestAddress(layout::VMGENID))
            .unwrap();
        assert!(page.iter().all(|byte| *byte == 0));
    }
}
