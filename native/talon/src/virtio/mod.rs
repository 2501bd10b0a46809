//! Virtio 1.2 devices on PCI.
//!
//! A [`VirtioPciDevice`] is the transport: registers, negotiation, queues, interrupts. Behind it a [`Backend`] does the device's
//! own work in `serve`, always under the device's lock. So whoever holds the lock knows that no request is under way:
//! reset, pause and snapshot are that simple. Only a device that waits for the host (a disk) does its requests outside the
//! lock, one at a time: nobody waits for the lock as long as the disk takes, a reset is done when the request is, and
//! `is_quiet` tells whether one is under way.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod net;
pub mod pci;
pub mod rate;
pub mod rng;
pub mod vsock;

pub use chain::{Chain, Io, ServeError};
pub use pci::VirtioPciDevice;

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use crate::snapshot::codec::{Decoder, Encoder, StateError};

/// Largest device configuration.
pub const CONFIG_BYTES: usize = 128;

/// Kinds of devices (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Network, 5.1.
    Net = 1,
    /// Block, 5.2.
    Block = 2,
    /// Console, 5.3.
    Console = 3,
    /// Entropy, 5.4.
    Entropy = 4,
    /// Memory balloon, 5.5.
    Balloon = 5,
    /// Socket, 5.10.
    Vsock = 19,
}

impl Kind {
    /// PCI class, subclass and interface.
    #[must_use]
    pub const fn class(self) -> [u8; 3] {
        match self {
            Self::Net => [2, 0, 0],
            Self::Block => [1, 0, 0],
            Self::Console | Self::Vsock => [7, 0x80, 0],
            Self::Entropy | Self::Balloon => [0xff, 0, 0],
        }
    }
}

/// What a serve wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing before a doorbell or a source fires.
    Wait,
    /// More is left: serve again when others had their turn.
    Again,
    /// Serve again at this time, as the rate limit says.
    At(Instant),
}

/// A descriptor that the loop watches for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The descriptor.
    pub fd: RawFd,
    /// Tell changes only: for one that may stay readable while the guest has no room.
    pub edge: bool,
}

/// A request that waits for the host, ready to be done where nothing is locked. Returns the bytes written for the guest.
pub type Work = Box<dyn FnOnce() -> io::Result<u64> + Send>;

/// What a device whose requests wait for the host has to do.
pub enum Taken {
    /// This, and [`Backend::finish`] with its outcome.
    Work {
        /// What to do.
        work: Work,
        /// It may take long: whoever waits for an earlier request is told before.
        slow: bool,
    },
    /// Nothing now.
    Nothing(Next),
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Work { slow, .. } => out
                .debug_struct("Work")
                .field("slow", slow)
                .finish_non_exhaustive(),
            Self::Nothing(next) => out.debug_tuple("Nothing").field(next).finish(),
        }
    }
}

/// The work of one device.
pub trait Backend: Send + std::fmt::Debug {
    /// What it is.
    fn kind(&self) -> Kind;
    /// Features beside those of the transport.
    fn features(&self) -> u64;
    /// Largest size of each queue: powers of two.
    fn queue_sizes(&self) -> &'static [u16];
    /// The configuration as the guest reads it; returns its bytes.
    fn config(&self, out: &mut [u8; CONFIG_BYTES]) -> usize;
    /// The guest wrote to the configuration.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}
    /// The driver is ready, with these features.
    fn start(&mut self, _features: u64) {}
    /// The driver reset the device.
    fn reset(&mut self) {}
    /// Does what can be done now.
    ///
    /// # Errors
    /// When the guest broke the rules of a queue, after which the device needs a reset.
    fn serve(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError>;
    /// Whether requests wait for the host: then a thread of the device's own serves by `take` and `finish`, one request at
    /// a time, and holds no lock while one is under way.
    fn waits(&self) -> bool {
        false
    }
    /// The next request.
    ///
    /// # Errors
    /// As of `serve`.
    fn take(&mut self, _io: &mut Io<'_>) -> Result<Taken, ServeError> {
        Ok(Taken::Nothing(Next::Wait))
    }
    /// The request taken last is done.
    ///
    /// # Errors
    /// As of `serve`.
    fn finish(&mut self, _io: &mut Io<'_>, _outcome: io::Result<u64>) -> Result<(), ServeError> {
        Ok(())
    }
    /// Served by the processor that rings, on the spot: for a device that never waits and has no sources. No other
    /// thread wakes, and there is no descriptor.
    fn at_once(&self) -> bool {
        false
    }
    /// Descriptors whose readiness is a reason to serve.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
    /// One of the sources is ready; `serve` follows.
    fn source_ready(&mut self) {}
    /// Numbers for `vm.counters`.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// The host asks something of the device (a balloon's size). Returns whether the configuration has changed.
    fn command(&mut self, _command: &Command) -> bool {
        false
    }
    /// State beyond the queues.
    fn save(&self, _out: &mut Encoder) {}
    /// State from a snapshot that may be hostile.
    ///
    /// # Errors
    /// When it is not a state of this device.
    fn load(&mut self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

/// What the host can ask of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Take this many bytes from the guest.
    Balloon(u64),
    /// Ask the guest for fresh statistics.
    RefreshStatistics,
    /// Show the link up or down.
    Link(bool),
    /// The guest was restored or forked: connections of before are gone.
    ResetConnections,
}

/// Features of the transport.
pub mod feature {
    /// Buffers may be notified by index (2.7.7).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a device of the time before 1.0 (6.1).
    pub const VERSION_1: u64 = 1 << 32;
}
