//! What `/dev/kvm` says of itself: Documentation/virt/kvm/api.rst.

use libc::{c_int, c_long, c_ulong};

use crate::call::{narrow, out, result, run};
use crate::fd::Owned;

// linux/kvm.h
const KVM_GET_API_VERSION: c_ulong = 0xae00;
const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CHECK_EXTENSION: c_ulong = 0xae03;
const KVM_CAP_IRQCHIP: c_int = 0;
const KVM_CAP_NR_VCPUS: c_int = 9;
const KVM_CAP_IRQFD: c_int = 32;
const KVM_CAP_IOEVENTFD: c_int = 36;
const KVM_CAP_MAX_VCPUS: c_int = 66;
const KVM_CAP_TSC_DEADLINE_TIMER: c_int = 72;
const KVM_CAP_READONLY_MEM: c_int = 81;
const KVM_CAP_SPLIT_IRQCHIP: c_int = 121;
const KVM_CAP_IMMEDIATE_EXIT: c_int = 136;

/// Extensions are the kernel's answers to KVM_CHECK_EXTENSION: 0 is no, 1 or more is yes, some are numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct KvmProbe {
    /// 12 on every kernel of the last decade; another number is another interface.
    pub api_version: i32,
    /// 0: KVM_CREATE_VM works (the VM was closed at once). Else its errno: EBUSY where another hypervisor
    /// holds the CPU's extension, EOPNOTSUPP where firmware has switched it off.
    pub vm_errno: i32,
    /// vCPUs of one VM that the kernel recommends.
    pub vcpus_recommended: i32,
    /// vCPUs of one VM at most.
    pub vcpus_max: i32,
    pub immediate_exit: i32,
    pub readonly_mem: i32,
    pub irqchip: i32,
    pub split_irqchip: i32,
    pub ioeventfd: i32,
    pub irqfd: i32,
    pub tsc_deadline: i32,
}

/// Fills `probe`, whose size is `len`. 0, or why the device cannot be opened: ENOENT (no module), EACCES (not in
/// group kvm), ENXIO or ENODEV (the CPU has no extension). A device that answers is not yet a KVM that can run a
/// stock guest: the CPU's flags must show vmx or svm as well.
///
/// # Safety
/// `probe` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_kvm_probe(probe: *mut KvmProbe, len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise; every byte pattern is a KvmProbe.
        let probe = unsafe { out(probe, len) }?;
        let path = c"/dev/kvm".as_ptr();
        let flags = libc::O_RDWR | libc::O_CLOEXEC;
        // SAFETY: the path ends in NUL.
        let open = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags) };
        let kvm = Owned::take(open)?;
        let has = |capability| {
            // An error to this question is a no.
            narrow(ioctl(&kvm, KVM_CHECK_EXTENSION, capability)).max(0)
        };
        *probe = KvmProbe {
            api_version: narrow(ioctl(&kvm, KVM_GET_API_VERSION, 0)),
            vm_errno: create_vm(&kvm),
            vcpus_recommended: has(KVM_CAP_NR_VCPUS),
            vcpus_max: has(KVM_CAP_MAX_VCPUS),
            immediate_exit: has(KVM_CAP_IMMEDIATE_EXIT),
            readonly_mem: has(KVM_CAP_READONLY_MEM),
            irqchip: has(KVM_CAP_IRQCHIP),
            split_irqchip: has(KVM_CAP_SPLIT_IRQCHIP),
            ioeventfd: has(KVM_CAP_IOEVENTFD),
            irqfd: has(KVM_CAP_IRQFD),
            tsc_deadline: has(KVM_CAP_TSC_DEADLINE_TIMER),
        };
        Ok(0)
    }))
}

/// 0, or the errno. The VM is gone when this returns: its one descriptor is closed.
fn create_vm(kvm: &Owned) -> i32 {
    match narrow(ioctl(kvm, KVM_CREATE_VM, 0)) {
        errno if errno < 0 => errno.wrapping_neg(),
        vm => {
            drop(Owned(vm));
            0
        }
    }
}

fn ioctl(fd: &Owned, request: c_ulong, argument: c_int) -> i64 {
    // SAFETY: the requests used here take an integer.
    result(unsafe { libc::syscall(libc::SYS_ioctl, fd.0, request, c_long::from(argument)) })
}
