//! Why a machine could not be made.

use std::io;

use crate::boot::elf;
use crate::memory::MemoryError;

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused.
    #[error("KVM refuses to {action}")]
    Kvm {
        /// What was asked.
        action: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// No RAM.
    #[error("cannot make guest memory")]
    Memory(#[from] MemoryError),
    /// No kernel.
    #[error("cannot load the kernel")]
    Kernel(#[from] elf::KernelError),
    /// No initramfs.
    #[error("cannot load the initramfs")]
    Initramfs(#[source] elf::KernelError),
    /// Kernel and initramfs do not fit.
    #[error(
        "the initramfs of {initramfs} bytes does not fit above the kernel's end at {kernel_end:#x}"
    )]
    TooSmall {
        /// Bytes of the initramfs.
        initramfs: u64,
        /// First byte above the kernel.
        kernel_end: u64,
    },
    /// Boot tables could not be written.
    #[error("cannot write the boot tables")]
    Tables(#[from] vm_memory::GuestMemoryError),
    /// A device could not be made.
    #[error("cannot make device {id}")]
    Device {
        /// Its name.
        id: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A thread or descriptor could not be had.
    #[error("the host refuses a {what}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn kvm_error(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |error| MachineError::Kvm {
        action,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}
