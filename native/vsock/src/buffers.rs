//! The guest's buffers of one packet: any number of descriptors, cut anywhere.
//!
//! Linux sends a header and its payload in one descriptor, in two, or (`MSG_ZEROCOPY`, and non-linear packets since
//! 6.7) in one for every page. So a packet is a run of bytes here, and where a descriptor ends means nothing.

use std::{io, os::fd::RawFd};

use virtio_queue::DescriptorChain;
use vm_memory::{
    GuestMemory, Permissions, VolatileSlice,
    bitmap::{BS, Bitmap},
};

use crate::socket;

/// Most parts of one packet: `IOV_MAX`, so that one system call moves a whole packet. 64 KiB in pages are 17.
const PARTS_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum BuffersError {
    #[error("a descriptor points outside of guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    #[error("a packet has more than {PARTS_MAX} parts")]
    TooManyParts,
}

/// One direction of a descriptor chain, as consecutive bytes. Made once and filled again for every packet.
#[derive(Debug)]
pub struct Buffers<'m, M: GuestMemory> {
    parts: Vec<VolatileSlice<'m, BS<'m, M::Bitmap>>>,
    vectors: Vec<libc::iovec>,
    len: usize,
}

impl<'m, M: GuestMemory> Default for Buffers<'m, M> {
    fn default() -> Self {
        Self {
            parts: Vec::new(),
            vectors: Vec::new(),
            len: 0,
        }
    }
}

impl<'m, M: GuestMemory> Buffers<'m, M> {
    /// Takes the descriptors of `chain` that the device may read (`Permissions::Read`) or write (`Permissions::Write`),
    /// up to `max` bytes.
    pub fn fill(
        &mut self,
        mem: &'m M,
        chain: DescriptorChain<&'m M>,
        access: Permissions,
        max: usize,
    ) -> Result<(), BuffersError> {
        self.parts.clear();
        self.len = 0;
        let writable = access.has_write();
        for descriptor in chain.filter(|d| d.is_write_only() == writable) {
            let bytes = (descriptor.len() as usize).min(max - self.len);
            for part in mem
                .get_slices(descriptor.addr(), bytes, access)
                .map_err(BuffersError::Memory)?
            {
                let part = part.map_err(BuffersError::Memory)?;
                if self.parts.len() == PARTS_MAX {
                    return Err(BuffersError::TooManyParts);
                }
                self.len += part.len();
                self.parts.push(part);
            }
            if self.len == max {
                break;
            }
        }
        Ok(())
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts of `len` bytes from `at`; fewer where the buffers end before.
    fn window(
        &self,
        at: usize,
        len: usize,
    ) -> impl Iterator<Item = (&VolatileSlice<'m, BS<'m, M::Bitmap>>, usize, usize)> {
        let mut skip = at;
        let mut left = len;
        self.parts.iter().filter_map(move |part| {
            let from = skip.min(part.len());
            skip -= from;
            let take = left.min(part.len() - from);
            left -= take;
            (take > 0).then_some((part, from, take))
        })
    }

    /// Copies `out.len()` bytes from `at`; gives back how many there were.
    pub fn copy_out(&self, at: usize, out: &mut [u8]) -> usize {
        let mut done = 0;
        for (part, from, take) in self.window(at, out.len()) {
            if let Ok(slice) = part.subslice(from, take) {
                slice.copy_to(&mut out[done..done + take]);
            }
            done += take;
        }
        done
    }

    /// Copies `bytes` to `at`; gives back how many there was room for.
    pub fn copy_in(&self, at: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        for (part, from, take) in self.window(at, bytes.len()) {
            if let Ok(slice) = part.subslice(from, take) {
                slice.copy_from(&bytes[done..done + take]);
            }
            done += take;
        }
        done
    }

    /// Sends up to `len` bytes from `at` to a socket, straight from guest memory.
    pub(crate) fn send(&mut self, fd: RawFd, at: usize, len: usize) -> io::Result<usize> {
        let vectors = self.take_vectors(at, len);
        // SAFETY: each vector lies within a part of guest memory, which is borrowed for 'm and so stays mapped; the
        // kernel only reads it.
        let sent = unsafe { socket::send(fd, &vectors) };
        self.vectors = vectors;
        sent
    }

    /// Receives up to `len` bytes from a socket to `at`, straight into guest memory.
    pub(crate) fn receive(&mut self, fd: RawFd, at: usize, len: usize) -> io::Result<usize> {
        let vectors = self.take_vectors(at, len);
        // SAFETY: each vector lies within a part of guest memory, which is borrowed for 'm and so stays mapped; guest
        // memory is volatile by contract, so nothing in this process has a reference to these bytes.
        let received = unsafe { socket::receive(fd, &vectors) };
        self.vectors = vectors;
        if let Ok(bytes) = received {
            for (part, from, take) in self.window(at, bytes) {
                part.bitmap().mark_dirty(from, take);
            }
        }
        received
    }

    /// The vectors of a window, in the allocation of the last call.
    fn take_vectors(&mut self, at: usize, len: usize) -> Vec<libc::iovec> {
        let mut vectors = std::mem::take(&mut self.vectors);
        vectors.clear();
        vectors.extend(self.window(at, len).map(|(part, from, take)| libc::iovec {
            iov_base: part.ptr_guard_mut().as_ptr().wrapping_add(from).cast(),
            iov_len: take,
        }));
        vectors
    }
}
