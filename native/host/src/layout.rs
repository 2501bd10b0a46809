//! Sizes and offsets of the structures that cross the border, for a test on the other side.

use core::mem::{offset_of, size_of};

use crate::call::{bytes, error, run};
use crate::kvm::KvmProbe;
use crate::path::Space;
use crate::process::ExitStatus;
use crate::socket::Peer;

macro_rules! table {
    ($($name:ident { $($field:ident),* $(,)? })*) => {
        /// `Name` is a size, `Name.field` an offset, both in bytes.
        const TABLE: &[(&str, usize)] = &[
            $((stringify!($name), size_of::<$name>()),
              $((concat!(stringify!($name), ".", stringify!($field)), offset_of!($name, $field))),*),*
        ];
    };
}

table! {
    KvmProbe {
        api_version, vm_errno, vcpus_recommended, vcpus_max, immediate_exit, readonly_mem, irqchip,
        split_irqchip, ioeventfd, irqfd, tsc_deadline,
    }
    ExitStatus { known, code, status }
    Peer { pid, uid, gid }
    Space { bytes_total, bytes_free, bytes_available, magic }
}

/// The size of a structure by its name, or the offset of `Name.field`. ENOENT: no such name.
///
/// # Safety
/// `name` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_layout(name: *const u8, len: u32) -> i64 {
    run(|| {
        // SAFETY: the caller's promise.
        let name = unsafe { bytes(name, len) }?;
        let found = TABLE.iter().find(|(entry, _)| entry.as_bytes() == name);
        found
            .and_then(|&(_, bytes)| i64::try_from(bytes).ok())
            .ok_or(error(libc::ENOENT))
    })
}
