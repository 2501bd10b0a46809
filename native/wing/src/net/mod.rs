//! `wing net`: DHCP, DNS, router advertisements and loopback ports of one network.
//!
//! Packets of guests are hostile input, so the daemon does not read them: this process does, with nothing but descriptors
//! that the daemon made. It keeps the last state that it was told, and so serves on while the daemon restarts. The words
//! that the two speak are in docs/network-helper.md.
//!
//! One thread, one epoll. A module knows one protocol; what it needs of the others comes as arguments:
//!
//! ```text
//!  daemon ── frames ──▶ control.rs ─▶ serve.rs ─▶ state.rs   what is true
//!  guest ─── DHCP ────▶ dhcp.rs          │
//!  guest ─── DNS ─────▶ dns/ ── upstreams│
//!  guest ─── RS ──────▶ ra.rs            │
//!  host ──── TCP, UDP ▶ relay/ ── guests ┘
//! ```

mod args;
mod confine;
mod context;
mod control;
mod dhcp;
mod dns;
mod error;
mod message;
mod poll;
mod ra;
mod relay;
mod run;
mod serve;
mod state;
mod sys;

use std::{ffi::OsString, process::ExitCode};

pub fn main(argv: impl Iterator<Item = OsString>) -> ExitCode {
    match args::parse(argv).and_then(|args| run::run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", error.line());
            ExitCode::from(error.exit_code())
        }
    }
}
