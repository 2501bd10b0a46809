//! Deadlines behind one timerfd, so that a muxer needs no call of its own when nothing happens.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use crate::socket;

/// Deadlines of connections by their token, soonest first.
#[derive(Debug)]
pub(crate) struct Timers {
    fd: OwnedFd,
    deadlines: BTreeSet<(Instant, u64)>,
    armed: Option<Instant>,
}

impl Timers {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe {
            libc::timerfd_create(
                libc::CLOCK_MONOTONIC,
                libc::TFD_NONBLOCK | libc::TFD_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            deadlines: BTreeSet::new(),
            armed: None,
        })
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn insert(&mut self, at: Instant, token: u64) {
        self.deadlines.insert((at, token));
        self.arm();
    }

    pub fn remove(&mut self, at: Instant, token: u64) {
        self.deadlines.remove(&(at, token));
        self.arm();
    }

    /// One token whose time has come. A caller takes them all.
    pub fn pop(&mut self, now: Instant) -> Option<u64> {
        let &(at, token) = self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.deadlines.remove(&(at, token));
        Some(token)
    }

    /// After the descriptor became readable and everything due was popped.
    pub fn rearm(&mut self) {
        let mut ticks = [0; 8];
        // Reading is what makes a timerfd quiet; how often it fired does not matter, nor that it did not.
        let _ = socket::read(self.fd.as_raw_fd(), &mut ticks);
        self.armed = None;
        self.arm();
    }

    /// A timer that fires too early is put off, or left, when it fires, so only a deadline before it costs a call: a
    /// connection gets several deadlines and nearly always keeps them all.
    fn arm(&mut self) {
        if let Some((next, _)) = self.deadlines.first()
            && self.armed.is_none_or(|armed| *next < armed)
        {
            self.set(*next);
        }
    }

    fn set(&mut self, at: Instant) {
        // A zero would disarm it, so a deadline that has passed fires a nanosecond from now.
        let after = at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let value = libc::timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(i32::MAX.into()),
            tv_nsec: after.subsec_nanos().into(),
        };
        let spec = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: value,
        };
        // SAFETY: `spec` lives through the call and the old value is not asked for.
        let set = unsafe {
            libc::timerfd_settime(
                self.fd.as_raw_fd(),
                0,
                &raw const spec,
                std::ptr::null_mut(),
            )
        };
        debug_assert_eq!(set, 0, "the arguments are always valid");
        self.armed = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soonest_comes_first_and_a_removed_one_never() {
        let mut timers = Timers::new().unwrap();
        let now = Instant::now();
        timers.insert(now + Duration::from_secs(3), 3);
        timers.insert(now + Duration::from_secs(1), 1);
        timers.insert(now + Duration::from_secs(2), 2);
        timers.remove(now + Duration::from_secs(2), 2);

        assert_eq!(timers.pop(now), None);
        assert_eq!(timers.pop(now + Duration::from_secs(9)), Some(1));
        assert_eq!(timers.pop(now + Duration::from_secs(9)), Some(3));
        assert_eq!(timers.pop(now + Duration::from_secs(9)), None);
    }

    #[test]
    fn a_later_deadline_costs_nothing_and_none_leaves_the_timer_to_fire_once() {
        let mut timers = Timers::new().unwrap();
        let soon = Instant::now() + Duration::from_secs(60);

        timers.insert(soon, 1);
        timers.remove(soon, 1);
        timers.insert(soon + Duration::from_secs(1), 2);
        assert_eq!(timers.armed, Some(soon));
        timers.remove(soon + Duration::from_secs(1), 2);

        timers.rearm();
        assert_eq!(timers.armed, None);
    }
}
