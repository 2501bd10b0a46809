//! What the guest's CPUID says: what KVM can do, less nested virtualization, with this machine's topology.
//! Leaves: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; KVM's own: Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const EDX_MTRR: u32 = 1 << 12;
const ECX_SVM: u32 = 1 << 2;
const ECX_CMP_LEGACY: u32 = 1 << 1;
const ECX_TOPOEXT: u32 = 1 << 22;
const EBX_APIC_SHIFT: u32 = 24;

/// Leaves that describe SVM, SEV and SME, which a guest does not get.
const NESTED_LEAVES: [u32; 3] = [0x8000_000a, 0x8000_001f, 0x12];

/// Bits of an APIC id that count processors.
fn topology_bits(cpus: u8) -> u32 {
    u32::from(cpus).next_power_of_two().trailing_zeros()
}

fn adjust(entry: &mut kvm_cpuid_entry2, cpu: u8, cpus: u8) {
    let apic = u32::from(cpu);
    match entry.function {
        0x1 => {
            entry.ecx = entry.ecx & !ECX_VMX | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            entry.ebx = entry.ebx & 0xffff | u32::from(cpus) << 16 | apic << EBX_APIC_SHIFT;
            // All memory is write-back, and page tables say what is not. Linux reads every range register three times to
            // learn that, a hundred exits.
            entry.edx = entry.edx & !(EDX_HTT | EDX_MTRR) | if cpus > 1 { EDX_HTT } else { 0 };
        }
        // Deterministic caches: no cache is shared by more than the processors there are, one thread a core.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { u32::from(cpus) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (u32::from(cpus) - 1) << 26;
        }
        0xb | 0x1f => {
            let (shift, count, level) = match entry.index {
                0 => (0, 1, 1),
                1 => (topology_bits(cpus), u32::from(cpus), 2),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = count;
            entry.ecx = entry.index & 0xff | level << 8;
            entry.edx = apic;
        }
        0x8000_0001 => {
            entry.ecx &= !(ECX_SVM | ECX_TOPOEXT);
            if cpus > 1 && entry.ecx & ECX_CMP_LEGACY == 0 && is_amd_like(entry) {
                entry.ecx |= ECX_CMP_LEGACY;
            }
        }
        0x8000_0008 => entry.ecx = topology_bits(cpus) << 12 | (u32::from(cpus) - 1),
        function if NESTED_LEAVES.contains(&function) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

/// Only AMD defines SVM-era bits of this leaf; LAHF alone says nothing, so ask for SSE4A or XOP, which Intel never had.
fn is_amd_like(entry: &kvm_cpuid_entry2) -> bool {
    entry.ecx & (1 << 6 | 1 << 11) != 0
}

/// CPUID of processor `cpu` of `cpus`, from what KVM supports.
#[must_use]
pub fn of_processor(supported: &CpuId, cpu: u8, cpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adjust(entry, cpu, cpus);
    }
    cpuid
}

/// The first leaf in which `wanted` asks for a feature bit that `supported` lacks, for refusing a snapshot by name.
#[must_use]
pub fn first_missing(
    wanted: &[kvm_cpuid_entry2],
    supported: &[kvm_cpuid_entry2],
) -> Option<String> {
    // Leaves that are sets of features, and which of their registers.
    const FEATURES: [(u32, u32, [bool; 4]); 8] = [
        (0x1, 0, [false, false, true, true]),
        (0x7, 0, [false, true, true, true]),
        (0x7, 1, [true, true, false, true]),
        (0xd, 1, [true, false, false, false]),
        (0x8000_0001, 0, [false, false, true, true]),
        (0x8000_0007, 0, [false, false, false, true]),
        (0x8000_0008, 0, [false, true, false, false]),
        (0x4000_0001, 0, [true, false, false, false]),
    ];
    // What we set or take away ourselves, and what the operating system sets (OSXSAVE, OSPKE).
    const OWN_ECX_1: u32 = ECX_HYPERVISOR | ECX_TSC_DEADLINE | 1 << 27;
    let registers = |entry: &kvm_cpuid_entry2| [entry.eax, entry.ebx, entry.ecx, entry.edx];
    for (function, index, which) in FEATURES {
        let find = |entries: &[kvm_cpuid_entry2]| {
            entries
                .iter()
                .find(|entry| entry.function == function && entry.index == index)
                .map_or([0; 4], registers)
        };
        let (mut wanted, supported) = (find(wanted), find(supported));
        match function {
            0x1 => {
                wanted[2] &= !OWN_ECX_1;
                wanted[3] &= !EDX_HTT;
            }
            0x7 if index == 0 => wanted[2] &= !(1 << 4),
            0x8000_0001 => wanted[2] &= !ECX_CMP_LEGACY,
            _ => {}
        }
        for (register, name) in ["eax", "ebx", "ecx", "edx"].into_iter().enumerate() {
            let missing = wanted[register] & !supported[register];
            if which[register] && missing != 0 {
                return Some(format!(
                    "cpuid {function:#x}.{index} {name} bits {missing:#x}"
                ));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        }
    }

    #[test]
    fn nested_virtualization_is_hidden() {
        let supported =
            CpuId::from_entries(&[entry(1, 0), entry(0x8000_0001, 0), entry(0x8000_000a, 0)])
                .unwrap();

        let cpuid = of_processor(&supported, 0, 1);

        let leaves = cpuid.as_slice();
        assert_eq!(leaves[0].ecx & ECX_VMX, 0);
        assert_eq!(leaves[1].ecx & ECX_SVM, 0);
        assert_eq!((leaves[2].eax, leaves[2].edx), (0, 0));
    }

    #[test]
    fn memory_types_are_not_described_twice() {
        let supported = CpuId::from_entries(&[entry(1, 0)]).unwrap();

        let cpuid = of_processor(&supported, 0, 1);

        assert_eq!(cpuid.as_slice()[0].edx, !(EDX_MTRR | EDX_HTT));
    }

    #[test]
    fn a_processor_knows_its_place() {
        let supported = CpuId::from_entries(&[entry(1, 0), entry(0xb, 0), entry(0xb, 1)]).unwrap();

        let cpuid = of_processor(&supported, 2, 3);

        let leaves = cpuid.as_slice();
        assert_eq!(leaves[0].ebx >> 24, 2);
        assert_eq!(leaves[0].ebx >> 16 & 0xff, 3);
        assert_eq!((leaves[2].eax, leaves[2].ebx, leaves[2].edx), (2, 3, 2));
    }

    #[test]
    fn a_missing_feature_is_named() {
        let mut less = entry(7, 0);
        less.ebx = !(1 << 5);

        let missing = first_missing(&[entry(7, 0)], &[less, entry(7, 1)]).unwrap();

        assert_eq!(missing, "cpuid 0x7.0 ebx bits 0x20");
    }
}
