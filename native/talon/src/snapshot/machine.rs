//! A parked machine into a state, and a state into a new machine.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_clock_data, kvm_ioapic_state, kvm_irqchip};
use kvm_ioctls::{Kvm, VmFd};
use serde_json::Value;
use vm_superio::serial::SerialState;

use super::codec::{Decoder, Encoder, StateError};
use super::files::{Head, section};
use crate::layout;
use crate::machine::bus::{SerialLine, Uart};
use crate::machine::cpu_state::{self, CpuStateError};
use crate::machine::{Machine, MachineError, kvm_error};
use crate::virtio::Command;

/// Why a machine could not be saved or filled.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A processor.
    #[error("processor {cpu}")]
    Cpu {
        /// Which.
        cpu: usize,
        /// Why.
        #[source]
        source: CpuStateError,
    },
    /// KVM refused.
    #[error("KVM refused")]
    Kvm(#[source] Box<MachineError>),
    /// The state is refused.
    #[error("the state is refused")]
    State(#[from] StateError),
    /// The state is of a machine with other devices.
    #[error("the state is of another machine: {0}")]
    Shape(String),
}

fn kvm(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> SaveError {
    move |error| SaveError::Kvm(Box::new(kvm_error(action)(error)))
}

fn save_platform(vm: &VmFd, out: &mut Encoder) -> Result<(), SaveError> {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).map_err(kvm("tell the IOAPIC"))?;
    // SAFETY: KVM filled this member, as the chip's id asked.
    let ioapic = unsafe { chip.chip.ioapic };
    out.u64(ioapic.base_address);
    out.u32(ioapic.ioregsel);
    out.u32(ioapic.id);
    out.u32(ioapic.irr);
    for entry in ioapic.redirtbl {
        // SAFETY: all members are the same 64 bits.
        out.u64(unsafe { entry.bits });
    }
    out.u64(vm.get_clock().map_err(kvm("tell the clock"))?.clock);
    Ok(())
}

fn load_platform(vm: &VmFd, from: &mut Decoder<'_>) -> Result<(), SaveError> {
    let mut ioapic = kvm_ioapic_state {
        base_address: from.u64()?,
        ioregsel: from.u32()?,
        id: from.u32()?,
        irr: from.u32()?,
        ..Default::default()
    };
    if ioapic.base_address != u64::from(layout::IOAPIC) {
        return Err(StateError::Invalid("place of the IOAPIC").into());
    }
    for entry in &mut ioapic.redirtbl {
        entry.bits = from.u64()?;
    }
    let clock = from.u64()?;
    from.finish()?;
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    chip.chip.ioapic = ioapic;
    vm.set_irqchip(&chip).map_err(kvm("set the IOAPIC"))?;
    // No flags: the guest's clock goes on from where it stood, it does not jump to the host's time.
    vm.set_clock(&kvm_clock_data {
        clock,
        ..Default::default()
    })
    .map_err(kvm("set the clock"))
}

fn save_serial(state: &SerialState, out: &mut Encoder) {
    for byte in [
        state.baud_divisor_low,
        state.baud_divisor_high,
        state.interrupt_enable,
        state.interrupt_identification,
        state.line_control,
        state.line_status,
        state.modem_control,
        state.modem_status,
        state.scratch,
    ] {
        out.u8(byte);
    }
    out.bytes(&state.in_buffer);
}

fn load_serial(from: &mut Decoder<'_>) -> Result<SerialState, StateError> {
    let state = SerialState {
        baud_divisor_low: from.u8()?,
        baud_divisor_high: from.u8()?,
        interrupt_enable: from.u8()?,
        interrupt_identification: from.u8()?,
        line_control: from.u8()?,
        line_status: from.u8()?,
        modem_control: from.u8()?,
        modem_status: from.u8()?,
        scratch: from.u8()?,
        in_buffer: from.bytes()?.to_vec(),
    };
    from.finish()?;
    Ok(state)
}

/// The whole state of a parked machine.
///
/// # Errors
/// When KVM does not tell something.
pub fn save(
    machine: &Machine,
    kvm_system: &Kvm,
    head: &Head,
    config: &Value,
) -> Result<Vec<u8>, SaveError> {
    let msrs = kvm_system
        .get_msr_index_list()
        .map_err(kvm("list its MSRs"))?;
    let mut out = Encoder::new();
    out.section(section::HEAD, head.encode());
    let mut text = Encoder::new();
    text.bytes(config.to_string().as_bytes());
    out.section(section::CONFIG, text);
    for (cpu, vcpu) in machine.vcpus().iter().enumerate() {
        let mut body = Encoder::new();
        cpu_state::save(&vcpu.state(), msrs.as_slice(), &mut body)
            .map_err(|source| SaveError::Cpu { cpu, source })?;
        out.section(section::CPU, body);
    }
    let mut platform = Encoder::new();
    save_platform(&machine.vm().0, &mut platform)?;
    out.section(section::PLATFORM, platform);
    if let Some(serial) = &machine.bus().serial {
        let mut body = Encoder::new();
        let serial = serial
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        save_serial(&serial.state(), &mut body);
        out.section(section::SERIAL, body);
    }
    for device in machine.devices() {
        let mut body = Encoder::new();
        device.save(&mut body);
        out.section(section::DEVICE, body);
    }
    Ok(out.seal(layout::GENERATION))
}

/// Fills a new machine with a state. The guest then has a new generation id, its links are down and its vsock
/// connections gone; it runs when it is resumed.
///
/// # Errors
/// When the state is not of this machine, hostile, or asks more than this host has.
pub fn fill(machine: &Machine, content: &[u8]) -> Result<(), SaveError> {
    let mut sections = Decoder::open(content, layout::GENERATION)?;
    let (mut cpus, mut platform, mut serial, mut filled) = (0, false, false, 0u64);
    while let Some((tag, mut body)) = sections.section()? {
        match tag {
            section::HEAD | section::CONFIG => {}
            section::CPU => {
                let vcpu = machine
                    .vcpus()
                    .get(cpus)
                    .ok_or_else(|| SaveError::Shape("more processors".to_owned()))?;
                cpu_state::load(&vcpu.state(), machine.supported(), &mut body)
                    .map_err(|source| SaveError::Cpu { cpu: cpus, source })?;
                body.finish()?;
                cpus += 1;
            }
            section::PLATFORM => {
                load_platform(&machine.vm().0, &mut body)?;
                platform = true;
            }
            section::SERIAL => {
                fill_serial(machine, &mut body)?;
                serial = true;
            }
            section::DEVICE => {
                let slot = body.u8()?;
                let device = machine
                    .devices()
                    .find(|device| device.slot() == slot)
                    .ok_or_else(|| SaveError::Shape(format!("a device in slot {slot}")))?;
                device.load(&mut body)?;
                body.finish()?;
                filled |= 1 << (slot & 63);
            }
            _ => return Err(StateError::Invalid("section").into()),
        }
    }
    if cpus != machine.vcpus().len() || !platform || serial != machine.bus().serial.is_some() {
        return Err(SaveError::Shape(
            "processors, platform or serial port differ".to_owned(),
        ));
    }
    if let Some(device) = machine
        .devices()
        .find(|device| filled & 1 << device.slot() == 0)
    {
        return Err(SaveError::Shape(format!(
            "device {} is not in it",
            device.id()
        )));
    }
    for device in machine.devices() {
        device.command(&Command::Link(false));
        device.command(&Command::ResetConnections);
    }
    for vcpu in machine.vcpus() {
        // A guest that has no kvm-clock has nothing to be told.
        let _ = vcpu.state().kvmclock_ctrl();
    }
    machine
        .renew_generation_id()
        .map_err(|error| SaveError::Kvm(Box::new(error)))?;
    machine.vm().pulse(layout::VMGENID_GSI);
    Ok(())
}

fn fill_serial(machine: &Machine, from: &mut Decoder<'_>) -> Result<(), SaveError> {
    let state = load_serial(from)?;
    let Some(serial) = &machine.bus().serial else {
        return Err(SaveError::Shape("a serial port".to_owned()));
    };
    let mut serial = serial
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (events, outlet) = (serial.events().clone(), serial.writer().clone());
    *serial = Uart::from_state(&state, SerialLine(machine.vm().clone()), events, outlet)
        .map_err(|_| StateError::Invalid("serial port"))?;
    Ok(())
}
