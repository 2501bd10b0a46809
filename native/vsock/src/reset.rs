//! The TRANSPORT_RESET event (virtio 1.2, section 5.10.6.7): a guest that was restored elsewhere learns that its
//! connections are gone.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::buffers::Buffers;

const ROUNDS: usize = 256;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, le32.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// One reset on its way. Until the guest has taken it, no packet may be given to it: a connection that began before
/// would fall victim to the event. Linux gives the buffer back when it is done, and that is the only sign there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportReset {
    /// Nothing is on its way.
    #[default]
    Idle,
    /// The guest had no buffer for it yet.
    Wanted,
    /// It lies in the guest's queue; `avail` was the driver's position then.
    Sent { avail: u16 },
}

impl TransportReset {
    /// Whether packets may be served.
    pub fn is_idle(self) -> bool {
        self == Self::Idle
    }

    /// Goes on as far as the event queue (queue 2) allows; call it after every kick of that queue. Whether the guest
    /// has to be interrupted for it.
    pub fn step<M: GuestMemory>(
        &mut self,
        mem: &M,
        queue: &mut Queue,
    ) -> Result<bool, virtio_queue::Error> {
        if self.is_idle() || !queue.ready() {
            return Ok(false);
        }
        let mut gave = false;
        // One round is enough but for a driver that is at work meanwhile; one that never stops is left to itself.
        for _ in 0..ROUNDS {
            while *self == Self::Wanted
                && let Some(chain) = queue.iter(mem)?.next()
            {
                gave |= self.give(mem, queue, chain)?;
            }
            let avail = watch(mem, queue)?;
            match *self {
                Self::Sent { avail: then } if avail != then => *self = Self::Idle,
                Self::Wanted if avail != queue.next_avail() => continue,
                _ => {}
            }
            break;
        }
        Ok(gave && queue.needs_notification(mem)?)
    }

    /// Puts the event in a buffer, or gives a buffer that it does not fit in back empty.
    fn give<'m, M: GuestMemory>(
        &mut self,
        mem: &'m M,
        queue: &mut Queue,
        chain: DescriptorChain<&'m M>,
    ) -> Result<bool, virtio_queue::Error> {
        let head = chain.head_index();
        let mut buffers = Buffers::default();
        let filled = buffers.fill(mem, chain, Permissions::Write, TRANSPORT_RESET.len());
        let fits = filled.is_ok() && buffers.copy_in(0, &TRANSPORT_RESET) == TRANSPORT_RESET.len();
        if fits {
            let avail = queue.avail_idx(mem, Ordering::Acquire)?.0;
            *self = Self::Sent { avail };
        }
        queue.add_used(mem, head, if fits { 4 } else { 0 })?;
        Ok(true)
    }
}

/// Asks for a kick at the driver's next buffer; gives back its position now. `Queue::enable_notification` asks for the
/// buffer after the last one *taken*: while others lie between, as in Linux, that one has passed and no kick comes.
fn watch<M: GuestMemory>(mem: &M, queue: &mut Queue) -> Result<u16, virtio_queue::Error> {
    let mut avail = queue.avail_idx(mem, Ordering::Acquire)?;
    for _ in 0..ROUNDS {
        queue.enable_notification(mem)?;
        if queue.event_idx_enabled() {
            // avail_event lies behind the used ring: 4 bytes and 8 for every entry (virtio 1.2, section 2.7.8).
            let at = queue
                .used_ring()
                .checked_add(4 + 8 * u64::from(queue.size()))
                .ok_or(virtio_queue::Error::AddressOverflow)?;
            mem.store(avail.0.to_le(), GuestAddress(at), Ordering::Relaxed)
                .map_err(virtio_queue::Error::GuestMemory)?;
        }
        fence(Ordering::SeqCst);
        let now = queue.avail_idx(mem, Ordering::Acquire)?;
        if std::mem::replace(&mut avail, now) == now {
            break;
        }
    }
    Ok(avail.0)
}

#[cfg(test)]
mod tests {
    use virtio_queue::{
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    const BUFFER: u64 = 0x8000;
    const WRITE: u16 = 2;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn buffer(len: u32) -> RawDescriptor {
        Descriptor::new(BUFFER, len, WRITE, 0).into()
    }

    #[test]
    fn the_guest_takes_it_by_giving_the_buffer_back() {
        let mem = memory();
        let driver = MockSplitQueue::new(&mem, 8);
        let mut queue: Queue = driver.create_queue().unwrap();
        let mut reset = TransportReset::Wanted;
        mem.write_slice(&[0xff; 4], GuestAddress(BUFFER)).unwrap();

        // The driver has no buffer yet.
        assert!(!reset.step(&mem, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::Wanted);

        driver.add_desc_chains(&[buffer(4)], 0).unwrap();
        assert!(
            reset.step(&mem, &mut queue).unwrap(),
            "the guest is interrupted"
        );
        assert_eq!(mem.read_obj::<u32>(GuestAddress(BUFFER)).unwrap(), 0);
        assert!(!reset.is_idle());
        reset.step(&mem, &mut queue).unwrap();
        assert!(!reset.is_idle(), "not before the guest has seen it");

        driver.add_desc_chains(&[buffer(4)], 1).unwrap();
        assert!(!reset.step(&mem, &mut queue).unwrap());
        assert!(reset.is_idle());
    }

    #[test]
    fn a_kick_is_asked_for_where_it_will_come() {
        let mem = memory();
        let driver = MockSplitQueue::new(&mem, 8);
        let mut queue: Queue = driver.create_queue().unwrap();
        queue.set_event_idx(true);
        let mut reset = TransportReset::Wanted;

        // As Linux: more buffers than one, of which one is used and given back.
        driver
            .add_desc_chains(&[buffer(4), buffer(4), buffer(4)], 0)
            .unwrap();
        reset.step(&mem, &mut queue).unwrap();

        let event: u16 = mem
            .read_obj(GuestAddress(queue.used_ring() + 4 + 8 * 8))
            .unwrap();
        assert_eq!(event, 3, "the position after the three");
    }

    #[test]
    fn a_buffer_too_small_is_no_place_for_it() {
        let mem = memory();
        let driver = MockSplitQueue::new(&mem, 8);
        let mut queue: Queue = driver.create_queue().unwrap();
        let mut reset = TransportReset::Wanted;
        driver.add_desc_chains(&[buffer(3)], 0).unwrap();

        reset.step(&mem, &mut queue).unwrap();

        assert_eq!(reset, TransportReset::Wanted);
    }
}
