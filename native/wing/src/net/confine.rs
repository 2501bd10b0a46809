//! The system calls that are left once the sockets are taken over. A guest that finds a fault in how its packets are read
//! speaks to this process next: it may talk on sockets of the internet, and open, start or reach nothing else.

use seccompiler::BpfProgram;

use super::error::NetError;
use crate::filter::{equal, program};

/// Calls with any arguments.
const FREE: &[i64] = &[
    // The controller, clients of ports, and guests that ask by TCP.
    libc::SYS_accept4,
    // Guests and upstreams.
    libc::SYS_connect,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    // The error line at the end.
    libc::SYS_write,
    // Waiting: musl asks by the second name what glibc asks by the first.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    // Ids and letters of questions, and the keys of hash tables.
    libc::SYS_getrandom,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    // Where the host's clock source has no vDSO, asking for the time is a call.
    libc::SYS_clock_gettime,
    // A lock that is contended asks for it; in one thread none is, except within a panic.
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

/// Options that are set on sockets of connections, by level and name.
const OPTIONS: [(i32, i32); 3] = [
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
];

/// Confines this process for good.
///
/// # Errors
/// `confinement_failed`.
pub fn confine() -> Result<(), NetError> {
    crate::filter::confine(filter()).map_err(|source| NetError::Confinement { source })
}

/// Any call but those of the table kills the process.
fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let mut narrow = Vec::new();
    for domain in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let arguments = vec![equal(0, domain)?, equal(1, kind)?, equal(2, 0)?];
            narrow.push((libc::SYS_socket, arguments));
        }
    }
    for (level, name) in OPTIONS {
        narrow.push((
            libc::SYS_setsockopt,
            vec![equal(1, level)?, equal(2, name)?],
        ));
    }
    // Sockets that the daemon sends are made non-blocking.
    let flags = libc::O_RDWR | libc::O_NONBLOCK;
    let set_flags = vec![equal(1, libc::F_SETFL)?, equal(2, flags)?];
    narrow.push((libc::SYS_fcntl, set_flags));
    program(FREE, narrow)
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
        let answer = unsafe { libc::syscall(number, a, b, c, d, 0, 0) };
        i32::from(answer < 0)
    }

    const NEW: i64 = (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as i64;

    #[test]
    fn what_reaches_further_is_the_end() {
        let stream = i64::from(libc::SOCK_STREAM) | NEW;
        let inet = i64::from(libc::AF_INET);
        let exec = i64::from(libc::PROT_READ | libc::PROT_EXEC);
        let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let socket = i64::from(libc::SOL_SOCKET);
        for (what, number, arguments) in [
            ("open", libc::SYS_open, [0, 0, 0, 0]),
            ("openat", libc::SYS_openat, [-100, 0, 0, 0]),
            ("read", libc::SYS_read, [-1, 0, 0, 0]),
            ("execve", libc::SYS_execve, [0, 0, 0, 0]),
            ("fork", libc::SYS_fork, [0, 0, 0, 0]),
            ("clone", libc::SYS_clone, [0, 0, 0, 0]),
            ("kill", libc::SYS_kill, [1, 0, 0, 0]),
            ("ptrace", libc::SYS_ptrace, [0, 0, 0, 0]),
            ("bind", libc::SYS_bind, [0, 0, 0, 0]),
            ("listen", libc::SYS_listen, [0, 0, 0, 0]),
            ("unlink", libc::SYS_unlink, [0, 0, 0, 0]),
            ("prctl", libc::SYS_prctl, [0, 0, 0, 0]),
            ("setuid", libc::SYS_setuid, [0, 0, 0, 0]),
            ("unshare", libc::SYS_unshare, [0, 0, 0, 0]),
            ("setns", libc::SYS_setns, [0, 0, 0, 0]),
            ("bpf", libc::SYS_bpf, [0, 0, 0, 0]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0, 0]),
            ("ioctl", libc::SYS_ioctl, [0, 0x5401, 0, 0]),
            (
                "other flags",
                libc::SYS_fcntl,
                [-1, libc::F_SETFL.into(), 0, 0],
            ),
            ("F_DUPFD", libc::SYS_fcntl, [-1, libc::F_DUPFD.into(), 0, 0]),
            (
                "a Unix socket",
                libc::SYS_socket,
                [libc::AF_UNIX.into(), stream, 0, 0],
            ),
            (
                "netlink",
                libc::SYS_socket,
                [
                    libc::AF_NETLINK.into(),
                    i64::from(libc::SOCK_RAW) | NEW,
                    0,
                    0,
                ],
            ),
            (
                "a raw socket",
                libc::SYS_socket,
                [inet, i64::from(libc::SOCK_RAW) | NEW, 255, 0],
            ),
            ("another protocol", libc::SYS_socket, [inet, stream, 132, 0]),
            (
                "packets",
                libc::SYS_socket,
                [libc::AF_PACKET.into(), stream, 0, 0],
            ),
            (
                "a filter",
                libc::SYS_setsockopt,
                [-1, socket, libc::SO_ATTACH_FILTER.into(), 0],
            ),
            (
                "a device",
                libc::SYS_setsockopt,
                [-1, socket, libc::SO_BINDTODEVICE.into(), 0],
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
    fn what_the_helper_does_goes_on() {
        assert_eq!(end_of(|| 7), -7);
        for domain in [libc::AF_INET, libc::AF_INET6] {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
                let arguments = [domain.into(), i64::from(kind) | NEW, 0, 0];
                assert_eq!(end_of(|| call(libc::SYS_socket, arguments)), 0);
            }
        }
        let data = i64::from(libc::PROT_READ | libc::PROT_WRITE);
        let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        assert_eq!(
            end_of(|| call(libc::SYS_mmap, [0, 1 << 20, data, private])),
            0
        );
    }
}
