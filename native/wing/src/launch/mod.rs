//! `wing launch`: turns itself into a confined program.
//!
//! The daemon cannot do this: it has many threads, and between fork and exec only the calls of
//! signal-safety(7) are allowed. So it starts this single-threaded program, which does one thing after the
//! other and ends in execve(2): **the pid of the launcher is the pid of the program**, a child of the daemon.
//!
//! The order, and what breaks in another one:
//!
//! 1. **specification** read to its end and checked: a refused launch has changed nothing;
//! 2. **descriptors** placed, all others closed: needs the launcher's own limit of open files, so it comes before
//!    rlimits; from here on nothing of the daemon's can leak, whatever fails;
//! 3. **cgroups**: needs the caller's rights and the host's `/sys`, so before identity and namespaces; first of
//!    the confinements, so that all that follows is accounted and one `cgroup.kill` or sweep finds it;
//! 4. **OOM score, rlimits**: raising a hard limit or lowering a score needs the caller's rights;
//! 5. **namespaces, bounding set, identity**: the first two need CAP_SYS_ADMIN and CAP_SETPCAP, which leave with the
//!    uid. With a **user** namespace it is identity, namespaces, bounding set: the map's one line names our uid, so
//!    the uid must be final, and the new namespace grants the capabilities for the rest (and a full bounding set,
//!    which is why it is emptied after);
//! 6. **capabilities** given up, or (kept, in a user namespace) made to pass the exec;
//! 7. **umask, session, no_new_privs, signals, working folder**: need no right; the folder is entered as the program's user,
//!    so that it fails here when that user may not, and not later in the program. One that is entered by the
//!    caller is entered before 5: unshare(2) takes a working folder along into a new mount namespace;
//! 8. **exec**, by the program's user too.
//!
//! With a **pid** namespace the program must be a new process: unshare(2) moves only children. It is made with
//! CLONE_PARENT, so it is a child of the daemon as well, not of the launcher (which then ends with 0): nobody
//! in between is needed as a reaper, and until the daemon waits for it the reported pid cannot be recycled, so
//! pidfd_open(2) on it is safe. Inside, the program is pid 1: signals without a handler, SIGKILL from outside
//! excepted, do nothing to it. The launcher mounts no new `/proc`; what the program sees of the file system is its
//! own jail's business.
//!
//! **The report** (`report_fd`, close on exec) is how the caller learns the result without waiting for the
//! program's end: a line `{"pid": N}`, N as the caller sees it; then the end of the stream when the program runs, or the error line when
//! it does not. The error line also goes to stderr. Exit code of a failed launch: 125.

mod confine;
mod error;
mod fds;
mod spec;
mod sys;

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::process::ExitCode;

use error::{LaunchError, Step};
use spec::{CwdBy, Exe, Namespace, SPEC_BYTES_MAX, SPEC_FD, Spec};

/// The launcher itself failed; the number is that of `env(1)` and of container runtimes.
const EXIT_LAUNCH_FAILED: u8 = 125;

pub fn main(mut argv: impl Iterator<Item = OsString>) -> ExitCode {
    let mut report = None;
    let result = match argv.next() {
        Some(argument) => Err(LaunchError::Usage(argument)),
        None => launch(&mut report),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = error.line();
            say(Some(libc::STDERR_FILENO), &line);
            say(report, &line);
            ExitCode::from(EXIT_LAUNCH_FAILED)
        }
    }
}

/// Returns only on failure, and where the program is another process than this one (pid namespace).
fn launch(report: &mut Option<RawFd>) -> Result<(), LaunchError> {
    let json = read_spec()?;
    // One that is not open has nobody at its other end; `fds::check` says so, to stderr.
    *report = spec::report_fd(&json).filter(|&fd| sys::fd_open(fd).is_ok());
    let spec = Spec::parse(&json)?;
    let (argv, env) = (spec.argv()?, spec.env()?);
    let cwd = spec::c_string("cwd", &spec.cwd)?;
    let path = match &spec.exe {
        Exe::Path(path) => spec::c_string("exe", path)?,
        Exe::Fd(_) => CString::default(),
    };
    fds::check(&spec)?;
    *report = fds::lift_report(&spec)?;
    sys::ignore_file_size_signal();

    let image = match fds::arrange(&spec, *report)? {
        Some(fd) => sys::Image::Fd(fd),
        None => sys::Image::Path(path),
    };
    confine::join_cgroups(&spec)?;
    confine::set_oom_score(&spec)?;
    confine::set_rlimits(&spec)?;

    if spec.cwd_by == CwdBy::Caller {
        sys::change_dir(&cwd).map_err(Step::Cwd.on(&spec.cwd))?;
    }
    let user_namespace = spec.has(Namespace::User);
    if user_namespace {
        confine::become_user(&spec)?;
    }
    confine::enter_namespaces(&spec)?;
    if spec.has(Namespace::Pid) {
        if !become_first(*report).map_err(Step::Namespace.on("a new pid namespace"))? {
            return Ok(());
        }
    } else {
        say(*report, &pid_line(std::process::id()));
    }
    confine::drop_bounding_set(&spec)?;
    if !user_namespace {
        confine::become_user(&spec)?;
    }
    confine::settle_capabilities(&spec)?;

    if let Some(mask) = spec.umask {
        sys::umask(mask);
    }
    if spec.setsid {
        sys::set_sid().map_err(Step::Session.on("a session"))?;
    }
    if spec.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(Step::NoNewPrivs.on("no_new_privs"))?;
    }
    if spec.cwd_by == CwdBy::User {
        sys::change_dir(&cwd).map_err(Step::Cwd.on(&spec.cwd))?;
    }
    sys::reset_signals();
    let error = sys::exec(&image, &argv, &env);
    Err(Step::Exec.on(name(&spec))(error))
}

/// Goes on as the first process of the new pid namespace, and says in the old one who that is: true in the new
/// process, false in the launcher. The new one waits until its pid has been reported, so that the report's first line
/// is always the pid, and gives up where it never will be: a program that nobody can name must not run.
fn become_first(report: Option<RawFd>) -> io::Result<bool> {
    let (mut wait, mut go) = io::pipe()?;
    let pid = sys::fork_sibling()?;
    if pid != 0 {
        say(report, &pid_line(pid));
        go.write_all(b".")?;
        return Ok(false);
    }
    drop(go);
    wait.read_exact(&mut [0]).map(|()| true)
}

fn read_spec() -> Result<Vec<u8>, LaunchError> {
    sys::fd_open(SPEC_FD).map_err(LaunchError::Unreadable)?;
    // SAFETY: open, and nothing else in this process knows of it. It stays open until `fds::arrange`.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(SPEC_FD) });
    let mut json = Vec::new();
    (&*file)
        .take(SPEC_BYTES_MAX + 1)
        .read_to_end(&mut json)
        .map_err(LaunchError::Unreadable)?;
    if u64::try_from(json.len()).is_ok_and(|bytes| bytes > SPEC_BYTES_MAX) {
        return Err(LaunchError::TooLarge {
            limit: SPEC_BYTES_MAX,
        });
    }
    Ok(json)
}

/// Writes a line, as far as it goes: a reader that went away must not keep a machine from starting, and an
/// error has nobody else to be told to.
fn say(fd: Option<RawFd>, line: &str) {
    if let Some(fd) = fd {
        // SAFETY: stderr or the report; open, and never closed by Rust.
        let mut file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        let _: io::Result<()> = file.write_all(line.as_bytes());
    }
}

fn pid_line(pid: u32) -> String {
    format!("{{\"pid\":{pid}}}\n")
}

fn name(spec: &Spec) -> String {
    match &spec.exe {
        Exe::Path(path) => path.clone(),
        Exe::Fd(exe) => format!("descriptor {}", exe.fd),
    }
}
