//! Events: numbered, kept until the host has made them durable, replayed to a host that comes back.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use aerie_protocol::message::{Event, EventKind};

use crate::sys::{Wake, lock};

#[derive(Debug, Default)]
struct Inner {
    /// Serialized, oldest first. It is short by construction: each kind happens once in a boot.
    pending: VecDeque<(u64, Vec<u8>)>,
    last: u64,
    acked: u64,
}

/// The events of this boot; see the module.
#[derive(Debug)]
pub struct Events {
    inner: Mutex<Inner>,
    /// Tells the session that there is something to send.
    wake: Wake,
    acknowledged: Condvar,
}

impl Events {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inner: Mutex::default(),
            wake: Wake::new()?,
            acknowledged: Condvar::new(),
        })
    }

    /// Adds an event and returns its number.
    pub fn push(&self, kind: EventKind) -> u64 {
        let mut inner = lock(&self.inner);
        inner.last += 1;
        let seq = inner.last;
        // Strings and numbers always serialize.
        if let Ok(body) = serde_json::to_vec(&Event { seq, kind }) {
            inner.pending.push_back((seq, body));
        }
        drop(inner);
        self.wake.set();
        seq
    }

    /// Adds an event as [`push`](Self::push) does, for a process that is breaking: `None` where the lock is taken, maybe by the broken thread.
    pub fn try_push(&self, kind: EventKind) -> Option<u64> {
        let mut inner = self.inner.try_lock().ok()?;
        let seq = inner.last + 1;
        let body = serde_json::to_vec(&Event { seq, kind }).ok()?;
        inner.last = seq;
        inner.pending.push_back((seq, body));
        drop(inner);
        self.wake.set();
        Some(seq)
    }

    /// Tells the same as [`is_acked`](Self::is_acked), for such a process.
    pub fn try_is_acked(&self, seq: u64) -> bool {
        self.inner.try_lock().is_ok_and(|inner| inner.acked >= seq)
    }

    pub fn last(&self) -> u64 {
        lock(&self.inner).last
    }

    /// The host keeps everything up to `seq`.
    pub fn ack(&self, seq: u64) {
        let mut inner = lock(&self.inner);
        let seq = seq.min(inner.last);
        inner.acked = inner.acked.max(seq);
        while inner
            .pending
            .front()
            .is_some_and(|(number, _)| *number <= seq)
        {
            inner.pending.pop_front();
        }
        drop(inner);
        self.acknowledged.notify_all();
    }

    /// The oldest event after `seq` that is not acknowledged.
    pub fn after(&self, seq: u64) -> Option<(u64, Vec<u8>)> {
        lock(&self.inner)
            .pending
            .iter()
            .find(|(number, _)| *number > seq)
            .cloned()
    }

    /// Waits until the host keeps `seq`; `false` when it did not in time.
    pub fn wait_acked(&self, seq: u64, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut inner = lock(&self.inner);
        while inner.acked < seq {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = match self.acknowledged.wait_timeout(inner, left) {
                Ok((inner, _)) => inner,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    pub fn is_acked(&self, seq: u64) -> bool {
        lock(&self.inner).acked >= seq
    }

    pub fn wake_fd(&self) -> RawFd {
        self.wake.fd()
    }

    pub fn clear_wake(&self) {
        self.wake.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_from_one_and_kept_until_acknowledged() {
        let events = Events::new().unwrap();

        assert_eq!(events.push(EventKind::Ready { boot_ms: 5 }), 1);
        assert_eq!(events.push(EventKind::Button), 2);
        assert_eq!(
            events.after(0).unwrap(),
            (1, br#"{"seq":1,"type":"ready","boot_ms":5}"#.to_vec())
        );
        events.ack(1);

        assert_eq!(events.after(0).unwrap().0, 2);
        assert_eq!(events.after(2), None);
    }

    #[test]
    fn a_breaking_process_never_waits_for_the_lock() {
        let events = Events::new().unwrap();
        let held = lock(&events.inner);

        assert_eq!(events.try_push(EventKind::Button), None);
        assert!(!events.try_is_acked(0));
        drop(held);

        assert_eq!(events.try_push(EventKind::Button), Some(1));
        events.ack(1);
        assert!(events.try_is_acked(1));
    }

    #[test]
    fn an_ack_of_the_future_acknowledges_what_there_is() {
        let events = Events::new().unwrap();
        events.push(EventKind::Button);

        events.ack(u64::MAX);
        let seq = events.push(EventKind::Button);

        assert_eq!(events.after(0).unwrap().0, seq);
        assert!(!events.wait_acked(seq, Duration::from_millis(5)));
        events.ack(seq);
        assert!(events.wait_acked(seq, Duration::ZERO));
    }
}
