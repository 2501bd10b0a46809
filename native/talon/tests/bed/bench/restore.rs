//! What a restore costs from the exec of talon to the guest's first answer over vsock, started the way the daemon does.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use serde_json::{Value, json};

use super::{MIB, five, quiet, sibling, start};
use crate::jail::Launch;
use crate::machine::{Context, Talon, Trace, wait_for};
use crate::snapshot::memfd;

/// A snapshot in memory, and what it was of.
pub struct Saved {
    config: Value,
    state: OwnedFd,
    memory: OwnedFd,
    /// `(ours, its)` of what else the machine stands on.
    more: Vec<(i32, i32)>,
}

/// Boots this machine, saves it and ends it.
pub fn save(context: &Context, name: &str, config: Value, more: Vec<(i32, i32)>) -> Saved {
    let talon = start(context, name, &config, &more);
    talon.put("vm.pause", &json!({})).expect_status(204);
    let (state, memory) = (memfd(c"state", 0), memfd(c"memory", 0));
    let fds = [state.as_raw_fd(), memory.as_raw_fd()];
    talon
        .put_fds("vm.snapshot", &json!({ "destination_url": "fd:" }), &fds)
        .expect_status(200);
    Saved {
        config,
        state,
        memory,
        more,
    }
}

impl Saved {
    /// A machine with vsock and nothing else.
    pub fn small(context: &Context, ram: u64) -> Self {
        let name = format!("source{}", ram / MIB);
        save(context, &name, quiet(context, &name, ram), Vec::new())
    }

    /// Block, net, vsock, rng, balloon, console.
    pub fn six(context: &Context, tap: i32) -> Self {
        let mut config = five(context, "six", 128 * MIB);
        config["console"] = json!({ "mode": "Null" });
        save(context, "six", config, vec![(tap, 30)])
    }

    fn launch(&self, context: &Context, name: &str, jailed: bool, resume: bool) -> Talon {
        let launch =
            Launch::new(context, name, &sibling(&self.config, context, name)).jailed(jailed);
        let mut fds = vec![(self.state.as_raw_fd(), 41), (self.memory.as_raw_fd(), 42)];
        fds.extend_from_slice(&self.more);
        let wrap = |config: Value| json!({ "restore": { "state_fd": 41, "memory_fd": 42, "resume": resume, "config": config } });
        launch.start(context, name, wrap, &fds)
    }

    /// System calls up to the one that carries the first answer, by strace. The trace is `<name>.strace`.
    pub fn syscalls(&self, context: &Context, name: &str, jailed: bool) -> u64 {
        context.trace(Trace::Words);
        let talon = self.launch(context, name, jailed, true);
        context.trace(Trace::No);
        let answer = talon.uuid();
        let path = context.path(&format!("{name}.strace"));
        let mut count = None;
        wait_for("the trace", || {
            let trace = fs::read_to_string(&path).unwrap_or_default();
            let mut calls = trace.lines().filter(|line| !line.contains("resumed>"));
            count = calls.position(|line| line.contains("send") && line.contains(&answer[..16]));
            count.is_some()
        });
        count.map_or(0, |before| before as u64 + 1)
    }

    /// Page faults of talon alone: the machine is there, paused, and has answered on its control socket.
    pub fn own_faults(&self, context: &Context, name: &str) -> u64 {
        let talon = self.launch(context, name, true, false);
        wait_for("the restore", || talon.get("vm.info").status == 200);
        talon.faults()
    }

    /// Page faults and milliseconds to the first answer.
    pub fn to_answer(&self, context: &Context, name: &str) -> (u64, f64) {
        let began = Instant::now();
        let talon = self.launch(context, name, true, true);
        talon.uuid();
        (talon.faults(), began.elapsed().as_secs_f64() * 1000.0)
    }
}

pub fn measure(context: &Context, ram: u64) -> Value {
    let label = ram / MIB;
    let saved = Saved::small(context, ram);
    let own = saved.own_faults(context, &format!("paused{label}"));
    let (all, milliseconds) = saved.to_answer(context, &format!("answer{label}"));
    let jailed = saved.syscalls(context, &format!("traced{label}"), true);
    let unjailed = saved.syscalls(context, &format!("unjailed{label}"), false);
    json!({
        "syscalls": unjailed,
        "syscalls_jailed": jailed,
        "faults_vmm": own,
        "faults": all,
        "ms": milliseconds,
    })
}
