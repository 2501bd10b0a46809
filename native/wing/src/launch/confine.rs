//! The steps that make a process smaller: cgroups, limits, namespaces, identity, capabilities.
//! Each is one function that does its field of the specification; `mod.rs` says in which order and why.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::error::{LaunchError, Step};
use super::spec::{Capabilities, Namespace, Resource, Spec};
use super::sys;

const CGROUP_SUPER_MAGIC: u32 = 0x0027_e0eb; // linux/magic.h
const CGROUP2_SUPER_MAGIC: u32 = 0x6367_7270;

/// Joins each cgroup of the list; one v1 controller or the v2 tree each (cgroups(7), `cgroup.procs`).
///
/// # Errors
/// `cgroup_missing`: no such group. `cgroup_denied`: this user may not. `cgroup_failed`: the folder is not on a
/// cgroup file system (nothing is written there), or the kernel refuses (EBUSY: not a leaf of v2).
pub fn join_cgroups(spec: &Spec) -> Result<(), LaunchError> {
    spec.cgroups
        .iter()
        .try_for_each(|path| join(path).map_err(Step::Cgroup.on(path)))
}

fn join(path: &str) -> io::Result<()> {
    let mut procs = open_for_write(&format!("{path}/cgroup.procs"))?;
    match sys::fs_magic(procs.as_raw_fd())? {
        CGROUP_SUPER_MAGIC | CGROUP2_SUPER_MAGIC => procs.write_all(b"0"), // 0 is the writer itself
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a cgroup")),
    }
}

/// # Errors
/// `oom_score_denied`: lower than now, without CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5)).
pub fn set_oom_score(spec: &Spec) -> Result<(), LaunchError> {
    let Some(adj) = spec.oom_score_adj else {
        return Ok(());
    };
    let write =
        || open_for_write("/proc/self/oom_score_adj")?.write_all(adj.to_string().as_bytes());
    write().map_err(Step::OomScore.on(format!("oom_score_adj {adj}")))
}

/// # Errors
/// `rlimit_denied`: a hard limit above the present one, without CAP_SYS_RESOURCE.
pub fn set_rlimits(spec: &Spec) -> Result<(), LaunchError> {
    for (&resource, &(soft, hard)) in &spec.rlimits {
        let (soft, hard) = (soft.unwrap_or(u64::MAX), hard.unwrap_or(u64::MAX)); // RLIM64_INFINITY
        sys::set_rlimit(number(resource), soft, hard)
            .map_err(Step::Rlimit.on(format!("the limit {resource:?} to {soft}, {hard}")))?;
    }
    Ok(())
}

/// asm-generic/resource.h. Written out: libc's constants differ in type between glibc and musl.
const fn number(resource: Resource) -> u32 {
    match resource {
        Resource::Cpu => 0,
        Resource::Fsize => 1,
        Resource::Data => 2,
        Resource::Stack => 3,
        Resource::Core => 4,
        Resource::Nproc => 6,
        Resource::Nofile => 7,
        Resource::Memlock => 8,
        Resource::As => 9,
        Resource::Sigpending => 11,
        Resource::Msgqueue => 12,
        Resource::Nice => 13,
        Resource::Rtprio => 14,
        Resource::Rttime => 15,
    }
}

/// Enters the namespaces. In a new user namespace the ids stay what they are: one line of map, id to itself,
/// which is all that a process may write for itself (user_namespaces(7)); every other id is nobody there.
///
/// # Errors
/// `namespace_denied`: without CAP_SYS_ADMIN, or user namespaces are switched off.
pub fn enter_namespaces(spec: &Spec) -> Result<(), LaunchError> {
    if spec.namespaces.is_empty() {
        return Ok(());
    }
    let flags = spec.namespaces.iter().fold(0, |flags, namespace| {
        flags
            | match namespace {
                Namespace::User => libc::CLONE_NEWUSER,
                Namespace::Mount => libc::CLONE_NEWNS,
                Namespace::Net => libc::CLONE_NEWNET,
                Namespace::Pid => libc::CLONE_NEWPID,
                Namespace::Ipc => libc::CLONE_NEWIPC,
            }
    });
    let (uid, gid) = sys::ids();
    let enter = || {
        sys::unshare(flags)?;
        if spec.has(Namespace::User) {
            // After a change of uid our files in /proc are root's; the bit is set anew by exec.
            sys::prctl(libc::PR_SET_DUMPABLE, 1, 0)?;
            open_for_write("/proc/self/setgroups")?.write_all(b"deny")?;
            open_for_write("/proc/self/uid_map")?.write_all(format!("{uid} {uid} 1").as_bytes())?;
            open_for_write("/proc/self/gid_map")?.write_all(format!("{gid} {gid} 1").as_bytes())?;
        }
        if spec.has(Namespace::Mount) {
            // Slave, not private: what the host unmounts must not stay busy because of a jail.
            sys::mounts_slave()?;
        }
        Ok(())
    };
    enter().map_err(Step::Namespace.on(format!("namespaces {:?}", spec.namespaces)))
}

/// Becomes the user. With uid and gid given and no groups, the supplementary groups are emptied where an id
/// changes, and kept where none does (an ordinary user may not change them).
///
/// # Errors
/// `identity_denied`: without CAP_SETUID or CAP_SETGID.
pub fn become_user(spec: &Spec) -> Result<(), LaunchError> {
    let (Some(uid), Some(gid)) = (spec.uid, spec.gid) else {
        return Ok(());
    };
    let change = || {
        match &spec.groups {
            Some(groups) => sys::set_groups(groups)?,
            None if sys::ids() != (uid, gid) => sys::set_groups(&[])?,
            None => {}
        }
        sys::set_gid(gid)?;
        sys::set_uid(uid)
    };
    change().map_err(Step::Identity.on(format!("uid {uid}, gid {gid}")))
}

/// Empties the bounding set, so that no exec can gain a capability, not even as uid 0.
///
/// # Errors
/// `capabilities_denied`: without CAP_SETPCAP, unless `no_new_privs` says the same already.
pub fn drop_bounding_set(spec: &Spec) -> Result<(), LaunchError> {
    if spec.capabilities == Capabilities::Keep {
        return Ok(());
    }
    for capability in 0.. {
        match sys::prctl(libc::PR_CAPBSET_READ, capability, 0) {
            Ok(0) => continue,
            Ok(_) => {}
            Err(_) => break, // EINVAL: one beyond the last of this kernel
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && spec.no_new_privs => {
                return Ok(());
            }
            other => {
                other.map_err(Step::Capabilities.on(format!("capability {capability} for ever")))?
            }
        };
    }
    Ok(())
}

/// Gives up every capability that is held; or, to be kept in a new user namespace, lets them pass the exec, which is
/// by an ordinary user there and would end them.
///
/// # Errors
/// None is known: neither needs a right.
pub fn settle_capabilities(spec: &Spec) -> Result<(), LaunchError> {
    if spec.capabilities == Capabilities::Keep {
        return if spec.has(Namespace::User) {
            sys::keep_capabilities_on_exec().map_err(Step::Capabilities.on("what is held"))
        } else {
            Ok(())
        };
    }
    let clear = libc::c_ulong::from(libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs());
    sys::prctl(libc::PR_CAP_AMBIENT, clear, 0)
        .and_then(|_| sys::clear_capabilities())
        .map_err(Step::Capabilities.on("what is held"))
}

fn open_for_write(path: &str) -> io::Result<File> {
    // O_NOFOLLOW is about the last part only, which is always a file that the kernel made.
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}
