//! Bodies about the guest as a whole: metrics and identity.

use serde::{Deserialize, Serialize};

use super::network::{Network, Nic};

/// `ok` of metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub uptime_ms: u64,
    pub cpu: Cpu,
    /// Load over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    pub memory: Memory,
    pub disks: Vec<DiskUse>,
    pub processes: u32,
    pub workload: WorkloadState,
}

/// Time since boot, summed over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    pub user_ms: u64,
    pub system_ms: u64,
    pub idle_ms: u64,
    pub steal_ms: u64,
    pub count: u32,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub total: u64,
    pub available: u64,
    /// `total - available`.
    pub used: u64,
    pub cached: u64,
    /// Swap in use.
    pub swap: u64,
}

/// A mounted disk; bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    pub mount: String,
    pub size: u64,
    pub used: u64,
    pub available: u64,
}

/// The workload as metrics show it. `pid` is null before its start and when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadState {
    pub pid: Option<u32>,
    pub running: bool,
}

/// `open identity`: what a restored or forked guest must be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub hostname: String,
    /// 32 hex digits.
    pub machine_id: String,
    /// Hex of 32 bytes.
    pub entropy: String,
    /// Wall clock, nanoseconds since 1970.
    pub time_ns: u64,
    /// What agents of before `nics` read; see [`Identity::nics`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<Nic>>,
}

/// `ok` of identity: all of it is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityOk {
    /// As in the agent's hello; absent: the agent is of before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

impl Identity {
    /// The guest's network cards, of whatever host; `None`: leave the network as it is.
    #[must_use]
    pub fn nics(&self) -> Option<Vec<Nic>> {
        let older = || self.network.as_ref().map(Network::nics);
        self.nics.clone().or_else(older)
    }
}
