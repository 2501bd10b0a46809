//! The jail: what is left to a talon that its guest has taken over.
//!
//! `wing launch` gave it a user, namespaces, cgroups and its descriptors. Here the rest follows, in this order, because
//! each step takes away what an earlier one needs: an empty root, limits, no new privileges, Landlock, no capabilities,
//! and seccomp last. Nothing is opened afterwards.

pub mod check;
mod error;
pub mod landlock;
pub mod root;
pub mod seccomp;

use std::io;
use std::path::Path;

pub use error::JailError;
use error::{checked, step};

/// How the jail is shut.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The one folder that stays visible: guest-initiated vsock connects to sockets in it.
    pub vsock_folder: Option<&'a Path>,
    /// The least Landlock ABI that is enough.
    pub landlock_abi_min: u32,
}

// asm-generic/resource.h; the constants differ in type between C libraries.
const RLIMIT_CORE: u32 = 4;
const RLIMIT_NOFILE: u32 = 7;

/// Open descriptors at most: both sides of the muxer's connections, and the devices'.
const FILES_MAX: u64 = 2048;

/// Shuts the jail around the calling thread. It must be the only one. Returns the ABI of Landlock that it has; 0 is none.
///
/// # Errors
/// When a step is refused; the process is then half shut and must end.
pub fn enter(plan: &Plan<'_>) -> Result<u32, JailError> {
    step("empty the root", root::empty(plan.vsock_folder))?;
    step("limit core files", set_limit(RLIMIT_CORE, 0, 0))?;
    step("limit open files", limit(RLIMIT_NOFILE, FILES_MAX))?;
    step("become undumpable", control(libc::PR_SET_DUMPABLE, 0))?;
    step(
        "give up new privileges",
        control(libc::PR_SET_NO_NEW_PRIVS, 1),
    )?;
    let landlock = landlock::restrict(plan.landlock_abi_min)?;
    step("drop capabilities", drop_capabilities())?;
    step("filter system calls", seccomp::install(seccomp::Role::Main))?;
    Ok(landlock)
}

fn control(option: i32, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: prctl with integers; unused arguments are zero, as some options insist.
    checked(unsafe { libc::prctl(option, value, 0, 0, 0) }.into()).map(drop)
}

/// Lowers a limit; one that is lower already stays.
fn limit(resource: u32, most: u64) -> io::Result<()> {
    let mut now = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes into a whole structure of ours; no new limits are given.
    unsafe {
        checked(libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut now,
        ))?;
    }
    set_limit(resource, now.rlim_cur.min(most), now.rlim_max.min(most))
}

fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let new = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: reads a whole structure of ours; the old limits are not asked for.
    checked(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const new,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// Empties the effective, permitted and inheritable sets. The bounding set needs no emptying: nothing is executed any
/// more, and no_new_privs would give nothing to what was.
fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let data = [0u32; 6];
    // SAFETY: header and data are as long as version 3 says (linux/capability.h).
    checked(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}
