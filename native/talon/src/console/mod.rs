//! Where a console goes on the host: into a log, to a client, both or neither.

pub mod log;
pub mod terminal;

use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::serial::SerialEvents;

use log::Log;
use terminal::Terminal;

/// The host's side of a console. Copies are of the same log and the same client.
#[derive(Debug, Clone, Default)]
pub struct Outlet {
    log: Option<Log>,
    terminal: Option<Arc<Terminal>>,
}

impl Outlet {
    /// To whatever is given.
    #[must_use]
    pub fn new(log: Option<Log>, terminal: Option<Arc<Terminal>>) -> Self {
        Self { log, terminal }
    }

    /// Writes what it can, and waits for nobody.
    pub fn put(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            log.put(bytes);
        }
        if let Some(terminal) = &self.terminal {
            terminal.put(bytes);
        }
    }

    /// Who types, if anybody can.
    #[must_use]
    pub fn terminal(&self) -> Option<&Arc<Terminal>> {
        self.terminal.as_ref()
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the terminal that the serial port has room again.
#[derive(Debug, Clone)]
pub struct InputEvents(pub Option<Arc<Terminal>>);

impl SerialEvents for InputEvents {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if let Some(terminal) = &self.0 {
            terminal.room_again();
        }
    }
}
