//! Programs of the guest: started, fed, watched, reaped; the workload among them.

pub mod attach;
pub mod exec;
pub mod fork_pages;
pub mod oom;
pub mod pty;
pub mod reap;
pub mod spawn;
pub mod stdin;
pub mod streams;
pub mod workload;
