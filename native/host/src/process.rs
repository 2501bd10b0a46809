//! Processes by pidfd: a number that cannot come to mean another process, as a pid can.

use libc::{c_int, c_long, c_uint, pid_t};

use crate::call::{checked, narrow, out, result, run};

/// How a process ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitStatus {
    /// 1 where the kernel tells us: children of this process only. Else 0, and the rest means nothing.
    pub known: i32,
    /// 1 CLD_EXITED, 2 CLD_KILLED, 3 CLD_DUMPED (waitid(2)).
    pub code: i32,
    /// The exit code, or the signal.
    pub status: i32,
}

/// A pidfd of `pid`: pidfd_open(2), Linux 5.3. ESRCH: no such process; EINVAL: not a process (a thread, 0).
/// For a pid that is not our child the caller must compare the start time **after** the call.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_pidfd_open(pid: pid_t) -> i32 {
    let flags: c_uint = 0; // pidfds are close-on-exec always
    // SAFETY: integers only.
    narrow(result(unsafe {
        libc::syscall(libc::SYS_pidfd_open, pid, flags)
    }))
}

/// pidfd_send_signal(2). Signal 0 asks only. ESRCH: it has ended and was waited for; EPERM: another user's.
#[unsafe(no_mangle)]
pub extern "C" fn aerie_pidfd_send_signal(pidfd: c_int, signal: c_int) -> i32 {
    let (no_info, flags): (c_long, c_uint) = (0, 0);
    // SAFETY: integers, and a null siginfo.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, no_info, flags) };
    narrow(result(ret))
}

/// 1 where the process has ended, 0 where it runs. `status` is filled and the process stays waitable, so that
/// whoever owns the child (the runtime's own spawn) still gets its exit.
///
/// # Safety
/// `status` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_pidfd_exited(
    pidfd: c_int,
    status: *mut ExitStatus,
    len: u32,
) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise; every byte pattern is an ExitStatus.
        let status = unsafe { out(status, len) }?;
        *status = ExitStatus::default();
        let mut poll = libc::pollfd {
            fd: pidfd,
            events: libc::POLLIN,
            revents: 0,
        };
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let (no_mask, mask_bytes): (c_long, usize) = (0, 0);
        let count: c_uint = 1;
        // SAFETY: one pollfd and one timespec, alive over the call.
        checked(result(unsafe {
            libc::syscall(
                libc::SYS_ppoll,
                &raw mut poll,
                count,
                &raw const now,
                no_mask,
                mask_bytes,
            )
        }))?;
        if poll.revents & libc::POLLNVAL != 0 {
            return Err(crate::call::error(libc::EBADF));
        }
        if poll.revents == 0 {
            return Ok(0);
        }
        match wait(pidfd, libc::WNOWAIT, status) {
            Ok(_) => Ok(1),
            Err(errno) if errno == crate::call::error(libc::ECHILD) => Ok(1),
            Err(errno) => Err(errno),
        }
    }))
}

/// Waits for a child that the runtime does not know of (`wing launch` with a pid namespace): 1 and its status, 0
/// where it still runs. ECHILD: not ours, or waited for already. Never call it for a child of the runtime.
///
/// # Safety
/// `status` is null or valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_pidfd_reap(pidfd: c_int, status: *mut ExitStatus, len: u32) -> i32 {
    narrow(run(|| {
        // SAFETY: the caller's promise; every byte pattern is an ExitStatus.
        let status = unsafe { out(status, len) }?;
        *status = ExitStatus::default();
        wait(pidfd, 0, status)
    }))
}

/// waitid(2) with P_PIDFD (Linux 5.4), not waiting. 1 where there was something to tell.
fn wait(pidfd: c_int, flags: c_int, status: &mut ExitStatus) -> Result<i64, i64> {
    let options = libc::WEXITED | libc::WNOHANG | flags;
    // SAFETY: all-zero bytes are a siginfo.
    let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
    let no_usage: c_long = 0;
    // SAFETY: `info` is alive over the call; a null rusage asks for none.
    checked(result(unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd,
            &raw mut info,
            options,
            no_usage,
        )
    }))?;
    if info.si_signo == 0 {
        return Ok(0);
    }
    // SAFETY: a siginfo of waitid is a SIGCHLD one, which has a status.
    let value = unsafe { info.si_status() };
    *status = ExitStatus {
        known: 1,
        code: info.si_code,
        status: value,
    };
    Ok(1)
}
