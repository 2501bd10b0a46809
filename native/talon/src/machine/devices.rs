//! The configured devices: what each stands on, and its slot.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch};

use super::bus::Lines;
use super::{MachineError, kvm_error};
use crate::config::{ConsoleMode, DiskConfig, VmConfig};
use crate::layout;
use crate::memory::Ram;
use crate::pci::{MsiSink, Window};
use crate::resources::{Held, Resources, image_bytes};
use crate::virtio::rate::Limiter;
use crate::virtio::{
    Backend, Function, balloon, block, console as virtio_console, net, rng, vsock,
};

/// The parts that exist before there are processors.
pub(super) struct Frame {
    pub lines: Lines,
    pub ram: Arc<Ram>,
    pub window: Arc<Window>,
    pub sink: Arc<dyn MsiSink>,
    pub functions: [Option<Arc<Function>>; layout::SLOTS as usize],
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
        if let Some(doorbell) = function.doorbell() {
            let address = IoEventAddress::Mmio(layout::doorbell(slot));
            self.lines
                .0
                .register_ioevent(doorbell, &address, NoDatamatch)
                .map_err(kvm_error("take a doorbell"))?;
        }
        let function = Arc::new(function);
        self.functions[usize::from(slot)] = Some(Arc::clone(&function));
        Ok(function)
    }
}

fn block_backend(disk: &DiskConfig, image: &Held) -> io::Result<Box<dyn Backend>> {
    let bytes = image_bytes(image)?;
    let engine = Box::new(block::FileEngine(image.duplicate()?.into()));
    let serial = disk.serial.as_deref().unwrap_or(&disk.id);
    Ok(Box::new(block::Block::new(
        engine,
        bytes,
        disk.readonly,
        serial,
        Limiter::new(&disk.rate),
    )))
}

pub(super) type Functions = Vec<Arc<Function>>;

/// Puts the configured devices in their slots: those of the main thread, and those with a thread of their own.
pub(super) fn add_devices(
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
            .duplicate()
            .and_then(|listener| {
                vsock::Vsock::new(vsock, listener.into(), aerie_vsock::Limits::default())
                    .map_err(io::Error::other)
            })
            .map_err(|source| MachineError::Device {
                id: "vsock".to_owned(),
                source,
            })?;
        on_loop.push(frame.add(layout::SLOT_VSOCK, "vsock", Box::new(backend))?);
    }
    if config.console.mode != ConsoleMode::Off {
        let backend = virtio_console::Console::new(resources.console.clone());
        on_loop.push(frame.add(layout::SLOT_CONSOLE, "console", Box::new(backend))?);
    }
    for ((slot, net), tap) in (layout::SLOT_NET..).zip(&config.nets).zip(&resources.taps) {
        let backend = tap
            .duplicate()
            .and_then(|tap| net::Net::new(tap.into(), net.clone()))
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
