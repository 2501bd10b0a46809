//! The driver's half of a split virtqueue (virtio 1.2, section 2.7).

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::rig::{QUEUE_SIZE, QueuePlace};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A run of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub at: u64,
    pub len: u32,
}

#[derive(Debug)]
pub struct Ring {
    place: QueuePlace,
    event_idx: bool,
    writable: bool,
    avail: u16,
    seen: u16,
    free: Vec<u16>,
    /// Descriptors of the chain of each head.
    chains: Vec<Vec<u16>>,
    /// Up to where the device was told of buffers.
    told: u16,
}

impl Ring {
    pub fn new(mem: &GuestMemoryMmap, place: QueuePlace, event_idx: bool, writable: bool) -> Self {
        let zeros = [0; 4096];
        for at in [place.descriptors, place.avail, place.used] {
            mem.write_slice(&zeros[..2048], GuestAddress(at))
                .expect("rings lie in memory");
        }
        let ring = Self {
            place,
            event_idx,
            writable,
            avail: 0,
            seen: 0,
            free: (0..QUEUE_SIZE).rev().collect(),
            chains: vec![Vec::new(); QUEUE_SIZE.into()],
            told: 0,
        };
        ring.want_interrupt(mem);
        ring
    }

    /// Offers a chain; `None` where there are not enough descriptors. With `table`, the chain is indirect.
    pub fn offer(
        &mut self,
        mem: &GuestMemoryMmap,
        parts: &[Part],
        table: Option<u64>,
    ) -> Option<u16> {
        let flags = if self.writable { WRITE } else { 0 };
        let need = if table.is_some() { 1 } else { parts.len() };
        if self.free.len() < need || parts.is_empty() {
            return None;
        }
        let indexes: Vec<u16> = (0..need).filter_map(|_| self.free.pop()).collect();
        let head = indexes[0];
        if let Some(table) = table {
            for (index, part) in (0u16..).zip(parts) {
                let next = if usize::from(index) + 1 < parts.len() {
                    NEXT
                } else {
                    0
                };
                descriptor(mem, table, index, *part, flags | next, index + 1);
            }
            let len = u32::try_from(parts.len() * 16).expect("tables are short");
            descriptor(
                mem,
                self.place.descriptors,
                head,
                Part { at: table, len },
                INDIRECT,
                0,
            );
        } else {
            for (at, part) in parts.iter().enumerate() {
                let next = indexes.get(at + 1);
                let more = if next.is_some() { NEXT } else { 0 };
                descriptor(
                    mem,
                    self.place.descriptors,
                    indexes[at],
                    *part,
                    flags | more,
                    next.copied().unwrap_or(0),
                );
            }
        }
        self.chains[usize::from(head)] = indexes;
        let slot = self.place.avail + 4 + u64::from(self.avail % QUEUE_SIZE) * 2;
        mem.write_obj(head.to_le(), GuestAddress(slot))
            .expect("the avail ring");
        self.avail = self.avail.wrapping_add(1);
        mem.store(
            self.avail.to_le(),
            GuestAddress(self.place.avail + 2),
            Ordering::Release,
        )
        .expect("the avail index");
        Some(head)
    }

    /// Whether the device wants to hear of what was offered since the last time this was asked.
    pub fn needs_kick(&mut self, mem: &GuestMemoryMmap) -> bool {
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.told, self.avail);
        if old == self.avail {
            return false;
        }
        if self.event_idx {
            let at = self.place.used + 4 + u64::from(QUEUE_SIZE) * 8;
            let event: u16 = u16::from_le(mem.read_obj(GuestAddress(at)).expect("avail_event"));
            return self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old);
        }
        let flags: u16 = mem
            .read_obj(GuestAddress(self.place.used))
            .expect("used flags");
        u16::from_le(flags) & 1 == 0
    }

    /// The next used chain: its head and the bytes that the device wrote.
    pub fn used(&mut self, mem: &GuestMemoryMmap) -> Option<(u16, u32)> {
        let index: u16 = mem
            .load(GuestAddress(self.place.used + 2), Ordering::Acquire)
            .expect("the used index");
        if u16::from_le(index) == self.seen {
            self.want_interrupt(mem);
            fence(Ordering::SeqCst);
            let again: u16 = mem
                .load(GuestAddress(self.place.used + 2), Ordering::Acquire)
                .expect("the used index");
            if u16::from_le(again) == self.seen {
                return None;
            }
        }
        let at = self.place.used + 4 + u64::from(self.seen % QUEUE_SIZE) * 8;
        let [id, len]: [u32; 2] = mem.read_obj(GuestAddress(at)).expect("the used ring");
        self.seen = self.seen.wrapping_add(1);
        let head = u16::try_from(u32::from_le(id)).expect("the device gives back heads");
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        assert!(!chain.is_empty(), "the device gave chain {head} back twice");
        self.free.extend(chain);
        Some((head, u32::from_le(len)))
    }

    fn want_interrupt(&self, mem: &GuestMemoryMmap) {
        if self.event_idx {
            let at = self.place.avail + 4 + u64::from(QUEUE_SIZE) * 2;
            mem.write_obj(self.seen.to_le(), GuestAddress(at))
                .expect("used_event");
        }
    }
}

fn descriptor(mem: &GuestMemoryMmap, table: u64, index: u16, part: Part, flags: u16, next: u16) {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&part.at.to_le_bytes());
    raw[8..12].copy_from_slice(&part.len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    mem.write_slice(&raw, GuestAddress(table + u64::from(index) * 16))
        .expect("a descriptor");
}
