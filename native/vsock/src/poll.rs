//! epoll(7), edge-triggered: a descriptor that cannot be served now must not wake anybody again and again.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// What is asked of a stream: news, never the lasting state.
const NEWS: u32 = libc::EPOLLIN.cast_unsigned()
    | libc::EPOLLRDHUP.cast_unsigned()
    | libc::EPOLLET.cast_unsigned();

#[derive(Debug)]
pub(crate) struct Poll {
    fd: OwnedFd,
}

/// What happened to a descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub token: u64,
    /// There is something to read, were it only the end.
    pub readable: bool,
    pub writable: bool,
    /// The peer is gone for both directions.
    pub hangup: bool,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Watches a stream for what comes in.
    pub fn add_stream(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, NEWS, token)
    }

    /// Watches a stream also for room to write, or not any more. A change tells the present state once again.
    pub fn want_room(&self, fd: RawFd, token: u64, room: bool) -> io::Result<()> {
        let events = if room {
            NEWS | libc::EPOLLOUT.cast_unsigned()
        } else {
            NEWS
        };
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    /// Watches a descriptor that is served to its end whenever it is ready.
    pub fn add_level(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(
            libc::EPOLL_CTL_ADD,
            fd,
            libc::EPOLLIN.cast_unsigned(),
            token,
        )
    }

    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// What is there now, without waiting.
    pub fn take<const N: usize>(&self) -> io::Result<impl Iterator<Item = Event> + use<N>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; N];
        let room = i32::try_from(N).unwrap_or(i32::MAX);
        // SAFETY: the array has room for `room` events.
        let there = unsafe { libc::epoll_wait(self.fd(), events.as_mut_ptr(), room, 0) };
        let there = match usize::try_from(there) {
            Ok(there) => there,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => 0,
                error => return Err(error),
            },
        };
        Ok(events.into_iter().take(there).map(|event| {
            let has = |flags: i32| event.events & flags.cast_unsigned() != 0;
            Event {
                token: event.u64,
                readable: has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
                writable: has(libc::EPOLLOUT),
                hangup: has(libc::EPOLLHUP | libc::EPOLLERR),
            }
        }))
    }

    fn control(&self, what: i32, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` lives through the call.
        match unsafe { libc::epoll_ctl(self.fd(), what, fd, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
