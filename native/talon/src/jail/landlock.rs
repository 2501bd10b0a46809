//! Landlock: no file, no TCP port, no abstract socket, no signal to others (Documentation/userspace-api/landlock.rst).
//! No rule allows anything: what is needed is open already.

use std::io;

use super::error::{JailError, checked, step};

const CREATE_RULESET_VERSION: u32 = 1;
/// The newest ABI whose rights are known here.
const ABI_KNOWN: u32 = 6;

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// The kernel's ABI; 0 where there is no Landlock.
#[must_use]
pub fn abi() -> u32 {
    // SAFETY: with this flag the call takes no attributes and only answers.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Everything that this ABI can deny.
fn everything(abi: u32) -> RulesetAttr {
    let rights: u32 = match abi {
        0 | 1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    RulesetAttr {
        handled_access_fs: (1 << rights) - 1,
        handled_access_net: if abi >= 4 { 3 } else { 0 },
        scoped: if abi >= 6 { 3 } else { 0 },
    }
}

/// Denies everything that the kernel can deny. Returns the kernel's ABI.
///
/// # Errors
/// When the kernel knows less than `wanted`, or refuses.
pub fn restrict(wanted: u32) -> Result<u32, JailError> {
    let found = abi();
    if found < wanted {
        return Err(JailError::Landlock { found, wanted });
    }
    if found > 0 {
        step("shut Landlock", apply(&everything(found.min(ABI_KNOWN))))?;
    }
    Ok(found)
}

fn apply(attributes: &RulesetAttr) -> io::Result<()> {
    // SAFETY: the structure is passed with its size; an older kernel accepts the fields that it does not know when they
    // are zero, and they are.
    unsafe {
        let ruleset = checked(libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(attributes),
            size_of::<RulesetAttr>(),
            0u32,
        ))?;
        let done = checked(libc::syscall(
            libc::SYS_landlock_restrict_self,
            ruleset,
            0u32,
        ));
        if let Ok(fd) = i32::try_from(ruleset) {
            libc::close(fd);
        }
        done.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_abi_denies_more_than_the_one_before() {
        let sets: Vec<_> = (1..=ABI_KNOWN).map(everything).collect();

        assert_eq!(sets[0].handled_access_fs, 0x1fff);
        assert_eq!(sets[1].handled_access_fs, 0x3fff);
        assert_eq!(
            (sets[3].handled_access_fs, sets[3].handled_access_net),
            (0x7fff, 3)
        );
        assert_eq!((sets[5].handled_access_fs, sets[5].scoped), (0xffff, 3));
    }

    #[test]
    fn too_old_a_kernel_is_refused() {
        assert!(matches!(
            restrict(1000),
            Err(JailError::Landlock { wanted: 1000, .. })
        ));
    }
}
