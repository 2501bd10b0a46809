//! The JSON bodies of frames, one module a family.
//!
//! A reader ignores fields it does not know and fills the documented default for those that are absent; a body that still
//! does not fit its type is answered with [`code::BODY_INVALID`].

mod error;
mod files;
mod network;
mod session;
mod streams;
mod system;
mod words;

pub use error::{ErrorBody, code};
pub use files::{
    CopyIn, CopyInDone, CopyOut, CopyOutOk, FileStat, List, ListEntry, ListOk, Owner, Stat,
};
pub use network::{FEATURES, Network, NetworkMode, Nic, Route};
pub use session::{
    Configuration, Event, EventKind, FileSpec, Op, Reply, Request, RequestError, Resumed, Root,
    RootMode, SessionAnswer, SessionOpen, Volume, VolumeFs, Workload,
};
pub use streams::{Attach, AttachOk, Exec, ExecOk, Exit, Logs, LogsOk, Proxy};
pub use system::{Cpu, DiskUse, Identity, IdentityOk, Memory, Metrics, WorkloadState};

use serde::{Deserialize, Serialize};

/// A body with nothing in it, `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}
