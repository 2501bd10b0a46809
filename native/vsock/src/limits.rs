//! What one guest may cost its host.

use std::time::Duration;

/// Bounds of one muxer. The memory it may hold for data is at most
/// `windows_bytes + (host_connections + guest_connections) × window_min_bytes`, and only while readers are slow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that the host opened. Apart from the guest's, so that a guest cannot lock its host out.
    pub host_connections: usize,
    /// Connections that the guest opened.
    pub guest_connections: usize,
    /// Receive buffer of a connection while the common store lasts, bytes.
    pub window_max_bytes: u32,
    /// Receive buffer that every connection gets, bytes.
    pub window_min_bytes: u32,
    /// The common store from which windows above the minimum are taken, bytes.
    pub windows_bytes: u32,
    /// RST packets that may wait for a receive buffer of the guest; beyond it the guest's packets are left in its queue.
    pub resets: usize,
    /// How long a `CONNECT` line may take.
    pub handshake: Duration,
    /// How long the guest may take to answer a REQUEST, and a full backlog on the host to take a connection. Many that come at once
    /// wait for each other: no shorter than what the host's programs wait for a guest.
    pub connect: Duration,
    /// How long the guest may take to answer a full SHUTDOWN with RST; Linux waits as long (`VSOCK_CLOSE_TIMEOUT`).
    pub close: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            host_connections: 512,
            guest_connections: 512,
            window_max_bytes: 256 * 1024,
            window_min_bytes: 16 * 1024,
            windows_bytes: 16 * 1024 * 1024,
            resets: 256,
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(30),
            close: Duration::from_secs(8),
        }
    }
}
