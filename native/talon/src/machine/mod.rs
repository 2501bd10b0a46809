//! A machine: guest memory, processors, devices, and the threads that run them.

pub mod bus;
pub mod cpu_state;
pub mod cpuid;
mod devices;
mod entry;
mod error;
pub mod vcpu;
pub mod worker;

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{acpi, elf, params};
use crate::bytes::to_usize;
use crate::config::{ConsoleMode, VmConfig};
use crate::console::InputEvents;
use crate::layout;
use crate::memory::{Backing, MemoryError, PAGE, Ram, regions};
use crate::pci::{MsiSink, Window};
use crate::resources::Resources;
use crate::virtio::{VirtioPciDevice, rng};
use bus::{Bus, SerialLine, Vm};
use devices::{Parts, add_devices};
use entry::{enter_kernel, set_boot_msrs};
use vcpu::{StopSink, Vcpu};
use worker::Worker;

pub use error::MachineError;
pub(crate) use error::kvm_error;

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
    on_loop: Vec<Arc<VirtioPciDevice>>,
    on_workers: Vec<Arc<VirtioPciDevice>>,
    vm: Vm,
    ram: Arc<Ram>,
    supported: CpuId,
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
    ) -> Result<Self, MachineError> {
        let vm = Arc::new(kvm.create_vm().map_err(kvm_error("create a VM"))?);
        let fresh = matches!(ram, RamSource::Fresh);
        let backing = match (ram, &resources.ram) {
            (RamSource::Template(file), _) => Backing::CopyOnWrite(file),
            (RamSource::Fresh, Some(file)) => {
                Backing::Shared(file.duplicate().map_err(MemoryError::File)?.into())
            }
            (RamSource::Fresh, None) if config.shared => Backing::Shared(Ram::memfd(config.ram)?),
            (RamSource::Fresh, None) => Backing::Anonymous,
        };
        let ram = Arc::new(Ram::new(config.ram, backing, config.thp)?);
        let window = Arc::new(Window::new().map_err(|source| MachineError::Host {
            what: "mapping for PCI",
            source,
        })?);
        if fresh {
            window.show_absent(config.buses());
        }
        set_slots(&vm, &ram, &window)?;
        // Intel needs three pages of its own, below the LAPIC and in no RAM (api.rst, KVM_SET_TSS_ADDR).
        vm.set_tss_address(0xfffb_d000)
            .map_err(kvm_error("place its own pages"))?;
        vm.create_irq_chip()
            .map_err(kvm_error("create the interrupt controllers"))?;

        let vm = Vm(vm);
        let sink: Arc<dyn MsiSink> = Arc::new(vm.clone());
        let mut parts = Parts {
            vm,
            ram,
            window,
            sink,
            devices: [const { None }; layout::SLOTS as usize],
        };
        let (on_loop, on_workers) = add_devices(&mut parts, config, resources)?;
        let serial = (config.serial.mode != ConsoleMode::Off).then(|| {
            let outlet = resources.serial.clone();
            let events = InputEvents(outlet.terminal().cloned());
            let line = SerialLine(parts.vm.clone());
            Mutex::new(bus::Uart::with_events(line, events, outlet))
        });
        let bus = Arc::new(Bus {
            window: parts.window,
            devices: parts.devices,
            serial,
            panicked: AtomicBool::new(false),
        });

        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm_error("tell its CPUID"))?;
        let mut vcpus = Vec::new();
        for cpu in 0..config.cpus {
            let vcpu = parts
                .vm
                .0
                .create_vcpu(u64::from(cpu))
                .map_err(kvm_error("create a processor"))?;
            vcpus.push(Vcpu::new(vcpu));
        }
        Ok(Self {
            vcpus,
            workers: Vec::new(),
            bus,
            on_loop,
            on_workers,
            vm: parts.vm,
            ram: parts.ram,
            supported,
        })
    }

    /// Begins the threads, once everything else is done: the guest runs at once or stays parked.
    ///
    /// # Errors
    /// When a thread is not to be had; those that began end with the machine.
    pub fn start(
        &mut self,
        stops: &Arc<dyn StopSink>,
        prepare: Prepare,
        running: bool,
    ) -> Result<(), MachineError> {
        let refused = |what| move |source| MachineError::Host { what, source };
        for device in &self.on_workers {
            self.workers.push(
                Worker::spawn(Arc::clone(device), prepare.worker, Arc::clone(stops))
                    .map_err(refused("worker thread"))?,
            );
        }
        if running {
            self.resume_devices();
        }
        for (cpu, vcpu) in (0u8..).zip(&mut self.vcpus) {
            vcpu.start(
                cpu,
                Arc::clone(&self.bus),
                Arc::clone(stops),
                prepare.vcpu,
                running,
            )
            .map_err(refused("processor thread"))?;
        }
        Ok(())
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
                buses: config.buses(),
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
    pub fn on_loop(&self) -> &[Arc<VirtioPciDevice>] {
        &self.on_loop
    }

    /// All devices.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<VirtioPciDevice>> {
        self.on_loop.iter().chain(&self.on_workers)
    }

    /// Guest memory.
    #[must_use]
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The KVM virtual machine.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// What KVM lets a guest see of the processor.
    #[must_use]
    pub fn supported(&self) -> &CpuId {
        &self.supported
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

    fn resume_devices(&self) {
        for device in self.devices() {
            device.resume();
        }
        // What came while they were paused has already rung. The loop looks at its own by itself.
        for device in self
            .devices()
            .filter(|device| device.doorbell().is_none())
            .chain(&self.on_workers)
        {
            device.ring();
        }
    }

    /// Lets the guest run; devices first, so that nothing rings for nobody.
    pub fn resume(&self) {
        self.resume_devices();
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
    }

    /// Stops the guest. When this returns, no processor runs and no request begins; one that waits for a disk of the host
    /// may be under way until [`Machine::is_quiet`].
    pub fn pause(&self) {
        for vcpu in &self.vcpus {
            vcpu.ask_park();
        }
        for vcpu in &self.vcpus {
            vcpu.wait_parked();
        }
        for device in self.devices() {
            device.pause();
        }
    }

    /// Whether no request is under way: a paused machine's memory and devices then stand still.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.on_workers.iter().all(|device| device.is_quiet())
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
