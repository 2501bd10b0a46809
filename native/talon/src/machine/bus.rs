//! Where an exit of a processor goes. All addresses are fixed by the layout, so finding the device is arithmetic.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VmFd;
use vm_superio::serial::SerialState;
use vm_superio::{Serial, Trigger};

use crate::console::terminal::Terminal;
use crate::console::{InputEvents, Outlet};
use crate::layout;
use crate::pci::{MsiSink, Window};
use crate::virtio::VirtioPciDevice;

/// What a guest wants of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// ACPI S5.
    PowerOff,
    /// The reset register, or a triple fault.
    Reset,
}

/// The KVM virtual machine: its interrupt lines and messages.
#[derive(Debug, Clone)]
pub struct Vm(pub Arc<VmFd>);

impl Vm {
    /// An edge on a line of the IOAPIC.
    pub fn pulse(&self, gsi: u32) {
        // A guest that did not set the line up does not hear it; there is nobody else to tell.
        let _ = self.0.set_irq_line(gsi, true);
        let _ = self.0.set_irq_line(gsi, false);
    }
}

impl MsiSink for Vm {
    fn signal(&self, address: u64, data: u32) {
        let message = kvm_bindings::kvm_msi {
            address_lo: crate::bytes::low(address),
            address_hi: crate::bytes::low(address >> 32),
            data,
            ..Default::default()
        };
        let _ = self.0.signal_msi(message);
    }
}

/// The serial port's line.
#[derive(Debug, Clone)]
pub struct SerialLine(pub Vm);

impl Trigger for SerialLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.pulse(layout::SERIAL_GSI);
        Ok(())
    }
}

/// The serial port.
pub type Uart = Serial<SerialLine, InputEvents, Outlet>;

/// Everything that a processor can reach by an exit.
#[derive(Debug)]
pub struct Bus {
    /// Pages that are read without exits.
    pub window: Arc<Window>,
    /// Devices by slot.
    pub devices: [Option<Arc<VirtioPciDevice>>; layout::SLOTS as usize],
    /// Serial port.
    pub serial: Option<Mutex<Uart>>,
    /// Called when the guest tells of its panic.
    pub panicked: std::sync::atomic::AtomicBool,
}

/// Fills of the serial port's buffer in one turn.
const SERIAL_ROUNDS_MAX: usize = 64;

/// pvpanic's "the guest has panicked".
const PANICKED: u8 = 1;

impl Bus {
    /// Who types at the serial port, if anybody can.
    #[must_use]
    pub fn terminal(&self) -> Option<Arc<Terminal>> {
        let serial = self.serial.as_ref()?;
        let serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
        serial.writer().terminal().cloned()
    }

    /// Shows what the serial port printed, and gives it what was typed and it has room for.
    pub fn serve_serial(&self) {
        let (Some(serial), Some(terminal)) = (&self.serial, self.terminal()) else {
            return;
        };
        terminal.serve();
        let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut part = [0; 64];
        // A guest that takes as fast as somebody types would hold the main thread; what is left wakes it again.
        for _ in 0..SERIAL_ROUNDS_MAX {
            let room = serial.fifo_capacity().min(part.len());
            let count = terminal.take(&mut part[..room]);
            // In loopback mode nothing arrives from outside, as with the real thing.
            if count == 0 || !matches!(serial.enqueue_raw_bytes(&part[..count]), Ok(1..)) {
                return;
            }
        }
    }

    fn device(&self, slot: u64) -> Option<&Arc<VirtioPciDevice>> {
        self.devices
            .get(crate::bytes::to_usize(slot))
            .and_then(Option::as_ref)
    }

    /// A write to memory that is not RAM. Returns true when the guest has just told of its panic.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> bool {
        if let Some(offset) = address
            .checked_sub(layout::ECAM)
            .filter(|offset| *offset < layout::ECAM_BYTES)
        {
            // Only function 0 of a slot is there.
            if offset & 0x7000 == 0
                && let Some(device) = self.device(offset >> 15)
            {
                device.write_config(crate::bytes::to_usize(offset & 0xfff), data);
            }
            return false;
        }
        if let Some(offset) = address.checked_sub(layout::REGISTERS)
            && let Some(device) = self.device(offset / layout::REGISTERS_BYTES)
        {
            device.write_registers(
                crate::bytes::to_usize(offset % layout::REGISTERS_BYTES),
                data,
            );
            return false;
        }
        // Only doorbells that no ioeventfd takes come here.
        if let Some(offset) = address.checked_sub(layout::DOORBELLS)
            && let Some(device) = self.device(offset / layout::DOORBELL_BYTES)
        {
            device.ring();
            return false;
        }
        if address == layout::PVPANIC && data.first().is_some_and(|byte| byte & PANICKED != 0) {
            return !self
                .panicked
                .swap(true, std::sync::atomic::Ordering::Relaxed);
        }
        false
    }

    /// A read of memory that is not RAM and in no slot.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        if address == layout::PVPANIC {
            data.fill(0);
            if let Some(first) = data.first_mut() {
                *first = PANICKED;
            }
        } else {
            self.window.read(address, data);
        }
    }

    /// A write to a port.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<Request> {
        let first = *data.first()?;
        match port {
            layout::SLEEP_CONTROL if first == layout::SLEEP_S5 => Some(Request::PowerOff),
            layout::RESET if first == layout::RESET_VALUE => Some(Request::Reset),
            _ => {
                if let (Some(serial), Some(offset)) = (&self.serial, serial_offset(port)) {
                    let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
                    for byte in data {
                        write_serial(&mut serial, offset, *byte);
                    }
                }
                None
            }
        }
    }

    /// A read of a port. Where nothing is, the bus floats high.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (&self.serial, serial_offset(port)) {
            (Some(serial), Some(offset)) => {
                let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
                data.fill_with(|| serial.read(offset));
            }
            _ if port == layout::SLEEP_STATUS || port == layout::SLEEP_CONTROL => data.fill(0),
            _ => {}
        }
    }
}

/// Interrupt enable, and its bit for data received.
const INTERRUPT_ENABLE: u8 = 1;
const RECEIVED: u8 = 1;
/// Line status: there is something to read.
const DATA_READY: u8 = 1;
/// Interrupt identification: none pending, and data received.
const NONE_PENDING: u8 = 1;
const IS_RECEIVED: u8 = 4;

/// Only the line can fail, and it cannot.
fn write_serial(serial: &mut Uart, offset: u8, byte: u8) {
    if offset != INTERRUPT_ENABLE {
        let _ = serial.write(offset, byte);
        return;
    }
    // A UART that is asked for interrupts while there is something to read raises one at once; the crate's would only
    // for what is typed later, and with its buffer full nothing is.
    let before = serial.state().interrupt_enable;
    let _ = serial.write(offset, byte);
    let state = serial.state();
    if state.interrupt_enable & !before & RECEIVED != 0 && state.line_status & DATA_READY != 0 {
        let state = SerialState {
            interrupt_identification: state.interrupt_identification & !NONE_PENDING | IS_RECEIVED,
            ..state
        };
        let line = serial.interrupt_evt().clone();
        let (events, outlet) = (serial.events().clone(), serial.writer().clone());
        if let Ok(raised) = Uart::from_state(&state, line, events, outlet) {
            *serial = raised;
        }
    }
}

fn serial_offset(port: u16) -> Option<u8> {
    port.checked_sub(layout::SERIAL)
        .filter(|offset| *offset < 8)
        .and_then(|offset| u8::try_from(offset).ok())
}
