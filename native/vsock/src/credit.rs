//! Credit: who may send how much (virtio 1.2, section 5.10.6.3).
//!
//! Counters are free-running and wrap at 2^32, so only differences mean anything. A difference of two counters is
//! kept below 2^31 by capping the peer's window, so that "ahead" and "behind" are never the same number.

/// The guest sent more than it was allowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded;

/// The largest window of a peer that is believed; a larger claim is cut to it.
const PEER_WINDOW_MAX: u32 = 1 << 30;

/// The accounts of one connection, both directions.
#[derive(Debug)]
pub(crate) struct Credit {
    /// Our receive buffer, bytes: `buf_alloc` of what we send.
    window: u32,
    /// Bytes that came from the guest.
    received: u32,
    /// Bytes of them that went on to the host: `fwd_cnt` of what we send.
    forwarded: u32,
    /// `forwarded` as the guest last heard it.
    announced: u32,
    peer_window: u32,
    peer_forwarded: u32,
    /// Bytes that went to the guest.
    sent: u32,
}

impl Credit {
    /// A fresh connection with a receive buffer of `window` bytes (below 2^31).
    pub fn new(window: u32) -> Self {
        debug_assert!(window < 1 << 31);
        Self {
            window,
            received: 0,
            forwarded: 0,
            announced: 0,
            peer_window: 0,
            peer_forwarded: 0,
            sent: 0,
        }
    }

    /// Bytes that are in our buffer.
    pub fn held(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Takes `len` bytes from the guest, or refuses what is beyond the window.
    pub fn receive(&mut self, len: u32) -> Result<(), Exceeded> {
        if len > self.window - self.held() {
            return Err(Exceeded);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// `len` bytes left our buffer.
    pub fn forward(&mut self, len: u32) {
        debug_assert!(len <= self.held());
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest should hear of freed room now: it has used up more than half of what it knows of.
    /// A half, because one update per packet would double the number of packets.
    pub fn update_due(&self) -> bool {
        self.forwarded != self.announced
            && self.received.wrapping_sub(self.announced) > self.window / 2
    }

    /// `(buf_alloc, fwd_cnt)` for a header that is about to be sent.
    pub fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (self.window, self.forwarded)
    }

    /// Learns from a header of the guest. A count that is behind is one that was overtaken (Linux stamps a header and
    /// queues it under different locks); one that is ahead of what was sent is a lie. Neither moves anything.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_window = buf_alloc.min(PEER_WINDOW_MAX);
        if fwd_cnt.wrapping_sub(self.peer_forwarded) <= self.in_flight() {
            self.peer_forwarded = fwd_cnt;
        }
    }

    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.peer_forwarded)
    }

    /// Bytes that may be sent to the guest now.
    pub fn available(&self) -> u32 {
        self.peer_window.saturating_sub(self.in_flight())
    }

    /// `len` bytes went to the guest; at most [`Self::available`].
    pub fn send(&mut self, len: u32) {
        debug_assert!(len <= self.available());
        self.sent = self.sent.wrapping_add(len);
    }
}
