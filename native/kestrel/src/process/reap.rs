//! One reaper for every process there is.
//!
//! PID 1 gets the orphans of the whole guest beside its own children. A `waitpid(-1)` here and a `waitpid(pid)` there would
//! steal each other's statuses, so there is one thread that waits, and a table of children somebody asked for:
//!
//! ```text
//! spawn:   lock table ─ fork ─ insert(pid) ─ unlock
//! reaper:  waitid(any, WNOWAIT) ─ lock table ─ waitpid(pid) ─ remove(pid) → deliver, or nobody's: forget ─ unlock
//! ```
//!
//! INVARIANTS: a pid is in the table from before its status can be taken until it is taken, both under the lock; so a
//! process that dies before its parent knows its pid is not lost, and a pid in the table is never another process's:
//! signals go out under the lock as well. Never fork outside of [`Reaper::fork_with`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::sys::{Wake, check, lock, spawn_thread};

/// The way in which a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Killed(u8),
}

impl Status {
    /// Gives the exit code as shells say it: the code, or 128 + the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + i32::from(signal),
        }
    }

    pub const fn signal(self) -> Option<u8> {
        match self {
            Self::Exited(_) => None,
            Self::Killed(signal) => Some(signal),
        }
    }

    fn from_wait(status: libc::c_int) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Killed(u8::try_from(libc::WTERMSIG(status)).unwrap_or(0))
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }
}

#[derive(Debug)]
struct Cell {
    status: Mutex<Option<Status>>,
    wake: Wake,
}

/// A child whose status will be delivered here. Dropping it leaves the process running.
#[derive(Debug, Clone)]
pub struct Child {
    pid: libc::pid_t,
    cell: Arc<Cell>,
    reaper: &'static Reaper,
}

/// The one who waits for children; see the module.
#[derive(Debug, Default)]
pub struct Reaper {
    table: Mutex<BTreeMap<libc::pid_t, Arc<Cell>>>,
    spawned: Condvar,
}

/// A session that forks faster than it can be told is given up on; what is left loses its terminal and its leader.
const SESSION_ROUNDS_MAX: usize = 10;

/// Time between two looks where there is no child to wait for: orphans of kernel helpers can still come.
const CHILDLESS: Duration = Duration::from_secs(60);

impl Reaper {
    /// The reaper of this process, its thread started.
    pub fn start() -> io::Result<&'static Self> {
        let reaper: &'static Self = Box::leak(Box::default());
        spawn_thread("reap", || reaper.run())?;
        Ok(reaper)
    }

    /// Forks by `fork`, which returns the child's pid, and registers it before anyone can reap it.
    pub fn fork_with(
        &'static self,
        fork: impl FnOnce() -> io::Result<libc::pid_t>,
    ) -> io::Result<Child> {
        let cell = Arc::new(Cell {
            status: Mutex::new(None),
            wake: Wake::new()?,
        });
        let mut table = lock(&self.table);
        let pid = fork()?;
        table.insert(pid, Arc::clone(&cell));
        drop(table);
        self.spawned.notify_one();
        Ok(Child {
            pid,
            cell,
            reaper: self,
        })
    }

    fn run(&self) {
        loop {
            match waiting_pid() {
                Ok(pid) => self.reap(pid),
                Err(_) => {
                    let table = lock(&self.table);
                    if table.is_empty() {
                        drop(self.spawned.wait_timeout(table, CHILDLESS));
                    }
                }
            }
        }
    }

    fn reap(&self, pid: libc::pid_t) {
        let mut table = lock(&self.table);
        let mut status = 0;
        // SAFETY: room for one int. It cannot block: waitid saw this pid dead, and nobody else reaps.
        let reaped = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        let cell = table.remove(&pid);
        drop(table);
        if reaped == pid
            && let Some(cell) = cell
        {
            *lock(&cell.status) = Some(Status::from_wait(status));
            cell.wake.set();
        }
    }
}

/// Waits for any child to be dead and leaves it so.
fn waiting_pid() -> io::Result<libc::pid_t> {
    // SAFETY: siginfo_t is plain data; zero is a value of it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: room for a siginfo_t.
    check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT) })?;
    // SAFETY: waitid filled the fields of SIGCHLD.
    Ok(unsafe { info.si_pid() })
}

impl Child {
    pub const fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// `None` while it runs.
    pub fn status(&self) -> Option<Status> {
        *lock(&self.cell.status)
    }

    /// Becomes readable when there is a status, and stays so.
    pub fn wake_fd(&self) -> RawFd {
        self.cell.wake.fd()
    }

    /// Sends a signal to the process; nothing happens when it is gone.
    pub fn signal(&self, signal: u8) {
        self.with_live(|pid| kill(pid, signal));
    }

    /// Sends a signal to the process's group.
    pub fn signal_group(&self, signal: u8) {
        self.with_live(|pid| kill(-pid, signal));
    }

    /// Sends a signal to every process of the session that the child leads: also to background jobs of a shell, which
    /// are groups of their own. Members that are born meanwhile get it too.
    pub fn signal_session(&self, signal: u8) {
        self.with_live(|pid| {
            let mut told = BTreeSet::new();
            for _ in 0..SESSION_ROUNDS_MAX {
                let fresh: Vec<_> = session_members(pid)
                    .into_iter()
                    .filter(|member| told.insert(*member))
                    .collect();
                if fresh.is_empty() {
                    break;
                }
                for member in fresh {
                    kill(member, signal);
                }
            }
        });
    }

    fn with_live(&self, act: impl FnOnce(libc::pid_t)) {
        let table = lock(&self.reaper.table);
        if table.contains_key(&self.pid) {
            act(self.pid);
        }
    }
}

fn kill(pid: libc::pid_t, signal: u8) {
    // SAFETY: kill touches no memory. A failure means that nobody is there any more.
    unsafe { libc::kill(pid, libc::c_int::from(signal)) };
}

fn session_members(session: libc::pid_t) -> Vec<libc::pid_t> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        // SAFETY: getsid touches no memory.
        .filter(|&pid: &libc::pid_t| unsafe { libc::getsid(pid) } == session)
        .collect()
}
