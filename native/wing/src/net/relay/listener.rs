//! One port of the host and what is known of it.

use std::{net::SocketAddr, os::fd::OwnedFd};

use crate::net::message::{ListenerStats, Proto};

/// Connections, or clients by UDP, of one listener.
pub const CONNECTIONS_MAX: usize = 1024;

#[derive(Debug)]
pub struct Listener {
    pub id: String,
    pub proto: Proto,
    pub fd: OwnedFd,
    /// Where it leads; nobody is there where this is `None`.
    pub target: Option<SocketAddr>,
    pub connections: usize,
    pub accepted: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub refused: u64,
    pub note: Option<&'static str>,
    /// It waits for descriptors to become free.
    pub is_paused: bool,
}

impl Listener {
    pub fn new(id: String, proto: Proto, fd: OwnedFd, target: Option<SocketAddr>) -> Self {
        Self {
            id,
            proto,
            fd,
            target,
            connections: 0,
            accepted: 0,
            rx_bytes: 0,
            tx_bytes: 0,
            refused: 0,
            note: None,
            is_paused: false,
        }
    }

    /// Counts a connection that was not carried, and why.
    pub fn refuse(&mut self, note: &'static str) {
        self.refused += 1;
        self.note = Some(note);
    }

    pub fn stats(&self) -> ListenerStats<'_> {
        ListenerStats {
            id: &self.id,
            proto: self.proto,
            target: self.target,
            connections: self.connections,
            accepted: self.accepted,
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            refused: self.refused,
            note: self.note,
        }
    }
}
