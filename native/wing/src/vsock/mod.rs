//! `wing vsock`: the vsock device of a guest that QEMU runs, as a vhost-user back-end.
//!
//! QEMU gives away its guest's memory and the two data queues over one Unix stream, which is inherited already
//! connected: nobody listens for a QEMU, so nobody else can be one. The stream is also the lifeline: when it ends,
//! the guest is gone and so is this process.
//!
//! One thread, one epoll: the stream, a kick descriptor for every queue, and the muxer. The crate
//! `vhost-user-backend` is not used: it cannot take a connected stream, and it wants a thread for the stream and
//! another for the queues, with locks between them.
//!
//! Once the device is made, before the first byte of the VMM is read, it gives away every system call that it does not
//! need (confine.rs).
//!
//! ```text
//!  QEMU ── vhost-user ──▶ frontend.rs ──▶ device.rs: memory, rings, when they run
//!  guest ── kick ───────▶ run.rs ──────▶ device.rs ── aerie_vsock::serve ── Muxer ── Unix sockets
//! ```

mod args;
mod confine;
mod device;
mod error;
mod frontend;
mod ring;
mod run;

use std::{ffi::OsString, process::ExitCode};

pub fn main(argv: impl Iterator<Item = OsString>) -> ExitCode {
    match args::parse(argv).and_then(run::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", error.line());
            ExitCode::from(error.exit_code())
        }
    }
}
