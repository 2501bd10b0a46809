//! Bodies of the conversations that carry a process's or a socket's bytes: exec, attach, logs, proxy.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde::{Deserialize, Serialize};

/// `open exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program (looked for in `PATH` of `env`) and its arguments.
    #[serde(with = "super::words")]
    pub argv: Vec<OsString>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absent: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; absent: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default)]
    pub tty: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Whether the host will send stdin; else it is `/dev/null` (with a tty: nothing is ever typed).
    #[serde(default)]
    pub stdin: bool,
    /// After this time everything in the exec's session is killed and the exit code is 124.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// `ok` of exec. `pid` is 0 when the program could not be started: an `exit` with 126 or 127 follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOk {
    pub pid: u32,
}

/// `open attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    #[serde(default)]
    pub stdin: bool,
    /// Send what the log still holds before what comes new.
    #[serde(default)]
    pub replay: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
}

/// `ok` of attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachOk {
    pub tty: bool,
    /// Whether the workload was held until this attach.
    #[serde(default)]
    pub released: bool,
}

/// The body of `exit`, of exec and attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The process's own code, 128 + n for a signal, 124 timed out, 126 not executable, 127 not found.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<u8>,
    /// A sentence where the code alone does not say enough.
    pub message: Option<String>,
}

/// `open logs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// The offset to begin at, in bytes of log since boot; what is older than the ring begins at its oldest.
    #[serde(default)]
    pub from: u64,
    #[serde(default)]
    pub follow: bool,
}

/// `ok` of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsOk {
    /// The offset of the oldest byte that is held.
    pub oldest: u64,
    /// The offset that the next byte will have.
    pub next: u64,
}

/// `open proxy`: a TCP port of the guest's loopback, or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Proxy {
    Port { port: u16 },
    Unix { unix: String },
}
