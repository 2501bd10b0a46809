//! What a processor finds when it begins: where firmware would have left it.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::{MachineError, kvm_error};
use crate::boot::params;
use crate::layout;

/// MSRs that firmware would have set (Intel SDM volume 3, 12.11: MTRRs on, write-back by default).
pub(super) fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), MachineError> {
    const MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MISC_ENABLE, FAST_STRINGS),
        entry(MTRR_DEF_TYPE, ENABLED_WRITE_BACK),
    ])
    .map_err(|_| MachineError::Kvm {
        action: "take a list of MSRs",
        source: io::ErrorKind::InvalidInput.into(),
    })?;
    vcpu.set_msrs(&msrs)
        .map(|_| ())
        .map_err(kvm_error("set MSRs"))
}

/// Long mode with the identity map, at the kernel's 64-bit entry (boot.rst, "64-bit Boot Protocol").
pub(super) fn enter_kernel(vcpu: &VcpuFd, entry: u64) -> Result<(), MachineError> {
    const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    let segment = |selector: u16, kind: u8, long: bool| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        l: u8::from(long),
        db: u8::from(!long),
        g: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs().map_err(kvm_error("tell its registers"))?;
    sregs.cs = segment(0x10, 0xb, true);
    let data = segment(0x18, 0x3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: 0x20,
        type_: 0xb,
        s: 0,
        db: 0,
        ..segment(0x20, 0xb, false)
    };
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = u16::try_from(params::GDT.len() * 8 - 1).unwrap_or(0);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE_ET_PG;
    sregs.efer |= EFER_LME_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(kvm_error("set its registers"))?;
    let regs = kvm_bindings::kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm_error("set its registers"))
}
