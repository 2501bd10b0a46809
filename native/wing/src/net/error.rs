//! What can go wrong in `wing net`, and the one JSON line that says so.

use std::{error::Error, ffi::OsString, io};

use serde::Serialize;

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

#[derive(Serialize)]
struct Line<'a> {
    code: &'a str,
    message: String,
    chain: Vec<String>,
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

    /// `{"code", "message", "chain"}` and a newline; the chain goes from the outermost cause inwards.
    pub fn line(&self) -> String {
        let mut chain = Vec::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            chain.push(error.to_string());
            cause = error.source();
        }
        let line = Line {
            code: self.code(),
            message: self.to_string(),
            chain,
        };
        // Strings always serialize; the fallback keeps the one-line promise even so.
        let json = serde_json::to_string(&line)
            .unwrap_or_else(|_| format!(r#"{{"code":"{}"}}"#, self.code()));
        json + "\n"
    }
}
