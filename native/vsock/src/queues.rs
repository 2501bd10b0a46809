//! Packets between a muxer and two virtqueues.

use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::{
    buffers::{Buffers, BuffersError},
    connection::PAYLOAD_BYTES_MAX,
    header::HEADER_BYTES,
    muxer::Muxer,
};

/// Most bytes of one packet that are looked at.
const PACKET_BYTES_MAX: usize = HEADER_BYTES + PAYLOAD_BYTES_MAX;

/// Chains that one call serves: a guest that keeps its queue full must not keep the caller's thread.
const CHAINS: usize = 512;

/// The two queues that carry data (virtio 1.2, section 5.10.2). A queue that is not ready is left alone.
#[derive(Debug)]
pub struct Rings<'a> {
    /// Queue 0, host to guest.
    pub rx: &'a mut Queue,
    /// Queue 1, guest to host.
    pub tx: &'a mut Queue,
}

/// What a call of [`serve`] leaves to the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Interrupt the guest for queue 0.
    pub rx: bool,
    /// Interrupt the guest for queue 1.
    pub tx: bool,
    /// There is more to do at once; call again when the others had their turn.
    pub more: bool,
}

/// The driver broke its queue. The device stands still until it is reset (virtio 1.2, section 2.1.2).
#[derive(Debug, thiserror::Error)]
#[error("the driver broke the {queue} queue")]
pub struct ServeError {
    queue: &'static str,
    #[source]
    source: virtio_queue::Error,
}

/// Moves packets both ways until neither side has one, or the budget of one call is used up.
pub fn serve<M: GuestMemory>(
    muxer: &mut Muxer,
    mem: &M,
    rings: Rings<'_>,
) -> Result<Served, ServeError> {
    let Rings { rx, tx } = rings;
    if !rx.ready() || !tx.ready() {
        return Ok(Served::default());
    }
    let mut buffers = Buffers::default();
    let mut served = Served::default();
    let mut budget = CHAINS;
    let (mut rx_used, mut tx_used) = (false, false);
    loop {
        let took =
            take(muxer, mem, tx, &mut buffers, &mut budget).map_err(|source| ServeError {
                queue: "tx",
                source,
            })?;
        let gave =
            give(muxer, mem, rx, &mut buffers, &mut budget).map_err(|source| ServeError {
                queue: "rx",
                source,
            })?;
        tx_used |= took;
        rx_used |= gave;
        if budget == 0 {
            served.more = true;
            break;
        }
        // Packets taken may have made answers, and answers given may have made room for more packets.
        if !took && !gave {
            break;
        }
    }
    served.rx = rx_used
        && notify(mem, rx).map_err(|source| ServeError {
            queue: "rx",
            source,
        })?;
    served.tx = tx_used
        && notify(mem, tx).map_err(|source| ServeError {
            queue: "tx",
            source,
        })?;
    Ok(served)
}

/// Guest to host. Whether anything was taken.
fn take<'m, M: GuestMemory>(
    muxer: &mut Muxer,
    mem: &'m M,
    queue: &mut Queue,
    buffers: &mut Buffers<'m, M>,
    budget: &mut usize,
) -> Result<bool, virtio_queue::Error> {
    let mut took = false;
    loop {
        queue.disable_notification(mem)?;
        while !muxer.tx_blocked() && *budget > 0 {
            let Some(chain) = next_chain(mem, queue)? else {
                break;
            };
            *budget -= 1;
            let head = chain.head_index();
            // A chain that cannot be read is a packet that nobody can answer: its buffers go back.
            if buffers
                .fill(mem, chain, Permissions::Read, PACKET_BYTES_MAX)
                .is_ok()
            {
                muxer.tx(buffers);
            }
            queue.add_used(mem, head, 0)?;
            took = true;
        }
        // While it waits for something else, kicks of this queue would change nothing.
        if muxer.tx_blocked() || *budget == 0 || !queue.enable_notification(mem)? {
            return Ok(took);
        }
    }
}

/// Host to guest. Whether anything was given.
fn give<'m, M: GuestMemory>(
    muxer: &mut Muxer,
    mem: &'m M,
    queue: &mut Queue,
    buffers: &mut Buffers<'m, M>,
    budget: &mut usize,
) -> Result<bool, virtio_queue::Error> {
    let mut gave = false;
    queue.disable_notification(mem)?;
    while muxer.has_rx() && *budget > 0 {
        let Some(chain) = next_chain(mem, queue)? else {
            // Only a lack of buffers makes a kick of this queue worth anything.
            if queue.enable_notification(mem)? {
                queue.disable_notification(mem)?;
                continue;
            }
            break;
        };
        *budget -= 1;
        let head = chain.head_index();
        let fits = match buffers.fill(mem, chain, Permissions::Write, PACKET_BYTES_MAX) {
            Ok(()) => buffers.len() > HEADER_BYTES,
            Err(BuffersError::Memory(_) | BuffersError::TooManyParts) => false,
        };
        // A buffer with no room for a byte of payload goes back empty, or the queue would stand still behind it.
        let used = if fits { muxer.rx(buffers) } else { Some(0) };
        match used {
            Some(bytes) => queue.add_used(mem, head, bytes)?,
            None => {
                queue.go_to_previous_position();
                break;
            }
        }
        gave = true;
    }
    Ok(gave)
}

/// The next chain. `AvailIter` says "none" as well where it cannot read the ring; taken at its word, a queue that claims
/// to have more and never gives any would be asked for ever.
fn next_chain<'m, M: GuestMemory>(
    mem: &'m M,
    queue: &mut Queue,
) -> Result<Option<DescriptorChain<&'m M>>, virtio_queue::Error> {
    // Twice, for a driver that adds one between the two looks.
    for _ in 0..2 {
        if let Some(chain) = queue.iter(mem)?.next() {
            return Ok(Some(chain));
        }
        if queue.avail_idx(mem, Ordering::Acquire)?.0 == queue.next_avail() {
            return Ok(None);
        }
    }
    Err(virtio_queue::Error::InvalidAvailRingIndex)
}

/// Whether the driver wants to hear of used buffers. `Queue` knows the event index but not the flag of a driver
/// without it (`VIRTQ_AVAIL_F_NO_INTERRUPT`, virtio 1.2, section 2.7.7).
fn notify<M: GuestMemory>(mem: &M, queue: &mut Queue) -> Result<bool, virtio_queue::Error> {
    let wanted = queue.needs_notification(mem)?;
    if queue.event_idx_enabled() {
        return Ok(wanted);
    }
    let flags: u16 = mem
        .read_obj(GuestAddress(queue.avail_ring()))
        .map_err(virtio_queue::Error::GuestMemory)?;
    Ok(u16::from_le(flags) & 1 == 0)
}
