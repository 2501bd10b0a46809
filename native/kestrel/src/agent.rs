//! What every conversation shares: one agent per guest, alive as long as the guest.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};

use crate::end::power::Power;
use crate::observe::ring::Ring;
use crate::process::reap::Reaper;
use crate::process::workload::Workloads;
use crate::setup::mounts::Mounted;
use crate::setup::names::Written;
use crate::setup::network::Network;
use crate::talk::events::Events;
use crate::talk::slots::Slots;

/// All that conversations share; see the module.
#[derive(Debug)]
pub struct Agent {
    pub reaper: &'static Reaper,
    pub events: &'static Events,
    pub ring: &'static Ring,
    pub workload: &'static Workloads,
    pub power: Power,
    /// The session's secret, from the configuration on.
    pub secret: OnceLock<String>,
    /// The guest's name as kestrel set it last.
    pub hostname: Mutex<String>,
    pub mounted: Mutex<Mounted>,
    pub network: Mutex<Network>,
    pub names: Written,
    /// Conversations may begin: from `ready` until the power-off begins.
    pub is_open: AtomicBool,
    pub slots: Slots,
}

/// The agent for the one place that has no way to be handed it: a panic.
static RUNNING: OnceLock<&'static Agent> = OnceLock::new();

impl Agent {
    /// Makes the agent and starts its reaper.
    ///
    /// # Errors
    /// No descriptor or no thread to be had.
    pub fn start() -> io::Result<&'static Self> {
        let ring: &'static Ring = Box::leak(Box::new(Ring::new(64 * 1024)));
        let events: &'static Events = Box::leak(Box::new(Events::new()?));
        let reaper = Reaper::start()?;
        let workload = Workloads::new(reaper, events, ring)?;
        let agent: &'static Self = Box::leak(Box::new(Self {
            reaper,
            events,
            ring,
            workload: Box::leak(Box::new(workload)),
            power: Power::new()?,
            secret: OnceLock::new(),
            hostname: Mutex::default(),
            mounted: Mutex::default(),
            network: Mutex::default(),
            names: Written::default(),
            is_open: AtomicBool::new(false),
            slots: Slots::default(),
        }));
        Ok(RUNNING.get_or_init(|| agent))
    }

    /// The agent of this process, once it has started.
    pub fn running() -> Option<&'static Self> {
        RUNNING.get().copied()
    }
}
