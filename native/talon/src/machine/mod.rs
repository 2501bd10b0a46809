//! A machine: guest memory, processors, devices, and the threads that run them.

pub mod bus;
pub mod console;
pub mod cpu_state;
pub mod cpuid;
pub mod save;
pub mod vcpu;
pub mod worker;

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, Msrs, kvm_msr_entry, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{acpi, elf, params};
use crate::bytes::to_usize;
use crate::config::{ConsoleMode, DiskConfig, VmConfig};
use crate::layout;
use crate::memory::{Backing, MemoryError, PAGE, Ram, regions};
use crate::pci::{ConfigSpace, MsiSink, Window, config::Identity};
use crate::resources::{Resources, image_bytes};
use crate::virtio::rate::Limiter;
use crate::virtio::{
    Backend, Function, balloon, block, console as virtio_console, net, rng, vsock,
};
use bus::{Bus, Lines, SerialLine};
use console::Log;
use vcpu::{StopSink, Vcpu};
use worker::Worker;

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused.
    #[error("KVM refuses to {action}")]
    Kvm {
        /// What was asked.
        action: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// No RAM.
    #[error("cannot make guest memory")]
    Memory(#[from] MemoryError),
    /// No kernel.
    #[error("cannot load the kernel")]
    Kernel(#[from] elf::KernelError),
    /// No initramfs.
    #[error("cannot load the initramfs")]
    Initramfs(#[source] elf::KernelError),
    /// Kernel and initramfs do not fit.
    #[error(
        "the initramfs of {initramfs} bytes does not fit above the kernel's end at {kernel_end:#x}"
    )]
    TooSmall {
        /// Bytes of the initramfs.
        initramfs: u64,
        /// First byte above the kernel.
        kernel_end: u64,
    },
    /// Boot tables could not be written.
    #[error("cannot write the boot tables")]
    Tables(#[from] vm_memory::GuestMemoryError),
    /// A device could not be made.
    #[error("cannot make device {id}")]
    Device {
        /// Its name.
        id: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A thread or descriptor could not be had.
    #[error("the host refuses a {what}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn kvm_error(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |error| MachineError::Kvm {
        action,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}

/// What the machine's threads do before their work.
#[derive(Debug, Clone, Copy)]
pub struct Prepare {
    /// On a processor's thread.
    pub vcpu: fn() -> io::Result<()>,
    /// On a worker's thread.
    pub worker: fn() -> io::Result<()>,
}

/// Everything of a running or parked VM. Dropping it stops the threads first.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Vcpu>,
    workers: Vec<Worker>,
    bus: Arc<Bus>,
    on_loop: Vec<Arc<Function>>,
    on_workers: Vec<Arc<Function>>,
    lines: Lines,
    ram: Arc<Ram>,
    supported: CpuId,
}

/// The parts that exist before there are processors.
struct Frame {
    lines: Lines,
    ram: Arc<Ram>,
    window: Arc<Window>,
    sink: Arc<dyn MsiSink>,
    functions: [Option<Arc<Function>>; layout::SLOTS as usize],
}

impl Frame {
    fn add(
        &mut self,
        slot: u8,
        id: &str,
        backend: Box<dyn Backend>,
    ) -> Result<Arc<Function>, MachineError> {
        let device = |source| MachineError::Device {
            id: id.to_owned(),
            source,
        };
        let function = Function::new(
            slot,
            id.to_owned(),
            backend,
            Arc::clone(&self.ram),
            Arc::clone(&self.window),
            Arc::clone(&self.sink),
        )
        .map_err(device)?;
        let address = IoEventAddress::Mmio(layout::doorbell(slot));
        self.lines
            .0
            .register_ioevent(function.kick(), &address, NoDatamatch)
            .map_err(kvm_error("take a doorbell"))?;
        let function = Arc::new(function);
        self.functions[usize::from(slot)] = Some(Arc::clone(&function));
        Ok(function)
    }
}

fn block_backend(disk: &DiskConfig, image: &std::fs::File) -> io::Result<Box<dyn Backend>> {
    let bytes = image_bytes(image)?;
    let engine = Box::new(block::FileEngine(image.try_clone()?));
    let serial = disk.serial.as_deref().unwrap_or(&disk.id);
    Ok(Box::new(block::Block::new(
        engine,
        bytes,
        disk.readonly,
        serial,
        Limiter::new(&disk.rate),
    )))
}

/// What the guest's RAM is made of.
#[derive(Debug)]
pub enum RamSource {
    /// Fresh memory, as the configuration says.
    Fresh,
    /// A snapshot's file or a frozen template, mapped copy-on-write.
    Template(std::fs::File),
}

impl Machine {
    /// Builds everything of the machine, with its processors parked and their registers untouched.
    ///
    /// # Errors
    /// When the host lacks something; nothing is left behind.
    pub fn new(
        kvm: &Kvm,
        config: &VmConfig,
        resources: &Resources,
        ram: RamSource,
        stops: &Arc<dyn StopSink>,
        prepare: Prepare,
    ) -> Result<Self, MachineError> {
        let vm = Arc::new(kvm.create_vm().map_err(kvm_error("create a VM"))?);
        let backing = match (ram, &resources.ram) {
            (RamSource::Template(file), _) => Backing::CopyOnWrite(file),
            (RamSource::Fresh, Some(file)) => {
                Backing::Shared(file.try_clone().map_err(MemoryError::File)?)
            }
            (RamSource::Fresh, None) if config.shared => Backing::Shared(Ram::memfd(config.ram)?),
            (RamSource::Fresh, None) => Backing::Anonymous,
        };
        let ram = Arc::new(Ram::new(config.ram, backing, config.thp)?);
        let window = Arc::new(Window::new().map_err(|source| MachineError::Host {
            what: "mapping for PCI",
            source,
        })?);
        set_slots(&vm, &ram, &window)?;
        // Intel needs three pages of its own, below the LAPIC and in no RAM (api.rst, KVM_SET_TSS_ADDR).
        vm.set_tss_address(0xfffb_d000)
            .map_err(kvm_error("place its own pages"))?;
        vm.create_irq_chip()
            .map_err(kvm_error("create the interrupt controllers"))?;

        let lines = Lines(vm);
        let sink: Arc<dyn MsiSink> = Arc::new(lines.clone());
        let bridge = Identity {
            vendor: 0x8086,
            device: 0x0d57,
            class: [6, 0, 0],
            revision: 0,
            subsystem: 0,
        };
        ConfigSpace::new(0, bridge, false).publish(&window);
        let mut frame = Frame {
            lines,
            ram,
            window,
            sink,
            functions: [const { None }; layout::SLOTS as usize],
        };
        let (on_loop, on_workers) = add_devices(&mut frame, config, resources)?;
        let serial = match &config.serial {
            ConsoleMode::Off => None,
            _ => {
                let log = clone_log(resources.serial.as_ref(), "serial")?;
                Some(Mutex::new(bus::Uart::new(
                    SerialLine(frame.lines.clone()),
                    log,
                )))
            }
        };
        let bus = Arc::new(Bus {
            window: frame.window,
            functions: frame.functions,
            serial,
            panicked: AtomicBool::new(false),
        });

        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm_error("tell its CPUID"))?;
        let mut vcpus = Vec::new();
        for cpu in 0..config.cpus {
            let vcpu = frame
                .lines
                .0
                .create_vcpu(u64::from(cpu))
                .map_err(kvm_error("create a processor"))?;
            let vcpu = Vcpu::spawn(cpu, vcpu, Arc::clone(&bus), Arc::clone(stops), prepare.vcpu)
                .map_err(|source| MachineError::Host {
                    what: "processor thread",
                    source,
                })?;
            vcpus.push(vcpu);
        }
        let workers = on_workers
            .iter()
            .map(|function| Worker::spawn(Arc::clone(function), prepare.worker))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| MachineError::Host {
                what: "worker thread",
                source,
            })?;
        Ok(Self {
            vcpus,
            workers,
            bus,
            on_loop,
            on_workers,
            lines: frame.lines,
            ram: frame.ram,
            supported,
        })
    }

    /// Loads kernel and initramfs, writes the tables, and puts the first processor at the kernel's entry.
    ///
    /// # Errors
    /// When a file is bad or does not fit.
    pub fn load(&self, config: &VmConfig, resources: &Resources) -> Result<(), MachineError> {
        let memory = self.ram.guest();
        let kernel = elf::load(memory, &resources.kernel, layout::KERNEL_START)?;
        let initramfs = match &resources.initramfs {
            None => None,
            Some(file) => {
                let bytes = file
                    .metadata()
                    .map_err(|error| MachineError::Initramfs(elf::KernelError::Read(error)))?
                    .len();
                let top = config.ram.min(layout::LOW_RAM_END);
                let start = top
                    .checked_sub(bytes)
                    .map(|start| start & !(PAGE - 1))
                    .filter(|start| *start >= kernel.end);
                let start = start.ok_or(MachineError::TooSmall {
                    initramfs: bytes,
                    kernel_end: kernel.end,
                })?;
                elf::read_at(memory, file, 0, start, bytes).map_err(MachineError::Initramfs)?;
                Some((start, bytes))
            }
        };
        let mut seed = [0; params::SEED_BYTES];
        rng::fill(&mut seed).map_err(|source| MachineError::Host {
            what: "random seed",
            source,
        })?;
        params::write(
            memory,
            &params::Params {
                ram: config.ram,
                command_line: &config.command_line,
                initramfs,
                seed,
            },
        )?;
        acpi::write(
            memory,
            acpi::Platform {
                cpus: config.cpus,
                serial: self.bus.serial.is_some(),
            },
        )?;
        self.renew_generation_id()?;
        for (cpu, vcpu) in (0u8..).zip(&self.vcpus) {
            let vcpu = vcpu.state();
            vcpu.set_cpuid2(&cpuid::of_processor(&self.supported, cpu, config.cpus))
                .map_err(kvm_error("set CPUID"))?;
            set_boot_msrs(&vcpu)?;
        }
        if let Some(first) = self.vcpus.first() {
            enter_kernel(&first.state(), kernel.entry)?;
        }
        Ok(())
    }

    /// Writes a fresh generation id.
    ///
    /// # Errors
    /// When the host has no random bytes, or guest memory ends below it.
    pub fn renew_generation_id(&self) -> Result<(), MachineError> {
        let mut id = [0; 16];
        rng::fill(&mut id).map_err(|source| MachineError::Host {
            what: "random seed",
            source,
        })?;
        self.ram
            .guest()
            .write_slice(&id, GuestAddress(layout::VMGENID))?;
        Ok(())
    }

    /// Devices served by the main thread.
    #[must_use]
    pub fn on_loop(&self) -> &[Arc<Function>] {
        &self.on_loop
    }

    /// All devices.
    pub fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.on_loop.iter().chain(&self.on_workers)
    }

    /// Guest memory.
    #[must_use]
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Interrupt lines.
    #[must_use]
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Processors.
    #[must_use]
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// The bus.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Lets the guest run; devices first, so that nothing rings for nobody.
    pub fn resume(&self) {
        for function in self.functions() {
            function.resume();
            // What came while it was paused has already rung.
            let _ = function.kick().write(1);
        }
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
    }

    /// Stops the guest. When this returns, no processor runs and no request is under way.
    pub fn pause(&self) {
        for vcpu in &self.vcpus {
            vcpu.ask_park();
        }
        for vcpu in &self.vcpus {
            vcpu.wait_parked();
        }
        for function in self.functions() {
            function.pause();
        }
    }

    /// Threads besides the main one.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.vcpus.len() + self.workers.len()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All are told before the first is waited for.
        for vcpu in &self.vcpus {
            vcpu.ask_park();
        }
    }
}

fn set_slots(vm: &VmFd, ram: &Ram, window: &Window) -> Result<(), MachineError> {
    let set = |slot: u32, flags: u32, guest: u64, bytes: u64, host: u64| {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: guest,
            memory_size: bytes,
            userspace_addr: host,
        };
        // SAFETY: the host range is a mapping that outlives the VM: `Machine` drops its processors, and with them the
        // last user of the VM, before its memory.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("take guest memory"))
    };
    for (slot, region) in (0u32..).zip(regions(ram.size())) {
        let host = ram.base().wrapping_add(to_usize(region.offset)) as u64;
        set(slot, 0, region.guest, region.bytes, host)?;
    }
    set(
        2,
        KVM_MEM_READONLY,
        layout::ECAM,
        layout::READ_ONLY_BYTES,
        window.address(),
    )
}

fn clone_log(file: Option<&std::fs::File>, id: &str) -> Result<Log, MachineError> {
    let file = file.map(std::fs::File::try_clone).transpose();
    file.map(Log::new).map_err(|source| MachineError::Device {
        id: id.to_owned(),
        source,
    })
}

type Functions = Vec<Arc<Function>>;

/// Puts the configured devices in their slots: those of the main thread, and those with a thread of their own.
fn add_devices(
    frame: &mut Frame,
    config: &VmConfig,
    resources: &Resources,
) -> Result<(Functions, Functions), MachineError> {
    let (mut on_loop, mut on_workers) = (Vec::new(), Vec::new());
    if config.rng {
        on_loop.push(frame.add(layout::SLOT_RNG, "rng", Box::new(rng::Rng::default()))?);
    }
    if let Some(balloon) = config.balloon {
        let backend = balloon::Balloon::new(Arc::clone(&frame.ram), balloon);
        on_loop.push(frame.add(layout::SLOT_BALLOON, "balloon", Box::new(backend))?);
    }
    if let (Some(vsock), Some(listener)) = (&config.vsock, &resources.vsock) {
        let backend = listener
            .try_clone()
            .map_err(io::Error::other)
            .and_then(|listener| {
                vsock::Vsock::new(vsock, listener, aerie_vsock::Limits::default())
                    .map_err(io::Error::other)
            })
            .map_err(|source| MachineError::Device {
                id: "vsock".to_owned(),
                source,
            })?;
        on_loop.push(frame.add(layout::SLOT_VSOCK, "vsock", Box::new(backend))?);
    }
    if config.console != ConsoleMode::Off {
        let log = clone_log(resources.console.as_ref(), "console")?;
        on_loop.push(frame.add(
            layout::SLOT_CONSOLE,
            "console",
            Box::new(virtio_console::Console::new(log)),
        )?);
    }
    for ((slot, net), tap) in (layout::SLOT_NET..).zip(&config.nets).zip(&resources.taps) {
        let backend = tap
            .try_clone()
            .and_then(|tap| net::Net::new(tap, net.clone()))
            .map_err(|source| MachineError::Device {
                id: net.id.clone(),
                source,
            })?;
        on_loop.push(frame.add(slot, &net.id, Box::new(backend))?);
    }
    for ((slot, disk), image) in (layout::SLOT_DISK..)
        .zip(&config.disks)
        .zip(&resources.disks)
    {
        let backend = block_backend(disk, image).map_err(|source| MachineError::Device {
            id: disk.id.clone(),
            source,
        })?;
        on_workers.push(frame.add(slot, &disk.id, backend)?);
    }
    Ok((on_loop, on_workers))
}

/// MSRs that firmware would have set (Intel SDM volume 3, 12.11: MTRRs on, write-back by default).
fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), MachineError> {
    const MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MISC_ENABLE, FAST_STRINGS),
        entry(MTRR_DEF_TYPE, ENABLED_WRITE_BACK),
    ])
    .map_err(|_| MachineError::Kvm {
        action: "take a list of MSRs",
        source: io::ErrorKind::InvalidInput.into(),
    })?;
    vcpu.set_msrs(&msrs)
        .map(|_| ())
        .map_err(kvm_error("set MSRs"))
}

/// Long mode with the identity map, at the kernel's 64-bit entry (boot.rst, "64-bit Boot Protocol").
fn enter_kernel(vcpu: &VcpuFd, entry: u64) -> Result<(), MachineError> {
    const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    let segment = |selector: u16, kind: u8, long: bool| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        l: u8::from(long),
        db: u8::from(!long),
        g: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs().map_err(kvm_error("tell its registers"))?;
    sregs.cs = segment(0x10, 0xb, true);
    let data = segment(0x18, 0x3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: 0x20,
        type_: 0xb,
        s: 0,
        db: 0,
        ..segment(0x20, 0xb, false)
    };
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = u16::try_from(params::GDT.len() * 8 - 1).unwrap_or(0);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE_ET_PG;
    sregs.efer |= EFER_LME_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(kvm_error("set its registers"))?;
    let regs = kvm_bindings::kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm_error("set its registers"))
}
