//! The configured devices: what each stands on, and its slot.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch};

use super::bus::Vm;
use super::{MachineError, kvm_error};
use crate::config::{ConsoleMode, DiskConfig, VmConfig};
use crate::layout;
use crate::memory::Ram;
use crate::pci::{MsiSink, Window};
use crate::resources::{Descriptor, Resources, image_bytes};
use crate::virtio::rate::Limiter;
use crate::virtio::{
    Backend, VirtioPciDevice, balloon, block, console as virtio_console, net, rng, vsock,
};

/// The parts that exist before there are processors.
pub(super) struct Parts {
    pub vm: Vm,
    pub ram: Arc<Ram>,
    pub window: Arc<Window>,
    pub sink: Arc<dyn MsiSink>,
    pub devices: [Option<Arc<VirtioPciDevice>>; layout::SLOTS as usize],
}

impl Parts {
    fn add(
        &mut self,
        slot: u8,
        id: &str,
        backend: Box<dyn Backend>,
    ) -> Result<Arc<VirtioPciDevice>, MachineError> {
        let device = |source| MachineError::Device {
            id: id.to_owned(),
            source,
        };
        let device = VirtioPciDevice::new(
            slot,
            id.to_owned(),
            backend,
            Arc::clone(&self.ram),
            Arc::clone(&self.window),
            Arc::clone(&self.sink),
        )
        .map_err(device)?;
        if let Some(doorbell) = device.doorbell() {
            let address = IoEventAddress::Mmio(layout::doorbell(slot));
            self.vm
                .0
                .register_ioevent(doorbell, &address, NoDatamatch)
                .map_err(kvm_error("take a doorbell"))?;
        }
        let device = Arc::new(device);
        self.devices[usize::from(slot)] = Some(Arc::clone(&device));
        Ok(device)
    }
}

fn block_backend(
    disk: &DiskConfig,
    image: &Descriptor,
    limiter: Limiter,
) -> io::Result<Box<dyn Backend>> {
    let bytes = image_bytes(image)?;
    let engine = Arc::new(block::FileEngine(image.duplicate()?.into()));
    let serial = disk.serial.as_deref().unwrap_or(&disk.id);
    Ok(Box::new(block::Block::new(
        engine,
        bytes,
        disk.readonly,
        serial,
        limiter,
    )))
}

pub(super) type Devices = Vec<Arc<VirtioPciDevice>>;

/// Puts the configured devices in their slots: those of the main thread, and those with a thread of their own.
pub(super) fn add_devices(
    parts: &mut Parts,
    config: &VmConfig,
    resources: &Resources,
) -> Result<(Devices, Devices), MachineError> {
    let (mut on_loop, mut on_workers) = (Vec::new(), Vec::new());
    if config.rng {
        on_loop.push(parts.add(layout::SLOT_RNG, "rng", Box::new(rng::Rng::default()))?);
    }
    if let Some(balloon) = config.balloon {
        let backend = balloon::Balloon::new(Arc::clone(&parts.ram), balloon);
        on_loop.push(parts.add(layout::SLOT_BALLOON, "balloon", Box::new(backend))?);
    }
    if let (Some(vsock), Some(listener)) = (&config.vsock, &resources.vsock) {
        let backend = listener
            .duplicate()
            .and_then(|listener| {
                vsock::Vsock::new(vsock, listener.into(), aerie_vsock::Limits::default())
                    .map_err(io::Error::other)
            })
            .map_err(|source| MachineError::Device {
                id: "vsock".to_owned(),
                source,
            })?;
        on_loop.push(parts.add(layout::SLOT_VSOCK, "vsock", Box::new(backend))?);
    }
    if config.console.mode != ConsoleMode::Off {
        let backend = virtio_console::Console::new(resources.console.clone());
        on_loop.push(parts.add(layout::SLOT_CONSOLE, "console", Box::new(backend))?);
    }
    for (net, tap) in config.nets.iter().zip(&resources.taps) {
        let backend = tap
            .duplicate()
            .and_then(|tap| net::Net::new(tap.into(), net.clone()))
            .map_err(|source| MachineError::Device {
                id: net.id.clone(),
                source,
            })?;
        on_loop.push(parts.add(layout::SLOT_NET + net.place, &net.id, Box::new(backend))?);
    }
    let groups: Vec<Limiter> = config
        .rate_groups
        .iter()
        .map(|group| Limiter::new(&group.rate))
        .collect();
    for (disk, image) in config.disks.iter().zip(&resources.disks) {
        let group = disk.rate_group.and_then(|group| groups.get(group));
        let limiter = group.map_or_else(|| Limiter::new(&disk.rate), Limiter::share);
        let backend =
            block_backend(disk, image, limiter).map_err(|source| MachineError::Device {
                id: disk.id.clone(),
                source,
            })?;
        on_workers.push(parts.add(layout::disk_slot(disk.place), &disk.id, backend)?);
    }
    Ok((on_loop, on_workers))
}
