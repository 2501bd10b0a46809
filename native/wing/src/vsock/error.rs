//! What can go wrong in `wing vsock`, and the one JSON line that says so.

use std::{ffi::OsString, io};

use crate::error_line::error_line;

#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    #[error("cannot use the argument {0:?}")]
    Usage(OsString),
    #[error("the argument {0} is missing")]
    Missing(&'static str),
    #[error("descriptor {fd} is not {expected}")]
    Descriptor {
        fd: i32,
        expected: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the device")]
    Device(#[source] aerie_vsock::MuxerError),
    #[error("the muxer failed")]
    Muxer(#[source] aerie_vsock::MuxerError),
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot confine the process")]
    Confinement {
        #[source]
        source: io::Error,
    },
    #[error("the VMM said something that cannot be followed")]
    Protocol(#[source] vhost::vhost_user::Error),
}

impl VsockError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) | Self::Missing(_) => "usage",
            Self::Descriptor { .. } => "fd_invalid",
            Self::Device(_) => "device_invalid",
            Self::Muxer(_) | Self::Io { .. } => "device_failed",
            Self::Confinement { .. } => "confinement_failed",
            Self::Protocol(_) => "vhost_protocol",
        }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Missing(_) => 2,
            _ => 1,
        }
    }

    /// The line that the daemon reads.
    pub fn line(&self) -> String {
        error_line(self.code(), self)
    }
}
