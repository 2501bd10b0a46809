//! The daemon's connection: frames in, with their descriptors, and frames out.
//!
//! Who can connect is believed (the socket is in a folder of the daemon's), so a frame that makes no sense is a mistake, not
//! an attack; the bounds keep a mistake from costing more than its connection.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use serde::Serialize;
use vmm_sys_util::epoll::EventSet;

use super::{
    poll::{Kind, Poll},
    sys,
};

/// Bytes of the JSON of one frame.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
const HEAD: usize = 4;
/// What a controller may leave unread.
const UNREAD_BYTES_MAX: usize = 4 << 20;
/// Descriptors that wait for their frames.
const FDS_MAX: usize = 32;

/// Frames out of a stream that is read piece by piece.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    /// The place in the stream of the buffer's first byte.
    at: u64,
    /// Descriptors, each with the place of the stream behind the read that brought it: its frame begins before it.
    fds: VecDeque<(u64, OwnedFd)>,
}

impl Frames {
    pub fn push(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) {
        self.buffer.extend_from_slice(bytes);
        let end = self.at.saturating_add(self.buffer.len() as u64);
        self.fds.extend(fds.into_iter().map(|fd| (end, fd)));
        // What is too many is closed, the oldest first.
        while self.fds.len() > FDS_MAX {
            self.fds.pop_front();
        }
    }

    /// The next frame's JSON.
    ///
    /// # Errors
    /// A length that no frame has.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(head) = self.buffer.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length == 0 || length > FRAME_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(json) = self.buffer.get(HEAD..HEAD + length) else {
            return Ok(None);
        };
        let json = json.to_vec();
        // A descriptor of a frame that has been read already was not wanted there and is nobody's.
        while self.fds.front().is_some_and(|(end, _)| *end <= self.at) {
            self.fds.pop_front();
        }
        self.at += (HEAD + length) as u64;
        self.buffer.drain(..HEAD + length);
        if self.buffer.is_empty() {
            self.buffer.shrink_to(sys::SCRATCH_BYTES);
        }
        Ok(Some(json))
    }

    /// The descriptor that came with the frame that was read last. Where one read brought several frames, the first that asks has it.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front().map(|(_, fd)| fd)
    }
}

#[derive(Debug)]
struct Controller {
    fd: OwnedFd,
    number: u64,
    frames: Frames,
    unsent: Vec<u8>,
}

#[derive(Debug)]
pub struct Control {
    listener: OwnedFd,
    controller: Option<Controller>,
    next: u64,
}

/// What is left of a controller after reading from it.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    Here,
    Gone,
}

impl Control {
    pub fn new(listener: OwnedFd, poll: &Poll) -> io::Result<Self> {
        poll.add(listener.as_raw_fd(), Kind::ControlListener, 0, EventSet::IN)?;
        Ok(Self {
            listener,
            controller: None,
            next: 0,
        })
    }

    pub fn is_connected(&self) -> bool {
        self.controller.is_some()
    }

    /// Takes the newest connection; gives whether there was one.
    ///
    /// # Errors
    /// When the listener was shut down.
    pub fn accept(&mut self, poll: &Poll) -> io::Result<bool> {
        let mut is_new = false;
        loop {
            match sys::accept(&self.listener) {
                Ok((fd, _)) => {
                    self.next += 1;
                    let number = self.next;
                    if poll
                        .add(fd.as_raw_fd(), Kind::Controller, number, EventSet::IN)
                        .is_ok()
                    {
                        is_new = true;
                        self.controller = Some(Controller {
                            fd,
                            number,
                            frames: Frames::default(),
                            unsent: Vec::new(),
                        });
                    }
                }
                Err(error) if sys::is_later(&error) || sys::is_exhausted(&error) => {
                    return Ok(is_new);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what the controller says; its frames are taken by `next` afterwards.
    pub fn on_event(
        &mut self,
        number: u64,
        events: EventSet,
        poll: &Poll,
        scratch: &mut [u8],
    ) -> Left {
        if self.current(number).is_none() {
            return Left::Here;
        }
        if events.contains(EventSet::OUT) {
            self.flush(poll);
        }
        let Some(controller) = self.current(number) else {
            return Left::Gone;
        };
        match sys::recv_with_fds(&controller.fd, scratch) {
            Ok((0, _)) => self.drop_controller(),
            Ok((len, fds)) => controller.frames.push(&scratch[..len], fds),
            Err(error) if sys::is_later(&error) => {}
            Err(_) => self.drop_controller(),
        }
        if self.is_connected() {
            Left::Here
        } else {
            Left::Gone
        }
    }

    pub fn drop_controller(&mut self) {
        self.controller = None;
    }

    pub fn frames(&mut self) -> Option<&mut Frames> {
        self.controller.as_mut().map(|one| &mut one.frames)
    }

    /// Sends one message; a controller that reads nothing for too long is dropped.
    pub fn send(&mut self, message: &impl Serialize, poll: &Poll) {
        let Some(controller) = self.controller.as_mut() else {
            return;
        };
        // Strings and numbers always serialize.
        let json = serde_json::to_vec(message).unwrap_or_default();
        let Ok(length) = u32::try_from(json.len()) else {
            return;
        };
        controller.unsent.extend_from_slice(&length.to_be_bytes());
        controller.unsent.extend_from_slice(&json);
        self.flush(poll);
    }

    fn current(&mut self, number: u64) -> Option<&mut Controller> {
        self.controller.as_mut().filter(|one| one.number == number)
    }

    fn flush(&mut self, poll: &Poll) {
        let Some(controller) = self.controller.as_mut() else {
            return;
        };
        while !controller.unsent.is_empty() {
            match sys::send(&controller.fd, &controller.unsent) {
                Ok(sent) => drop(controller.unsent.drain(..sent)),
                Err(error) if sys::is_later(&error) => break,
                Err(_) => return self.drop_controller(),
            }
        }
        if controller.unsent.len() > UNREAD_BYTES_MAX {
            return self.drop_controller();
        }
        let mut wanted = EventSet::IN;
        if !controller.unsent.is_empty() {
            wanted |= EventSet::OUT;
        }
        let fd = controller.fd.as_raw_fd();
        poll.change(fd, Kind::Controller, controller.number, wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn frame(json: &[u8]) -> Vec<u8> {
        let length = u32::try_from(json.len()).unwrap();
        [&length.to_be_bytes()[..], json].concat()
    }

    fn fd() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn frames_come_out_whole_however_they_came_in() {
        let stream = [frame(b"{}"), frame(b"{\"a\":1}"), frame(b"x")].concat();
        for size in 1..stream.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for piece in stream.chunks(size) {
                frames.push(piece, vec![]);
                while let Some(json) = frames.next().unwrap() {
                    found.push(json);
                }
            }
            assert_eq!(found, [&b"{}"[..], b"{\"a\":1}", b"x"], "{size}");
        }
    }

    #[test]
    fn a_descriptor_belongs_to_the_frame_that_it_came_with() {
        let mut frames = Frames::default();
        let whole = frame(b"{}");
        frames.push(&whole[..1], vec![fd()]);
        assert!(frames.next().unwrap().is_none());
        frames.push(&whole[1..], vec![]);
        assert!(frames.next().unwrap().is_some());
        assert!(frames.take_fd().is_some() && frames.take_fd().is_none());

        // What nobody took of an earlier frame is gone when the next is read.
        frames.push(&whole, vec![fd()]);
        assert!(frames.next().unwrap().is_some());
        frames.push(&whole, vec![]);
        assert!(frames.next().unwrap().is_some());
        assert!(frames.take_fd().is_none());
    }

    #[test]
    fn no_bytes_are_held_beyond_a_frame_that_may_be() {
        for head in [[0; 4], [0xff; 4], [0, 0x10, 0, 1]] {
            let mut frames = Frames::default();
            frames.push(&head, vec![]);
            assert!(frames.next().is_err(), "{head:?}");
        }
        let mut frames = Frames::default();
        for _ in 0..100 {
            frames.push(&[0], vec![fd()]);
        }
        assert_eq!(frames.fds.len(), FDS_MAX);
    }
}
