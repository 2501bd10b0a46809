//! Memory balloon (virtio 1.2, section 5.5): inflate, deflate, statistics, free page reporting, deflate on OOM.
//!
//! Linux numbers the queues of the features that are on, one after the other, so with statistics always on, reporting is
//! queue 3 (drivers/virtio/virtio_pci_common.c; the text of the standard says 4).

use std::sync::Arc;

use vm_memory::GuestAddress;

use super::{Backend, CONFIG_BYTES, Chain, Command, Io, Kind, Next, ServeError};
use crate::config::BalloonConfig;
use crate::memory::{PAGE, Ram};
use crate::snapshot::codec::{Decoder, Encoder, StateError};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

const BATCH: usize = 32;
/// Page numbers taken of one request; Linux sends 256.
const NUMBERS_MAX: u64 = 1024;
/// Page numbers read at a time: each read walks the request from its beginning.
const NUMBERS_READ: usize = 256;
/// Pages and ranges given back before others have their turn: each may be a call to the host.
const TURN_PIECES_MAX: usize = 1024;
const STATISTIC_BYTES: usize = 10;
/// Names of the tags (5.5.6.3), which are also the counters' names.
const STATISTIC_NAMES: [&str; 10] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
];

/// The device.
#[derive(Debug)]
pub struct Balloon {
    ram: Arc<Ram>,
    config: BalloonConfig,
    target_pages: u32,
    actual_pages: u32,
    statistics: [Option<u64>; STATISTIC_NAMES.len()],
    /// The guest's statistics buffer, given back when new ones are wanted.
    statistics_buffer: Option<u16>,
    wanted: bool,
    inflated: u64,
    reported_bytes: u64,
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)
}

impl Balloon {
    /// A balloon over `ram`.
    #[must_use]
    pub fn new(ram: Arc<Ram>, config: BalloonConfig) -> Self {
        Self {
            ram,
            config,
            target_pages: pages(config.size),
            actual_pages: 0,
            statistics: [None; STATISTIC_NAMES.len()],
            statistics_buffer: None,
            wanted: false,
            inflated: 0,
            reported_bytes: 0,
        }
    }

    /// Pages that the guest gives up. Neighbours are given back in one call. Returns how many there were.
    fn inflate(&mut self, io: &Io<'_>, chain: &Chain) -> usize {
        let numbers = (chain.readable_bytes() / 4).min(NUMBERS_MAX);
        let mut run: Option<(u64, u64)> = None;
        let mut raw = [0; NUMBERS_READ * 4];
        let mut done = 0;
        while done < numbers {
            let bytes = crate::bytes::to_usize((numbers - done) * 4).min(raw.len());
            let bytes = chain.read(io.memory, done * 4, &mut raw[..bytes]);
            let (part, _) = raw[..bytes].as_chunks::<4>();
            if part.is_empty() {
                break;
            }
            done += part.len() as u64;
            for number in part {
                self.inflate_page(u64::from(u32::from_le_bytes(*number)) * PAGE, &mut run);
            }
        }
        if let Some((start, bytes)) = run {
            self.ram.discard_guest(GuestAddress(start), bytes);
        }
        crate::bytes::to_usize(done)
    }

    fn inflate_page(&mut self, address: u64, run: &mut Option<(u64, u64)>) {
        self.inflated += 1;
        *run = Some(match *run {
            Some((start, bytes)) if start + bytes == address => (start, bytes + PAGE),
            Some((start, bytes)) if address + PAGE == start => (address, bytes + PAGE),
            other => {
                if let Some((start, bytes)) = other {
                    self.ram.discard_guest(GuestAddress(start), bytes);
                }
                (address, PAGE)
            }
        });
    }

    fn take_statistics(&mut self, io: &Io<'_>, chain: &Chain) {
        let mut raw = [0; STATISTIC_BYTES * 32];
        let bytes = chain.read(io.memory, 0, &mut raw);
        for entry in raw[..bytes].chunks_exact(STATISTIC_BYTES) {
            let [t0, t1, value @ ..] = entry else {
                continue;
            };
            let Ok(value) = value.try_into().map(u64::from_le_bytes) else {
                continue;
            };
            if let Some(slot) = self
                .statistics
                .get_mut(usize::from(u16::from_le_bytes([*t0, *t1])))
            {
                *slot = Some(value);
            }
        }
    }

    fn serve_statistics(&mut self, io: &mut Io<'_>) -> Result<(), ServeError> {
        for _ in 0..BATCH {
            let Some(chain) = io.pop(STATISTICS)? else {
                break;
            };
            self.take_statistics(io, &chain);
            // One buffer is all that a driver lends; a second one means that the first is forgotten.
            if let Some(old) = self.statistics_buffer.replace(chain.head) {
                io.push(STATISTICS, old, 0)?;
            }
        }
        if self.wanted
            && let Some(head) = self.statistics_buffer.take()
        {
            self.wanted = false;
            io.push(STATISTICS, head, 0)?;
        }
        Ok(())
    }
}

impl Backend for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn features(&self) -> u64 {
        let on = |flag: bool, feature: u64| if flag { feature } else { 0 };
        F_STATS_VQ
            | on(self.config.deflate_on_oom, F_DEFLATE_ON_OOM)
            | on(self.config.free_page_reporting, F_REPORTING)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[128, 128, 8, 64]
    }

    fn config(&self, out: &mut [u8; CONFIG_BYTES]) -> usize {
        out[..4].copy_from_slice(&self.target_pages.to_le_bytes());
        out[4..8].copy_from_slice(&self.actual_pages.to_le_bytes());
        8
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (4, &[b0, b1, b2, b3]) = (offset, data) {
            self.actual_pages = u32::from_le_bytes([b0, b1, b2, b3]);
        }
    }

    fn reset(&mut self) {
        self.actual_pages = 0;
        self.statistics_buffer = None;
        self.wanted = false;
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        self.serve_statistics(io)?;
        let mut more = false;
        let mut pieces = 0;
        for queue in [INFLATE, DEFLATE, REPORTING] {
            io.quiet(queue)?;
            let mut left = true;
            for _ in 0..BATCH {
                if pieces >= TURN_PIECES_MAX {
                    break;
                }
                let Some(chain) = io.pop(queue)? else {
                    left = false;
                    break;
                };
                match queue {
                    INFLATE => pieces += self.inflate(io, &chain),
                    REPORTING => {
                        pieces += chain.writable.len();
                        for piece in &chain.writable {
                            self.reported_bytes += u64::from(piece.bytes);
                            self.ram
                                .discard_guest(piece.address, u64::from(piece.bytes));
                        }
                    }
                    // A deflated page comes back by being touched.
                    _ => {}
                }
                io.push(queue, chain.head, 0)?;
            }
            more |= left || io.listen(queue)?;
        }
        Ok(if more { Next::Again } else { Next::Wait })
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = vec![
            ("target_bytes", u64::from(self.target_pages) * PAGE),
            ("actual_bytes", u64::from(self.actual_pages) * PAGE),
            ("inflated_pages", self.inflated),
            ("reported_bytes", self.reported_bytes),
        ];
        let known = STATISTIC_NAMES.iter().zip(self.statistics);
        counters.extend(known.filter_map(|(name, value)| Some((*name, value?))));
        counters
    }

    fn command(&mut self, command: &Command) -> bool {
        match command {
            Command::Balloon(bytes) => {
                self.target_pages = pages(*bytes);
                true
            }
            Command::RefreshStatistics => {
                self.wanted = true;
                false
            }
            _ => false,
        }
    }

    fn save(&self, out: &mut Encoder) {
        out.u32(self.target_pages);
        out.u32(self.actual_pages);
        out.bool(self.statistics_buffer.is_some());
        out.u16(self.statistics_buffer.unwrap_or(0));
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.target_pages = from.u32()?;
        self.actual_pages = from.u32()?;
        let lent = from.bool()?;
        let head = from.u16()?;
        self.statistics_buffer = lent.then_some(head).filter(|head| *head < 8);
        Ok(())
    }
}
