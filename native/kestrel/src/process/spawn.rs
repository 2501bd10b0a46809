//! From "run this as that user" to a running process, and the reason when it does not run.
//!
//! kestrel has threads, so between fork and exec only async-signal-safe calls are allowed: everything is prepared in a
//! [`Plan`] before, and the child makes bare system calls. Its failure comes back as (step, errno) over a pipe that exec
//! closes.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use crate::process::reap::{Child, Reaper};
use crate::setup::users::{self, User, UserError};
use crate::sys::{check, pipe, read_now};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files. The kernel's 1,024 are too few for a server that does not raise them itself; with the most there are (the
/// kernel's `fs.nr_open`), programs that close every possible descriptor at their start would take seconds.
const NOFILE_SOFT: libc::rlim_t = 65_536;
const NOFILE_HARD: libc::rlim_t = 1_048_576;

/// A program that is to run.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    pub argv: &'a [OsString],
    pub env: &'a BTreeMap<String, String>,
    pub cwd: Option<&'a str>,
    pub user: Option<&'a str>,
    pub tty: bool,
}

/// The descriptors and the place of a new process.
#[derive(Clone, Copy, Debug)]
pub struct Stdio<'a> {
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// An open `cgroup.procs`.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Why a program does not run.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("argv is empty")]
    ArgvEmpty,
    #[error("an argument, a variable or the working directory holds a NUL")]
    Nul,
    #[error("cannot find the user")]
    User(#[source] UserError),
    #[error("cannot make a process")]
    Fork(#[source] io::Error),
    #[error("cannot run \"{program}\"")]
    Exec {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot enter \"{cwd}\"")]
    Cwd {
        cwd: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot {step}")]
    Prepare {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// The exit code that a shell gives: 127 not found, 126 found and not run.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exec { source, .. } if is_absent(source) => 127,
            _ => 126,
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ELOOP)
    )
}

/// The steps of a child; the number travels through the pipe.
const STEPS: [&str; 8] = [
    "begin a session",
    "take the terminal",
    "place the standard streams",
    "join the control group",
    "enter the working directory",
    "set the groups",
    "set the user",
    "run the program",
];
/// `CLOSE_RANGE_CLOEXEC`, include/uapi/linux/close_range.h.
const CLOSE_ON_EXEC: libc::c_uint = 4;
const STEP_CWD: u8 = 4;
const STEP_EXEC: u8 = 7;

/// Holds all that a child needs, at addresses that stay.
struct Plan<'a> {
    candidates: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    cwd: CString,
    user: &'a User,
    tty: bool,
    stdio: Stdio<'a>,
    report: RawFd,
}

/// Finds the user of a program, for the callers that answer differently when there is none.
///
/// # Errors
/// [`SpawnError::User`].
pub fn user(program: &Program<'_>) -> Result<User, SpawnError> {
    users::resolve(program.user).map_err(SpawnError::User)
}

/// Starts `program` in a session of its own.
///
/// # Errors
/// Every reason why the program's first instruction was not reached.
pub fn spawn(
    reaper: &'static Reaper,
    program: &Program<'_>,
    user: &User,
    stdio: Stdio<'_>,
) -> Result<Child, SpawnError> {
    let name = program.argv.first().ok_or(SpawnError::ArgvEmpty)?;
    let env = environment(program, user);
    let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let candidates = candidates(name, path)?;
    let argv = c_strings(program.argv.iter().map(|word| word.as_bytes().to_vec()))?;
    let envp = c_strings(
        env.iter()
            .map(|(name, value)| format!("{name}={value}").into_bytes()),
    )?;
    let cwd = program.cwd.filter(|cwd| !cwd.is_empty()).unwrap_or("/");
    let (report_read, report_write) = pipe().map_err(SpawnError::Fork)?;
    let plan = Plan {
        candidates,
        argv: pointers(&argv),
        envp: pointers(&envp),
        cwd: CString::new(cwd).map_err(|_| SpawnError::Nul)?,
        user,
        tty: program.tty,
        stdio,
        report: report_write.as_raw_fd(),
    };
    let child = reaper
        .fork_with(|| {
            // SAFETY: the child runs `in_child` only, which is async-signal-safe and never returns.
            match check(unsafe { libc::fork() })? {
                // SAFETY: this is the forked child, which has one thread.
                0 => unsafe { in_child(&plan) },
                pid => Ok(pid),
            }
        })
        .map_err(SpawnError::Fork)?;
    drop(report_write);
    match read_report(&report_read) {
        None => Ok(child),
        Some((STEP_EXEC, source)) => Err(SpawnError::Exec {
            program: name.to_string_lossy().into_owned(),
            source,
        }),
        Some((STEP_CWD, source)) => Err(SpawnError::Cwd {
            cwd: cwd.to_owned(),
            source,
        }),
        Some((step, source)) => Err(SpawnError::Prepare {
            step: STEPS.get(usize::from(step)).copied().unwrap_or("start"),
            source,
        }),
    }
}

fn environment(program: &Program<'_>, user: &User) -> BTreeMap<String, String> {
    let mut env = program.env.clone();
    let mut default = |name: &str, value: &str| {
        env.entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", &user.home);
    if program.tty {
        default("TERM", "xterm");
    }
    env
}

/// Finds the paths to try as execvp(3) does: a name with a slash is a path, others are looked for in `path`.
fn candidates(name: &OsStr, path: &str) -> Result<Vec<CString>, SpawnError> {
    let name = name.as_bytes();
    let names: Vec<Vec<u8>> = if name.contains(&b'/') {
        vec![name.to_owned()]
    } else if name.is_empty() {
        Vec::new()
    } else {
        path.split(':')
            .map(|folder| match folder {
                "" => [b"./", name].concat(),
                folder => [folder.as_bytes(), b"/", name].concat(),
            })
            .collect()
    };
    c_strings(names.into_iter())
}

fn c_strings(strings: impl Iterator<Item = Vec<u8>>) -> Result<Vec<CString>, SpawnError> {
    strings
        .map(|string| CString::new(string).map_err(|_| SpawnError::Nul))
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

fn read_report(pipe: &OwnedFd) -> Option<(u8, io::Error)> {
    let mut report = [0_u8; 5];
    match read_now(pipe.as_fd(), &mut report) {
        // One write of five bytes into a pipe is atomic (pipe(7)).
        Ok(Some(5)) => {
            let [step, a, b, c, d] = report;
            let errno = i32::from_ne_bytes([a, b, c, d]);
            Some((step, io::Error::from_raw_os_error(errno)))
        }
        _ => None,
    }
}

/// The child's whole life before exec.
///
/// # Safety
/// Only between fork and exec, in a process with one thread; every pointer of `plan` must be valid. Makes system calls
/// only: no allocation, no lock.
unsafe fn in_child(plan: &Plan<'_>) -> ! {
    // SAFETY: the caller's promise covers all of them.
    unsafe {
        reset_signals();
        attempt(plan, 0, libc::setsid());
        if plan.tty {
            attempt(
                plan,
                1,
                libc::ioctl(plan.stdio.stdin.as_raw_fd(), libc::TIOCSCTTY, 0),
            );
        }
        if let Some(cgroup) = plan.stdio.cgroup {
            attempt(plan, 3, write_zero(cgroup.as_raw_fd()));
        }
        let stdio = &plan.stdio;
        for (from, to) in [(stdio.stdin, 0), (stdio.stdout, 1), (stdio.stderr, 2)] {
            // Never equal (0 to 2 are taken in this process), so dup2 always clears close-on-exec.
            attempt(plan, 2, libc::dup2(from.as_raw_fd(), to));
        }
        // Ours are closed on exec anyway; this is for one that somebody forgot. Before Linux 5.11 it is refused.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_ON_EXEC);
        // kestrel is unkillable for the OOM killer, what it starts is not. No /proc is no reason to fail.
        let score = libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        if score >= 0 {
            write_zero(score);
            libc::close(score);
        }
        // The kernel bounds threads by its memory, so processes of one user need no bound of their own.
        for (which, soft, hard) in [
            (libc::RLIMIT_NOFILE, NOFILE_SOFT, NOFILE_HARD),
            (libc::RLIMIT_NPROC, libc::RLIM_INFINITY, libc::RLIM_INFINITY),
        ] {
            let limit = libc::rlimit {
                rlim_cur: soft,
                rlim_max: hard,
            };
            libc::setrlimit(which, &raw const limit);
        }
        libc::umask(0o022);
        attempt(plan, STEP_CWD, libc::chdir(plan.cwd.as_ptr()));
        become_user(plan);
        exec(plan);
        libc::_exit(127)
    }
}

/// # Safety
/// As [`in_child`]. Bare system calls: the C library's own would talk to threads that do not exist here.
unsafe fn become_user(plan: &Plan<'_>) {
    // Unprivileged already (tests on a host): there is nothing to change to but oneself.
    // SAFETY: the caller's promise; the group array is valid for its length.
    unsafe {
        if libc::geteuid() != 0 && libc::geteuid() == plan.user.uid {
            return;
        }
        let groups = &plan.user.groups;
        let call = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
        attempt(plan, 5, call);
        let gid = plan.user.gid;
        attempt(plan, 5, libc::syscall(libc::SYS_setresgid, gid, gid, gid));
        let uid = plan.user.uid;
        attempt(plan, 6, libc::syscall(libc::SYS_setresuid, uid, uid, uid));
    }
}

/// # Safety
/// As [`in_child`].
unsafe fn exec(plan: &Plan<'_>) {
    let mut refused = libc::ENOENT;
    for candidate in &plan.candidates {
        // SAFETY: null-terminated arrays of C strings that live in `plan`.
        unsafe { libc::execve(candidate.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
        let errno = errno();
        match errno {
            // Not here: look further, and remember that one was there and not ours to run (execvp(3)).
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE => {}
            libc::EACCES => refused = errno,
            _ => {
                refused = errno;
                break;
            }
        }
    }
    // SAFETY: as the caller promised.
    unsafe { report(plan, STEP_EXEC, refused) };
}

/// # Safety
/// As [`in_child`].
unsafe fn attempt<T: PartialEq + From<i8>>(plan: &Plan<'_>, step: u8, result: T) {
    if result == T::from(-1) {
        // SAFETY: as the caller promised.
        unsafe { report(plan, step, errno()) };
    }
}

/// # Safety
/// As [`in_child`]. Never returns to the caller in truth: it ends the child.
unsafe fn report(plan: &Plan<'_>, step: u8, errno: i32) {
    let [a, b, c, d] = errno.to_ne_bytes();
    let bytes = [step, a, b, c, d];
    // SAFETY: five valid bytes; then the process ends.
    unsafe {
        libc::write(plan.report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127);
    }
}

/// # Safety
/// As [`in_child`].
unsafe fn write_zero(fd: RawFd) -> libc::ssize_t {
    // SAFETY: one valid byte.
    unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Ignored signals and the mask survive exec; a workload must start with neither.
///
/// # Safety
/// As [`in_child`].
unsafe fn reset_signals() {
    /// Two of the kernel's signals belong to the C library, whose own sigaction refuses them: so bare system calls.
    const LAST: libc::c_int = 64;
    const SET_BYTES: usize = 8;
    // `struct sigaction` of the kernel: handler (0 is SIG_DFL), flags, restorer, mask.
    let default = [0_u64; 4];
    let none = [0_u64; 1];
    // SAFETY: valid arrays of the sizes that the kernel reads; SIGKILL and SIGSTOP are refused and unharmed.
    unsafe {
        for signal in 1..=LAST {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null::<u64>(),
                SET_BYTES,
            );
        }
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            none.as_ptr(),
            ptr::null::<u64>(),
            SET_BYTES,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::process::reap::Status;
    use crate::sys::{poll, poll_entry};
    use crate::test_folder::TestFolder;
    use crate::test_reaper::reaper;

    fn me() -> User {
        // SAFETY: geteuid and getegid touch no memory.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        User {
            uid,
            gid,
            groups: vec![],
            home: "/".to_owned(),
        }
    }

    fn run(
        argv: &[&str],
        env: &[(&str, &str)],
        cwd: Option<&str>,
    ) -> Result<(Status, String), SpawnError> {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let (read, write) = pipe().unwrap();
        let stdio = Stdio {
            stdin: null.as_fd(),
            stdout: write.as_fd(),
            stderr: write.as_fd(),
            cgroup: None,
        };
        let program = Program {
            argv: &argv,
            env: &env,
            cwd,
            user: None,
            tty: false,
        };
        let child = spawn(reaper(), &program, &me(), stdio)?;
        drop(write);
        let mut output = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(read), &mut output).unwrap();
        let mut entries = [poll_entry(child.wake_fd(), libc::POLLIN)];
        assert!(poll(&mut entries, Some(Instant::now() + Duration::from_secs(20))).unwrap());
        Ok((child.status().unwrap(), output))
    }

    #[test]
    fn the_code_and_the_output_come_back() {
        let (status, output) = run(
            &["sh", "-c", "echo $A; pwd; exit 7"],
            &[("A", "b c")],
            Some("/proc"),
        )
        .unwrap();

        assert_eq!(status, Status::Exited(7));
        assert_eq!(output, "b c\n/proc\n");
    }

    #[test]
    fn a_killed_process_is_128_and_the_signal() {
        let (status, _) = run(&["sh", "-c", "kill -9 $$"], &[], None).unwrap();

        assert_eq!((status.code(), status.signal()), (137, Some(9)));
    }

    #[test]
    fn what_is_not_there_is_127_and_what_cannot_run_is_126() {
        let folder = TestFolder::new();
        let script = folder.path().join("script");
        std::fs::write(&script, "not an ELF, no shebang").unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "x").unwrap();
        let code = |argv: &[&str]| run(argv, &[], None).unwrap_err().exit_code();

        assert_eq!(code(&["no-such-program"]), 127);
        assert_eq!(code(&["/no/such/program"]), 127);
        assert_eq!(code(&[""]), 127);
        assert_eq!(code(&[script.to_str().unwrap()]), 126);
        assert_eq!(code(&[plain.to_str().unwrap()]), 126);
        assert_eq!(code(&["/"]), 126);
        assert_eq!(
            run(&["true"], &[], Some("/no/such"))
                .unwrap_err()
                .exit_code(),
            126
        );
        assert_eq!(run(&[], &[], None).unwrap_err().exit_code(), 126);
        assert_eq!(run(&["a\0b"], &[], None).unwrap_err().exit_code(), 126);
    }

    #[test]
    fn signals_are_as_after_boot() {
        let (_, output) = run(
            &["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"],
            &[],
            None,
        )
        .unwrap();

        assert_eq!(
            output,
            "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
        );
    }

    #[test]
    fn no_descriptor_leaks_into_a_program() {
        let (_, output) = run(&["sh", "-c", "ls /proc/$$/fd"], &[], None).unwrap();

        assert_eq!(output, "0\n1\n2\n");
    }

    #[test]
    fn two_hundred_processes_that_die_at_once_all_report() {
        for number in 0..200 {
            let (status, _) =
                run(&["sh", "-c", &format!("exit {}", number % 100)], &[], None).unwrap();
            assert_eq!(status, Status::Exited(number % 100));
        }
    }
}
