//! A process's input: what the host sent and the process has not read yet, under the protocol's window.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aerie_protocol::{Frame, STDIN_WINDOW_BYTES};

use crate::process::pty::EOF_CHARACTER;
use crate::sys::{NO_FD, poll_entry, write_now};
use crate::talk::conn::{ConnError, Output, WindowExceeded};

/// Credit is given back in portions, so that a window frame does not answer every byte.
const CREDIT_BYTES: usize = 32 * 1024;

/// The place that input goes to.
#[derive(Debug)]
enum Target {
    Pipe(OwnedFd),
    /// A terminal's master: its end of input is a character, and it stays open.
    Terminal(OwnedFd),
    /// Nobody reads: input is thrown away, so that the host does not wait for ever.
    Nobody,
}

/// Input on its way to a process; see the module. Its descriptors do not block.
#[derive(Debug)]
pub struct Stdin {
    target: Target,
    pending: VecDeque<u8>,
    /// Bytes that the host may still send.
    window: usize,
    /// Bytes taken and not yet given back as window.
    credit: usize,
    ended: bool,
}

impl Stdin {
    fn new(target: Target) -> Self {
        Self {
            target,
            pending: VecDeque::new(),
            window: STDIN_WINDOW_BYTES as usize,
            credit: 0,
            ended: false,
        }
    }

    pub fn pipe(fd: OwnedFd) -> Self {
        Self::new(Target::Pipe(fd))
    }

    pub fn terminal(master: OwnedFd) -> Self {
        Self::new(Target::Terminal(master))
    }

    pub fn nobody() -> Self {
        Self::new(Target::Nobody)
    }

    /// Takes a `stdin` frame.
    ///
    /// # Errors
    /// More than the window.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), WindowExceeded> {
        self.window = self.window.checked_sub(bytes.len()).ok_or(WindowExceeded)?;
        if self.ended || matches!(self.target, Target::Nobody) {
            self.credit += bytes.len();
        } else {
            self.pending.extend(bytes);
        }
        Ok(())
    }

    /// Takes an `eof` frame.
    pub fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            if matches!(self.target, Target::Terminal(_)) {
                self.pending.push_back(EOF_CHARACTER);
            }
            self.close_if_done();
        }
    }

    /// Gives what to poll for.
    pub fn interest(&self) -> libc::pollfd {
        match &self.target {
            Target::Pipe(fd) | Target::Terminal(fd) if !self.pending.is_empty() => {
                poll_entry(fd.as_raw_fd(), libc::POLLOUT)
            }
            // A pipe whose reader has gone says so without being asked for anything.
            Target::Pipe(fd) => poll_entry(fd.as_raw_fd(), 0),
            _ => poll_entry(NO_FD, 0),
        }
    }

    /// Writes what the process takes now.
    pub fn pump(&mut self) {
        while !self.pending.is_empty() {
            let (Target::Pipe(fd) | Target::Terminal(fd)) = &self.target else {
                break;
            };
            let (first, _) = self.pending.as_slices();
            match write_now(fd.as_fd(), first) {
                Ok(None) => return,
                Ok(Some(count)) => {
                    self.pending.drain(..count);
                    self.credit += count;
                }
                // EPIPE: it has closed its input. EIO: the terminal has no reader any more.
                Err(_) => self.abandon(),
            }
        }
        self.close_if_done();
    }

    /// The reader is gone: what waits and what comes is thrown away, and its window given back.
    pub fn abandon(&mut self) {
        self.credit += self.pending.len();
        self.pending = VecDeque::new();
        self.target = Target::Nobody;
    }

    /// Tells the host what it may send more.
    pub fn give_credit(&mut self, output: &mut Output) -> Result<(), ConnError> {
        if self.credit >= CREDIT_BYTES {
            let credit = std::mem::take(&mut self.credit);
            self.window += credit;
            if !self.ended {
                let credit = u32::try_from(credit).unwrap_or(u32::MAX);
                output.queue(&Frame::Window(credit))?;
            }
        }
        Ok(())
    }

    fn close_if_done(&mut self) {
        if self.ended && self.pending.is_empty() && matches!(self.target, Target::Pipe(_)) {
            self.target = Target::Nobody;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{pipe, read_now, set_nonblocking};

    fn piped() -> (Stdin, OwnedFd) {
        let (read, write) = pipe().unwrap();
        set_nonblocking(read.as_fd(), true).unwrap();
        set_nonblocking(write.as_fd(), true).unwrap();
        (Stdin::pipe(write), read)
    }

    fn drain(fd: &OwnedFd) -> (Vec<u8>, bool) {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 8192]);
        loop {
            match read_now(fd.as_fd(), &mut buffer).unwrap() {
                Some(0) => return (bytes, true),
                Some(count) => bytes.extend_from_slice(&buffer[..count]),
                None => return (bytes, false),
            }
        }
    }

    #[test]
    fn everything_arrives_before_the_end() {
        let (mut stdin, read) = piped();
        let sent = vec![7; 200_000];

        stdin.push(&sent).unwrap();
        stdin.end();
        let mut got = Vec::new();
        loop {
            stdin.pump();
            let (bytes, ended) = drain(&read);
            got.extend(bytes);
            if ended {
                break;
            }
        }

        assert_eq!(got, sent);
    }

    #[test]
    fn more_than_the_window_is_refused_and_credit_opens_it_again() {
        let (mut stdin, read) = piped();
        let mut output = Output::default();

        stdin.push(&[0; STDIN_WINDOW_BYTES as usize]).unwrap();
        assert_eq!(stdin.push(&[0]), Err(WindowExceeded));
        stdin.pump();
        stdin.give_credit(&mut output).unwrap();

        assert!(!output.is_flushed());
        let taken = drain(&read).0.len();
        assert!(taken >= CREDIT_BYTES);
        stdin.push(&vec![0; taken]).unwrap();
        assert_eq!(stdin.push(&[0]), Err(WindowExceeded));
    }

    #[test]
    fn input_that_nobody_reads_is_thrown_away_and_credited() {
        let (mut stdin, read) = piped();
        let mut output = Output::default();
        drop(read);

        for _ in 0..10 {
            stdin.push(&[0; STDIN_WINDOW_BYTES as usize]).unwrap();
            stdin.pump();
            stdin.give_credit(&mut output).unwrap();
        }
    }
}
