//! identity: tells a restored or forked guest who it is now. The reply means that all of it is applied.

use aerie_protocol::message::Identity;

use crate::agent::Agent;
use crate::setup::network;
use crate::setup::settings::{self, Failure, at};
use crate::sys::lock;

/// Applies an identity. Entropy and clock come first: what is generated from now on must be this guest's own, even if a
/// later step fails.
///
/// # Errors
/// The first step that fails, by its name.
pub fn apply(agent: &Agent, identity: &Identity) -> Result<(), Failure> {
    // A snapshot may have been taken of a frozen guest, whose files could not be written below.
    agent.power.thaw(&agent.mounted);
    settings::entropy(&identity.entropy).map_err(at("entropy"))?;
    settings::clock(identity.time_ns).map_err(at("clock"))?;
    settings::hostname(&identity.hostname).map_err(at("hostname"))?;
    let mut hostname = lock(&agent.hostname);
    settings::rename(&hostname, &identity.hostname).map_err(at("names"))?;
    hostname.clone_from(&identity.hostname);
    drop(hostname);
    settings::machine_id(&identity.machine_id).map_err(at("machine_id"))?;
    match &identity.network {
        Some(network) => network::apply(network).map_err(at("network")),
        None => Ok(()),
    }
}
