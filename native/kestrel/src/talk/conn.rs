//! One framed connection that never blocks: a decoder for what comes, a buffer for what goes.
//!
//! A conversation polls [`Conn::fd`] for reading, and for writing while [`Conn::is_flushed`] is false. It reads its own
//! source (a pipe, a file) only when the buffer has been written: that is the back-pressure of the protocol, and it bounds
//! the buffer to one chunk.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aerie_protocol::message::{ErrorBody, code};
use aerie_protocol::{
    Decoder, EncodeError, Frame, FrameError, HEADER_BYTES, bytes_header, encode, kind_byte,
};
use serde::Serialize;

use crate::sys::{
    check, is_ready, poll, poll_entry, read_now, read_spare, set_nonblocking, write_now,
};

/// Bytes that are read from a process or a file at once.
pub const CHUNK_BYTES: usize = 32 * 1024;

/// Bytes that are read from the host at once.
const READ_BYTES: usize = 64 * 1024;

/// Room for one read, handed round among all conversations: a read happens now and then, and fresh memory for each would
/// cost a page fault for every 4 KiB that come. Whoever finds it in use takes fresh memory after all.
static ROOM: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn room() -> Vec<u8> {
    std::mem::take(&mut *ROOM.lock().unwrap_or_else(PoisonError::into_inner))
}

fn give_back(mut room: Vec<u8>) {
    room.clear();
    *ROOM.lock().unwrap_or_else(PoisonError::into_inner) = room;
}

/// Time for which a host that no longer reads is waited for at the end of a conversation.
const LINGER: Duration = Duration::from_secs(2);

/// Time for which the last bytes of a conversation may stand still.
const STALLED: Duration = Duration::from_secs(60);

/// Bytes written to any connection since boot: power-off waits as long as this moves.
pub static WRITTEN_BYTES: AtomicU64 = AtomicU64::new(0);

/// The host sent more input than the windows allowed: it is broken, and memory is not its to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more stdin than the window allows")]
pub struct WindowExceeded;

/// Why a conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    #[error("the host closed the connection")]
    Gone,
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("the host sent what is no frame")]
    Frame(#[source] FrameError),
    #[error("a frame cannot be sent")]
    Encode(#[source] EncodeError),
    #[error("an answer cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    #[error("a {0} frame has no place here")]
    Unexpected(&'static str),
    #[error("the host sent too much")]
    Window(#[from] WindowExceeded),
    #[error("nothing came in time")]
    Deadline,
}

impl ConnError {
    /// Gives what the host is told, if it is still there to be told.
    pub fn body(&self) -> Option<ErrorBody> {
        match self {
            Self::Gone | Self::Io(_) => None,
            Self::Frame(error) => Some(ErrorBody::new(error.code(), error.to_string())),
            Self::Unexpected(_) => Some(ErrorBody::new(code::FRAME_UNEXPECTED, self.to_string())),
            Self::Window(error) => Some(ErrorBody::new(code::WINDOW_EXCEEDED, error.to_string())),
            Self::Encode(_) | Self::Json(_) | Self::Deadline => {
                Some(ErrorBody::new(code::INTERNAL, self.to_string()))
            }
        }
    }
}

impl From<FrameError> for ConnError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

/// Bytes on their way out.
#[derive(Debug, Default)]
pub struct Output {
    buffer: Vec<u8>,
    start: usize,
}

impl Output {
    /// Queues a frame.
    pub fn queue(&mut self, frame: &Frame<'_>) -> Result<(), ConnError> {
        encode(frame, &mut self.buffer).map_err(ConnError::Encode)
    }

    /// Queues a frame of type `kind` (see [`aerie_protocol::kind_byte`]) with a JSON body.
    pub fn queue_json<T: Serialize>(&mut self, kind: u8, body: &T) -> Result<(), ConnError> {
        let body = serde_json::to_vec(body).map_err(ConnError::Json)?;
        let header = bytes_header(kind, body.len()).map_err(ConnError::Encode)?;
        self.buffer.extend_from_slice(&header);
        self.buffer.extend_from_slice(&body);
        Ok(())
    }

    /// Reads at most `max` bytes straight into a queued frame of type `kind`. `None`: nothing there now; 0: the end.
    pub fn queue_read(
        &mut self,
        kind: u8,
        source: BorrowedFd<'_>,
        max: usize,
    ) -> io::Result<Option<usize>> {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; HEADER_BYTES]);
        let count = match read_spare(source, &mut self.buffer, max) {
            Ok(Some(count)) if count > 0 => count,
            other => {
                self.buffer.truncate(at);
                return other;
            }
        };
        let header = bytes_header(kind, count).map_err(io::Error::other)?;
        if let Some(place) = self.buffer.get_mut(at..at + HEADER_BYTES) {
            place.copy_from_slice(&header);
        }
        Ok(Some(count))
    }

    pub fn is_flushed(&self) -> bool {
        self.start == self.buffer.len()
    }

    fn waiting(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        self.start += count;
        if self.is_flushed() {
            self.buffer.clear();
            self.start = 0;
        }
    }
}

/// A connection and both its directions. The parts are public so that a frame, which borrows the decoder, can be answered
/// through the output.
#[derive(Debug)]
pub struct Conn {
    fd: OwnedFd,
    pub decoder: Decoder,
    pub output: Output,
}

impl Conn {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(fd.as_fd(), true)?;
        Ok(Self {
            fd,
            decoder: Decoder::of_host(),
            output: Output::default(),
        })
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The poll events that this connection wants now.
    pub fn interest(&self, read: bool) -> libc::pollfd {
        let read = if read { libc::POLLIN } else { 0 };
        let write = if self.output.is_flushed() {
            0
        } else {
            libc::POLLOUT
        };
        poll_entry(self.fd(), read | write)
    }

    /// Reads what is there into the decoder; `Gone` at the end. `false`: nothing was there.
    pub fn fill(&mut self) -> Result<bool, ConnError> {
        // For this call only: a conversation that waits costs nothing, and stacks are small.
        let mut chunk = room();
        let filled = match read_spare(self.fd.as_fd(), &mut chunk, READ_BYTES) {
            Ok(None) => Ok(false),
            Ok(Some(0)) => Err(ConnError::Gone),
            Ok(Some(_)) => {
                self.decoder.push(&chunk);
                Ok(true)
            }
            Err(error) => Err(ConnError::Io(error)),
        };
        give_back(chunk);
        filled
    }

    /// Writes what the connection takes now.
    pub fn flush_now(&mut self) -> Result<(), ConnError> {
        while !self.output.is_flushed() {
            match write_now(self.fd.as_fd(), self.output.waiting()) {
                Ok(None) => break,
                Ok(Some(count)) => {
                    WRITTEN_BYTES.fetch_add(count as u64, Ordering::Relaxed);
                    self.output.advance(count);
                }
                Err(error) => return Err(ConnError::Io(error)),
            }
        }
        Ok(())
    }

    /// Writes everything; whoever reads slowly makes us wait, for ever without a deadline. A host that goes meanwhile is an
    /// error of the write.
    pub fn flush(&mut self, deadline: Option<Instant>) -> Result<(), ConnError> {
        loop {
            self.flush_now()?;
            if self.output.is_flushed() {
                return Ok(());
            }
            let mut entries = [poll_entry(self.fd(), libc::POLLOUT)];
            if !poll(&mut entries, deadline).map_err(ConnError::Io)? {
                return Err(ConnError::Deadline);
            }
        }
    }

    /// Waits for a whole frame and shows it to `take`.
    pub fn receive<T>(
        &mut self,
        deadline: Option<Instant>,
        take: impl FnOnce(Frame<'_>) -> Result<T, ConnError>,
    ) -> Result<T, ConnError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return take(frame);
            }
            let mut entries = [self.interest(true)];
            if !poll(&mut entries, deadline).map_err(ConnError::Io)? {
                return Err(ConnError::Deadline);
            }
            self.flush_now()?;
            self.fill()?;
        }
    }

    /// Ends the conversation in good order: writes the rest, closes our direction, and waits for the host to have read it
    /// all (it closes then), so that a power-off right after loses nothing.
    pub fn finish(mut self) {
        // Without a deadline while it moves: what a process wrote is never dropped because the host is slow.
        loop {
            let before = self.output.waiting().len();
            match self.flush(Some(Instant::now() + STALLED)) {
                Ok(()) => break,
                Err(ConnError::Deadline) if self.output.waiting().len() < before => {}
                Err(_) => return,
            }
        }
        // SAFETY: shutdown touches no memory of ours.
        if check(unsafe { libc::shutdown(self.fd(), libc::SHUT_WR) }).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut scrap = [0_u8; 4096];
        loop {
            let mut entries = [poll_entry(self.fd(), libc::POLLIN)];
            match poll(&mut entries, Some(deadline)) {
                Ok(true) if is_ready(&entries[0]) => {}
                _ => return,
            }
            match read_now(self.fd.as_fd(), &mut scrap) {
                Ok(Some(0)) | Err(_) => return,
                Ok(_) if Instant::now() >= deadline => return,
                Ok(_) => {}
            }
        }
    }

    /// Ends the conversation as it went: in good order, or with the error that the host is to know.
    pub fn end(self, done: Result<(), ConnError>) {
        match done {
            Ok(()) => self.finish(),
            Err(error) => {
                if let Some(body) = error.body() {
                    self.fail(&body);
                }
            }
        }
    }

    /// Ends the conversation with an error.
    pub fn fail(mut self, body: &ErrorBody) {
        if self.output.queue_json(kind_byte::ERROR, body).is_ok() {
            self.finish();
        }
    }
}

/// The name of a frame's type, for sentences.
pub const fn frame_name(frame: &Frame<'_>) -> &'static str {
    match frame {
        Frame::Open { .. } => "open",
        Frame::Ok(_) => "ok",
        Frame::Error(_) => "error",
        Frame::Stdin(_) => "stdin",
        Frame::Stdout(_) => "stdout",
        Frame::Stderr(_) => "stderr",
        Frame::Eof => "eof",
        Frame::Resize { .. } => "resize",
        Frame::Signal(_) => "signal",
        Frame::Exit(_) => "exit",
        Frame::Event(_) => "event",
        Frame::Ack(_) => "ack",
        Frame::Request(_) => "request",
        Frame::Reply(_) => "reply",
        Frame::Window(_) => "window",
        Frame::Log { .. } => "log",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_are_framed_in_place_and_arrive() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (source, sink) = crate::sys::pipe().unwrap();
        write_now(sink.as_fd(), b"hello").unwrap();
        let mut conn = Conn::new(ours.into()).unwrap();
        let mut host = Conn::new(theirs.into()).unwrap();

        conn.output
            .queue_read(aerie_protocol::kind_byte::STDOUT, source.as_fd(), 100)
            .unwrap();
        conn.flush(None).unwrap();

        host.receive(None, |frame| {
            assert_eq!(frame, Frame::Stdout(b"hello"));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn an_end_of_the_host_is_gone_and_silence_is_a_deadline() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut conn = Conn::new(ours.into()).unwrap();

        let soon = Some(Instant::now() + Duration::from_millis(10));
        assert!(matches!(
            conn.receive(soon, |_| Ok(())),
            Err(ConnError::Deadline)
        ));
        drop(theirs);

        assert!(matches!(
            conn.receive(None, |_| Ok(())),
            Err(ConnError::Gone)
        ));
    }
}
