//! What a process writes: the ends of its pipes or terminal that kestrel reads.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use aerie_protocol::LogStream;

use crate::sys::{NO_FD, is_ready, poll, poll_entry, read_now, readable_bytes, spawn_thread};

/// Output that a terminal still holds at its process's end is at most this.
const TERMINAL_REST_BYTES: usize = 1024 * 1024;
/// After the process's end its pipes are read on while others write to them (`exec > >(tee log)`), until they were quiet
/// for so long.
const QUIET: Duration = Duration::from_millis(500);
/// A child in the background that never stops writing holds the end of the process up for no longer.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// Ends of the streams that a running process writes to.
#[derive(Debug, Default)]
pub struct Streams {
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub is_terminal: bool,
}

impl Streams {
    /// Reads what was written before the process ended, and then what others of its pipes write, until there are none, or
    /// they are quiet for a moment, or have had their time. `read` takes at most so many bytes of that stream and tells how
    /// many there were; `None` is its end.
    ///
    /// # Errors
    /// The first of `read`.
    pub fn linger<E>(
        &mut self,
        mut read: impl FnMut(LogStream, BorrowedFd<'_>, usize) -> Result<Option<usize>, E>,
    ) -> Result<(), E> {
        self.read_rest(&mut read)?;
        if self.is_terminal {
            return Ok(()); // the end of its leader ends a terminal for everybody
        }
        let until = Instant::now() + LINGER_MAX;
        loop {
            let entry = |fd: &Option<OwnedFd>| {
                poll_entry(fd.as_ref().map_or(NO_FD, AsRawFd::as_raw_fd), libc::POLLIN)
            };
            let mut entries = [entry(&self.stdout), entry(&self.stderr)];
            let now = Instant::now();
            if (self.stdout.is_none() && self.stderr.is_none())
                || now >= until
                || !poll(&mut entries, Some(until.min(now + QUIET))).unwrap_or(false)
            {
                return Ok(());
            }
            let [stdout, stderr] = entries;
            for (entry, fd, stream) in [
                (stdout, &mut self.stdout, LogStream::Stdout),
                (stderr, &mut self.stderr, LogStream::Stderr),
            ] {
                if is_ready(&entry)
                    && let Some(open) = fd.as_ref()
                    && read(stream, open.as_fd(), usize::MAX)?.is_none()
                {
                    *fd = None;
                }
            }
        }
    }

    /// Reads what was written so far: of a pipe exactly what it holds now.
    fn read_rest<E>(
        &mut self,
        read: &mut impl FnMut(LogStream, BorrowedFd<'_>, usize) -> Result<Option<usize>, E>,
    ) -> Result<(), E> {
        for (slot, stream) in [
            (&mut self.stdout, LogStream::Stdout),
            (&mut self.stderr, LogStream::Stderr),
        ] {
            let Some(fd) = slot.as_ref() else { continue };
            let mut left = match self.is_terminal {
                true => TERMINAL_REST_BYTES,
                false => readable_bytes(fd.as_fd()).unwrap_or(0),
            };
            let mut has_ended = false;
            while left > 0 && !has_ended {
                // Polling makes a terminal's line discipline hand over what is under way.
                let mut entries = [poll_entry(fd.as_raw_fd(), libc::POLLIN)];
                if !poll(&mut entries, Some(Instant::now())).unwrap_or(false) {
                    break;
                }
                match read(stream, fd.as_fd(), left)? {
                    None => has_ended = true,
                    Some(0) => break,
                    Some(count) => left -= count.min(left),
                }
            }
            if has_ended {
                *slot = None;
            }
        }
        Ok(())
    }

    /// Reads on and throws away what is written to pipes whose process has ended: whoever it left in the background is not
    /// killed by SIGPIPE for a line of output. A terminal is closed, which hangs up on them.
    pub fn drain(self) {
        if self.is_terminal || (self.stdout.is_none() && self.stderr.is_none()) {
            return;
        }
        // Without a thread they are closed, as they were before there was one.
        let _ = spawn_thread("drain", move || {
            let mut ends: Vec<OwnedFd> = [self.stdout, self.stderr].into_iter().flatten().collect();
            let mut buffer = [0; 16 * 1024];
            while !ends.is_empty() {
                let mut entries: Vec<_> = ends
                    .iter()
                    .map(|fd| poll_entry(fd.as_raw_fd(), libc::POLLIN))
                    .collect();
                if poll(&mut entries, None).is_err() {
                    continue;
                }
                let mut ready = entries.iter().map(is_ready);
                ends.retain(|fd| {
                    !ready.next().unwrap_or(false)
                        || !matches!(read_now(fd.as_fd(), &mut buffer), Ok(Some(0)) | Err(_))
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write;

    use super::*;
    use crate::sys::{pipe, set_nonblocking};

    fn streams() -> (Streams, std::fs::File) {
        let (ours, theirs) = pipe().unwrap();
        set_nonblocking(ours.as_fd(), true).unwrap();
        let streams = Streams {
            stdout: Some(ours),
            stderr: None,
            is_terminal: false,
        };
        (streams, theirs.into())
    }

    fn words(streams: &mut Streams) -> String {
        let mut said = Vec::new();
        let _: Result<(), Infallible> = streams.linger(|_, fd, max| {
            let mut buffer = vec![0; max.min(100)];
            Ok(match read_now(fd, &mut buffer) {
                Ok(Some(0)) | Err(_) => None,
                Ok(None) => Some(0),
                Ok(Some(count)) => {
                    said.extend_from_slice(&buffer[..count]);
                    Some(count)
                }
            })
        });
        String::from_utf8(said).unwrap()
    }

    #[test]
    fn what_a_filter_says_after_the_end_is_read_until_it_ends() {
        let (mut streams, mut theirs) = streams();
        theirs.write_all(b"before ").unwrap();
        let filter = std::thread::spawn(move || {
            for word in ["and ", "a ", "little ", "later"] {
                std::thread::sleep(Duration::from_millis(100));
                theirs.write_all(word.as_bytes()).unwrap();
            }
        });

        assert_eq!(words(&mut streams), "before and a little later");
        assert!(streams.stdout.is_none());
        filter.join().unwrap();
    }

    #[test]
    fn whoever_keeps_a_pipe_and_is_quiet_holds_nobody_up() {
        let (mut streams, mut theirs) = streams();
        theirs.write_all(b"said").unwrap();
        let from = Instant::now();

        assert_eq!(words(&mut streams), "said");
        assert!(from.elapsed() < LINGER_MAX);
        assert!(streams.stdout.is_some());
    }

    #[test]
    fn whoever_never_stops_has_a_bounded_time() {
        let (mut streams, mut theirs) = streams();
        std::thread::spawn(move || while theirs.write_all(b"x").is_ok() {});
        let from = Instant::now();

        assert!(!words(&mut streams).is_empty());
        assert!(from.elapsed() < LINGER_MAX + Duration::from_secs(2));
    }

    #[test]
    fn what_writes_on_behind_a_drained_pipe_is_not_broken() {
        let (streams, mut theirs) = streams();

        streams.drain();

        for _ in 0..100 {
            theirs.write_all(&[b'x'; 8192]).unwrap();
        }
    }
}
