//! What this process gives away before it reads the first hostile byte: new privileges, the file system, the network,
//! memory without end, and every system call but those of reading and writing what is open.

use std::io;

use seccompiler::BpfProgram;
use serde::Serialize;

use super::error::{Error, Result};
use crate::filter::program;

/// Address space, bytes: names and attributes 900 MiB at most, their index, tails 256 MiB, a decoder's window 128 MiB.
const ADDRESS_SPACE_MAX: u64 = 2 << 30;

/// What the kernel offers for confinement.
#[derive(Debug, Serialize)]
pub struct Probe {
    /// 0 where there is none.
    pub landlock_abi: u32,
    pub seccomp: bool,
}

/// Asks the kernel.
pub fn probe() -> Probe {
    // SAFETY: with a null argument the kernel answers EFAULT where filters are known and changes nothing.
    let answer = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
    let seccomp = answer == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
    Probe {
        landlock_abi: landlock_abi(),
        seccomp,
    }
}

/// Confines this process for good.
///
/// # Errors
/// `confinement_failed`. A kernel without Landlock (before 5.13, or not enabled) is no failure: seccomp alone leaves
/// no call that opens a file.
pub fn confine() -> Result<()> {
    let failed = |step| move |source| Error::Confinement { step, source };
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())
        .map_err(failed("no_new_privs"))?;
    limit(libc::RLIMIT_AS.into(), ADDRESS_SPACE_MAX).map_err(failed("setrlimit"))?;
    limit(libc::RLIMIT_CORE.into(), 0).map_err(failed("setrlimit"))?;
    restrict_files().map_err(failed("Landlock"))?;
    let program = filter().map_err(|error| failed("seccomp")(io::Error::other(error)))?;
    seccompiler::apply_filter(&program).map_err(|error| failed("seccomp")(io::Error::other(error)))
}

fn check(answer: i64) -> io::Result<i64> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}

/// Lowers a limit; one that is lower already stays.
fn limit(resource: i64, max: u64) -> io::Result<()> {
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let nothing = std::ptr::null::<libc::rlimit>();
    // SAFETY: asks only; `now` is a valid place for the answer, of the kernel's `struct rlimit64`.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, nothing, &raw mut now) })?;
    let max = max.min(now.rlim_max);
    let lower = libc::rlimit {
        rlim_cur: max.min(now.rlim_cur),
        rlim_max: max,
    };
    let answer = std::ptr::null_mut::<libc::rlimit>();
    // SAFETY: `lower` is valid for the duration of the call, and no answer is wanted.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const lower, answer) })
        .map(drop)
}

fn landlock_abi() -> u32 {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_ulong = 1;
    // SAFETY: the documented question for the version (landlock_create_ruleset(2)): a null attribute of size 0.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(answer).unwrap_or(0)
}

/// `struct landlock_ruleset_attr` of `linux/landlock.h`, ABI 6.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// Takes all that Landlock knows of; no rule gives anything back.
fn restrict_files() -> io::Result<()> {
    let abi = landlock_abi();
    if abi == 0 {
        return Ok(());
    }
    // Bits by ABI: 13 of the first, REFER with 2, TRUNCATE with 3 (an open file that is being written stays
    // truncatable: the right is decided at its opening), IOCTL_DEV with 5.
    let files = match abi {
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    let attr = RulesetAttr {
        handled_access_fs: (1 << files) - 1,
        handled_access_net: if abi >= 4 { 0b11 } else { 0 },
        scoped: if abi >= 6 { 0b11 } else { 0 },
    };
    let size: usize = match abi {
        1..=3 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    // SAFETY: `attr` holds at least `size` bytes, and outlives the call.
    let ruleset = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0)
    })?;
    // SAFETY: takes the descriptor just made.
    let restricted = check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) });
    // SAFETY: closes the descriptor just made, which no one else has.
    unsafe { libc::syscall(libc::SYS_close, ruleset) };
    restricted.map(drop)
}

/// The calls that are left; any other kills the process.
fn filter() -> std::result::Result<BpfProgram, seccompiler::Error> {
    const FREE: &[i64] = &[
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_lseek,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_copy_file_range,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_sigaltstack,
        libc::SYS_gettid,
    ];
    program(FREE, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in a child and gives its wait status.
    fn in_child(body: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child runs `body`, which only makes system calls and small allocations, and leaves by _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let code = body();
            // SAFETY: ends the child without the handlers of the test's process.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: `pid` is our child and `status` a valid place.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        status
    }

    fn open(path: &std::ffi::CStr) -> i32 {
        // SAFETY: `path` ends with NUL.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) };
        if fd >= 0 {
            0
        } else {
            io::Error::last_os_error().raw_os_error().unwrap_or(-1)
        }
    }

    #[test]
    fn a_confined_process_dies_when_it_opens_a_file() {
        let status = in_child(|| match confine() {
            Ok(()) => open(c"/etc/passwd"),
            Err(_) => 99,
        });

        assert!(libc::WIFSIGNALED(status), "{status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGSYS);
    }

    #[test]
    fn landlock_alone_refuses_files_too() {
        if landlock_abi() == 0 {
            eprintln!("skipped: this kernel has no Landlock");
            return;
        }
        let status = in_child(|| {
            // SAFETY: takes numbers only.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            match restrict_files() {
                Ok(()) => open(c"/etc/passwd"),
                Err(_) => 99,
            }
        });

        assert!(libc::WIFEXITED(status));
        assert_eq!(libc::WEXITSTATUS(status), libc::EACCES);
    }

    #[test]
    fn memory_that_can_be_run_is_not_to_be_had() {
        let status = in_child(|| {
            if confine().is_err() {
                return 99;
            }
            // SAFETY: a fresh anonymous mapping at a place of the kernel's choice.
            unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            0
        });

        assert!(libc::WIFSIGNALED(status));
    }

    #[test]
    fn reading_and_writing_go_on() {
        let mut pipe = [0; 2];
        // SAFETY: `pipe` has room for two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let status = in_child(|| {
            if confine().is_err() {
                return 99;
            }
            let memory = vec![1u8; 32 << 20];
            // SAFETY: the buffer holds one byte, and the descriptor is open.
            i32::from(unsafe { libc::write(pipe[1], memory.as_ptr().cast(), 1) } != 1)
        });

        assert!(libc::WIFEXITED(status), "{status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), 0);
    }
}
