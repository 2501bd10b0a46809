//! From the kernel's first call to `ready`, in the one order that works.
//!
//! modules → session (the host says what this guest is) → clock, entropy → disks, root → names, files, network →
//! listener → workload → `ready`. Nothing of the guest's own runs before the session, so nobody can call the host in
//! kestrel's name.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aerie_protocol::message::{Configuration, EventKind};

use crate::agent::Agent;
use crate::end::{power, supervisor};
use crate::observe::console::{self, chain, say};
use crate::setup::names::Names;
use crate::setup::network::Cards;
use crate::setup::settings::{self, Failure, at};
use crate::setup::{identity, limits, modules, mounts, network};
use crate::sys;
use crate::sys::{lock, spawn_thread};
use crate::talk::{listen, session, vsock};

/// A guest whose cards get no address boots all the same.
const LEASE_MAX: Duration = Duration::from_secs(10);

/// The whole boot, then the supervisor. Never returns.
pub fn run() -> ! {
    // Before this there is nowhere to say anything.
    let mounted = mounts::early();
    let filled = sys::fill_standard_fds();
    console::open();
    if let Err(error) = mounted {
        say(&chain(&error));
        power::power_off(false);
    }
    if let Err(error) = filled {
        say(&format!("no /dev/null: {error}"));
        power::power_off(false);
    }
    let (signals, agent) = match start() {
        Ok(started) => started,
        Err(failure) => {
            say(&format!("{}: {}", failure.stage, failure.message));
            power::power_off(false);
        }
    };
    match boot(agent) {
        Ok(grace) => supervisor::supervise(agent, &signals, grace),
        Err(failure) => supervisor::fail(agent, failure.stage, &failure.message),
    }
}

fn start() -> Result<(OwnedFd, &'static Agent), Failure> {
    let signals = supervisor::block_signals().map_err(at("signals"))?;
    raise_limits();
    let agent = Agent::start().map_err(at("agent"))?;
    console::keep_in(agent.ring);
    Ok((signals, agent))
}

/// Raises our own limits: 256 conversations of six descriptors each; and never the OOM killer's victim.
fn raise_limits() {
    let limit = libc::rlimit {
        rlim_cur: 8192,
        rlim_max: 524_288,
    };
    // SAFETY: a valid rlimit. A refusal only makes the limits lower.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

fn boot(agent: &'static Agent) -> Result<Duration, Failure> {
    for failed in modules::load_all(Path::new("/modules")) {
        say(&chain(&failed));
    }
    // Without the loopback a guest is poorer but alive.
    if let Err(error) = network::loopback() {
        say(&chain(&error));
    }
    for (name, error) in limits::apply() {
        say(&format!("cannot set {name}: {error}"));
    }
    let (conn, configuration) = session::begin(agent);
    // The secret is kept before the session's thread can need it.
    let _ = agent.secret.set(configuration.secret.clone());
    spawn_thread("session", move || session::run(agent, conn)).map_err(at("session"))?;
    apply(agent, &configuration)?;
    let listener = vsock::listen().map_err(at("listen"))?;
    spawn_thread("listen", move || listen::run(agent, &listener)).map_err(at("listen"))?;
    agent.is_open.store(true, Ordering::Release);
    let grace = Duration::from_millis(configuration.grace_ms);
    if let Some(workload) = configuration.workload {
        agent.workload.configure(workload);
    }
    agent.events.push(EventKind::Ready {
        boot_ms: since_boot_ms(),
    });
    Ok(grace)
}

/// Makes this guest what the configuration says.
fn apply(agent: &'static Agent, configuration: &Configuration) -> Result<(), Failure> {
    let limit = usize::try_from(configuration.log_bytes).unwrap_or(usize::MAX);
    agent.ring.set_limit(limit);
    settings::clock(configuration.time_ns).map_err(at("clock"))?;
    settings::entropy(&configuration.entropy).map_err(at("entropy"))?;
    settings::hostname(&configuration.hostname).map_err(at("hostname"))?;
    lock(&agent.hostname).clone_from(&configuration.hostname);

    let mut mounted = mounts::root(&configuration.root).map_err(at("root"))?;
    mounts::late(configuration.shm_bytes).map_err(at("mounts"))?;
    let done = mounts::volumes(&configuration.volumes, &mut mounted);
    *lock(&agent.mounted) = mounted;
    done.map_err(at("volumes"))?;

    let cards = Cards::of(&configuration.nics()).map_err(at("network"))?;
    let names = Names::new(&configuration.hostname, &configuration.machine_id)
        .map_err(at("machine_id"))?
        .with_network(&cards);
    for failed in agent.names.apply(names) {
        say(&chain(&failed));
    }
    settings::files(&configuration.files).map_err(at("files"))?;
    let hostname = &configuration.hostname;
    let mut network = lock(&agent.network);
    let set = network.set(cards, hostname, || {}, move || identity::renamed(agent));
    let waiters = network.waiters();
    drop(network);
    set.map_err(at("network"))?;
    let deadline = Instant::now() + LEASE_MAX;
    if !waiters.iter().all(|waiter| waiter.wait(deadline)) {
        say("a network card has no address by DHCP yet; it is asked for on");
    }
    Ok(())
}

/// Milliseconds since the kernel started (CLOCK_BOOTTIME).
fn since_boot_ms() -> u64 {
    // SAFETY: timespec is plain integers; zero is a value of it.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: room for a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1000 + nanos / 1_000_000
}
