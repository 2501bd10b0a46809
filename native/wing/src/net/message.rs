//! What the daemon and this process say to each other (docs/network-helper.md).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is read of every message first: its type, and what an answer repeats.
#[derive(Debug, Default, Deserialize)]
pub struct Head {
    #[serde(rename = "type")]
    pub kind: String,
    pub id: Option<Value>,
    pub generation: Option<Value>,
    pub seq: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Said {
    State(Box<Whole>),
    LeasePut {
        lease: Lease,
    },
    LeaseRemove {
        mac: String,
    },
    NamePut(Name),
    NameRemove {
        name: String,
    },
    Upstreams {
        upstreams: Vec<SocketAddr>,
    },
    Listen(Listen),
    Retarget {
        id: String,
        target: Option<SocketAddr>,
    },
    Unlisten {
        id: String,
    },
    Stats {},
    Commit {
        id: u64,
        ok: bool,
    },
}

#[derive(Debug, Deserialize)]
pub struct Whole {
    pub generation: u64,
    pub network: Network,
    #[serde(default)]
    pub leases: Vec<Lease>,
    #[serde(default)]
    pub names: Vec<Name>,
    #[serde(default)]
    pub upstreams: Vec<SocketAddr>,
}

#[derive(Debug, Deserialize)]
pub struct Network {
    pub domain: String,
    pub subnet: Option<String>,
    pub gateway: Option<Ipv4Addr>,
    pub subnet6: Option<String>,
    pub gateway6: Option<Ipv6Addr>,
    pub mtu: u16,
    #[serde(default)]
    pub dhcp: bool,
    #[serde(default = "an_hour")]
    pub lease_s: u32,
    #[serde(default)]
    pub search: Vec<String>,
}

fn an_hour() -> u32 {
    3600
}

#[derive(Debug, Deserialize)]
pub struct Lease {
    pub mac: String,
    pub address: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    pub hostname: Option<String>,
    #[serde(default)]
    pub running: bool,
    pub egress: Option<Egress>,
}

#[derive(Debug, Deserialize)]
pub struct Egress {
    #[serde(default)]
    pub names: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Name {
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, Deserialize)]
pub struct Listen {
    pub id: String,
    pub proto: Proto,
    pub target: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Told<'a> {
    Applied {
        #[serde(skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<Value>,
    },
    Listening {
        id: &'a str,
    },
    Retargeted {
        id: &'a str,
    },
    Unlistened {
        id: &'a str,
    },
    Stats {
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<Value>,
        generation: Option<u64>,
        listeners: Vec<ListenerStats<'a>>,
        dns: DnsStats,
        dhcp: DhcpStats,
        ra: RaStats,
    },
    Learned {
        id: u64,
        client: IpAddr,
        name: &'a str,
        addresses: &'a [IpAddr],
        ttl: u32,
        grace: u32,
    },
    Error {
        of: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        generation: Option<Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<Value>,
        code: &'a str,
        message: String,
    },
}

#[derive(Debug, Serialize)]
pub struct ListenerStats<'a> {
    pub id: &'a str,
    pub proto: Proto,
    pub target: Option<SocketAddr>,
    pub connections: usize,
    pub accepted: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub refused: u64,
    pub note: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct DnsStats {
    /// Every answer that was sent, of whatever kind.
    pub answers: u64,
    /// Questions that went to an upstream.
    pub forwarded: u64,
    /// Answers that refused: by REFUSED, or because a rule of the client does not have the name.
    pub refused: u64,
    pub servfail: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct DhcpStats {
    pub acks: u64,
    pub naks: u64,
    pub ignored: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct RaStats {
    pub sent: u64,
    pub solicited: u64,
}

/// A message that cannot be followed: its code and its sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}
