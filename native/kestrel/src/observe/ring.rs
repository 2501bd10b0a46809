//! The log of a guest: what the workload and kestrel wrote, the newest `limit` bytes of it.
//!
//! Offsets count bytes of log since boot over all streams, so that a reader that comes back with the offset after its last
//! byte misses nothing and sees nothing twice, and can tell how much was dropped meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aerie_protocol::LogStream;

use crate::sys::{Wake, lock, wall_clock_ns};

/// Bytes that a record costs beside its own, counted against the limit: a workload that writes single bytes must not cost
/// fifty times the ring.
const RECORD_BYTES: usize = 56;
/// A follower that had something to read and did not for so long is not waited for.
const STALLED: Duration = Duration::from_secs(3);
/// A host reads along as soon as it has heard that the guest is ready: a workload that has filled the log before waits so
/// long for it.
const FIRST_FOLLOWER: Duration = Duration::from_secs(10);

/// A piece of log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub stream: LogStream,
    pub offset: u64,
    pub time_ns: u64,
    pub data: Arc<[u8]>,
}

impl Record {
    pub fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    /// The part from `offset` on.
    fn since(&self, offset: u64) -> Self {
        let skip = usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        match self.data.get(skip..) {
            Some(rest) if skip > 0 => Self {
                offset,
                data: Arc::from(rest),
                ..self.clone()
            },
            _ => self.clone(),
        }
    }
}

/// Somebody who reads along.
#[derive(Debug)]
struct Follower {
    wake: Arc<Wake>,
    /// What it has read.
    offset: u64,
    /// When it last read something, or had nothing to read.
    moved: Instant,
}

#[derive(Debug)]
struct Inner {
    records: VecDeque<Record>,
    held: usize,
    limit: usize,
    next: u64,
    followers: Vec<Follower>,
    /// Nobody has read along yet: until when the workload waits for the first who does.
    first_until: Option<Instant>,
    has_been_followed: bool,
    closed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Ring(Mutex<Inner>);

/// The offsets at which a ring begins and ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub oldest: u64,
    pub next: u64,
}

impl Ring {
    pub const fn new(limit: usize) -> Self {
        Self(Mutex::new(Inner {
            records: VecDeque::new(),
            held: 0,
            limit,
            next: 0,
            followers: Vec::new(),
            first_until: None,
            has_been_followed: false,
            closed: false,
        }))
    }

    /// Changes how much is kept.
    pub fn set_limit(&self, limit: usize) {
        let mut inner = lock(&self.0);
        inner.limit = limit;
        inner.evict();
    }

    /// Adds what a stream gave, and wakes the followers.
    pub fn append(&self, stream: LogStream, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut inner = lock(&self.0);
        let record = Record {
            stream,
            offset: inner.next,
            time_ns: wall_clock_ns(),
            data: Arc::from(data),
        };
        inner.next = record.end();
        for follower in &mut inner.followers {
            if follower.offset >= record.offset {
                follower.moved = Instant::now();
            }
        }
        inner.held += data.len() + RECORD_BYTES;
        inner.records.push_back(record);
        inner.evict();
        for follower in &inner.followers {
            follower.wake.set();
        }
    }

    /// Whether `bytes` more push out nothing that a follower has yet to read. One that has not moved for a while is not
    /// waited for: a host that hangs must not hold the workload.
    pub fn has_room(&self, bytes: usize) -> bool {
        let mut inner = lock(&self.0);
        if inner.held + bytes + RECORD_BYTES <= inner.limit {
            return true;
        }
        if !inner.has_been_followed {
            let now = Instant::now();
            return now > *inner.first_until.get_or_insert(now + FIRST_FOLLOWER);
        }
        let oldest = inner.records.front().map_or(inner.next, Record::end);
        inner
            .followers
            .iter()
            .all(|follower| follower.offset >= oldest || follower.moved.elapsed() > STALLED)
    }

    pub fn bounds(&self) -> Bounds {
        let inner = lock(&self.0);
        Bounds {
            oldest: inner
                .records
                .front()
                .map_or(inner.next, |record| record.offset),
            next: inner.next,
        }
    }

    /// The oldest piece at or after `offset`.
    pub fn read(&self, offset: u64) -> Option<Record> {
        let inner = lock(&self.0);
        let at = inner
            .records
            .partition_point(|record| record.end() <= offset);
        inner.records.get(at).map(|record| record.since(offset))
    }

    /// Gives all records that are held, oldest first.
    pub fn all(&self) -> Vec<Record> {
        lock(&self.0).records.iter().cloned().collect()
    }

    /// Wakes `wake` whenever something was added or the log has ended.
    /// `from` is what the follower has read already.
    pub fn follow(&self, wake: &Arc<Wake>, from: u64) {
        let mut inner = lock(&self.0);
        inner.followers.push(Follower {
            wake: Arc::clone(wake),
            offset: from,
            moved: Instant::now(),
        });
        inner.has_been_followed = true;
    }

    /// Takes down how far a follower has read.
    pub fn reached(&self, wake: &Arc<Wake>, offset: u64) {
        let mut inner = lock(&self.0);
        for follower in &mut inner.followers {
            if Arc::ptr_eq(&follower.wake, wake) {
                follower.offset = offset;
                follower.moved = Instant::now();
            }
        }
    }

    pub fn unfollow(&self, wake: &Arc<Wake>) {
        lock(&self.0)
            .followers
            .retain(|follower| !Arc::ptr_eq(&follower.wake, wake));
    }

    /// Tells followers that nothing more will come: the guest powers off.
    pub fn close(&self) {
        let mut inner = lock(&self.0);
        inner.closed = true;
        for follower in &inner.followers {
            follower.wake.set();
        }
    }

    pub fn is_closed(&self) -> bool {
        lock(&self.0).closed
    }
}

impl Inner {
    fn evict(&mut self) {
        // The newest record stays whatever its size: a log that shows nothing at all helps nobody.
        while self.held > self.limit && self.records.len() > 1 {
            if let Some(gone) = self.records.pop_front() {
                self.held -= gone.data.len() + RECORD_BYTES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(limit: usize, writes: &[&str]) -> Ring {
        let ring = Ring::new(limit);
        for text in writes {
            ring.append(LogStream::Stdout, text.as_bytes());
        }
        ring
    }

    #[test]
    fn a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice() {
        let ring = ring(10_000, &["hello ", "world"]);

        let first = ring.read(0).unwrap();
        assert_eq!((&*first.data, first.offset), (&b"hello "[..], 0));
        let part = ring.read(8).unwrap();
        assert_eq!((&*part.data, part.offset), (&b"rld"[..], 8));
        assert_eq!(ring.read(11), None);
        ring.append(LogStream::Stderr, b"!");

        assert_eq!(ring.read(11).unwrap().stream, LogStream::Stderr);
    }

    #[test]
    fn the_oldest_goes_first_and_the_offsets_stay() {
        let ring = ring(3 * (10 + RECORD_BYTES), &["0123456789"; 7]);

        assert_eq!(
            ring.bounds(),
            Bounds {
                oldest: 40,
                next: 70
            }
        );
        assert_eq!(ring.read(0).unwrap().offset, 40);
    }

    #[test]
    fn single_bytes_cost_what_they_cost() {
        let ring = Ring::new(10 * RECORD_BYTES);
        for _ in 0..1000 {
            ring.append(LogStream::Stdout, b"x");
        }

        assert!(ring.all().len() < 10);
    }

    #[test]
    fn what_a_follower_has_yet_to_read_is_not_pushed_out_while_it_reads() {
        let ring = Ring::new(3 * (10 + RECORD_BYTES));
        let wake = Arc::new(Wake::new().unwrap());
        for _ in 0..3 {
            ring.append(LogStream::Stdout, b"0123456789");
        }
        assert!(!ring.has_room(10)); // nobody reads yet

        ring.follow(&wake, 0);
        assert!(!ring.has_room(10));
        ring.reached(&wake, 10);
        assert!(ring.has_room(10));
        ring.append(LogStream::Stdout, b"0123456789");
        assert!(!ring.has_room(10));
        ring.unfollow(&wake);
        assert!(ring.has_room(10));
    }

    #[test]
    fn a_follower_that_does_not_move_is_not_waited_for() {
        let ring = Ring::new(10 + RECORD_BYTES);
        let wake = Arc::new(Wake::new().unwrap());
        ring.follow(&wake, 0);
        ring.append(LogStream::Stdout, b"0123456789");
        assert!(!ring.has_room(10));

        for follower in &mut lock(&ring.0).followers {
            follower.moved -= STALLED + Duration::from_secs(1);
        }
        assert!(ring.has_room(10));
    }

    #[test]
    fn a_follower_is_woken_by_what_comes_and_by_the_end() {
        let ring = Ring::new(1000);
        let wake = Arc::new(Wake::new().unwrap());
        let is_set = || {
            let mut entries = [crate::sys::poll_entry(wake.fd(), libc::POLLIN)];
            let now = Some(std::time::Instant::now());
            let set = crate::sys::poll(&mut entries, now).unwrap();
            wake.clear();
            set
        };
        ring.follow(&wake, 0);

        assert!(!is_set());
        ring.append(LogStream::Stdout, b"x");
        assert!(is_set());
        ring.close();
        assert!(is_set());
        ring.unfollow(&wake);
        ring.append(LogStream::Stdout, b"x");
        assert!(!is_set());
    }
}
