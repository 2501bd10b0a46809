//! The guest's main program: held, started, watched, its output kept and given to whoever is attached.
//!
//! ```text
//! absent                        no workload: the guest stays up
//! held ──(first attach)──▶ running ──▶ ended      `started`, `exited` events; the end powers the guest off
//! starting at boot ───────▶ running
//! ```
//!
//! One thread (the pump) reads the workload's output while it runs. A reader that is attached and slow holds the workload
//! up, as a terminal would, and so does whoever reads the log along; where nobody does, the ring forgets instead.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aerie_protocol::LogStream;
use aerie_protocol::message::{EventKind, Exit, Workload, WorkloadState};

use crate::observe::console::chain;
use crate::observe::ring::{Record, Ring};
use crate::process::exec::{Running, start};
use crate::process::oom::OomWatch;
use crate::process::pty::{self, Size};
use crate::process::reap::{Child, Reaper};
use crate::process::spawn::Program;
use crate::process::stdin::Stdin;
use crate::process::streams::Streams;
use crate::sys::{NO_FD, Wake, is_ready, lock, poll, poll_entry, read_now, spawn_thread};
use crate::talk::events::Events;

/// Bytes that one attached reader may have waiting before the workload is held up.
const SINK_BYTES_MAX: usize = 256 * 1024;
/// Readers at once.
const SINKS_MAX: usize = 16;
const READ_BYTES: usize = 32 * 1024;
/// How soon is looked again whether the log has room.
const LOG_AGAIN: Duration = Duration::from_millis(5);
/// How long readers may take for what was written last, before it is theirs all the same.
const READERS_GRACE: Duration = Duration::from_secs(1);

/// One attached reader's queue.
#[derive(Debug)]
pub struct Sink {
    queue: Mutex<Queue>,
    /// Tells the reader that there is something, or the end.
    pub wake: Wake,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<(LogStream, Arc<[u8]>)>,
    bytes: usize,
    end: Option<Exit>,
}

/// A piece that a reader takes from its sink.
#[derive(Debug)]
pub enum Taken {
    Chunk(LogStream, Arc<[u8]>),
    End(Exit),
    Nothing,
}

impl Sink {
    fn push(&self, stream: LogStream, data: &Arc<[u8]>) {
        let mut queue = lock(&self.queue);
        queue.bytes += data.len();
        queue.chunks.push_back((stream, Arc::clone(data)));
        drop(queue);
        self.wake.set();
    }

    fn end(&self, exit: Exit) {
        lock(&self.queue).end = Some(exit);
        self.wake.set();
    }

    fn has_room(&self) -> bool {
        lock(&self.queue).bytes < SINK_BYTES_MAX
    }
}

#[derive(Debug)]
enum Phase {
    Absent,
    Held(Box<Workload>),
    Running(Child),
    /// The workload has ended; the number is that of its `exited` event.
    Ended(Exit, u64),
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    tty: bool,
    stop_signal: u8,
    stdin: Option<Stdin>,
    stdin_taken: bool,
    master: Option<Arc<OwnedFd>>,
    sinks: Vec<Arc<Sink>>,
}

/// The workload of this guest; see the module.
#[derive(Debug)]
pub struct Workloads {
    reaper: &'static Reaper,
    events: &'static Events,
    ring: &'static Ring,
    inner: Mutex<Inner>,
    /// Tells the pump that a reader has taken something, come or gone.
    pump: Wake,
    /// Tells the supervisor that the workload has ended.
    end: Wake,
}

/// A reader that is attached, with what it was given.
#[derive(Debug)]
pub struct Attached {
    pub sink: Arc<Sink>,
    pub tty: bool,
    /// Whether the workload was held until this attach.
    pub released: bool,
    /// Asked for, and free to be had.
    pub stdin: Option<Stdin>,
    pub master: Option<Arc<OwnedFd>>,
    pub child: Option<Child>,
}

/// Why an attach is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    #[error("this guest has no workload")]
    Absent,
    #[error("another connection has the workload's stdin, or {SINKS_MAX} are attached")]
    Busy,
    #[error("no descriptor to be had")]
    Exhausted,
}

/// The wishes that an attach begins with.
#[derive(Clone, Copy, Debug)]
pub struct AttachAs {
    pub stdin: bool,
    pub replay: bool,
    /// The size of the terminal of a workload that this attach starts or resizes.
    pub size: Option<Size>,
}

impl Workloads {
    pub fn new(
        reaper: &'static Reaper,
        events: &'static Events,
        ring: &'static Ring,
    ) -> io::Result<Self> {
        Ok(Self {
            reaper,
            events,
            ring,
            end: Wake::new()?,
            inner: Mutex::new(Inner {
                phase: Phase::Absent,
                tty: false,
                stop_signal: 15,
                stdin: None,
                stdin_taken: false,
                master: None,
                sinks: Vec::new(),
            }),
            pump: Wake::new()?,
        })
    }

    /// Takes the workload of the configuration: held, or started now.
    pub fn configure(&'static self, workload: Workload) {
        let mut inner = lock(&self.inner);
        inner.tty = workload.tty;
        inner.stop_signal = workload.stop_signal.clamp(1, 64);
        if workload.hold {
            inner.phase = Phase::Held(Box::new(workload));
        } else {
            // A terminal always has an input: whoever attaches may type.
            let has_stdin = workload.tty;
            let size = Size::or_default(workload.cols, workload.rows);
            self.start(&mut inner, &workload, has_stdin, size);
        }
    }

    /// Attaches a reader; a held workload starts.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(&'static self, how: AttachAs) -> Result<Attached, AttachError> {
        let wake = Wake::new().map_err(|_| AttachError::Exhausted)?;
        let sink = Arc::new(Sink {
            queue: Mutex::default(),
            wake,
        });
        let mut inner = lock(&self.inner);
        if matches!(inner.phase, Phase::Absent) {
            return Err(AttachError::Absent);
        }
        if how.stdin && inner.stdin_taken || inner.sinks.len() >= SINKS_MAX {
            return Err(AttachError::Busy);
        }
        if how.replay {
            for Record { stream, data, .. } in self.ring.all() {
                if stream != LogStream::Kestrel {
                    sink.push(stream, &data);
                }
            }
        }
        inner.sinks.push(Arc::clone(&sink));
        let released = matches!(inner.phase, Phase::Held(_));
        if let Phase::Held(workload) = &inner.phase {
            let workload = workload.clone();
            let size = how
                .size
                .unwrap_or_else(|| Size::or_default(workload.cols, workload.rows));
            self.start(&mut inner, &workload, how.stdin || workload.tty, size);
        } else if let (Some(size), Some(master)) = (how.size, &inner.master) {
            // A terminal whose process just ended needs no size.
            let _ = pty::resize(master.as_fd(), size);
        }
        if let Phase::Ended(exit, _) = &inner.phase {
            sink.end(exit.clone());
        }
        let stdin = how.stdin.then(|| {
            inner.stdin_taken = true;
            inner.stdin.take().unwrap_or_else(Stdin::nobody)
        });
        Ok(Attached {
            sink,
            tty: inner.tty,
            released,
            stdin,
            master: inner.master.clone(),
            child: match &inner.phase {
                Phase::Running(child) => Some(child.clone()),
                _ => None,
            },
        })
    }

    /// Takes the next piece for a reader.
    pub fn take(&self, sink: &Sink) -> Taken {
        sink.wake.clear();
        let mut queue = lock(&sink.queue);
        match queue.chunks.pop_front() {
            Some((stream, data)) => {
                let was_full = queue.bytes >= SINK_BYTES_MAX;
                queue.bytes -= data.len();
                if was_full && queue.bytes < SINK_BYTES_MAX {
                    self.pump.set();
                }
                sink.wake.set();
                Taken::Chunk(stream, data)
            }
            None => queue.end.clone().map_or(Taken::Nothing, Taken::End),
        }
    }

    /// A reader has gone. A terminal's input is free for the next one; a pipe's has ended with it.
    pub fn detach(&self, attached: Attached) {
        let mut inner = lock(&self.inner);
        inner
            .sinks
            .retain(|sink| !Arc::ptr_eq(sink, &attached.sink));
        if let Some(stdin) = attached.stdin {
            if inner.tty {
                inner.stdin = Some(stdin);
            }
            inner.stdin_taken = false;
        }
        drop(inner);
        self.pump.set();
    }

    /// Sends a signal to the workload, if it runs.
    pub fn signal(&self, signal: u8) -> bool {
        match &lock(&self.inner).phase {
            Phase::Running(child) => {
                child.signal(signal);
                true
            }
            _ => false,
        }
    }

    /// Sends the workload's own stop signal.
    pub fn ask_to_stop(&self) {
        let signal = lock(&self.inner).stop_signal;
        self.signal(signal);
    }

    pub fn is_running(&self) -> bool {
        matches!(lock(&self.inner).phase, Phase::Running(_))
    }

    /// The number of the `exited` event, once the workload has ended.
    pub fn ended(&self) -> Option<u64> {
        match lock(&self.inner).phase {
            Phase::Ended(_, seq) => Some(seq),
            _ => None,
        }
    }

    /// Becomes readable when the workload ends, and stays so.
    pub fn end_fd(&self) -> RawFd {
        self.end.fd()
    }

    /// Gives the workload as metrics show it.
    pub fn state(&self) -> WorkloadState {
        match &lock(&self.inner).phase {
            Phase::Running(child) => WorkloadState {
                pid: u32::try_from(child.pid()).ok(),
                running: true,
            },
            _ => WorkloadState::default(),
        }
    }

    fn deliver(&self, stream: LogStream, data: &[u8]) {
        let inner = lock(&self.inner);
        self.ring.append(stream, data);
        if !inner.sinks.is_empty() {
            let data: Arc<[u8]> = Arc::from(data);
            for sink in &inner.sinks {
                sink.push(stream, &data);
            }
        }
    }

    fn readers_have_room(&self) -> bool {
        lock(&self.inner).sinks.iter().all(|sink| sink.has_room())
    }

    fn start(&'static self, inner: &mut Inner, workload: &Workload, has_stdin: bool, size: Size) {
        let cwd = workload.cwd.as_deref().filter(|cwd| !cwd.is_empty());
        if let Some(cwd) = cwd {
            // Images name folders that they do not hold; a failure shows when the workload enters it.
            let _ = std::fs::create_dir_all(cwd);
        }
        let program = Program {
            argv: &workload.argv,
            env: &workload.env,
            cwd,
            user: workload.user.as_deref(),
            tty: workload.tty,
        };
        let oom = OomWatch::start();
        let group = oom.procs();
        match start(
            self.reaper,
            &program,
            has_stdin,
            size,
            group.as_ref().map(File::as_fd),
        ) {
            Ok(Running {
                child,
                stdin,
                streams,
                master,
            }) => {
                inner.stdin = Some(stdin);
                inner.master = master.map(Arc::new);
                inner.phase = Phase::Running(child.clone());
                self.events.push(EventKind::Started {
                    pid: u32::try_from(child.pid()).unwrap_or(0),
                });
                let pumped = child.clone();
                if let Err(error) =
                    spawn_thread("workload", move || pump(self, &pumped, streams, &oom))
                {
                    child.signal_session(9);
                    self.fail(inner, 126, format!("cannot watch the workload: {error}"));
                }
            }
            Err(error) => self.fail(inner, error.exit_code(), chain(&error)),
        }
    }

    fn fail(&self, inner: &mut Inner, code: i32, message: String) {
        let exit = Exit {
            code,
            signal: None,
            message: Some(message),
        };
        self.end(inner, exit, false);
    }

    fn end(&self, inner: &mut Inner, exit: Exit, oom: bool) {
        inner.stdin = None;
        inner.master = None;
        for sink in &inner.sinks {
            sink.end(exit.clone());
        }
        let Exit {
            code,
            signal,
            message,
        } = exit.clone();
        let seq = self.events.push(EventKind::Exited {
            code,
            signal,
            oom,
            message,
        });
        inner.phase = Phase::Ended(exit, seq);
        self.end.set();
    }
}

/// Reads the workload's output until it has ended and its pipes are empty.
fn pump(workload: &Workloads, child: &Child, mut streams: Streams, oom: &OomWatch) {
    let mut buffer = vec![0; READ_BYTES];
    let status = loop {
        if let Some(status) = child.status() {
            break status;
        }
        // Whoever writes faster than the log is read along is held back, as by a pipe.
        let log_has_room = workload.ring.has_room(READ_BYTES);
        let has_room = log_has_room && workload.readers_have_room();
        let again = (!log_has_room).then(|| Instant::now() + LOG_AGAIN);
        let source = |fd: &Option<OwnedFd>| match fd {
            Some(fd) if has_room => poll_entry(fd.as_raw_fd(), libc::POLLIN),
            _ => poll_entry(NO_FD, 0),
        };
        let mut entries = [
            poll_entry(workload.pump.fd(), libc::POLLIN),
            poll_entry(child.wake_fd(), libc::POLLIN),
            source(&streams.stdout),
            source(&streams.stderr),
        ];
        if poll(&mut entries, again).is_err() {
            continue;
        }
        workload.pump.clear();
        let [_, _, stdout, stderr] = entries;
        for (entry, fd, stream) in [
            (stdout, &mut streams.stdout, LogStream::Stdout),
            (stderr, &mut streams.stderr, LogStream::Stderr),
        ] {
            if is_ready(&entry)
                && let Some(open) = fd.as_ref()
                && read_some(workload, open.as_fd(), stream, &mut buffer).is_none()
            {
                *fd = None;
            }
        }
    };
    // A filter behind the workload may still have its last words.
    let _: Result<(), Infallible> = streams.linger(|stream, fd, max| {
        while !workload.readers_have_room() {
            workload.pump.clear();
            let mut taken = [poll_entry(workload.pump.fd(), libc::POLLIN)];
            if !poll(&mut taken, Some(Instant::now() + READERS_GRACE)).unwrap_or(false) {
                break;
            }
        }
        let room = max.min(READ_BYTES);
        let part = buffer.get_mut(..room).unwrap_or_default();
        Ok(read_some(workload, fd, stream, part))
    });
    let exit = Exit {
        code: status.code(),
        signal: status.signal(),
        message: None,
    };
    let was_oom = exit.code != 0 && oom.has_killed();
    workload.end(&mut lock(&workload.inner), exit, was_oom);
}

/// Reads once; `None` at the end of the stream.
fn read_some(
    workload: &Workloads,
    fd: BorrowedFd<'_>,
    stream: LogStream,
    buffer: &mut [u8],
) -> Option<usize> {
    match read_now(fd, buffer) {
        Ok(Some(0)) | Err(_) => None,
        Ok(None) => Some(0),
        Ok(Some(count)) => {
            let data = buffer.get(..count).unwrap_or_default();
            workload.deliver(stream, data);
            Some(count)
        }
    }
}
