//! identity: tells a restored or forked guest who it is now. The reply means that all of it is applied.
//!
//! The kernel's part counts: entropy, clock, host name. What the guest has made of its files and cards is its own affair: what
//! cannot be done there is a warning, and nothing waits for it longer than a moment.

use std::fmt::Display;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use aerie_protocol::message::Identity;

use crate::agent::Agent;
use crate::observe::console::{chain, say};
use crate::process::fork_pages;
use crate::setup::names::Names;
use crate::setup::network::{self, Cards};
use crate::setup::settings::{self, Failure, at};
use crate::sys::{lock, spawn_thread};

/// Files of a guest can be on file systems that never answer.
const FILES_MAX: Duration = Duration::from_secs(3);
/// As with the pages below.
const CONNECTIONS_MAX: Duration = Duration::from_secs(3);
/// A process can be in a state in which its memory is not to be had.
const PAGES_MAX: Duration = Duration::from_secs(10);

/// Applies an identity. Entropy and clock come first: what is generated from now on must be this guest's own, even if a
/// later step fails.
///
/// # Errors
/// The first step of the kernel's that fails, by its name.
pub fn apply(agent: &'static Agent, identity: &Identity) -> Result<(), Failure> {
    // A snapshot may have been taken of a frozen guest, whose files could not be written below.
    agent.power.thaw(&agent.mounted);
    settings::entropy(&identity.entropy).map_err(at("entropy"))?;
    settings::clock(identity.time_ns).map_err(at("clock"))?;
    settings::hostname(&identity.hostname).map_err(at("hostname"))?;
    // Behind the kernel's new seed: programs take theirs from it.
    match within(PAGES_MAX, fork_pages::wipe_all) {
        Some(Ok(())) => {}
        Some(Err(error)) => warn(&format!("not every program draws new randomness: {error}")),
        None => warn(&"not every program draws new randomness: one does not answer"),
    }
    // What the host says must make sense; everything else is what the guest has done to its cards.
    let nics = identity.nics().unwrap_or_default();
    let cards = Cards::of(&nics).map_err(at("network"))?;
    // While the cards that become others are down: no peer of the guest that was saved hears of it, and one of a guest that
    // stays who it was does.
    let reset = || match within(CONNECTIONS_MAX, network::reset_connections) {
        Some(()) => {}
        None => warn(&"not every connection is reset: a process does not answer"),
    };
    let mut network = lock(&agent.network);
    let told = move || renamed(agent);
    if let Err(error) = network.set(cards, &identity.hostname, reset, told) {
        warn(&chain(&error));
    }
    let cards = network.cards();
    drop(network);
    let names = Names::new(&identity.hostname, &identity.machine_id).map_err(at("machine_id"))?;
    let names = names.with_network(&cards);
    lock(&agent.hostname).clone_from(&identity.hostname);
    match within(FILES_MAX, move || agent.names.apply(names)) {
        Some(failed) => failed.iter().for_each(|error| warn(&chain(error))),
        None => warn(&"the files with its names do not answer"),
    }
    Ok(())
}

/// Writes the names of a network that a server has changed.
pub fn renamed(agent: &Agent) {
    let cards = lock(&agent.network).cards();
    for failed in agent.names.apply_network(&cards) {
        say(&chain(&failed));
    }
}

fn warn(what: &dyn Display) {
    say(&format!("identity: {what}"));
}

/// Does `work` and waits for it at most so long; it is left to itself then.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = sync_channel(1);
    spawn_thread("identity", move || {
        // Nobody may wait any more.
        let _ = done.send(work());
    })
    .ok()?;
    result.recv_timeout(limit).ok()
}
