//! virtio console (virtio 1.2, section 5.3) with one port: a console without an exit for each byte.

use super::{Backend, CONFIG_BYTES, Io, Kind, Next, ServeError, Source};
use crate::console::Outlet;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Bytes copied of one request at a time.
const PART_BYTES: usize = 4096;
/// Bytes taken of one request at most: a chain may name one page many times.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const BATCH: usize = 32;

/// The device.
#[derive(Debug)]
pub struct Console {
    outlet: Outlet,
    bytes: u64,
    typed: u64,
}

impl Console {
    /// Writes to `outlet`, and reads what is typed there.
    #[must_use]
    pub fn new(outlet: Outlet) -> Self {
        Self {
            outlet,
            bytes: 0,
            typed: 0,
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
            let mut part = [0; PART_BYTES];
            let mut done = 0;
            while done < REQUEST_BYTES_MAX {
                let count = chain.read(io.memory, done, &mut part);
                if count == 0 {
                    break;
                }
                self.outlet.put(&part[..count]);
                done += count as u64;
            }
            self.bytes += done;
            io.push(TRANSMIT, chain.head, 0)?;
        }
        Ok(Next::Again)
    }

    fn receive(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        let Some(terminal) = self.outlet.terminal() else {
            return Ok(Next::Wait);
        };
        io.quiet(RECEIVE)?;
        for _ in 0..BATCH {
            let Some(chain) = io.pop(RECEIVE)? else {
                if io.listen(RECEIVE)? {
                    return Ok(Next::Again);
                }
                // The next doorbell is the guest's word that it has room.
                terminal.take(&mut []);
                return Ok(Next::Wait);
            };
            let mut part = [0; PART_BYTES];
            let room = usize::try_from(chain.writable_bytes())
                .map_or(PART_BYTES, |most| most.min(PART_BYTES));
            let count = if room == 0 {
                0
            } else {
                terminal.take(&mut part[..room])
            };
            if count == 0 && room > 0 {
                io.unpop(RECEIVE);
                return Ok(Next::Wait);
            }
            let written = chain.write(io.memory, 0, &part[..count]);
            self.typed += written as u64;
            io.push(RECEIVE, chain.head, u32::try_from(written).unwrap_or(0))?;
        }
        Ok(Next::Again)
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
        let more = [self.transmit(io)?, self.receive(io)?];
        if let Some(terminal) = self.outlet.terminal() {
            terminal.serve();
        }
        Ok(if more.contains(&Next::Again) {
            Next::Again
        } else {
            Next::Wait
        })
    }

    fn sources(&self) -> Vec<Source> {
        let terminal = self.outlet.terminal();
        terminal
            .map(|terminal| Source {
                fd: terminal.poll_fd(),
                edge: false,
            })
            .into_iter()
            .collect()
    }

    /// A device that is not ready, or broken, is not served: so nobody is listened to before it takes something.
    fn source_ready(&mut self) {
        if let Some(terminal) = self.outlet.terminal() {
            terminal.serve();
            terminal.take(&mut []);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = vec![("tx_bytes", self.bytes)];
        if let Some(terminal) = self.outlet.terminal() {
            counters.extend([("rx_bytes", self.typed), ("lost_bytes", terminal.lost())]);
        }
        counters
    }
}
