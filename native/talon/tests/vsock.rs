//! The vsock conformance suite on talon's own device: through its registers, rings and interrupts, without a guest.

#![allow(
    clippy::unwrap_used,
    reason = "a rig that cannot be made fails its case"
)]

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aerie_vsock::Limits;
use aerie_vsock::conformance::{QUEUE_SIZE, Rig, Scratch, Setup};
use talon::config::VsockConfig;
use talon::memory::{Backing, Ram};
use talon::pci::{MsiSink, Window};
use talon::virtio::vsock::Vsock;
use talon::virtio::{Next, VirtioPciDevice};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

const CID: u32 = 42;

/// Which vectors were raised: the suite's driver gives the receive queue vector 0 and the transmit queue vector 1.
#[derive(Debug, Default)]
struct Raised(AtomicU32);

impl MsiSink for Raised {
    fn signal(&self, _address: u64, data: u32) {
        self.0.fetch_or(1 << data, Ordering::Relaxed);
    }
}

struct Device {
    device: VirtioPciDevice,
    raised: Arc<Raised>,
    ram: Arc<Ram>,
    limits: Limits,
    socket: PathBuf,
    again: bool,
    _scratch: Scratch,
}

fn device(limits: Limits) -> Device {
    let scratch = Scratch::new();
    let socket = scratch.join("v");
    let listener = UnixListener::bind(&socket).unwrap();
    let config = VsockConfig {
        cid: CID,
        socket: socket.to_str().unwrap().to_owned(),
        listen_fd: None,
    };
    let backend = Box::new(Vsock::new(&config, listener, limits.clone()).unwrap());
    let ram = Arc::new(Ram::new(32 << 20, Backing::Anonymous, false).unwrap());
    let raised = Arc::new(Raised::default());
    let sink: Arc<dyn MsiSink> = Arc::<Raised>::clone(&raised);
    let window = Arc::new(Window::new().unwrap());
    let device = VirtioPciDevice::new(
        3,
        "vsock".to_owned(),
        backend,
        Arc::clone(&ram),
        window,
        sink,
    )
    .unwrap();
    // MSI-X on, both vectors open, each with its number as data.
    device.write_config(0x86, &[0, 0x80]);
    for vector in 0..2u8 {
        let entry = 0x800 + 16 * usize::from(vector);
        device.write_registers(entry + 8, &u32::from(vector).to_le_bytes());
        device.write_registers(entry + 12, &[0; 4]);
    }
    Device {
        device,
        raised,
        ram,
        limits,
        socket,
        again: false,
        _scratch: scratch,
    }
}

impl Device {
    fn doorbell(&self) -> &EventFd {
        self.device.doorbell().unwrap()
    }

    fn work(&mut self) -> [bool; 2] {
        let _ = self.doorbell().read();
        self.again = match self.device.serve() {
            Ok(next) => next == Next::Again,
            Err(error) => panic!("{error}: {:?}", talon::chain_of(&error)),
        };
        let raised = self.raised.0.swap(0, Ordering::Relaxed);
        [raised & 1 != 0, raised & 2 != 0]
    }
}

impl Rig for Device {
    fn memory(&self) -> &GuestMemoryMmap {
        self.ram.guest()
    }

    fn cid(&self) -> u64 {
        u64::from(CID)
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn socket(&self) -> &Path {
        &self.socket
    }

    fn prefix(&self) -> &Path {
        &self.socket
    }

    fn start(&mut self, setup: &Setup) {
        let write = |offset: usize, bytes: &[u8]| self.device.write_registers(offset, bytes);
        write(0x14, &[0]);
        write(0x14, &[3]);
        if setup.event_idx {
            write(0x08, &0u32.to_le_bytes());
            write(0x0c, &(1u32 << 29).to_le_bytes());
        }
        write(0x08, &1u32.to_le_bytes());
        write(0x0c, &1u32.to_le_bytes());
        write(0x14, &[11]);
        for (number, place) in (0u16..).zip(&setup.queues) {
            write(0x16, &number.to_le_bytes());
            write(0x18, &QUEUE_SIZE.to_le_bytes());
            write(0x1a, &number.to_le_bytes());
            for (offset, address) in [
                (0x20, place.descriptors),
                (0x28, place.avail),
                (0x30, place.used),
            ] {
                let bytes = address.to_le_bytes();
                write(offset, &bytes[..4]);
                write(offset + 4, &bytes[4..]);
            }
            write(0x1c, &1u16.to_le_bytes());
        }
        write(0x14, &[15]);
    }

    fn reset(&mut self) {
        self.device.write_registers(0x14, &[0]);
    }

    fn kick(&mut self, _queue: usize) {
        self.doorbell().write(1).unwrap();
    }

    fn wait(&mut self, timeout: Duration) -> [bool; 2] {
        let until = Instant::now() + timeout;
        loop {
            let left = if self.again {
                Duration::ZERO
            } else {
                until.saturating_duration_since(Instant::now())
            };
            let source = self.device.sources()[0];
            let mut ready = [self.doorbell().as_raw_fd(), source.fd].map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
            let milliseconds = i32::try_from(left.as_millis()).unwrap();
            // SAFETY: two descriptors that live through the call.
            let woken = unsafe { libc::poll(ready.as_mut_ptr(), 2, milliseconds) } > 0;
            if ready[1].revents != 0 {
                self.device.source_ready();
            }
            if woken || self.again {
                let interrupts = self.work();
                if interrupts != [false; 2] {
                    return interrupts;
                }
            }
            if Instant::now() >= until && !self.again {
                return [false; 2];
            }
        }
    }

    fn streams(&self) -> usize {
        let counters = self.device.counters();
        let streams = counters
            .iter()
            .find(|(name, _)| *name == "streams")
            .map(|(_, value)| *value);
        usize::try_from(streams.unwrap()).unwrap()
    }
}

aerie_vsock::conformance!(device);
