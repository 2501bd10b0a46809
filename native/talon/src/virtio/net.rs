//! virtio network device (virtio 1.2, section 5.1) on a tap that talks `virtio_net_hdr` (Documentation/networking/tuntap.rst):
//! checksum and segmentation offloads are passed through, never done here.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Instant;

use super::rate::Limiter;
use super::{Backend, CONFIG_BYTES, Chain, Command, Io, Kind, Next, ServeError, Source};
use crate::config::NetConfig;
use crate::snapshot::codec::{Decoder, Encoder, StateError};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// `struct virtio_net_hdr_v1`.
const HEADER_BYTES: usize = 12;
/// A segmentation offload's packet with its header (5.1.6.3.1).
const PACKET_BYTES_MAX: usize = 65562;
const BATCH: usize = 64;

const F_CSUM: u64 = 1;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_UFO: u64 = 1 << 10;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_UFO: u64 = 1 << 14;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const LINK_UP: u16 = 1;

const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;
const TUN_F_UFO: libc::c_ulong = 16;

/// The device.
pub struct Net {
    tap: File,
    config: NetConfig,
    receive_limiter: Limiter,
    transmit_limiter: Limiter,
    link_up: bool,
    mergeable: bool,
    /// A packet read from the tap for which the guest had no room yet: its bytes in `packet`.
    pending: usize,
    packet: Box<[u8; PACKET_BYTES_MAX]>,
    received: u64,
    received_bytes: u64,
    sent: u64,
    sent_bytes: u64,
    dropped: u64,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Net")
            .field("config", &self.config)
            .field("link_up", &self.link_up)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// On `tap`, which must have been made with `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// When the descriptor is no such tap.
    pub fn new(tap: File, config: NetConfig) -> io::Result<Self> {
        let bytes: libc::c_int = 12;
        // SAFETY: the ioctl reads one int; a descriptor that is no tap refuses it.
        if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fcntl with integers on our own descriptor.
        let flags = unsafe { libc::fcntl(tap.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: as above.
        let set = unsafe { libc::fcntl(tap.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
        if flags < 0 || set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self::over(tap, config))
    }

    /// On whatever gives a packet with its header for a read, and does not wait.
    #[must_use]
    pub fn over(tap: File, config: NetConfig) -> Self {
        Self {
            tap,
            receive_limiter: Limiter::new(&config.rate),
            transmit_limiter: Limiter::new(&config.rate),
            config,
            link_up: true,
            mergeable: false,
            pending: 0,
            packet: Box::new([0; PACKET_BYTES_MAX]),
            received: 0,
            received_bytes: 0,
            sent: 0,
            sent_bytes: 0,
            dropped: 0,
        }
    }

    fn transmit(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        io.quiet(TRANSMIT)?;
        for _ in 0..BATCH {
            let Some(chain) = io.pop(TRANSMIT)? else {
                return Ok(if io.listen(TRANSMIT)? {
                    Next::Again
                } else {
                    Next::Wait
                });
            };
            let bytes = chain.readable_bytes();
            if bytes <= HEADER_BYTES as u64 || bytes > PACKET_BYTES_MAX as u64 || !self.link_up {
                self.dropped += 1;
            } else {
                if let Err(at) = self.transmit_limiter.take(bytes, 0, Instant::now()) {
                    io.unpop(TRANSMIT);
                    return Ok(Next::At(at));
                }
                let vectors = chain.readable_vectors(io.memory, 0, bytes);
                let count = i32::try_from(vectors.len()).unwrap_or(0);
                // SAFETY: the vectors describe guest memory that stays mapped during the call.
                let written =
                    unsafe { libc::writev(self.tap.as_raw_fd(), vectors.as_ptr(), count) };
                if written < 0 {
                    self.dropped += 1;
                } else {
                    self.sent += 1;
                    self.sent_bytes += bytes - HEADER_BYTES as u64;
                }
            }
            io.push(TRANSMIT, chain.head, 0)?;
        }
        Ok(Next::Again)
    }

    fn receive(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        if !io.ready(RECEIVE) {
            return Ok(Next::Wait);
        }
        for _ in 0..BATCH {
            if self.pending == 0 {
                match self.tap.read(&mut self.packet[..]) {
                    Ok(bytes) if bytes > HEADER_BYTES && self.link_up => self.pending = bytes,
                    Ok(_) => {
                        self.dropped += 1;
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Next::Wait);
                    }
                    // The tap is gone from the host: the link is dead, the guest goes on.
                    Err(_) => return Ok(Next::Wait),
                }
            }
            let bytes = self.pending;
            if let Err(at) = self.receive_limiter.take(bytes as u64, 0, Instant::now()) {
                return Ok(Next::At(at));
            }
            if !self.deliver(io, bytes)? {
                // Doorbells are on while the queue is empty, so room is announced.
                return Ok(if io.listen(RECEIVE)? {
                    Next::Again
                } else {
                    Next::Wait
                });
            }
            self.pending = 0;
        }
        Ok(Next::Again)
    }

    /// Puts the packet into as many buffers as it takes. False when the guest has too few; then none was used.
    fn deliver(&mut self, io: &mut Io<'_>, bytes: usize) -> Result<bool, ServeError> {
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        while room < bytes as u64 {
            match io.pop(RECEIVE)? {
                Some(chain) if chain.writable_bytes() < HEADER_BYTES as u64 => {
                    return Err(ServeError::Request(
                        "receive buffer smaller than the header",
                    ));
                }
                Some(chain) => {
                    room += chain.writable_bytes();
                    chains.push(chain);
                    if !self.mergeable {
                        break;
                    }
                }
                None => {
                    for _ in &chains {
                        io.unpop(RECEIVE);
                    }
                    return Ok(false);
                }
            }
        }
        if room < bytes as u64 {
            // One buffer must hold a packet when they are not merged; the driver's are too small for this one.
            self.dropped += 1;
            for chain in chains {
                io.push(RECEIVE, chain.head, 0)?;
            }
            return Ok(true);
        }
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        self.packet[10..12].copy_from_slice(&count.to_le_bytes());
        let mut done = 0;
        for chain in chains {
            let written = chain.write(io.memory, 0, &self.packet[done..bytes]);
            done += written;
            io.push(RECEIVE, chain.head, u32::try_from(written).unwrap_or(0))?;
        }
        self.received += 1;
        self.received_bytes += (bytes - HEADER_BYTES) as u64;
        Ok(true)
    }
}

impl Backend for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let config = &self.config;
        let mut features = F_MAC | F_MRG_RXBUF | F_STATUS;
        if config.mtu.is_some() {
            features |= F_MTU;
        }
        if config.offload_csum {
            features |= F_CSUM | F_GUEST_CSUM;
            if config.offload_tso {
                features |= F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;
            }
            if config.offload_ufo {
                features |= F_GUEST_UFO | F_HOST_UFO;
            }
        }
        features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256]
    }

    fn config(&self, out: &mut [u8; CONFIG_BYTES]) -> usize {
        out[..6].copy_from_slice(&self.config.mac);
        out[6..8].copy_from_slice(&(if self.link_up { LINK_UP } else { 0 }).to_le_bytes());
        out[8..10].copy_from_slice(&1u16.to_le_bytes());
        out[10..12].copy_from_slice(&self.config.mtu.unwrap_or(0).to_le_bytes());
        12
    }

    fn start(&mut self, features: u64) {
        self.mergeable = features & F_MRG_RXBUF != 0;
        let on = |feature: u64, flag: libc::c_ulong| if features & feature != 0 { flag } else { 0 };
        let offloads = on(F_GUEST_CSUM, TUN_F_CSUM)
            | on(F_GUEST_TSO4, TUN_F_TSO4)
            | on(F_GUEST_TSO6, TUN_F_TSO6)
            | on(F_GUEST_UFO, TUN_F_UFO);
        // SAFETY: the ioctl takes an integer. A tap that knows no UDP offload refuses the set: then it is tried without.
        unsafe {
            if libc::ioctl(self.tap.as_raw_fd(), TUNSETOFFLOAD, offloads) < 0 {
                libc::ioctl(self.tap.as_raw_fd(), TUNSETOFFLOAD, offloads & !TUN_F_UFO);
            }
        }
    }

    fn reset(&mut self) {
        self.pending = 0;
        self.mergeable = false;
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        let (sent, received) = (self.transmit(io)?, self.receive(io)?);
        Ok(match (sent, received) {
            (Next::Again, _) | (_, Next::Again) => Next::Again,
            (Next::At(one), Next::At(other)) => Next::At(one.min(other)),
            (Next::At(at), _) | (_, Next::At(at)) => Next::At(at),
            _ => Next::Wait,
        })
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.tap.as_raw_fd(),
            edge: true,
        }]
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("rx_frames", self.received),
            ("rx_bytes", self.received_bytes),
            ("tx_frames", self.sent),
            ("tx_bytes", self.sent_bytes),
            ("dropped", self.dropped),
        ]
    }

    fn command(&mut self, command: &Command) -> bool {
        match command {
            Command::Link(up) if *up != self.link_up => {
                self.link_up = *up;
                true
            }
            _ => false,
        }
    }

    fn save(&self, out: &mut Encoder) {
        // A packet on its way is lost like on any wire.
        out.bool(self.link_up);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.link_up = from.bool()?;
        Ok(())
    }
}
