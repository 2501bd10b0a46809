//! `wing net` as the daemon starts it: its guests are addresses of the loopback network, 127.0.0.0/24, and its upstreams and
//! guests' servers are sockets of the test. What needs a link of its own is in link.rs, in a network namespace.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod control;
mod dns;
mod learned;
mod link;
mod ports;
mod rig;
