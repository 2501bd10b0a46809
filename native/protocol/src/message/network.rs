//! The guest's network, in the configuration and in an identity.

use serde::{Deserialize, Serialize};

/// One network card. The n-th of a list is the n-th that the guest's kernel found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The card's address, `aa:bb:cc:dd:ee:ff`; absent: as the card has it. A restored card has that of the guest that was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The guest's IPv4 address and the length of its network's prefix, `10.0.2.15/24`; absent: the card is raised without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The router of what is not in that network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The guest's IPv6 address and the length of its network's prefix, `fd00::5/64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<String>,
    /// The router of what is not in that network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<String>,
    /// The largest packet of this network, in bytes; absent: as the card has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Further routes over this card, of both families.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Resolvers of this network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Domains that a name without a dot is looked for in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// The card asks by DHCP for what is not said here: address, gateway, MTU, resolvers, domains.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dhcp: bool,
}

/// A route over a card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The network, `10.0.0.0/8` or `fd00:1::/32`.
    pub destination: String,
    /// The router; absent: the network is on the card's own link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// What an agent can do that agents before it could not, by the names of `features` in its hello and in its answer to an
/// identity.
pub const FEATURES: [&str; 4] = ["nics", "nic_static", "nic_dhcp", "connection_reset"];

/// The network as hosts of before `nics` say it: one card or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub mode: NetworkMode,
    /// As in [`Nic`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl Network {
    /// The same as a list.
    #[must_use]
    pub fn nics(&self) -> Vec<Nic> {
        match self.mode {
            NetworkMode::None => vec![],
            NetworkMode::User => vec![Nic {
                mac: self.mac.clone(),
                address: Some("10.0.2.15/24".to_owned()),
                gateway: Some("10.0.2.2".to_owned()),
                dns: vec!["10.0.2.3".to_owned()],
                ..Nic::default()
            }],
        }
    }
}

/// See [`Network`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The loopback only.
    #[default]
    None,
    /// QEMU's user network: 10.0.2.15/24, gateway 10.0.2.2, DNS 10.0.2.3.
    User,
}
