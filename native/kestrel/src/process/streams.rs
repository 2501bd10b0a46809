//! What a process writes: the ends of its pipes or terminal that kestrel reads.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use aerie_protocol::LogStream;

use crate::sys::{poll, poll_entry, readable_bytes};

/// Output that a terminal still holds at its process's end is at most this.
const TERMINAL_REST_BYTES: usize = 1024 * 1024;

/// Ends of the streams that a running process writes to.
#[derive(Debug)]
pub struct Streams {
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub is_terminal: bool,
}

impl Streams {
    /// Reads what was written before the process ended: `read` takes at most so many bytes of that stream and tells how
    /// many there were. Of a pipe that is exactly what it holds now: what comes later is not the process's.
    ///
    /// # Errors
    /// The first of `read`.
    pub fn read_rest<E>(
        &self,
        mut read: impl FnMut(LogStream, BorrowedFd<'_>, usize) -> Result<usize, E>,
    ) -> Result<(), E> {
        for (fd, stream) in [
            (&self.stdout, LogStream::Stdout),
            (&self.stderr, LogStream::Stderr),
        ] {
            let Some(fd) = fd else { continue };
            let mut left = match self.is_terminal {
                true => TERMINAL_REST_BYTES,
                false => readable_bytes(fd.as_fd()).unwrap_or(0),
            };
            while left > 0 {
                // Polling makes a terminal's line discipline hand over what is under way.
                let mut entries = [poll_entry(fd.as_raw_fd(), libc::POLLIN)];
                if !poll(&mut entries, Some(Instant::now())).unwrap_or(false) {
                    break;
                }
                match read(stream, fd.as_fd(), left)? {
                    0 => break,
                    count => left -= count.min(left),
                }
            }
        }
        Ok(())
    }
}
