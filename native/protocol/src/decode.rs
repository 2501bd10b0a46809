//! Bytes in any portions → frames.

use crate::frame::{Frame, FrameError, Limits, check_header};
use crate::{HEADER_BYTES, PAYLOAD_BYTES_MAX};

/// An incremental decoder of one direction of one connection.
///
/// Life: [`push`](Self::push) what was read, then [`next_frame`](Self::next_frame) until it says `None`, and so on. The first
/// error is final: a stream without boundaries cannot be read on, so every later call gives the same error.
///
/// Invariant: it holds only bytes that were pushed. A header that claims 1 MiB costs five bytes, not one mebibyte.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// The byte of `buffer` at which the next frame begins; what is before it has been handed out.
    start: usize,
    failed: Option<FrameError>,
    limits: Limits,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            failed: None,
            limits: Limits::COMMON,
        }
    }

    /// A decoder of what the daemon says to an agent: requests and configurations may hold all the arguments that Linux takes.
    #[must_use]
    pub const fn of_host() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            failed: None,
            limits: Limits::OF_HOST,
        }
    }

    /// Takes bytes as they came from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        // Exact: doubling would hold up to twice of what was received.
        self.buffer.reserve_exact(bytes.len());
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` when more bytes are needed.
    ///
    /// # Errors
    /// What makes the stream unreadable; see [`FrameError`].
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let waiting = self.buffer.get(self.start..).unwrap_or_default();
        let Some(([l0, l1, l2, l3, kind], rest)) = waiting.split_first_chunk::<HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let kind = *kind;
        let length =
            usize::try_from(u32::from_le_bytes([*l0, *l1, *l2, *l3])).unwrap_or(usize::MAX);
        if let Err(error) = check_header(kind, length, self.limits) {
            return Err(self.fail(error));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let from = self.start + HEADER_BYTES;
        self.start = from + length;
        // Split borrow: a failure must be kept, and a frame borrows the buffer.
        let Self {
            buffer,
            failed,
            limits,
            ..
        } = self;
        match Frame::parse(
            kind,
            buffer.get(from..from + length).unwrap_or_default(),
            *limits,
        ) {
            Ok(frame) => Ok(Some(frame)),
            Err(error) => {
                *failed = Some(error);
                Err(error)
            }
        }
    }

    /// Whether a frame has begun and is not whole: a connection that ends here was cut.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Bytes that are held, at most one frame and the last [`push`](Self::push) if frames are taken as they come.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// Gives memory back after a long frame: a connection that once took 1 MiB need not keep it.
    pub fn shrink(&mut self) {
        if self.start == self.buffer.len() && self.buffer.capacity() > PAYLOAD_BYTES_MAX / 8 {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }

    fn fail(&mut self, error: FrameError) -> FrameError {
        self.failed = Some(error);
        self.buffer = Vec::new();
        self.start = 0;
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_claims_a_mebibyte_costs_five_bytes() {
        let mut decoder = Decoder::new();

        decoder.push(&[0, 0, 0x10, 0, 0x10]);

        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.held_bytes() <= 8, "{}", decoder.held_bytes());
    }

    #[test]
    fn an_error_is_final() {
        let mut decoder = Decoder::new();

        decoder.push(&[0, 0, 0, 0, 0xff]);
        assert_eq!(decoder.next_frame(), Err(FrameError::TypeUnknown(0xff)));
        decoder.push(&[0, 0, 0, 0, 0x13]);

        assert_eq!(decoder.next_frame(), Err(FrameError::TypeUnknown(0xff)));
    }

    #[test]
    fn a_cut_frame_is_told_from_an_end() {
        let mut decoder = Decoder::new();

        decoder.push(&[0, 0, 0, 0, 0x13]);
        assert_eq!(decoder.next_frame(), Ok(Some(Frame::Eof)));
        assert!(!decoder.is_mid_frame());
        decoder.push(&[0]);

        assert!(decoder.is_mid_frame());
    }
}
