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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// Ours to the guest, as much of this as there is credit for.
        Send(u32),
        /// The guest reads.
        Read(u32),
        /// A header of the guest arrives, the oldest on its way or one that overtook it.
        Arrive(bool),
        Lie(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..5000u32).prop_map(Step::Send),
            4 => (0..5000u32).prop_map(Step::Read),
            4 => any::<bool>().prop_map(Step::Arrive),
            1 => (any::<u32>(), any::<u32>()).prop_map(|(a, b)| Step::Lie(a, b)),
        ]
    }

    /// A connection whose counters have run for a while.
    fn aged(window: u32, start: u32) -> Credit {
        Credit {
            received: start,
            forwarded: start,
            announced: start,
            peer_forwarded: start,
            sent: start,
            ..Credit::new(window)
        }
    }

    proptest! {
        #[test]
        fn an_honest_peer_is_never_overrun(
            steps in prop::collection::vec(step(), 1..300),
            start in prop_oneof![Just(0), Just(u32::MAX - 3000), Just((1 << 31) - 3000), any::<u32>()],
            window in prop_oneof![1..20u32, 1000..300_000u32],
        ) {
            let mut ours = aged(0, start);
            let mut guest = aged(window, start);
            ours.learn(window, start);
            let mut headers = VecDeque::new();
            for step in steps {
                match step {
                    Step::Send(bytes) => {
                        let bytes = bytes.min(ours.available());
                        ours.send(bytes);
                        prop_assert_eq!(guest.receive(bytes), Ok(()));
                    }
                    Step::Read(bytes) => {
                        guest.forward(bytes.min(guest.held()));
                        headers.push_back(guest.announce());
                    }
                    Step::Arrive(overtaking) => {
                        if overtaking && headers.len() > 1 {
                            headers.swap(0, 1);
                        }
                        if let Some((buf_alloc, fwd_cnt)) = headers.pop_front() {
                            ours.learn(buf_alloc, fwd_cnt);
                        }
                    }
                    Step::Lie(..) => {}
                }
            }
            // When all is read and said, the whole window is open again.
            guest.forward(guest.held());
            let (buf_alloc, fwd_cnt) = guest.announce();
            ours.learn(buf_alloc, fwd_cnt);
            prop_assert_eq!(ours.available(), window);
        }

        #[test]
        fn a_liar_gets_no_more_than_the_window_it_names(
            steps in prop::collection::vec(step(), 1..300),
            start: u32,
        ) {
            let mut ours = aged(0, start);
            ours.learn(10_000, start);
            for step in steps {
                match step {
                    Step::Send(bytes) => ours.send(bytes.min(ours.available())),
                    Step::Lie(buf_alloc, fwd_cnt) => {
                        let before = ours.in_flight();
                        ours.learn(buf_alloc, fwd_cnt);
                        prop_assert!(ours.in_flight() <= before);
                        prop_assert!(ours.available() <= buf_alloc);
                    }
                    Step::Read(_) | Step::Arrive(_) => {}
                }
            }
        }

        #[test]
        fn our_window_is_kept_and_freed_room_is_announced(
            takes in prop::collection::vec((0..3000u32, 0..3000u32), 1..300),
            start: u32,
            window in 16..5000u32,
        ) {
            let mut ours = aged(window, start);
            for (bytes, read) in takes {
                let fits = bytes <= window - ours.held();
                prop_assert_eq!(ours.receive(bytes).is_ok(), fits);
                ours.forward(read.min(ours.held()));
                if ours.update_due() {
                    ours.announce();
                    prop_assert!(!ours.update_due(), "one update is enough");
                }
                // A guest that waits has used its window up as it knows it; with our buffer empty it must have heard.
                let known_free = window - ours.received.wrapping_sub(ours.announced);
                prop_assert!(ours.held() > 0 || known_free > 0, "the guest waits for ever");
            }
        }
    }
}
