//! The system calls that are left once the device is made. Whoever breaks out of QEMU, or finds a fault in how rings are
//! read, speaks to this process next: it may talk on Unix sockets and wait, and open, start or reach nothing else.

use seccompiler::BpfProgram;

use super::error::VsockError;
use crate::filter::{equal, program};

/// Calls with any arguments. Those that the suite of vsock devices does not make say why they are here.
const FREE: &[i64] = &[
    // Streams: the VMM's messages with their descriptors, the host's programs, and those that the guest calls.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_close,
    // Kicks, interrupts and the clock are counters that are read and written; so is the error line at the end.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_timerfd_settime,
    // Waiting: musl asks by the second name what glibc asks by the first.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    // Memory, the guest's and our own. `madvise`: allocators give back what they do not need with it, but rarely.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    // Where the host's clock source has no vDSO, asking for the time is a call.
    libc::SYS_clock_gettime,
    // A lock that is contended asks for it; the standard library's are not, in one thread, except within a panic.
    libc::SYS_futex,
    // A panic names its thread, and a fault's handler returns to be met again without one.
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    // The end.
    libc::SYS_sigaltstack,
    libc::SYS_exit_group,
];

/// Confines this process for good.
///
/// # Errors
/// `confinement_failed`.
pub fn confine() -> Result<(), VsockError> {
    crate::filter::confine(filter()).map_err(|source| VsockError::Confinement { source })
}

/// Any call but those of the table kills the process.
fn filter() -> Result<BpfProgram, seccompiler::Error> {
    // To the sockets of this guest, and of no other kind.
    let stream = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let unix = vec![equal(0, libc::AF_UNIX)?, equal(1, stream)?];
    program(FREE, vec![(libc::SYS_socket, unix)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(body: impl FnOnce() -> i32) -> i32 {
        crate::filter::tests::end_of(confine, body)
    }

    fn call(number: i64, arguments: [i64; 4]) -> i32 {
        let [a, b, c, d] = arguments;
        // SAFETY: every case below is a call that cannot touch memory of ours: its pointers are null or its values odd.
        let answer = unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
        i32::from(answer < 0)
    }

    #[test]
    fn what_reaches_further_is_the_end() {
        let stream = i64::from(libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
        let (inet, unix) = (i64::from(libc::AF_INET), i64::from(libc::AF_UNIX));
        let exec = i64::from(libc::PROT_READ | libc::PROT_EXEC);
        let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        for (what, number, arguments) in [
            ("open", libc::SYS_open, [0, 0, 0, 0]),
            ("openat", libc::SYS_openat, [-100, 0, 0, 0]),
            ("execve", libc::SYS_execve, [0, 0, 0, 0]),
            ("fork", libc::SYS_fork, [0, 0, 0, 0]),
            ("clone", libc::SYS_clone, [0, 0, 0, 0]),
            ("kill", libc::SYS_kill, [1, 0, 0, 0]),
            ("ptrace", libc::SYS_ptrace, [0, 0, 0, 0]),
            ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0]),
            ("bind", libc::SYS_bind, [0, 0, 0, 0]),
            ("listen", libc::SYS_listen, [0, 0, 0, 0]),
            ("unlink", libc::SYS_unlink, [0, 0, 0, 0]),
            ("prctl", libc::SYS_prctl, [0, 0, 0, 0]),
            ("setuid", libc::SYS_setuid, [0, 0, 0, 0]),
            ("unshare", libc::SYS_unshare, [0, 0, 0, 0]),
            ("bpf", libc::SYS_bpf, [0, 0, 0, 0]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0, 0]),
            ("ioctl", libc::SYS_ioctl, [0, 0x5401, 0, 0]),
            ("F_SETFL", libc::SYS_fcntl, [0, libc::F_SETFL.into(), 0, 0]),
            ("an internet socket", libc::SYS_socket, [inet, stream, 0, 0]),
            (
                "a raw socket",
                libc::SYS_socket,
                [unix, libc::SOCK_RAW.into(), 0, 0],
            ),
            ("code", libc::SYS_mmap, [0, 4096, exec, private]),
            (
                "memory made code",
                libc::SYS_mprotect,
                [4096, 4096, exec, 0],
            ),
        ] {
            assert_eq!(end_of(|| call(number, arguments)), libc::SIGSYS, "{what}");
        }
    }

    #[test]
    fn what_a_device_does_goes_on() {
        assert_eq!(end_of(|| 7), -7);
        let stream = i64::from(libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
        let unix = [libc::AF_UNIX.into(), stream, 0, 0];
        assert_eq!(end_of(|| call(libc::SYS_socket, unix)), 0);
        let data = i64::from(libc::PROT_READ | libc::PROT_WRITE);
        let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let memory = [0, 1 << 20, data, private];
        assert_eq!(end_of(|| call(libc::SYS_mmap, memory)), 0);
    }
}
