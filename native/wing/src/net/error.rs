//! What can go wrong in `wing net`, and the one JSON line that says so.

use std::{ffi::OsString, io};

use crate::error_line::error_line;

#[derive(Debug, thiserror::Error)]
pub enum NetError {
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
}

impl NetError {
    /// Wraps the error of a step; to be given to `map_err`.
    pub fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) | Self::Missing(_) => "usage",
            Self::Descriptor { .. } => "fd_invalid",
            Self::Io { .. } => "net_failed",
            Self::Confinement { .. } => "confinement_failed",
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
