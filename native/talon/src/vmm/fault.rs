//! Why the process ends, and why a verb was not done.

use std::io;

use crate::config::ConfigError;
use crate::machine::MachineError;
use crate::machine::cpu_state::CpuStateError;
use crate::snapshot::codec::StateError;
use crate::snapshot::files::SnapshotError;
use crate::snapshot::machine::SaveError;

/// Why the process ends otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The loop cannot go on.
    #[error("the host refuses the main loop")]
    Loop(#[source] io::Error),
    /// A processor cannot go on.
    #[error("processor {cpu} stopped: {reason}")]
    Processor {
        /// Which.
        cpu: u8,
        /// Why.
        reason: String,
    },
    /// The guest told of its panic and then reset.
    #[error("the guest panicked")]
    GuestPanicked,
    /// The machine of the launch could not be made.
    #[error("cannot start the machine")]
    Start(#[source] VerbError),
}

impl Fatal {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Loop(_) => "loop_failed",
            Self::Processor { .. } => "processor_failed",
            Self::GuestPanicked => "guest_panicked",
            Self::Start(error) => error.code(),
        }
    }
}

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// The body is no JSON.
    #[error("the body is not JSON")]
    Json(#[source] serde_json::Error),
    /// A field is wrong.
    #[error("the configuration is refused")]
    Config(#[from] ConfigError),
    /// There is no machine yet.
    #[error("no machine has been created")]
    NotCreated,
    /// There is one already.
    #[error("a machine has been created already")]
    AlreadyCreated,
    /// Not in this state.
    #[error("the machine is {0}")]
    State(&'static str),
    /// It could not be built.
    #[error("the machine could not be built")]
    Machine(#[from] MachineError),
    /// A snapshot was refused or could not be written.
    #[error("the snapshot failed")]
    Snapshot(#[from] SnapshotError),
    /// A machine could not be saved or filled.
    #[error("the machine's state could not be moved")]
    Save(#[from] SaveError),
    /// A device that the verb needs is not there.
    #[error("the machine has no {0}")]
    NoDevice(&'static str),
}

impl VerbError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Json(_) => "body_not_json",
            Self::Config(ConfigError {
                unsupported: true, ..
            }) => "not_supported",
            Self::Config(_) => "config_invalid",
            Self::NotCreated => "vm_not_created",
            Self::AlreadyCreated => "vm_already_created",
            Self::State(_) => "vm_state",
            Self::Machine(_) => "machine_failed",
            Self::NoDevice(_) => "device_missing",
            Self::Snapshot(SnapshotError::File { .. }) => "snapshot_file",
            Self::Snapshot(SnapshotError::State(StateError::Generation { .. })) => {
                "snapshot_generation"
            }
            Self::Snapshot(_) | Self::Save(SaveError::State(_) | SaveError::Shape(_)) => {
                "snapshot_invalid"
            }
            Self::Save(SaveError::Cpu { source, .. }) => match source {
                CpuStateError::Missing(_) => "snapshot_host_lacks",
                CpuStateError::State(_) => "snapshot_invalid",
                CpuStateError::Kvm { .. } => "machine_failed",
            },
            Self::Save(SaveError::Kvm(_)) => "machine_failed",
        }
    }

    /// Its status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Json(_) | Self::Config(_) => 400,
            Self::NotCreated => 404,
            Self::AlreadyCreated | Self::State(_) | Self::NoDevice(_) => 409,
            Self::Snapshot(SnapshotError::State(_) | SnapshotError::Memory(_))
            | Self::Save(SaveError::State(_) | SaveError::Shape(_)) => 400,
            Self::Save(SaveError::Cpu {
                source: CpuStateError::Missing(_) | CpuStateError::State(_),
                ..
            }) => 400,
            Self::Machine(_) | Self::Snapshot(_) | Self::Save(_) => 500,
        }
    }
}
