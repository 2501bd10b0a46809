//! kestrel, PID 1 of every guest: mounts its disks, speaks with the daemon over vsock, runs and watches the workload.
//!
//! `docs/protocol.md` is what it speaks. It begins in an initramfs as `/init`, without a C library's start files
//! being trusted to find `/dev/null`: hence `no_main`.
#![cfg_attr(not(test), no_main)]

mod agent;
mod end;
mod files;
mod observe;
mod process;
mod setup;
mod sys;
mod talk;
#[cfg(test)]
mod test_folder;
#[cfg(test)]
mod test_network;
#[cfg(test)]
mod test_reaper;

/// The entry, called by the C library. std's own would abort in a guest without a console: it wants descriptors 0 to 2 open
/// and opens `/dev/null` for them, which an initramfs need not have.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    // SAFETY: getpid touches no memory.
    if unsafe { libc::getpid() } != 1 {
        eprintln!("kestrel is the first process of a guest and does nothing anywhere else");
        return 2;
    }
    // A write to a socket or pipe whose reader is gone is an error to handle and no reason to die.
    // SAFETY: ignoring a signal installs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    std::panic::set_hook(Box::new(|panic| {
        end::supervisor::last_resort(&panic.to_string().replace('\n', " "))
    }));
    setup::boot::run()
}
