//! How many conversations the host may hold at once, of each sort: whoever forwards many connections leaves room for exec and stop.

use std::sync::atomic::{AtomicUsize, Ordering};

use aerie_protocol::Kind;

/// Connections to programs of the guest (kind proxy). The muxer on the host holds 512 connections for one guest, of both sorts.
pub const FORWARDED_MAX: usize = 384;
/// Connections in all; what a guest's memory must bear.
const OPEN_MAX: usize = 512;
/// Conversations of every other kind: exec, attach, copies, logs, questions.
pub const CONTROL_MAX: usize = 96;

/// The slots that are taken. See the module.
#[derive(Debug, Default)]
pub struct Slots {
    forwarded: AtomicUsize,
    control: AtomicUsize,
    /// Every connection, those too that have not said what they want.
    open: AtomicUsize,
}

/// One taken slot, free again when dropped.
#[derive(Debug)]
pub struct Slot(&'static AtomicUsize);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn take(count: &'static AtomicUsize, max: usize) -> Option<Slot> {
    let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
        (count < max).then_some(count + 1)
    });
    taken.ok().map(|_| Slot(count))
}

impl Slots {
    /// A slot for a connection that has not said what it wants.
    pub fn open(&'static self) -> Option<Slot> {
        take(&self.open, OPEN_MAX)
    }

    /// A slot for a conversation of this kind.
    ///
    /// # Errors
    /// The sentence for the host where all of them are taken.
    pub fn of(&'static self, kind: Kind) -> Result<Slot, String> {
        if kind == Kind::Proxy {
            let full = || format!("{FORWARDED_MAX} connections into it are open already");
            return take(&self.forwarded, FORWARDED_MAX).ok_or_else(full);
        }
        let full =
            || format!("{CONTROL_MAX} commands, copies and viewers of it are at work already");
        take(&self.control, CONTROL_MAX).ok_or_else(full)
    }

    /// Counts the connections that are open.
    pub fn count(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> &'static Slots {
        Box::leak(Box::default())
    }

    #[test]
    fn connections_that_are_forwarded_leave_the_room_of_everything_else() {
        let slots = slots();
        let forwarded: Vec<_> = (0..FORWARDED_MAX)
            .map(|_| slots.of(Kind::Proxy).expect("a slot"))
            .collect();

        assert!(slots.of(Kind::Proxy).expect_err("full").contains("384"));
        let control: Vec<_> = [Kind::Exec, Kind::Metrics, Kind::CopyIn, Kind::Identity]
            .map(|kind| slots.of(kind).expect("a slot"))
            .into();
        drop(forwarded);
        assert!(slots.of(Kind::Proxy).is_ok());
        drop(control);
    }

    #[test]
    fn commands_leave_the_room_of_what_is_forwarded() {
        let slots = slots();
        let control: Vec<_> = (0..CONTROL_MAX)
            .map(|_| slots.of(Kind::Exec).expect("a slot"))
            .collect();

        assert!(slots.of(Kind::Stat).is_err());
        assert!(slots.of(Kind::Proxy).is_ok());
        drop(control);
        assert!(slots.of(Kind::Stat).is_ok());
    }

    #[test]
    fn a_connection_that_says_nothing_takes_no_room_of_a_kind() {
        let slots = slots();
        let silent: Vec<_> = (0..OPEN_MAX)
            .map(|_| slots.open().expect("a slot"))
            .collect();

        assert!(slots.open().is_none());
        assert_eq!(slots.count(), OPEN_MAX);
        assert!(slots.of(Kind::Exec).is_ok());
        drop(silent);
        assert_eq!(slots.count(), 0);
    }
}
