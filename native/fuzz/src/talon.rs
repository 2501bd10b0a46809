//! A guest, or a file, that means harm: every input of talon's that others write, as a function of bytes.
//!
//! The bytes are a program. For a device they are a driver's actions on a small guest memory: well-formed set-up as well
//! as nonsense, so that the nonsense reaches the code behind the checks. Nothing here may panic, hang or grow; that is
//! the whole assertion. The tests run these on a corpus and on mutations of it, the fuzzer runs them for hours.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use ::talon::api::http;
use ::talon::boot::elf;
use ::talon::config::{BalloonConfig, NetConfig, RateConfig, VmConfig, VsockConfig};
use ::talon::console::Outlet;
use ::talon::console::terminal::Terminal;
use ::talon::memory::{Backing, HUGE_PAGE, Ram};
use ::talon::pci::{MsiSink, Window};
use ::talon::snapshot::codec::{Decoder, Encoder};
use ::talon::snapshot::files;
use ::talon::virtio::rate::Limiter;
use ::talon::virtio::{
    Backend, Command, VirtioPciDevice, balloon, block, console, net, rng, vsock,
};

/// Names of the targets, as in the corpus and for the fuzzer.
pub const TARGETS: [&str; 11] = [
    "state", "http", "elf", "config", "block", "rng", "balloon", "console", "net", "vsock", "msix",
];

/// Runs one target on one input.
///
/// # Panics
/// When the input found a mistake, or the name is unknown.
pub fn run(target: &str, input: &[u8]) {
    match target {
        "state" => state(input),
        "http" => request(input),
        "elf" => kernel(input),
        "config" => config(input),
        "msix" => drive(Box::new(rng::Rng::default()), input, 1, &mut |_| ()),
        "console" => console(input),
        "net" => net(input),
        "vsock" => vsock(input),
        name => drive(backend(name), input, 8, &mut |_| ()),
    }
}

fn state(input: &[u8]) {
    if let Ok((head, _)) = files::look(input) {
        let memory = Ram::memfd(0).expect("a memfd");
        assert!(files::check_memory(&memory, &head).is_err());
    }
    // The checksum keeps most inputs out; behind it everything is untrusted all the same.
    let mut sections = Decoder::new(input);
    while let Ok(Some((_, mut body))) = sections.section() {
        let _ = files::Head::decode(&mut body.clone());
        let device = device_alone(backend("block"));
        let _ = device.load(&mut body);
    }
}

/// What the host's side of a device says on the way: so many bytes, or so often.
type Speak<'a> = &'a mut dyn FnMut(u8);

fn console(input: &[u8]) {
    let (address, listener) = abstract_socket();
    let terminal = Arc::new(Terminal::new(listener).expect("a terminal"));
    let client = UnixStream::connect_addr(&address).expect("a client");
    client.set_nonblocking(true).expect("no waiting");
    let outlet = Outlet::new(None, Some(terminal));
    drive(
        Box::new(console::Console::new(outlet)),
        input,
        2,
        &mut |count| {
            let _ = (&client).write(&vec![b'k'; usize::from(count) * 40]);
        },
    );
}

fn net(input: &[u8]) {
    let (tap, host) = UnixDatagram::pair().expect("a pair");
    tap.set_nonblocking(true).expect("no waiting");
    host.set_nonblocking(true).expect("no waiting");
    let config = NetConfig {
        id: "net".to_owned(),
        place: 0,
        fd: 0,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: Some(1500),
        offload_csum: true,
        offload_tso: true,
        offload_ufo: true,
        rate: RateConfig::default(),
    };
    let device = net::Net::over(File::from(OwnedFd::from(tap)), config);
    drive(Box::new(device), input, 2, &mut |count| {
        let _ = host.send(&vec![7; usize::from(count) * 40]);
        let mut heard = [0; 2048];
        while host.recv(&mut heard).is_ok() {}
    });
}

fn vsock(input: &[u8]) {
    let (address, listener) = abstract_socket();
    let config = VsockConfig {
        cid: 3,
        // Nobody is there: what the guest asks for is refused.
        socket: "/nowhere/vsock".to_owned(),
        listen_fd: None,
    };
    let device = vsock::Vsock::new(&config, listener, aerie_vsock::Limits::default());
    let mut hosts: Vec<UnixStream> = Vec::new();
    drive(
        Box::new(device.expect("a device")),
        input,
        3,
        &mut |count| match hosts.get_mut(usize::from(count % 8)) {
            None => {
                let host = UnixStream::connect_addr(&address).expect("a host");
                host.set_nonblocking(true).expect("no waiting");
                let _ = (&host).write(b"CONNECT 52\n");
                hosts.push(host);
            }
            Some(host) => drop(host.write(&[count; 100])),
        },
    );
}

fn abstract_socket() -> (SocketAddr, UnixListener) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("talon-hostile-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    (address, listener)
}

fn request(input: &[u8]) {
    if let Ok(http::Parsed::Whole(request, taken)) = http::parse(input) {
        assert!(taken <= input.len() && request.body.len() <= http::BODY_BYTES_MAX);
    }
}

fn kernel(input: &[u8]) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("memory");
    let file = Ram::memfd(0).expect("a memfd");
    file.write_all_at(input, 0).expect("bytes");
    if let Ok(loaded) = elf::load(&memory, &file, 1 << 20) {
        assert!(loaded.end <= 4 << 20 && loaded.entry < loaded.end);
    }
}

fn config(input: &[u8]) {
    if let Ok(value) = serde_json::from_slice(input)
        && let Ok(config) = VmConfig::parse(&value)
    {
        assert!(config.cpus >= 1 && config.ram >= 32 << 20);
    }
}

#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl MsiSink for Counter {
    fn signal(&self, _address: u64, _data: u32) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn backend(name: &str) -> Box<dyn Backend> {
    match name {
        "block" => {
            let image = Ram::memfd(1 << 20).expect("a memfd");
            let limiter = Limiter::new(&RateConfig::default());
            Box::new(block::Block::new(
                Arc::new(block::FileEngine(image)),
                1 << 20,
                false,
                "disk",
                limiter,
            ))
        }
        "balloon" => {
            let ram = Ram::new(HUGE_PAGE, Backing::Anonymous, false).expect("memory");
            let config = BalloonConfig {
                size: 0,
                deflate_on_oom: true,
                free_page_reporting: true,
            };
            Box::new(balloon::Balloon::new(Arc::new(ram), config))
        }
        "rng" => Box::new(rng::Rng::default()),
        other => panic!("{other} is no target"),
    }
}

fn device_alone(backend: Box<dyn Backend>) -> VirtioPciDevice {
    let ram = Arc::new(Ram::new(HUGE_PAGE, Backing::Anonymous, false).expect("memory"));
    device(backend, ram)
}

fn device(backend: Box<dyn Backend>, ram: Arc<Ram>) -> VirtioPciDevice {
    let window = Arc::new(Window::new().expect("a window"));
    let sink: Arc<dyn MsiSink> = Arc::new(Counter::default());
    VirtioPciDevice::new(9, "hostile".to_owned(), backend, ram, window, sink).expect("a device")
}

/// The place at which the well-formed part of the program puts a queue.
const RINGS: u64 = 0x1_0000;
const RING_STRIDE: u64 = 0x4000;
const QUEUE_SIZE: u16 = 8;

struct Program<'a> {
    bytes: &'a [u8],
}

impl Program<'_> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.u8()?, self.u8()?]))
    }

    fn u64(&mut self) -> Option<u64> {
        let mut raw = [0; 8];
        for byte in &mut raw {
            *byte = self.u8()?;
        }
        Some(u64::from_le_bytes(raw))
    }
}

fn common(device: &VirtioPciDevice, offset: usize, bytes: &[u8]) {
    device.write_registers(offset, bytes);
}

fn set_up(device: &VirtioPciDevice, memory: &GuestMemoryMmap, queues: u16) {
    common(device, 0x14, &[0]);
    common(device, 0x14, &[3]);
    common(device, 0x08, &1u32.to_le_bytes());
    common(device, 0x0c, &1u32.to_le_bytes());
    common(device, 0x14, &[11]);
    for queue in 0..queues {
        let base = RINGS + RING_STRIDE * u64::from(queue);
        common(device, 0x16, &queue.to_le_bytes());
        common(device, 0x18, &QUEUE_SIZE.to_le_bytes());
        common(device, 0x1a, &1u16.to_le_bytes());
        for (offset, address) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
            common(device, offset, &::talon::bytes::low(address).to_le_bytes());
            common(device, offset + 4, &[0; 4]);
        }
        let _ = memory.write_slice(&[0; 0x3000], GuestAddress(base));
        common(device, 0x1c, &1u16.to_le_bytes());
    }
    common(device, 0x14, &[15]);
}

/// Drives a device by a program.
fn drive(backend: Box<dyn Backend>, input: &[u8], queues: u16, speak: Speak<'_>) {
    let ram = Arc::new(Ram::new(HUGE_PAGE, Backing::Anonymous, false).expect("memory"));
    let device = device(backend, Arc::clone(&ram));
    let mut program = Program { bytes: input };
    // A program is bounded by its bytes, and one serve by the device itself.
    while step(&device, &ram, &mut program, queues, speak).is_some() {}
    let mut saved = Encoder::new();
    device.save(&mut saved);
}

fn step(
    device: &VirtioPciDevice,
    ram: &Arc<Ram>,
    program: &mut Program<'_>,
    queues: u16,
    speak: Speak<'_>,
) -> Option<()> {
    let memory = ram.guest();
    match program.u8()? % 13 {
        0 => set_up(device, memory, queues.min(device.queues())),
        1 => {
            // A descriptor: table entry, address, length, flags, next.
            let (queue, index) = (u64::from(program.u8()? % 8), u64::from(program.u8()? % 8));
            let at = RINGS + RING_STRIDE * queue + 16 * index;
            let address = match program.u8()? % 4 {
                0 => program.u64()?,
                1 => RINGS + u64::from(program.u16()?),
                2 => HUGE_PAGE - u64::from(program.u8()?),
                _ => 0x10_0000 + u64::from(program.u16()?),
            };
            let length = match program.u8()? % 4 {
                0 => u32::MAX,
                1 => 0,
                2 => u32::from(program.u16()?),
                _ => 16,
            };
            let _ = memory.write_obj(address, GuestAddress(at));
            let _ = memory.write_obj(length, GuestAddress(at + 8));
            let _ = memory.write_obj(u16::from(program.u8()? % 8), GuestAddress(at + 12));
            let _ = memory.write_obj(u16::from(program.u8()?), GuestAddress(at + 14));
        }
        2 => {
            // Avail ring: one more head, or an index that jumps.
            let base = RINGS + RING_STRIDE * u64::from(program.u8()? % 8) + 0x1000;
            let head = u16::from(program.u8()? % 10);
            let index: u16 = memory.read_obj(GuestAddress(base + 2)).unwrap_or(0);
            let slot = u64::from(index % QUEUE_SIZE);
            let _ = memory.write_obj(head, GuestAddress(base + 4 + 2 * slot));
            let next = if program.u8()? == 0 {
                program.u16()?
            } else {
                index.wrapping_add(1)
            };
            let _ = memory.write_obj(next, GuestAddress(base + 2));
        }
        3 => {
            let _ = device.serve();
        }
        4 => {
            let _ = device.serve_waiting();
        }
        5 => {
            let (offset, bytes) = (
                usize::from(program.u16()?) % 4096,
                program.u64()?.to_le_bytes(),
            );
            let length = [1, 2, 4, 8][usize::from(program.u8()? % 4)];
            device.write_registers(offset, &bytes[..length]);
        }
        6 => {
            let (offset, bytes) = (
                usize::from(program.u16()?) % 4096,
                program.u64()?.to_le_bytes(),
            );
            let length = [1, 2, 4, 8][usize::from(program.u8()? % 4)];
            device.write_config(offset, &bytes[..length]);
        }
        7 => {
            let (address, value) = (u64::from(program.u16()?) * 8 + 0x10_0000, program.u64()?);
            let _ = memory.write_obj(value, GuestAddress(address));
        }
        8 => device.command(&Command::Balloon(program.u64()?)),
        9 => {
            // What was saved can be loaded, and saving it again gives the same.
            let mut saved = Encoder::new();
            device.pause();
            device.save(&mut saved);
            let saved = saved.into_bytes();
            let mut from = Decoder::new(&saved);
            let _ = from.u8();
            if device.load(&mut from).is_ok() {
                let mut again = Encoder::new();
                device.save(&mut again);
                assert_eq!(again.into_bytes(), saved);
            }
            device.resume();
        }
        10 => common(device, 0x14, &[program.u8()?]),
        11 => {
            speak(program.u8()?);
            device.source_ready();
            let _ = device.serve();
        }
        _ => {
            // MSI-X: enable, and write anything into the table.
            device.write_config(0x86, &[0, program.u8()?]);
            let bytes = program.u64()?.to_le_bytes();
            device.write_registers(0x800 + usize::from(program.u8()? % 64), &bytes[..4]);
        }
    }
    Some(())
}
