//! From files to a machine that can take its first instruction.

pub mod acpi;
pub mod elf;
pub mod params;
