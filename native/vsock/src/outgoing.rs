//! Bytes of the guest that its peer on the host did not take yet.

use std::{collections::VecDeque, io, os::fd::RawFd};

use vm_memory::GuestMemory;

use crate::{buffers::Buffers, socket};

/// A queue of bytes whose allocation is there only while it holds some. The credit of the connection bounds it: the
/// guest cannot have more in it than the window, beside the one `OK` line of a connection that the host opened.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    bytes: VecDeque<u8>,
}

impl Outgoing {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.bytes.extend(bytes);
    }

    /// Takes `len` bytes of a packet from `at`.
    pub fn push_from<'m, M: GuestMemory>(
        &mut self,
        buffers: &Buffers<'m, M>,
        at: usize,
        len: usize,
    ) {
        self.reserve(len);
        let mut chunk = [0; 4096];
        let mut done = 0;
        while done < len {
            let want = chunk.len().min(len - done);
            let got = buffers.copy_out(at + done, &mut chunk[..want]);
            if got == 0 {
                break;
            }
            self.bytes.extend(&chunk[..got]);
            done += got;
        }
    }

    /// Sends what the socket takes; gives back how many bytes that were. `WouldBlock` is no error but a 0.
    pub fn flush(&mut self, fd: RawFd) -> io::Result<usize> {
        let mut done = 0;
        while !self.bytes.is_empty() {
            let (first, second) = self.bytes.as_slices();
            match socket::send_bytes(fd, [first, second]) {
                Ok(sent) => {
                    self.bytes.drain(..sent);
                    done += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
        Ok(done)
    }

    pub fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }

    /// Doubles, so that many small packets are copied once on average, but never past the next 64 KiB above the need:
    /// the growth of `VecDeque` alone would hold twice the window.
    fn reserve(&mut self, more: usize) {
        const STEP: usize = 64 * 1024;
        let need = self.bytes.len() + more;
        if need > self.bytes.capacity() {
            let goal = (need * 2).min(need.next_multiple_of(STEP));
            self.bytes.reserve_exact(goal - self.bytes.len());
        }
    }
}
