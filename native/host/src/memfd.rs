//! Memory files: sealed content that nobody can change any more, under no name that could be replaced, and memory of guests.

use libc::{c_int, c_uint};

use crate::call::{Path, bytes, checked, error, narrow, result, run};
use crate::fd::{Owned, fcntl};

const NAME_BYTES_MAX: u32 = 249; // memfd_create(2)
const SEALS: c_int =
    libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
const MFD_NOEXEC_SEAL: c_uint = 0x8; // linux/memfd.h, Linux 6.3
const MFD_EXEC: c_uint = 0x10;

/// A descriptor of a memory file with these bytes, sealed against every change, at position 0: memfd_create(2).
/// `executable` ≠ 0 where it is a program or a library. `name` is for people, in `/proc/PID/fd`.
/// EACCES: the sysctl vm.memfd_noexec is 2 and forbids executable ones. ENOMEM.
///
/// # Safety
/// Both pointers are null or valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_memfd_sealed(
    name: *const u8,
    name_len: u32,
    content: *const u8,
    content_len: u32,
    executable: c_int,
) -> i32 {
    narrow(run(|| {
        if name_len > NAME_BYTES_MAX {
            return Err(error(libc::EINVAL));
        }
        // SAFETY: the caller's promise.
        let (name, content) = unsafe { (Path::new(name, name_len)?, bytes(content, content_len)?) };
        let fd = create(
            &name,
            if executable == 0 {
                MFD_NOEXEC_SEAL
            } else {
                MFD_EXEC
            },
        )?;
        write(&fd, content)?;
        // ADD_SEALS adds to what MFD_NOEXEC_SEAL has set.
        checked(i64::from(fcntl(fd.0, libc::F_ADD_SEALS, SEALS)))?;
        Ok(fd.give())
    }))
}

/// A descriptor of an empty memory file of `size` bytes, all of them holes, that may be sealed later: memfd_create(2). The memory of a guest.
/// `name` is for people, in `/proc/PID/fd`. EINVAL for the name and a negative size, ENOMEM.
///
/// # Safety
/// The pointer is null or valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_memfd_empty(name: *const u8, name_len: u32, size: i64) -> i32 {
    narrow(run(|| {
        if name_len > NAME_BYTES_MAX {
            return Err(error(libc::EINVAL));
        }
        // SAFETY: the caller's promise.
        let name = unsafe { Path::new(name, name_len)? };
        let fd = create(&name, MFD_NOEXEC_SEAL)?;
        // SAFETY: integers alone.
        checked(result(unsafe {
            libc::syscall(libc::SYS_ftruncate, fd.0, size)
        }))?;
        Ok(fd.give())
    }))
}

fn create(name: &Path, kind: c_uint) -> Result<Owned, i64> {
    let try_with = |flags: c_uint| {
        // SAFETY: the name ends in NUL.
        Owned::take(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) })
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    match try_with(flags | kind) {
        Err(errno) if errno == error(libc::EINVAL) => try_with(flags), // before Linux 6.3
        other => other,
    }
}

/// Writes by pwrite(2), which leaves the position at 0 for whoever reads.
fn write(fd: &Owned, content: &[u8]) -> Result<(), i64> {
    let mut rest = content;
    let mut offset = 0_i64;
    while !rest.is_empty() {
        // SAFETY: pointer and length are those of one slice.
        let written = checked(result(unsafe {
            libc::syscall(libc::SYS_pwrite64, fd.0, rest.as_ptr(), rest.len(), offset)
        }))?;
        let step = usize::try_from(written).map_err(|_| error(libc::EOVERFLOW))?;
        if step == 0 {
            return Err(error(libc::EIO));
        }
        rest = rest.get(step..).unwrap_or_default();
        offset = offset.saturating_add(written);
    }
    Ok(())
}
