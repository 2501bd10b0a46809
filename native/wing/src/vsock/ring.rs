//! One virtqueue as vhost-user describes it, message by message.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsRawFd,
    sync::Arc,
};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Entries of the largest queue that is taken; QEMU's vsock has 128.
pub const QUEUE_SIZE_MAX: u16 = 1024;

#[derive(Debug)]
pub struct Ring {
    /// The epoll that waits for its kicks, and the number that it has there.
    epoll: Arc<Epoll>,
    token: u64,
    pub queue: Queue,
    kick: Option<File>,
    call: Option<File>,
    /// An interrupt that there was no descriptor for.
    owed: bool,
    pub enabled: bool,
    /// Its size is one that a queue can have, and its addresses lie in memory. Both are the guest's to say: what is wrong
    /// leaves the ring idle and this process alive, for the guest's next driver.
    pub sized: bool,
    pub placed: bool,
    /// The position that the VMM gave it (`SET_VRING_BASE`).
    pub base: u16,
    /// The position at which it was stopped last (`GET_VRING_BASE`).
    pub stopped_at: Option<u16>,
}

impl Ring {
    pub fn new(epoll: Arc<Epoll>, token: u64) -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            epoll,
            token,
            queue: Queue::new(QUEUE_SIZE_MAX)?,
            kick: None,
            call: None,
            owed: false,
            enabled: false,
            sized: false,
            placed: false,
            base: 0,
            stopped_at: None,
        })
    }

    /// Whether everything is there that a ring needs to run.
    pub fn is_complete(&self) -> bool {
        self.enabled && self.sized && self.placed && self.kick.is_some()
    }

    /// Puts another kick descriptor in place. The old one is taken out of the epoll first: to close it would not do,
    /// as the VMM has the same open file.
    pub fn set_kick(&mut self, kick: Option<File>) -> io::Result<()> {
        if let Some(old) = self.kick.take() {
            let nothing = EpollEvent::new(EventSet::empty(), 0);
            self.epoll
                .ctl(ControlOperation::Delete, old.as_raw_fd(), nothing)?;
        }
        if let Some(new) = kick {
            let input = EpollEvent::new(EventSet::IN, self.token);
            self.epoll
                .ctl(ControlOperation::Add, new.as_raw_fd(), input)?;
            self.kick = Some(new);
        }
        Ok(())
    }

    /// Puts another call descriptor in place. QEMU sends it after the ring has started: a guest that was paused or
    /// restored may have been given buffers by then, and would wait for ever for the word of them.
    pub fn set_call(&mut self, call: Option<File>) {
        self.call = call;
        if self.owed {
            self.call();
        }
    }

    /// Makes the kick descriptor quiet.
    pub fn clear_kick(&self) {
        if let Some(mut kick) = self.kick.as_ref() {
            // An eventfd gives its count or, to nobody's harm, EAGAIN.
            let _ = kick.read(&mut [0; 8]);
        }
    }

    /// Interrupts the guest, at once or as soon as there is a way to.
    pub fn call(&mut self) {
        self.owed = self.call.is_none();
        if let Some(mut call) = self.call.as_ref() {
            // EAGAIN means 2^64-2 interrupts wait already: one more says nothing new.
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }

    /// Stops it and says where, as `GET_VRING_BASE` wants.
    pub fn stop(&mut self) -> io::Result<u16> {
        self.queue.set_ready(false);
        self.set_kick(None)?;
        self.call = None;
        let at = self.queue.next_avail();
        self.stopped_at = Some(at);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    /// An event and the descriptor that a VMM would send of it.
    fn event() -> (EventFd, File) {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let sent = event.try_clone().unwrap().into_raw_fd();
        // SAFETY: the descriptor is open and nobody else's.
        (event, unsafe { OwnedFd::from_raw_fd(sent) }.into())
    }

    fn ring() -> Ring {
        Ring::new(Arc::new(Epoll::new().unwrap()), 0).unwrap()
    }

    fn interrupts(event: &EventFd) -> u64 {
        event.read().unwrap_or(0)
    }

    #[test]
    fn an_interrupt_before_its_descriptor_is_given_with_it() {
        let mut ring = ring();
        let (event, sent) = event();

        ring.call();
        ring.set_call(None);
        ring.set_call(Some(sent));

        assert_eq!(interrupts(&event), 1);
    }

    #[test]
    fn an_interrupt_that_was_given_is_not_given_again() {
        let mut ring = ring();
        let (first, sent) = event();
        ring.set_call(Some(sent));
        ring.call();
        assert_eq!(interrupts(&first), 1);

        let (next, sent) = event();
        ring.set_call(Some(sent));

        assert_eq!(interrupts(&next), 0);
    }

    #[test]
    fn an_interrupt_of_a_ring_that_stopped_is_given_at_its_next_start() {
        let mut ring = ring();
        let (before, sent) = event();
        ring.set_call(Some(sent));
        ring.stop().unwrap();
        ring.call();

        let (event, sent) = event();
        ring.set_call(Some(sent));

        assert_eq!((interrupts(&before), interrupts(&event)), (0, 1));
    }
}
