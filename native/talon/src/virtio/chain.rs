//! A request as the guest laid it down: a chain of buffers, each checked to be one piece of guest memory before anything
//! of it is used. The guest decides how long a chain is and whether it ends; what we allocate for it is bounded here.

use std::collections::VecDeque;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Buffers of one chain at most. Linux sends at most its queue size, or what `seg_max` allows.
pub const PIECES_MAX: usize = 1024;

/// The guest broke a rule, so the device stops until it is reset; or the host failed it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Rings outside memory, or an index that jumped.
    #[error("queue {queue} is broken")]
    Queue {
        /// Number of the queue.
        queue: usize,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// A chain that loops, is too long, or ends in nothing.
    #[error("a chain of queue {queue} does not end properly")]
    Chain {
        /// Number of the queue.
        queue: usize,
    },
    /// A buffer outside memory.
    #[error("a buffer at {address:#x} of {bytes} bytes is not guest memory")]
    Buffer {
        /// Where.
        address: u64,
        /// How long.
        bytes: u32,
    },
    /// A request that its device does not allow.
    #[error("request is malformed: {0}")]
    Request(&'static str),
    /// The host's side is gone.
    #[error("the device's host side failed")]
    Host(#[source] std::io::Error),
}

/// One buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical start.
    pub address: GuestAddress,
    /// Bytes, never zero.
    pub bytes: u32,
}

/// A request.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index that goes back in the used ring.
    pub head: u16,
    /// Buffers that the guest filled, in order.
    pub readable: Vec<Piece>,
    /// Buffers that the device fills, in order.
    pub writable: Vec<Piece>,
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.bytes)).sum()
}

/// Walks `pieces` from byte `skip` on, at most `limit` bytes: address and length of each part.
fn parts(
    pieces: &[Piece],
    skip: u64,
    limit: u64,
) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
    let (mut skip, mut limit) = (skip, limit);
    pieces.iter().filter_map(move |piece| {
        let bytes = u64::from(piece.bytes);
        if skip >= bytes {
            skip -= bytes;
            return None;
        }
        let (start, length) = (skip, (bytes - skip).min(limit));
        skip = 0;
        limit -= length;
        // The piece was checked to be guest memory, so the sum cannot overflow.
        (length > 0).then(|| {
            (
                piece.address.unchecked_add(start),
                usize::try_from(length).unwrap_or(usize::MAX),
            )
        })
    })
}

impl Chain {
    /// Bytes that the guest filled.
    #[must_use]
    pub fn readable_bytes(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may fill.
    #[must_use]
    pub fn writable_bytes(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies what the guest filled, from byte `skip` on. Returns the bytes copied.
    pub fn read(&self, memory: &GuestMemoryMmap, skip: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        for (address, bytes) in parts(&self.readable, skip, out.len() as u64) {
            if memory
                .read_slice(&mut out[done..done + bytes], address)
                .is_err()
            {
                break;
            }
            done += bytes;
        }
        done
    }

    /// Copies into what the device fills, from byte `skip` on. Returns the bytes copied.
    pub fn write(&self, memory: &GuestMemoryMmap, skip: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for (address, bytes) in parts(&self.writable, skip, data.len() as u64) {
            if memory
                .write_slice(&data[done..done + bytes], address)
                .is_err()
            {
                break;
            }
            done += bytes;
        }
        done
    }

    /// The readable buffers for `writev`, from byte `skip` on, at most `limit` bytes.
    #[must_use]
    pub fn readable_vectors(
        &self,
        memory: &GuestMemoryMmap,
        skip: u64,
        limit: u64,
    ) -> Vec<libc::iovec> {
        vectors(memory, &self.readable, skip, limit)
    }

    /// The writable buffers for `readv`, from byte `skip` on, at most `limit` bytes.
    #[must_use]
    pub fn writable_vectors(
        &self,
        memory: &GuestMemoryMmap,
        skip: u64,
        limit: u64,
    ) -> Vec<libc::iovec> {
        vectors(memory, &self.writable, skip, limit)
    }
}

fn vectors(memory: &GuestMemoryMmap, pieces: &[Piece], skip: u64, limit: u64) -> Vec<libc::iovec> {
    parts(pieces, skip, limit)
        .map_while(|(address, bytes)| {
            let base = memory.get_host_address(address).ok()?;
            Some(libc::iovec {
                iov_base: base.cast(),
                iov_len: bytes,
            })
        })
        .collect()
}

/// A queue whose driver may want an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    /// Number of the queue.
    pub queue: usize,
    /// It does: the backend has asked already.
    pub decided: bool,
}

/// Queues of a device while it serves.
#[derive(Debug)]
pub struct Io<'a> {
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    queues: &'a mut [Queue],
    returned: &'a mut VecDeque<Returned>,
    /// Set by a backend whose configuration has changed.
    pub config_changed: bool,
}

impl<'a> Io<'a> {
    /// Around the queues of a device; `returned` collects the queues whose driver may want an interrupt.
    pub fn new(
        memory: &'a GuestMemoryMmap,
        queues: &'a mut [Queue],
        returned: &'a mut VecDeque<Returned>,
    ) -> Self {
        Self {
            memory,
            queues,
            returned,
            config_changed: false,
        }
    }

    /// Whether the driver has set the queue up.
    #[must_use]
    pub fn ready(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(QueueT::ready)
    }

    /// The next request, or none.
    ///
    /// # Errors
    /// When the ring or the chain breaks the rules.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, ServeError> {
        let Some(ring) = self.queues.get_mut(queue).filter(|ring| ring.ready()) else {
            return Ok(None);
        };
        let found = ring
            .iter(self.memory)
            .map_err(|source| ServeError::Queue { queue, source })?
            .next();
        let Some(raw) = found else { return Ok(None) };
        let mut chain = Chain {
            head: raw.head_index(),
            ..Chain::default()
        };
        let mut ended = false;
        let mut count = 0;
        for descriptor in raw {
            ended = !descriptor.has_next();
            count += 1;
            if count > PIECES_MAX {
                return Err(ServeError::Chain { queue });
            }
            let (address, bytes) = (descriptor.addr(), descriptor.len());
            if bytes == 0 {
                continue;
            }
            let length = usize::try_from(bytes).unwrap_or(usize::MAX);
            if self.memory.get_slice(address, length).is_err() {
                return Err(ServeError::Buffer {
                    address: address.raw_value(),
                    bytes,
                });
            }
            let side = if descriptor.is_write_only() {
                &mut chain.writable
            } else {
                &mut chain.readable
            };
            side.push(Piece { address, bytes });
        }
        if ended {
            Ok(Some(chain))
        } else {
            Err(ServeError::Chain { queue })
        }
    }

    /// Gives the request back unserved: the next `pop` returns it again.
    pub fn unpop(&mut self, queue: usize) {
        if let Some(ring) = self.queues.get_mut(queue) {
            ring.go_to_previous_position();
        }
    }

    /// Tells the driver that the request is done and `written` bytes are in its writable buffers.
    ///
    /// # Errors
    /// When the used ring is not guest memory.
    pub fn push(&mut self, queue: usize, head: u16, written: u32) -> Result<(), ServeError> {
        let Some(ring) = self.queues.get_mut(queue) else {
            return Ok(());
        };
        ring.add_used(self.memory, head, written)
            .map_err(|source| ServeError::Queue { queue, source })?;
        self.note(Returned {
            queue,
            decided: false,
        });
        Ok(())
    }

    fn note(&mut self, returned: Returned) {
        if !self.returned.contains(&returned) {
            self.returned.push_back(returned);
        }
    }

    /// The driver wants an interrupt for this queue, as the backend knows.
    pub fn interrupt(&mut self, queue: usize) {
        self.note(Returned {
            queue,
            decided: true,
        });
    }

    /// The first three queues themselves, for a backend that walks them on its own.
    pub fn first_three(&mut self) -> Option<[&mut Queue; 3]> {
        match self.queues {
            [first, second, third, ..] => Some([first, second, third]),
            _ => None,
        }
    }

    /// Asks for no doorbell while the queue is being served.
    ///
    /// # Errors
    /// When the ring is not guest memory.
    pub fn quiet(&mut self, queue: usize) -> Result<(), ServeError> {
        match self.queues.get_mut(queue).filter(|ring| ring.ready()) {
            Some(ring) => ring
                .disable_notification(self.memory)
                .map_err(|source| ServeError::Queue { queue, source }),
            None => Ok(()),
        }
    }

    /// Asks for a doorbell again. True when requests came meanwhile, which nobody will ring for.
    ///
    /// # Errors
    /// When the ring is not guest memory.
    pub fn listen(&mut self, queue: usize) -> Result<bool, ServeError> {
        match self.queues.get_mut(queue).filter(|ring| ring.ready()) {
            Some(ring) => ring
                .enable_notification(self.memory)
                .map_err(|source| ServeError::Queue { queue, source }),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_skip_and_stop_inside_pieces() {
        let piece = |address, bytes| Piece {
            address: GuestAddress(address),
            bytes,
        };
        let pieces = [piece(0x100, 10), piece(0x200, 20), piece(0x300, 30)];

        let found: Vec<_> = parts(&pieces, 15, 30)
            .map(|(address, bytes)| (address.0, bytes))
            .collect();

        assert_eq!(found, [(0x205, 15), (0x300, 15)]);
    }
}
