//! Bodies of the session: hello, configuration, events, requests.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use super::network::{Network, Nic};

/// `open session`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpen {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Name and version of the agent.
    pub agent: String,
    /// `uname -r`.
    pub kernel: String,
    /// Null the first time of a boot, then the secret of the configuration.
    pub secret: Option<String>,
    /// The newest event there is; 0 for none.
    pub last_event: u64,
    /// What this agent can do, see [`super::FEATURES`]; absent: it is of before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

/// The answer to `open session`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAnswer {
    Configuration(Box<Configuration>),
    Resumed(Resumed),
}

impl SessionAnswer {
    /// Reads the body of `ok`: `resumed` says which of the two it is.
    ///
    /// # Errors
    /// serde's sentence.
    pub fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Which {
            resumed: bool,
        }
        if serde_json::from_slice::<Which>(body)?.resumed {
            Ok(Self::Resumed(serde_json::from_slice(body)?))
        } else {
            Ok(Self::Configuration(serde_json::from_slice(body)?))
        }
    }
}

/// `ok` of a session that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    pub resumed: bool,
    /// Events up to this one are durable at the host.
    pub acked: u64,
}

/// `ok` of the first session: everything that a guest is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Always false; see [`SessionAnswer`].
    pub resumed: bool,
    /// Hex of 32 bytes, to be shown at every reconnect.
    pub secret: String,
    /// Wall clock, nanoseconds since 1970.
    pub time_ns: u64,
    /// Hex of 32 bytes for the kernel's pool.
    pub entropy: String,
    pub hostname: String,
    /// 32 hex digits.
    pub machine_id: String,
    pub root: Root,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// What agents of before `nics` read; see [`Configuration::nics`].
    #[serde(default)]
    pub network: Network,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    #[serde(default)]
    pub files: Vec<FileSpec>,
    #[serde(default)]
    pub workload: Option<Workload>,
    /// The time from SIGTERM to SIGKILL where nobody says otherwise, in milliseconds.
    #[serde(default = "default_grace_ms")]
    pub grace_ms: u64,
    /// Size of the log ring.
    #[serde(default = "default_log_bytes")]
    pub log_bytes: u64,
    /// Size of the guest's `/dev/shm`; 64 MiB where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
}

impl Configuration {
    /// The guest's network cards, of whatever host.
    #[must_use]
    pub fn nics(&self) -> Vec<Nic> {
        match self.nics.is_empty() {
            true => self.network.nics(),
            false => self.nics.clone(),
        }
    }
}

const fn default_grace_ms() -> u64 {
    10_000
}

const fn default_log_bytes() -> u64 {
    1024 * 1024
}

/// The source of `/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub mode: RootMode,
    /// The size that the overlay's file system is grown to; null: the disk's own size, and RAM when there is no such disk.
    #[serde(default)]
    pub overlay_size_bytes: Option<u64>,
}

/// See [`Root`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootMode {
    /// Disk `root` below, disk `overlay` (or RAM) above.
    Overlay,
    /// What the initramfs holds beside kestrel.
    Initramfs,
}

/// A further disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The virtio-blk serial, at most 20 bytes.
    pub serial: String,
    /// Absolute; made where it is missing.
    pub path: String,
    #[serde(default)]
    pub read_only: bool,
    pub fs: VolumeFs,
}

/// The file system of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeFs {
    Ext4,
    Erofs,
}

/// A file to be written before the workload starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    pub content_base64: String,
}

/// The guest's main program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    #[serde(with = "super::words")]
    pub argv: Vec<OsString>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absent: `/`. Made where it is missing, as images expect.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The user, by the rules of exec.
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub tty: bool,
    /// Whether its start waits for the first attach.
    #[serde(default)]
    pub hold: bool,
    #[serde(default = "default_stop_signal")]
    pub stop_signal: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
}

const fn default_stop_signal() -> u8 {
    15
}

/// The body of `event`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1, by 1.
    pub seq: u64,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum EventKind {
    /// Disks are mounted, the workload is started or held or absent. Milliseconds since the kernel's start.
    Ready { boot_ms: u64 },
    /// The workload runs.
    Started { pid: u32 },
    /// The workload ended; the fields of [`super::Exit`], and whether the kernel killed for memory.
    Exited {
        code: i32,
        signal: Option<u8>,
        oom: bool,
        message: Option<String>,
    },
    /// kestrel cannot go on; the guest powers off.
    Failed { stage: String, message: String },
    /// The power button; a stop has begun.
    Button,
}

/// The body of `request`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, given back in the reply.
    pub id: u64,
    pub op: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ns: Option<u64>,
}

/// A request that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Absent: the grace of the configuration.
    Stop {
        grace_ms: Option<u64>,
    },
    /// 1 to 64.
    Signal {
        signal: u8,
    },
    Ping,
    Quiesce,
    Thaw,
    Time {
        time_ns: u64,
    },
}

/// Why a request makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("operation \"{0}\" is unknown")]
    Unknown(String),
    #[error("operation \"{op}\" needs a valid \"{field}\"")]
    Field {
        op: &'static str,
        field: &'static str,
    },
}

impl RequestError {
    /// The code of the reply.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) => super::code::OP_UNKNOWN,
            Self::Field { .. } => super::code::BODY_INVALID,
        }
    }
}

impl Request {
    /// The operation with its own fields checked.
    ///
    /// # Errors
    /// An unknown operation, or a field that it needs and that is absent or out of range.
    pub fn op(&self) -> Result<Op, RequestError> {
        match self.op.as_str() {
            "stop" => Ok(Op::Stop {
                grace_ms: self.grace_ms,
            }),
            "signal" => match self.signal {
                Some(signal @ 1..=64) => Ok(Op::Signal { signal }),
                _ => Err(RequestError::Field {
                    op: "signal",
                    field: "signal",
                }),
            },
            "ping" => Ok(Op::Ping),
            "quiesce" => Ok(Op::Quiesce),
            "thaw" => Ok(Op::Thaw),
            "time" => self
                .time_ns
                .map(|time_ns| Op::Time { time_ns })
                .ok_or(RequestError::Field {
                    op: "time",
                    field: "time_ns",
                }),
            other => Err(RequestError::Unknown(other.to_owned())),
        }
    }
}

/// The body of `reply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub id: u64,
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Reply {
    #[must_use]
    pub const fn ok(id: u64) -> Self {
        Self {
            id,
            ok: true,
            code: None,
            message: None,
        }
    }

    #[must_use]
    pub fn error(id: u64, code: &str, message: String) -> Self {
        Self {
            id,
            ok: false,
            code: Some(code.to_owned()),
            message: Some(message),
        }
    }
}
