//! The TRANSPORT_RESET event (virtio 1.2, section 5.10.6.7): a guest that was restored elsewhere learns that its
//! connections are gone.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemory, Permissions};

use crate::buffers::Buffers;

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
        if let Self::Sent { avail } = *self
            && queue
                .avail_idx(mem, std::sync::atomic::Ordering::Acquire)?
                .0
                != avail
        {
            *self = Self::Idle;
        }
        if *self != Self::Wanted || !queue.ready() {
            return Ok(false);
        }
        queue.enable_notification(mem)?;
        let Some(chain) = queue.iter(mem)?.next() else {
            return Ok(false);
        };
        let head = chain.head_index();
        let mut buffers = Buffers::default();
        let fits = buffers
            .fill(mem, chain, Permissions::Write, TRANSPORT_RESET.len())
            .is_ok()
            && buffers.len() == TRANSPORT_RESET.len();
        if fits {
            buffers.copy_in(0, &TRANSPORT_RESET);
            *self = Self::Sent {
                avail: queue
                    .avail_idx(mem, std::sync::atomic::Ordering::Acquire)?
                    .0,
            };
        }
        queue.add_used(mem, head, if fits { 4 } else { 0 })?;
        queue.enable_notification(mem)?;
        queue.needs_notification(mem)
    }
}
