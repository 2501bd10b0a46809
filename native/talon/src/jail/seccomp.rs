//! System calls that each kind of thread may make. Filters are data: a table of calls, and for some the values that an
//! argument may have. Whatever is not in the table kills the process.
//!
//! A thread inherits the filter of the one that made it and adds its own, so the main thread's table holds what all need,
//! and the others take away.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// Kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The loop: API, vsock, net, and everything before the machine runs.
    Main,
    /// A processor.
    Vcpu,
    /// A disk's worker.
    Worker,
}

/// One call: its number, and the values that one of its arguments may have (none: any).
pub type Rule = (libc::c_long, Option<(u8, &'static [u64])>);

const fn any(call: libc::c_long) -> Rule {
    (call, None)
}

const fn only(call: libc::c_long, argument: u8, values: &'static [u64]) -> Rule {
    (call, Some((argument, values)))
}

/// ioctls of a processor's thread: run, and interrupts that exits raise.
const VCPU_IOCTLS: &[u64] = &[
    0xae80,      // KVM_RUN
    0x4020_aea5, // KVM_SIGNAL_MSI
    0x4008_ae61, // KVM_IRQ_LINE: serial port
    0x4004_54d0, // TUNSETOFFLOAD: a driver negotiates
];

/// ioctls of a worker's thread: interrupts.
const WORKER_IOCTLS: &[u64] = &[0x4020_aea5];

/// ioctls of the main thread: those of the others, and whatever builds, saves and fills a machine.
const MAIN_IOCTLS: &[u64] = &[
    0xae80,
    0x4020_aea5,
    0x4008_ae61,
    0x4004_54d0,
    0x4004_54d8, // TUNSETVNETHDRSZ
    0x5421,      // FIONBIO
    0xae01,      // KVM_CREATE_VM
    0xae04,      // KVM_GET_VCPU_MMAP_SIZE
    0xc004_ae02, // KVM_GET_MSR_INDEX_LIST
    0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
    0xae41,      // KVM_CREATE_VCPU
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
    0xae47,      // KVM_SET_TSS_ADDR
    0xae60,      // KVM_CREATE_IRQCHIP
    0xc208_ae62, // KVM_GET_IRQCHIP
    0x8208_ae63, // KVM_SET_IRQCHIP
    0x4040_ae79, // KVM_IOEVENTFD
    0x4030_ae7b, // KVM_SET_CLOCK
    0x8030_ae7c, // KVM_GET_CLOCK
    0x8090_ae81, // KVM_GET_REGS
    0x4090_ae82, // KVM_SET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0x4138_ae84, // KVM_SET_SREGS
    0xc008_ae88, // KVM_GET_MSRS
    0x4008_ae89, // KVM_SET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0x4400_ae8f, // KVM_SET_LAPIC
    0x4008_ae90, // KVM_SET_CPUID2
    0xc008_ae91, // KVM_GET_CPUID2
    0x8004_ae98, // KVM_GET_MP_STATE
    0x4004_ae99, // KVM_SET_MP_STATE
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x4040_aea0, // KVM_SET_VCPU_EVENTS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x4080_aea2, // KVM_SET_DEBUGREGS
    0xaea2,      // KVM_SET_TSC_KHZ
    0xaea3,      // KVM_GET_TSC_KHZ
    0x9000_aea4, // KVM_GET_XSAVE
    0x5000_aea5, // KVM_SET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
    0x4188_aea7, // KVM_SET_XCRS
    0xaead,      // KVM_KVMCLOCK_CTRL
];

/// Memory may be mapped and changed, but never be made executable. A guard page has no protection.
const MAIN_MAPS: &[u64] = &[0, 3];
const READ_WRITE: &[u64] = &[3];
const ADVICE: &[u64] = &[
    4,  // MADV_DONTNEED: balloon
    14, // MADV_HUGEPAGE
    15, // MADV_NOHUGEPAGE: the window of PCI
    16, // MADV_DONTDUMP
];
const FCNTL: &[u64] = &[
    1,    // F_GETFD
    2,    // F_SETFD
    3,    // F_GETFL
    4,    // F_SETFL
    1030, // F_DUPFD_CLOEXEC
    1033, // F_ADD_SEALS
    1034, // F_GET_SEALS
];
const FALLOCATE: &[u64] = &[
    0x03, // punch a hole, keep the size
    0x11, // zero a range, keep the size
];
const PUNCH: &[u64] = &[0x03];
const UNIX: &[u64] = &[1];
/// A thread and nothing else, in the words of musl's `pthread_create`: no process, no namespace.
const THREAD: &[u64] = &[0x007d_0f00];
/// PR_SET_NAME of a new thread.
const PRCTL: &[u64] = &[15];
const SET_MODE_FILTER: libc::c_uint = 1;
/// SECCOMP_SET_MODE_FILTER: a filter can only take away.
const SECCOMP: &[u64] = &[1];

/// What every thread needs: memory, locks, the time where the vDSO does not tell it, its end, and the last words of the
/// handler of SIGBUS.
const COMMON: &[Rule] = &[
    any(libc::SYS_futex),
    any(libc::SYS_munmap),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_clock_gettime),
    any(libc::SYS_write),
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
];

/// A processor's own: the kick's return, the log of the serial port, and the vsock device that its driver resets.
const VCPU: &[Rule] = &[
    only(libc::SYS_mmap, 2, READ_WRITE),
    any(libc::SYS_rt_sigreturn),
    only(libc::SYS_ioctl, 1, VCPU_IOCTLS),
    any(libc::SYS_fstat),
    only(libc::SYS_fallocate, 1, PUNCH),
    any(libc::SYS_recvfrom),
    any(libc::SYS_shutdown),
    any(libc::SYS_close),
    // The entropy device, which is served by the processor that rings.
    any(libc::SYS_getrandom),
];

/// A worker's own: its image.
const WORKER: &[Rule] = &[
    only(libc::SYS_mmap, 2, READ_WRITE),
    any(libc::SYS_read),
    only(libc::SYS_ioctl, 1, WORKER_IOCTLS),
    any(libc::SYS_ppoll),
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    any(libc::SYS_pwrite64),
    any(libc::SYS_fdatasync),
    only(libc::SYS_fallocate, 1, FALLOCATE),
];

/// The main thread's own.
const MAIN: &[Rule] = &[
    only(libc::SYS_mmap, 2, MAIN_MAPS),
    only(libc::SYS_mprotect, 2, READ_WRITE),
    only(libc::SYS_madvise, 2, ADVICE),
    any(libc::SYS_brk),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_read),
    any(libc::SYS_writev),
    any(libc::SYS_close),
    only(libc::SYS_fcntl, 1, FCNTL),
    only(libc::SYS_ioctl, 1, MAIN_IOCTLS),
    any(libc::SYS_ppoll),
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    any(libc::SYS_pread64),
    any(libc::SYS_pwrite64),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fsync),
    any(libc::SYS_ftruncate),
    only(libc::SYS_fallocate, 1, FALLOCATE),
    any(libc::SYS_lseek),
    any(libc::SYS_fstat),
    any(libc::SYS_getrandom),
    // Guest memory, and freezing it.
    any(libc::SYS_memfd_create),
    // The loop, doorbells, deadlines of connections.
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_epoll_pwait),
    any(libc::SYS_eventfd2),
    any(libc::SYS_timerfd_create),
    any(libc::SYS_timerfd_settime),
    // Control connections and vsock: Unix sockets only, and nothing new listens.
    any(libc::SYS_accept4),
    only(libc::SYS_socket, 0, UNIX),
    any(libc::SYS_connect),
    any(libc::SYS_recvmsg),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendmsg),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    any(libc::SYS_getsockopt),
    // Threads of a machine, and kicking them.
    only(libc::SYS_clone, 0, THREAD),
    any(libc::SYS_tkill),
    any(libc::SYS_getpid),
    only(libc::SYS_prctl, 0, PRCTL),
    only(libc::SYS_seccomp, 0, SECCOMP),
];

/// What a thread of this kind may call.
#[must_use]
pub const fn tables(role: Role) -> [&'static [Rule]; 2] {
    [
        COMMON,
        match role {
            Role::Main => MAIN,
            Role::Vcpu => VCPU,
            Role::Worker => WORKER,
        },
    ]
}

fn compile(role: Role) -> Result<seccompiler::BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, condition) in tables(role).into_iter().flatten() {
        let entry = rules.entry(*call).or_default();
        let Some((argument, values)) = condition else {
            continue;
        };
        for value in *values {
            // The kernel looks at 32 bits of these arguments.
            let condition = SeccompCondition::new(
                *argument,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                *value,
            )?;
            entry.push(SeccompRule::new(vec![condition])?);
        }
    }
    SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

/// Filters the calling thread, and those that it makes.
///
/// # Errors
/// When the kernel refuses.
pub fn install(role: Role) -> io::Result<()> {
    load(&compile(role).map_err(io::Error::other)?)
}

fn load(program: &seccompiler::BpfProgram) -> io::Result<()> {
    // seccompiler's own call would set no_new_privs again for each thread; it is set once, in `jail::enter`.
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the program lives through the call, which copies it; the two sock_filter types are the kernel's.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const program) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in a filtered child; the signal that ended it, if one did.
    fn in_jail(role: Role, body: impl Fn()) -> Option<i32> {
        within(&compile(role).unwrap(), body)
    }

    fn within(program: &seccompiler::BpfProgram, body: impl Fn()) -> Option<i32> {
        // SAFETY: the child only installs a filter, makes calls and ends; it never returns into the test's process.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                let ready = load(program).is_ok();
                if ready {
                    body();
                }
                libc::_exit(i32::from(!ready));
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            if libc::WIFSIGNALED(status) {
                return Some(libc::WTERMSIG(status));
            }
            assert_eq!(libc::WEXITSTATUS(status), 0, "the filter was refused");
            None
        }
    }

    const ROLES: [Role; 3] = [Role::Main, Role::Vcpu, Role::Worker];
    /// Above every number of Linux 6.18.
    const CALLS: libc::c_long = 480;
    /// The other system call table of x86-64.
    const X32: libc::c_long = 0x4000_0000;
    /// uretprobe and uprobe: newer kernels ask no filter, and outside of a probe answer with SIGILL.
    const PROBES: [libc::c_long; 2] = [335, 336];

    #[test]
    fn every_unlisted_call_kills_every_kind_of_thread() {
        for role in ROLES {
            let program = compile(role).unwrap();
            let listed = |call| {
                tables(role)
                    .into_iter()
                    .flatten()
                    .any(|rule| rule.0 == call)
            };
            let calls = (0..CALLS).filter(|call| !listed(*call) && !PROBES.contains(call));
            for call in calls.chain([X32, X32 | libc::SYS_read]) {
                // SAFETY: the call is not made: the filter is asked first, and if it is not refused the test fails.
                let signal = within(&program, || unsafe {
                    libc::syscall(call, 0, 0, 0, 0, 0, 0);
                });
                assert_eq!(signal, Some(libc::SIGSYS), "{role:?} {call}");
            }
        }
    }

    #[test]
    fn every_unlisted_value_kills_every_kind_of_thread() {
        for role in ROLES {
            let program = compile(role).unwrap();
            for (call, condition) in tables(role).into_iter().flatten() {
                let Some((argument, values)) = condition else {
                    continue;
                };
                // One bit away from what is listed.
                let near = values
                    .iter()
                    .flat_map(|value| [0, 1, 4, 7, 31].map(|bit| value ^ 1 << bit))
                    .filter(|value| !values.contains(value));
                for value in near {
                    let mut arguments = [0; 6];
                    arguments[usize::from(*argument)] = value;
                    let [a, b, c, d, e, f] = arguments;
                    // SAFETY: as above.
                    let signal = within(&program, || unsafe {
                        libc::syscall(*call, a, b, c, d, e, f);
                    });
                    assert_eq!(signal, Some(libc::SIGSYS), "{role:?} {call} {value:#x}");
                }
            }
        }
    }

    /// Filters add up: what the main thread may not, its threads may not either.
    #[test]
    fn no_thread_is_listed_for_what_the_main_thread_may_not() {
        let main: BTreeMap<_, _> = tables(Role::Main).into_iter().flatten().copied().collect();
        for role in [Role::Vcpu, Role::Worker] {
            for (call, condition) in tables(role).into_iter().flatten() {
                let allowed = match (main.get(call), condition) {
                    (None, _) | (Some(Some(_)), None) => false,
                    (Some(None), _) => true,
                    (Some(Some((_, all))), Some((_, own))) => {
                        own.iter().all(|one| all.contains(one))
                    }
                };
                assert!(allowed, "{role:?} {call}");
            }
        }
    }

    #[test]
    fn opening_and_executing_kill_every_role() {
        for role in ROLES {
            let open = in_jail(role, || {
                // SAFETY: a valid path.
                unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
            });
            let execute = in_jail(role, || {
                // SAFETY: a valid path and empty lists.
                unsafe {
                    libc::execve(
                        c"/bin/true".as_ptr(),
                        [std::ptr::null()].as_ptr(),
                        [std::ptr::null()].as_ptr(),
                    )
                };
            });
            assert_eq!(
                (open, execute),
                (Some(libc::SIGSYS), Some(libc::SIGSYS)),
                "{role:?}"
            );
        }
    }

    #[test]
    fn memory_cannot_be_made_executable() {
        let signal = in_jail(Role::Main, || {
            // SAFETY: an anonymous mapping, never used.
            unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    7,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
            }
        });
        assert_eq!(signal, Some(libc::SIGSYS));
    }

    #[test]
    fn a_socket_that_is_not_unix_kills() {
        let signal = in_jail(Role::Main, || {
            // SAFETY: plain numbers.
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        });
        assert_eq!(signal, Some(libc::SIGSYS));
    }

    #[test]
    fn a_clone_that_is_more_than_a_thread_kills() {
        let thread = THREAD[0];
        let namespaces = [
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWNS,
            libc::CLONE_NEWNET,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWCGROUP,
        ]
        .map(|flag| u64::from(flag.cast_unsigned()));
        let process = u64::from(libc::SIGCHLD.cast_unsigned());
        for flags in namespaces
            .iter()
            .flat_map(|flag| [*flag, thread | flag, process | flag])
            .chain([0, process])
        {
            let signal = in_jail(Role::Main, || {
                // SAFETY: the call is not made, as above.
                unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
            });
            assert_eq!(signal, Some(libc::SIGSYS), "{flags:#x}");
        }
    }

    #[test]
    fn what_is_listed_passes() {
        let signal = in_jail(Role::Worker, || {
            // SAFETY: plain calls with valid or empty arguments.
            unsafe {
                libc::munmap(std::ptr::null_mut(), 0);
                libc::read(-1, std::ptr::null_mut(), 0);
                libc::write(-1, std::ptr::null(), 0);
            }
        });
        assert_eq!(signal, None);
    }

    #[test]
    fn no_call_is_listed_twice() {
        for role in ROLES {
            let mut calls: Vec<_> = tables(role)
                .into_iter()
                .flatten()
                .map(|(call, _)| *call)
                .collect();
            let all = calls.len();
            calls.sort_unstable();
            calls.dedup();
            assert_eq!(calls.len(), all, "{role:?}");
        }
    }
}
