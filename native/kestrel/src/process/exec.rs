//! exec: one program, its streams and its end, on one connection.
//!
//! ```text
//! host ── stdin, eof, resize, signal ──▶ kestrel ──▶ process (own session)
//! host ◀── ok, stdout, stderr, window, exit ── kestrel ◀──
//! ```
//!
//! Output is read only when the last chunk is written (back-pressure); at the process's end what is in its pipes is read
//! before `exit` is sent, so nothing it wrote is lost, and what a filter behind it has yet to say is waited for a moment. A
//! background child that keeps a pipe open holds up nobody, and its pipe stays open for as long as it lives. When the host
//! goes away the session gets SIGHUP, then SIGKILL.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use aerie_protocol::message::{ErrorBody, Exec, ExecOk, Exit, code};
use aerie_protocol::{Frame, LogStream, kind_byte};

use crate::observe::console::chain;
use crate::process::pty::{self, Size};
use crate::process::reap::{Child, Reaper, Status};
use crate::process::spawn::{self, Program, SpawnError, Stdio};
use crate::process::stdin::Stdin;
use crate::process::streams::Streams;
use crate::sys::{NO_FD, is_ready, pipe, poll, poll_entry, set_nonblocking};
use crate::talk::conn::{CHUNK_BYTES, Conn, ConnError, frame_name};

/// Time from the SIGHUP to the SIGKILL, once the host has gone.
const HANGUP_GRACE: Duration = Duration::from_secs(1);

/// A process and the host's ends of its streams.
#[derive(Debug)]
pub struct Running {
    pub child: Child,
    pub stdin: Stdin,
    pub streams: Streams,
    /// The terminal, for resizes.
    pub master: Option<OwnedFd>,
}

/// Starts a program with pipes or a terminal.
///
/// # Errors
/// See [`SpawnError`].
pub fn start(
    reaper: &'static Reaper,
    program: &Program<'_>,
    has_stdin: bool,
    size: Size,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Running, SpawnError> {
    let user = spawn::user(program)?;
    let prepare = |source| SpawnError::Prepare {
        step: "make the standard streams",
        source,
    };
    if program.tty {
        let (master, slave) = pty::open(size, user.uid).map_err(prepare)?;
        let slave = slave.as_fd();
        let stdio = Stdio {
            stdin: slave,
            stdout: slave,
            stderr: slave,
            cgroup,
        };
        let child = spawn::spawn(reaper, program, &user, stdio)?;
        let stdin = match has_stdin {
            true => Stdin::terminal(master.try_clone().map_err(prepare)?),
            false => Stdin::nobody(),
        };
        return Ok(Running {
            child,
            stdin,
            streams: Streams {
                stdout: Some(master.try_clone().map_err(prepare)?),
                stderr: None,
                is_terminal: true,
            },
            master: Some(master),
        });
    }
    let (stdout, stdout_theirs) = pipe().map_err(prepare)?;
    let (stderr, stderr_theirs) = pipe().map_err(prepare)?;
    let (stdin, stdin_theirs) = match has_stdin {
        true => {
            let (theirs, ours) = pipe().map_err(prepare)?;
            set_nonblocking(ours.as_fd(), true).map_err(prepare)?;
            (Stdin::pipe(ours), theirs)
        }
        false => (Stdin::nobody(), null().map_err(prepare)?),
    };
    let stdio = Stdio {
        stdin: stdin_theirs.as_fd(),
        stdout: stdout_theirs.as_fd(),
        stderr: stderr_theirs.as_fd(),
        cgroup,
    };
    // The pipes belong to the process's user, else /dev/stdout could not be opened by it (as Docker does).
    for end in [&stdin_theirs, &stdout_theirs, &stderr_theirs] {
        if !(user.uid == 0 || std::ptr::eq(end, &raw const stdin_theirs) && !has_stdin) {
            // SAFETY: fchown touches no memory. A refusal only costs that convenience.
            unsafe { libc::fchown(end.as_raw_fd(), user.uid, user.gid) };
        }
    }
    for ours in [&stdout, &stderr] {
        set_nonblocking(ours.as_fd(), true).map_err(prepare)?;
    }
    let child = spawn::spawn(reaper, program, &user, stdio)?;
    Ok(Running {
        child,
        stdin,
        streams: Streams {
            stdout: Some(stdout),
            stderr: Some(stderr),
            is_terminal: false,
        },
        master: None,
    })
}

fn null() -> io::Result<OwnedFd> {
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    Ok(null.into())
}

/// Serves an exec conversation whose `open` had this body.
pub fn serve(reaper: &'static Reaper, mut conn: Conn, body: &Exec) {
    let program = Program {
        argv: &body.argv,
        env: &body.env,
        cwd: body.cwd.as_deref(),
        user: body.user.as_deref(),
        tty: body.tty,
    };
    let size = Size::or_default(body.cols, body.rows);
    let running = match start(reaper, &program, body.stdin, size, None) {
        Ok(running) => running,
        Err(SpawnError::User(error)) => {
            return conn.fail(&ErrorBody::new(code::USER_NOT_FOUND, error.to_string()));
        }
        Err(error) => return not_started(conn, &error),
    };
    let pid = u32::try_from(running.child.pid()).unwrap_or(0);
    if let Err(error) = conn.output.queue_json(kind_byte::OK, &ExecOk { pid }) {
        running.child.signal_session(9);
        return conn.end(Err(error));
    }
    let timeout = body.timeout_ms.map(Duration::from_millis);
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let done = converse(&mut conn, running, deadline);
    let done = done.and_then(|ended| {
        let exit = exit_of(ended, timeout);
        conn.output.queue_json(kind_byte::EXIT, &exit)
    });
    conn.end(done);
}

/// The program is not there or will not run: that is an exit code and no error.
fn not_started(mut conn: Conn, error: &SpawnError) {
    let exit = Exit {
        code: error.exit_code(),
        signal: None,
        message: Some(chain(error)),
    };
    let queued = conn
        .output
        .queue_json(kind_byte::OK, &ExecOk { pid: 0 })
        .and_then(|()| conn.output.queue_json(kind_byte::EXIT, &exit));
    conn.end(queued);
}

#[derive(Clone, Copy, Debug)]
enum Ended {
    ByItself(Status),
    TimedOut,
}

fn exit_of(ended: Ended, timeout: Option<Duration>) -> Exit {
    match ended {
        Ended::ByItself(status) => Exit {
            code: status.code(),
            signal: status.signal(),
            message: None,
        },
        Ended::TimedOut => Exit {
            code: 124,
            signal: None,
            message: Some(format!(
                "killed after {} ms",
                timeout.unwrap_or_default().as_millis()
            )),
        },
    }
}

/// Carries bytes until the process ends; whatever else ends the conversation also ends the process.
fn converse(
    conn: &mut Conn,
    mut running: Running,
    deadline: Option<Instant>,
) -> Result<Ended, ConnError> {
    let carried = carry(conn, &mut running, deadline);
    if carried.is_err() {
        hang_up(&running.child);
    }
    carried
}

fn carry(
    conn: &mut Conn,
    running: &mut Running,
    deadline: Option<Instant>,
) -> Result<Ended, ConnError> {
    let Running {
        child,
        stdin,
        streams,
        master,
    } = running;
    let mut timed_out = false;
    loop {
        if let Some(status) = child.status() {
            queue_rest(conn, streams)?;
            std::mem::take(streams).drain();
            return Ok(match timed_out {
                true => Ended::TimedOut,
                false => Ended::ByItself(status),
            });
        }
        let read_output = conn.output.is_flushed();
        let source = |fd: &Option<OwnedFd>| match fd {
            Some(fd) if read_output => poll_entry(fd.as_raw_fd(), libc::POLLIN),
            _ => poll_entry(NO_FD, 0),
        };
        let mut entries = [
            conn.interest(true),
            poll_entry(child.wake_fd(), libc::POLLIN),
            source(&streams.stdout),
            source(&streams.stderr),
            stdin.interest(),
        ];
        let until = deadline.filter(|_| !timed_out);
        if !poll(&mut entries, until).map_err(ConnError::Io)? {
            timed_out = true;
            child.signal_session(9);
            continue;
        }
        let [host, _, stdout, stderr, input] = entries;
        if host.revents & libc::POLLOUT != 0 {
            conn.flush_now()?;
        }
        if host.revents & !libc::POLLOUT != 0 {
            conn.fill()?;
            take_frames(conn, child, stdin, master.as_ref())?;
        }
        if is_ready(&input) && input.revents & libc::POLLOUT == 0 {
            stdin.abandon();
        }
        stdin.pump();
        stdin.give_credit(&mut conn.output)?;
        queue_ready(conn, streams, is_ready(&stdout), is_ready(&stderr))?;
        conn.flush_now()?;
    }
}

fn take_frames(
    conn: &mut Conn,
    child: &Child,
    stdin: &mut Stdin,
    master: Option<&OwnedFd>,
) -> Result<(), ConnError> {
    while let Some(frame) = conn.decoder.next_frame()? {
        match frame {
            Frame::Stdin(bytes) => stdin.push(bytes)?,
            Frame::Eof => stdin.end(),
            Frame::Resize { columns, rows } => {
                if let Some(master) = master {
                    // A terminal whose process just ended needs no size.
                    let _ = pty::resize(master.as_fd(), Size { columns, rows });
                }
            }
            Frame::Signal(signal) => child.signal_group(signal),
            other => return Err(ConnError::Unexpected(frame_name(&other))),
        }
    }
    conn.decoder.shrink();
    Ok(())
}

/// The host is gone: as a terminal that is closed, and then for good.
fn hang_up(child: &Child) {
    child.signal_session(1);
    let mut entries = [poll_entry(child.wake_fd(), libc::POLLIN)];
    let ended = poll(&mut entries, Some(Instant::now() + HANGUP_GRACE));
    if !ended.unwrap_or(false) {
        child.signal_session(9);
    }
}

/// Queues what is there now of the streams that poll named; closes those that ended.
fn queue_ready(
    conn: &mut Conn,
    streams: &mut Streams,
    stdout: bool,
    stderr: bool,
) -> Result<(), ConnError> {
    for (ready, source, kind) in [
        (stdout, &mut streams.stdout, kind_byte::STDOUT),
        (stderr, &mut streams.stderr, kind_byte::STDERR),
    ] {
        if let Some(fd) = source.as_ref().filter(|_| ready)
            && is_end(conn.output.queue_read(kind, fd.as_fd(), CHUNK_BYTES))?
        {
            *source = None;
        }
    }
    Ok(())
}

/// Queues what was written before the process ended, and what is written for it a moment after.
fn queue_rest(conn: &mut Conn, streams: &mut Streams) -> Result<(), ConnError> {
    streams.linger(|stream, fd, max| {
        let kind = match stream {
            LogStream::Stderr => kind_byte::STDERR,
            _ => kind_byte::STDOUT,
        };
        conn.flush(None)?;
        match conn.output.queue_read(kind, fd, max.min(CHUNK_BYTES)) {
            Ok(Some(count)) if count > 0 => Ok(Some(count)),
            other => is_end(other).map(|ended| (!ended).then_some(0)),
        }
    })
}

/// Tells an end from nothing-yet; a terminal without processes ends with EIO (pty(7) calls it a hang-up).
fn is_end(read: io::Result<Option<usize>>) -> Result<bool, ConnError> {
    match read {
        Ok(Some(0)) => Ok(true),
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(true),
        Err(error) => Err(ConnError::Io(error)),
    }
}
