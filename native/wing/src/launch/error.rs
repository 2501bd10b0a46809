//! What can go wrong in a launch, and the one JSON line that says so.
//!
//! A code is `<step>_<problem>` and stable. The problem is what the caller can act on: `missing` (it is not
//! there), `denied` (this user may not), `failed` (the rest, with the errno in the chain).

use std::io::{self, ErrorKind};

use thiserror::Error;

use crate::error_line::error_line;

#[derive(Debug, Error)]
pub enum LaunchError {
    #[error("cannot use the argument {0:?}: everything is said on fd 3")]
    Usage(std::ffi::OsString),
    #[error("cannot read the specification from fd 3")]
    Unreadable(#[source] io::Error),
    #[error("the specification is longer than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("cannot understand the specification")]
    Malformed(#[source] serde_json::Error),
    #[error("cannot use the specification: {0}")]
    Refused(String),
    #[error("cannot {} {what}", step.verb())]
    Step {
        step: Step,
        what: String,
        source: io::Error,
    },
}

/// The effects of a launch; the order in which they happen is the story of `mod.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Fd,
    Cgroup,
    OomScore,
    Namespace,
    Rlimit,
    Capabilities,
    Identity,
    Session,
    NoNewPrivs,
    Cwd,
    Exec,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Fd => "fd",
            Self::Cgroup => "cgroup",
            Self::OomScore => "oom_score",
            Self::Namespace => "namespace",
            Self::Rlimit => "rlimit",
            Self::Capabilities => "capabilities",
            Self::Identity => "identity",
            Self::Session => "session",
            Self::NoNewPrivs => "no_new_privs",
            Self::Cwd => "cwd",
            Self::Exec => "exec",
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Fd => "hand on",
            Self::Cgroup => "join",
            Self::OomScore | Self::Rlimit | Self::NoNewPrivs => "set",
            Self::Namespace => "enter",
            Self::Capabilities => "drop",
            Self::Identity => "become",
            Self::Session => "start",
            Self::Cwd => "change to",
            Self::Exec => "execute",
        }
    }

    /// Wraps the errno of a step: `.map_err(Step::Cgroup.on(path))`.
    pub fn on(self, what: impl Into<String>) -> impl FnOnce(io::Error) -> LaunchError {
        move |source| LaunchError::Step {
            step: self,
            what: what.into(),
            source,
        }
    }
}

impl LaunchError {
    /// Stable, for programs.
    pub fn code(&self) -> String {
        match self {
            Self::Usage(_) => "usage".to_owned(),
            Self::Unreadable(source) if source.raw_os_error() == Some(libc::EBADF) => {
                "spec_missing".to_owned()
            }
            Self::Unreadable(_) => "spec_unreadable".to_owned(),
            Self::TooLarge { .. } => "spec_too_large".to_owned(),
            Self::Malformed(_) | Self::Refused(_) => "spec_invalid".to_owned(),
            Self::Step { step, source, .. } => format!("{}_{}", step.name(), problem(source)),
        }
    }

    /// The line that the daemon reads.
    pub fn line(&self) -> String {
        error_line(&self.code(), self)
    }
}

fn problem(source: &io::Error) -> &'static str {
    match (source.raw_os_error(), source.kind()) {
        (Some(libc::EBADF | libc::ENOTDIR), _) | (_, ErrorKind::NotFound) => "missing",
        (Some(libc::EROFS), _) | (_, ErrorKind::PermissionDenied) => "denied",
        _ => "failed",
    }
}
