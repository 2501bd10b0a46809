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
    /// Where what is not in that network goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Resolvers of this network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
}

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
