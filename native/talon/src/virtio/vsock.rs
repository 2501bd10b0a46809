//! virtio socket device (virtio 1.2, section 5.10): `aerie-vsock`'s muxer behind our transport.
//!
//! After a restore the guest's connections are gone. It learns so by a TRANSPORT_RESET on the event queue, and until it
//! has taken that, no packet passes: a connection that began before would fall victim to it.

use std::io;
use std::os::unix::net::UnixListener;

use aerie_vsock::{Config, Limits, Muxer, MuxerError, Rings, TransportReset, serve};

use super::{Backend, CONFIG_BYTES, Command, Io, Kind, Next, ServeError, Source};
use crate::config::VsockConfig;
use crate::snapshot::codec::{Decoder, Encoder, StateError};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The device.
#[derive(Debug)]
pub struct Vsock {
    muxer: Muxer,
    reset: TransportReset,
    started: bool,
    /// The muxer's descriptor was ready: only then it has something of the host's to look at.
    ready: bool,
    resets_sent: u64,
}

impl Vsock {
    /// Host programs connect to `listener`; the guest's connections go to `<socket>_<port>`.
    ///
    /// # Errors
    /// When the host has no descriptor left, or the path is too long.
    pub fn new(
        config: &VsockConfig,
        listener: UnixListener,
        limits: Limits,
    ) -> Result<Self, MuxerError> {
        let config = Config {
            cid: u64::from(config.cid),
            connect_prefix: config.socket.clone().into(),
            limits,
        };
        Ok(Self {
            muxer: Muxer::new(config, listener)?,
            reset: TransportReset::Idle,
            started: false,
            ready: true,
            resets_sent: 0,
        })
    }

    /// Streams that are held for the host.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.muxer.connections()
    }
}

impl Backend for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[128, 128, 128]
    }

    fn config(&self, out: &mut [u8; CONFIG_BYTES]) -> usize {
        out[..8].copy_from_slice(&self.muxer.cid().to_le_bytes());
        8
    }

    fn start(&mut self, _features: u64) {
        self.started = true;
    }

    fn reset(&mut self) {
        self.muxer.reset();
        self.started = false;
        self.reset = TransportReset::Idle;
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        if std::mem::take(&mut self.ready) {
            self.muxer
                .on_event()
                .map_err(|error| ServeError::Host(io::Error::other(error)))?;
        }
        let (memory, Some([rx, tx, event])) = (io.memory, io.first_three()) else {
            return Ok(Next::Wait);
        };
        if !self.reset.is_idle() {
            let told = self
                .reset
                .step(memory, event)
                .map_err(|source| ServeError::Queue { queue: 2, source })?;
            if told {
                self.resets_sent += 1;
                io.interrupt(2);
            }
            if !self.reset.is_idle() {
                return Ok(Next::Wait);
            }
            // The queues may hold what came while nothing was served.
            return Ok(Next::Again);
        }
        let served = serve(&mut self.muxer, memory, Rings { rx, tx })
            .map_err(|error| ServeError::Host(io::Error::other(error)))?;
        if served.rx {
            io.interrupt(RECEIVE);
        }
        if served.tx {
            io.interrupt(TRANSMIT);
        }
        Ok(if served.more { Next::Again } else { Next::Wait })
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.muxer.poll_fd(),
            edge: false,
        }]
    }

    fn source_ready(&mut self) {
        self.ready = true;
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("streams", self.muxer.connections() as u64),
            ("transport_resets", self.resets_sent),
        ]
    }

    fn command(&mut self, command: &Command) -> bool {
        if *command == Command::ResetConnections && self.started {
            self.muxer.reset();
            self.reset = TransportReset::Wanted;
        }
        false
    }

    fn save(&self, out: &mut Encoder) {
        out.u64(self.muxer.cid());
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        // A clone has a CID of its own: the guest reads it when it hears of the transport reset (virtio 1.2, 5.10.6.7).
        from.u64().map(drop)
    }
}
