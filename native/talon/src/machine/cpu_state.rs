//! A processor's state for a snapshot, field by field, and back in the order that KVM needs.
//!
//! The order at restore is not free: CPUID before MSRs and XCRs (they are checked against it), registers before the
//! LAPIC, the LAPIC before the TSC deadline, the TSC itself before the deadline that is compared with it.

use std::io;

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::cpuid;
use crate::snapshot::codec::{Decoder, Encoder, StateError};

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// MSRs that are part of a guest. What is not here is either in the special registers, not the guest's, or nobody's.
/// Names: Intel SDM volume 4, AMD APM volume 2 appendix A, Documentation/virt/kvm/x86/msr.rst.
#[rustfmt::skip]
const MSRS: &[u32] = &[
    MSR_TSC, 0x3a, 0x3b, 0x48, 0x122,                        // TSC, FEATURE_CONTROL, TSC_ADJUST, SPEC_CTRL, TSX_CTRL
    0x174, 0x175, 0x176, 0x1a0, 0x1c4, 0x1c5, 0x1d9,         // SYSENTER, MISC_ENABLE, XFD, XFD_ERR, DEBUGCTL
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,  // variable MTRRs
    0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c,  // fixed MTRRs
    0x26d, 0x26e, 0x26f, 0x277, 0x2ff,                       // …, PAT, MTRR default
    0xda0,                                                   // XSS
    0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084,      // STAR, LSTAR, CSTAR, SFMASK
    0xc000_0102, 0xc000_0103,                                // KERNEL_GS_BASE, TSC_AUX
    0xc001_0015, 0xc001_011f,                                // HWCR, VIRT_SPEC_CTRL
    0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d02, 0x4b56_4d03,      // KVM: wall clock, system time, async fault, steal time
    0x4b56_4d04, 0x4b56_4d05, 0x4b56_4d06,                   // end of interrupt, poll control, async fault interrupt
    MSR_TSC_DEADLINE,                                        // last: it is compared with the TSC
];

/// CPUID leaves of one processor at most.
const LEAVES_MAX: u32 = 256;

/// Why a processor's state could not be taken or given.
#[derive(Debug, thiserror::Error)]
pub enum CpuStateError {
    /// KVM refused.
    #[error("KVM refuses to {action} a processor's {what}")]
    Kvm {
        /// `tell` or `set`.
        action: &'static str,
        /// Which part.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// This host lacks something that the guest was told it has.
    #[error("this host lacks {0}, which the guest was promised")]
    Missing(String),
    /// The state is not one of ours.
    #[error("the processor's state is refused")]
    State(#[from] StateError),
}

fn refused(
    action: &'static str,
    what: &'static str,
) -> impl Fn(kvm_ioctls::Error) -> CpuStateError {
    move |error| CpuStateError::Kvm {
        action,
        what,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}

macro_rules! codec {
    ($save:ident, $load:ident, $type:ty, $($kind:ident $($field:ident).+),* $(,)?) => {
        fn $save(value: &$type, out: &mut Encoder) {
            $(out.$kind(value.$($field).+);)*
        }
        fn $load(from: &mut Decoder<'_>) -> Result<$type, StateError> {
            let mut value = <$type>::default();
            $(value.$($field).+ = from.$kind()?;)*
            Ok(value)
        }
    };
}

codec!(save_regs, load_regs, kvm_regs,
    u64 rax, u64 rbx, u64 rcx, u64 rdx, u64 rsi, u64 rdi, u64 rsp, u64 rbp, u64 r8, u64 r9, u64 r10, u64 r11, u64 r12,
    u64 r13, u64 r14, u64 r15, u64 rip, u64 rflags,
);
codec!(save_segment, load_segment, kvm_segment,
    u64 base, u32 limit, u16 selector, u8 type_, u8 present, u8 dpl, u8 db, u8 s, u8 l, u8 g, u8 avl, u8 unusable,
);
codec!(save_controls, load_controls, kvm_sregs,
    u64 gdt.base, u16 gdt.limit, u64 idt.base, u16 idt.limit, u64 cr0, u64 cr2, u64 cr3, u64 cr4, u64 cr8, u64 efer,
    u64 apic_base,
);
codec!(save_events, load_events, kvm_vcpu_events,
    u8 exception.injected, u8 exception.nr, u8 exception.has_error_code, u8 exception.pending, u32 exception.error_code,
    u8 exception_has_payload, u64 exception_payload,
    u8 interrupt.injected, u8 interrupt.nr, u8 interrupt.soft, u8 interrupt.shadow,
    u8 nmi.injected, u8 nmi.pending, u8 nmi.masked, u32 sipi_vector, u32 flags,
    u8 smi.smm, u8 smi.pending, u8 smi.smm_inside_nmi, u8 smi.latched_init, u8 triple_fault.pending,
);
codec!(save_leaf, load_leaf, kvm_cpuid_entry2,
    u32 function, u32 index, u32 flags, u32 eax, u32 ebx, u32 ecx, u32 edx,
);

fn save_sregs(sregs: &kvm_sregs, out: &mut Encoder) {
    for segment in [
        &sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss, &sregs.tr, &sregs.ldt,
    ] {
        save_segment(segment, out);
    }
    save_controls(sregs, out);
    for word in sregs.interrupt_bitmap {
        out.u64(word);
    }
}

fn load_sregs(from: &mut Decoder<'_>) -> Result<kvm_sregs, StateError> {
    let mut segments = [kvm_segment::default(); 8];
    for segment in &mut segments {
        *segment = load_segment(from)?;
    }
    let mut sregs = load_controls(from)?;
    [
        sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.tr, sregs.ldt,
    ] = segments;
    for word in &mut sregs.interrupt_bitmap {
        *word = from.u64()?;
    }
    Ok(sregs)
}

/// Writes a parked processor's state.
///
/// # Errors
/// When KVM does not tell.
pub fn save(vcpu: &VcpuFd, known_msrs: &[u32], out: &mut Encoder) -> Result<(), CpuStateError> {
    let tell = |what| refused("tell", what);
    let cpuid = vcpu
        .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(tell("CPUID"))?;
    out.u32(u32::try_from(cpuid.as_slice().len()).unwrap_or(0));
    for leaf in cpuid.as_slice() {
        save_leaf(leaf, out);
    }
    out.u32(vcpu.get_mp_state().map_err(tell("run state"))?.mp_state);
    save_regs(&vcpu.get_regs().map_err(tell("registers"))?, out);
    save_sregs(&vcpu.get_sregs().map_err(tell("special registers"))?, out);
    let xsave = vcpu.get_xsave().map_err(tell("extended state"))?;
    for word in xsave.region {
        out.u32(word);
    }
    let xcrs = vcpu.get_xcrs().map_err(tell("XCRs"))?;
    out.u64(xcrs.xcrs[0].value);
    let debug = vcpu.get_debug_regs().map_err(tell("debug registers"))?;
    for word in debug.db.into_iter().chain([debug.dr6, debug.dr7]) {
        out.u64(word);
    }
    let lapic = vcpu.get_lapic().map_err(tell("LAPIC"))?;
    out.bytes(&lapic.regs.map(i8::cast_unsigned));
    let wanted: Vec<kvm_msr_entry> = MSRS
        .iter()
        .filter(|index| known_msrs.contains(index))
        .map(|index| kvm_msr_entry {
            index: *index,
            ..Default::default()
        })
        .collect();
    let mut msrs =
        Msrs::from_entries(&wanted).map_err(|_| StateError::Invalid("number of MSRs"))?;
    let count = vcpu.get_msrs(&mut msrs).map_err(tell("MSRs"))?;
    if let Some(failed) = wanted.get(count) {
        let what = format!("MSR {:#x}", failed.index);
        return Err(CpuStateError::Missing(what));
    }
    out.u32(u32::try_from(count).unwrap_or(0));
    for msr in msrs.as_slice() {
        out.u32(msr.index);
        out.u64(msr.data);
    }
    save_events(&vcpu.get_vcpu_events().map_err(tell("events"))?, out);
    out.u32(vcpu.get_tsc_khz().map_err(tell("TSC frequency"))?);
    Ok(())
}

/// Gives a new processor the state that another had.
///
/// # Errors
/// When the state is hostile or damaged, when this host lacks what the guest was promised, or when KVM refuses.
pub fn load(vcpu: &VcpuFd, supported: &CpuId, from: &mut Decoder<'_>) -> Result<(), CpuStateError> {
    let set = |what| refused("set", what);
    let count = from.count(LEAVES_MAX, "number of CPUID leaves")?;
    let leaves = (0..count)
        .map(|_| load_leaf(from))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(missing) = cpuid::first_missing(&leaves, supported.as_slice()) {
        return Err(CpuStateError::Missing(missing));
    }
    let cpuid =
        CpuId::from_entries(&leaves).map_err(|_| StateError::Invalid("number of CPUID leaves"))?;
    vcpu.set_cpuid2(&cpuid).map_err(set("CPUID"))?;
    let mp_state = kvm_mp_state {
        mp_state: from.u32()?,
    };
    let regs = load_regs(from)?;
    let sregs = load_sregs(from)?;
    let mut xsave = kvm_xsave::default();
    for word in &mut xsave.region {
        *word = from.u32()?;
    }
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = from.u64()?;
    let mut debug = kvm_debugregs::default();
    for word in &mut debug.db {
        *word = from.u64()?;
    }
    debug.dr6 = from.u64()?;
    debug.dr7 = from.u64()?;
    let mut lapic = kvm_lapic_state::default();
    let bytes = from.bytes()?;
    if bytes.len() != lapic.regs.len() {
        return Err(StateError::Invalid("LAPIC").into());
    }
    for (register, byte) in lapic.regs.iter_mut().zip(bytes) {
        *register = byte.cast_signed();
    }
    let msrs = load_msrs(from)?;
    let events = load_events(from)?;
    let tsc_khz = from.u32()?;

    if vcpu
        .get_tsc_khz()
        .map_err(refused("tell", "TSC frequency"))?
        != tsc_khz
    {
        vcpu.set_tsc_khz(tsc_khz)
            .map_err(|_| CpuStateError::Missing(format!("a TSC of {tsc_khz} kHz")))?;
    }
    vcpu.set_mp_state(mp_state).map_err(set("run state"))?;
    vcpu.set_regs(&regs).map_err(set("registers"))?;
    vcpu.set_sregs(&sregs).map_err(set("special registers"))?;
    vcpu.set_xcrs(&xcrs).map_err(set("XCRs"))?;
    // SAFETY: the structure is as long as KVM reads: larger states come only with dynamic features (AMX), which KVM shows
    // to nobody who has not asked the host for them, and we do not ask.
    unsafe { vcpu.set_xsave(&xsave) }.map_err(set("extended state"))?;
    if !is_reset(&debug) {
        vcpu.set_debug_regs(&debug)
            .map_err(set("debug registers"))?;
    }
    vcpu.set_lapic(&lapic).map_err(set("LAPIC"))?;
    let written = vcpu.set_msrs(&msrs).map_err(set("MSRs"))?;
    if let Some(failed) = msrs.as_slice().get(written) {
        return Err(CpuStateError::Missing(format!(
            "MSR {:#x} with value {:#x}",
            failed.index, failed.data
        )));
    }
    vcpu.set_vcpu_events(&events).map_err(set("events"))?;
    Ok(())
}

/// Whether these are a new processor's (Intel SDM volume 3, table 11-1): nearly every guest's, and then a call is spared.
fn is_reset(debug: &kvm_debugregs) -> bool {
    debug.db == [0; 4] && debug.dr6 == 0xffff_0ff0 && debug.dr7 == 0x400
}

fn load_msrs(from: &mut Decoder<'_>) -> Result<Msrs, StateError> {
    let count = from.count(u32::try_from(MSRS.len()).unwrap_or(0), "number of MSRs")?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (index, data) = (from.u32()?, from.u64()?);
        // Only what we would have saved: a snapshot is no way to reach other MSRs.
        if !MSRS.contains(&index) {
            return Err(StateError::Invalid("MSR"));
        }
        entries.push(kvm_msr_entry {
            index,
            data,
            ..Default::default()
        });
    }
    // A deadline that has passed reads as zero, and zero would leave the guest without a timer: now is as good.
    let tsc = entries
        .iter()
        .find(|entry| entry.index == MSR_TSC)
        .map(|entry| entry.data);
    if let (Some(deadline), Some(tsc)) = (
        entries
            .iter_mut()
            .find(|entry| entry.index == MSR_TSC_DEADLINE),
        tsc,
    ) && deadline.data == 0
    {
        deadline.data = tsc;
    }
    entries.sort_by_key(|entry| entry.index == MSR_TSC_DEADLINE);
    Msrs::from_entries(&entries).map_err(|_| StateError::Invalid("number of MSRs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn registers_survive_the_codec() {
        let regs = kvm_regs {
            rip: 7,
            rflags: 2,
            r15: u64::MAX,
            ..Default::default()
        };
        let mut sregs = kvm_sregs {
            cr3: 0x1000,
            efer: 0x500,
            ..Default::default()
        };
        sregs.tr.selector = 0x20;
        sregs.interrupt_bitmap[3] = 9;
        let mut out = Encoder::new();
        save_regs(&regs, &mut out);
        save_sregs(&sregs, &mut out);
        let bytes = out.into_bytes();

        let mut from = Decoder::new(&bytes);

        assert_eq!(load_regs(&mut from).unwrap(), regs);
        assert_eq!(load_sregs(&mut from).unwrap(), sregs);
        from.finish().unwrap();
    }

    fn msr_bytes(entries: &[(u32, u64)]) -> Vec<u8> {
        let mut out = Encoder::new();
        out.u32(u32::try_from(entries.len()).unwrap());
        for (index, data) in entries {
            out.u32(*index);
            out.u64(*data);
        }
        out.into_bytes()
    }

    #[test]
    fn the_deadline_comes_last_and_is_never_zero() {
        let bytes = msr_bytes(&[(MSR_TSC_DEADLINE, 0), (MSR_TSC, 99)]);

        let msrs = load_msrs(&mut Decoder::new(&bytes)).unwrap();

        let found: Vec<_> = msrs
            .as_slice()
            .iter()
            .map(|msr| (msr.index, msr.data))
            .collect();
        assert_eq!(found, [(MSR_TSC, 99), (MSR_TSC_DEADLINE, 99)]);
    }

    #[test]
    fn an_msr_that_we_never_save_is_refused() {
        assert!(load_msrs(&mut Decoder::new(&msr_bytes(&[(0xc000_0080, 1)]))).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_msrs_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = load_msrs(&mut Decoder::new(&bytes));
        }
    }
}
