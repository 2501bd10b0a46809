//! virtio console (virtio 1.2, section 5.3) with one port, output only: the guest's log without an exit for each byte.

use super::{Backend, CONFIG_BYTES, Io, Kind, Next, ServeError};
use crate::machine::console::Log;

const TRANSMIT: usize = 1;
/// Bytes copied of one request at a time.
const PART_BYTES: usize = 4096;
/// Bytes taken of one request at most: a chain may name one page many times.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const BATCH: usize = 32;

/// The device.
#[derive(Debug)]
pub struct Console {
    log: Log,
    bytes: u64,
}

impl Console {
    /// Writes to `log`.
    #[must_use]
    pub fn new(log: Log) -> Self {
        Self { log, bytes: 0 }
    }
}

impl Backend for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn config(&self, _out: &mut [u8; CONFIG_BYTES]) -> usize {
        0
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        io.quiet(TRANSMIT)?;
        for _ in 0..BATCH {
            let Some(chain) = io.pop(TRANSMIT)? else {
                return Ok(if io.listen(TRANSMIT)? {
                    Next::Again
                } else {
                    Next::Wait
                });
            };
            let mut part = [0; PART_BYTES];
            let mut done = 0;
            while done < REQUEST_BYTES_MAX {
                let count = chain.read(io.memory, done, &mut part);
                if count == 0 {
                    break;
                }
                self.log.put(&part[..count]);
                done += count as u64;
            }
            self.bytes += done;
            io.push(TRANSMIT, chain.head, 0)?;
        }
        Ok(Next::Again)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("tx_bytes", self.bytes)]
    }
}
