//! The end of a guest: who asks for it, and what happens then, in order.
//!
//! ```text
//! stop request, power button, a signal to PID 1 ──▶ stop signal to the workload ─ grace ─ SIGKILL ─┐
//! the workload ended ──▶ its `exited` is acknowledged (or an hour passes) ─────────────────────────┤
//! kestrel failed ──▶ `failed` is acknowledged (or five seconds pass) ──────────────────────────────┤
//!                                                                                                  ▼
//!   everybody: SIGTERM ─ SIGKILL ▶ conversations end ▶ events acknowledged ▶ disks clean ▶ power off
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aerie_protocol::message::EventKind;

use crate::agent::Agent;
use crate::end::button::Buttons;
use crate::end::power::{Stop, power_off};
use crate::observe::console::{say, say_now};
use crate::setup::mounts;
use crate::sys::{NO_FD, is_ready, lock, own, poll, poll_entry, read_now};
use crate::talk::conn::WRITTEN_BYTES;

/// An exit code that nobody fetched: a guest without a host ends after this.
const HOSTLESS: Duration = Duration::from_secs(3600);
/// How long the last events may take to be acknowledged when an end was asked for.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Gives what is left after the workload (its children, execs) this long between SIGTERM and SIGKILL.
const REST_GRACE: Duration = Duration::from_millis(500);
/// Conversations may go on writing what their processes left, as long as it moves.
const TALK_STALLED: Duration = Duration::from_secs(3);
const TALK_MAX: Duration = Duration::from_secs(60);

/// Blocks the signals that PID 1 is asked by, for all threads to come: the supervisor reads them from a descriptor.
pub fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data, and the calls touch only it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGPWR,
        ] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        own(libc::signalfd(
            -1,
            &raw const set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))
    }
}

/// The main thread's last loop.
pub fn supervise(agent: &'static Agent, signals: &OwnedFd, grace: Duration) -> ! {
    let mut buttons = Buttons::open();
    let mut hostless_since: Option<Instant> = None;
    let stop = loop {
        if let Some(stop) = agent.power.asked() {
            break stop;
        }
        let ended = agent.workload.ended();
        let thaw_at = agent.power.thaw_at();
        let mut until = thaw_at;
        if let Some(seq) = ended {
            let end_at = *hostless_since.get_or_insert_with(Instant::now) + HOSTLESS;
            if agent.events.is_acked(seq) || Instant::now() >= end_at {
                break Stop {
                    grace: None,
                    restart: false,
                };
            }
            until = Some(until.map_or(end_at, |at| at.min(end_at)));
        }
        if thaw_at.is_some_and(|at| Instant::now() >= at) {
            say("the disks were frozen for too long and go on");
            agent.power.thaw(&agent.mounted);
            continue;
        }
        let mut entries = vec![
            poll_entry(agent.power.wake_fd(), libc::POLLIN),
            poll_entry(signals.as_raw_fd(), libc::POLLIN),
            // It stays readable: from the end on it says nothing new.
            match ended {
                None => poll_entry(agent.workload.end_fd(), libc::POLLIN),
                Some(_) => poll_entry(NO_FD, 0),
            },
        ];
        entries.extend(buttons.entries());
        if poll(&mut entries, until).is_err() {
            continue;
        }
        agent.power.clear_wake();
        if entries.get(1).is_some_and(is_ready)
            && let Some(stop) = signalled(signals)
        {
            agent.power.ask(stop);
        }
        if buttons.is_pressed(entries.get(3..).unwrap_or_default()) {
            agent.events.push(EventKind::Button);
            agent.power.stop(None);
        }
    };
    let deadline = Instant::now() + stop.grace.unwrap_or(grace);
    agent.power.thaw(&agent.mounted);
    stop_workload(agent, deadline);
    end(agent, deadline, stop.restart)
}

/// Reads a signal as other inits understand it: SIGTERM and SIGINT (control-alt-delete) restart, the others power off.
fn signalled(signals: &OwnedFd) -> Option<Stop> {
    let mut bytes = [0_u8; size_of::<libc::signalfd_siginfo>()];
    read_now(signals.as_fd(), &mut bytes).ok()??;
    // ssi_signo is its first field, a u32.
    let signal = u32::from_ne_bytes(*bytes.first_chunk()?);
    let restart = [libc::SIGTERM, libc::SIGINT]
        .iter()
        .any(|&known| u32::try_from(known) == Ok(signal));
    Some(Stop {
        grace: None,
        restart,
    })
}

fn stop_workload(agent: &'static Agent, mut deadline: Instant) {
    if !agent.workload.is_running() {
        return;
    }
    agent.workload.ask_to_stop();
    let began = Instant::now();
    while agent.workload.is_running() {
        // A second stop with less patience.
        let asked = agent.power.asked().and_then(|stop| stop.grace);
        if let Some(grace) = asked {
            deadline = deadline.min(began + grace);
        }
        if Instant::now() >= deadline {
            agent.workload.signal(9);
            deadline += LAST_WORDS;
            if Instant::now() >= deadline {
                return;
            }
        }
        let mut entries = [
            poll_entry(agent.power.wake_fd(), libc::POLLIN),
            poll_entry(agent.workload.end_fd(), libc::POLLIN),
        ];
        if poll(&mut entries, Some(deadline)).is_err() {
            return;
        }
        agent.power.clear_wake();
    }
}

/// Ends the guest: everything from "nobody may begin anything" to the power.
fn end(agent: &'static Agent, deadline: Instant, restart: bool) -> ! {
    agent.is_open.store(false, Ordering::Release);
    // Without a workload the grace is that of everybody else.
    let grace = deadline
        .saturating_duration_since(Instant::now())
        .max(REST_GRACE);
    let grace = match agent.workload.ended() {
        Some(_) => REST_GRACE,
        None => grace,
    };
    signal_everybody(libc::SIGTERM);
    wait_for_nobody(grace);
    signal_everybody(libc::SIGKILL);
    wait_for_nobody(Duration::from_secs(2));
    agent.ring.close();
    wait_for_silence(agent);
    agent.events.wait_acked(agent.events.last(), LAST_WORDS);
    let mounted = std::mem::take(&mut *lock(&agent.mounted));
    mounts::undo(mounted);
    power_off(restart)
}

/// Reports that kestrel cannot go on, and ends.
pub fn fail(agent: &'static Agent, stage: &str, message: &str) -> ! {
    say(&format!("{stage}: {message}"));
    let seq = agent.events.push(EventKind::Failed {
        stage: stage.to_owned(),
        message: message.to_owned(),
    });
    agent.events.wait_acked(seq, LAST_WORDS);
    let mounted = std::mem::take(&mut *lock(&agent.mounted));
    mounts::undo(mounted);
    power_off(false)
}

fn signal_everybody(signal: libc::c_int) {
    // From PID 1 that is everybody but itself; and on no other process may this ever be called.
    // SAFETY: getpid and kill touch no memory.
    unsafe {
        if libc::getpid() == 1 {
            libc::kill(-1, signal);
        }
    }
}

fn wait_for_nobody(within: Duration) {
    let deadline = Instant::now() + within;
    while somebody_runs() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kernel threads and the dead have no executable.
fn somebody_runs() -> bool {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .any(|pid| pid != 1 && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok())
}

/// Every process is gone; what they wrote may still be on its way to the host.
fn wait_for_silence(agent: &Agent) {
    let deadline = Instant::now() + TALK_MAX;
    let mut written = WRITTEN_BYTES.load(Ordering::Relaxed);
    let mut moved = Instant::now();
    while agent.slots.count() > 0 && Instant::now() < deadline {
        let now = WRITTEN_BYTES.load(Ordering::Relaxed);
        if now != written {
            written = now;
            moved = Instant::now();
        }
        if moved.elapsed() > TALK_STALLED {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a guest whose agent panics: tells the host if that can be done without a lock that the broken thread may hold, and ends. The session's
/// thread may be the broken one, so nothing here is waited for but time.
pub fn last_resort(message: &str) -> ! {
    say_now(&format!("bug: {message}"));
    if let Some(agent) = Agent::running() {
        let failed = EventKind::Failed {
            stage: "panic".to_owned(),
            message: message.to_owned(),
        };
        if let Some(seq) = agent.events.try_push(failed) {
            let deadline = Instant::now() + LAST_WORDS;
            while !agent.events.try_is_acked(seq) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    // SAFETY: sync touches no memory.
    unsafe { libc::sync() };
    power_off(false)
}
