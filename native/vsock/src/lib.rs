//! The vsock device of an aerie guest, without its transport (virtio 1.2, section 5.10).
//!
//! A [`Muxer`] joins the guest's stream sockets with Unix sockets of the host, in Firecracker's dialect: the host
//! connects to a listening socket, says `CONNECT <port>\n` and hears `OK <host port>\n`; a guest that connects to
//! host port `p` reaches the socket `<prefix>_<p>`. [`serve`] moves packets between a muxer and two virtqueues.
//!
//! The crate has no threads, no clock of its own but one timerfd and no idea of vhost: a VMM puts
//! [`Muxer::poll_fd`] beside its doorbells in whatever epoll it has.
//!
//! ```text
//!                 guest memory                              host
//!   rx queue  ◀── serve ◀── Muxer::rx ◀── Connection ◀── recvmsg ── Unix stream
//!   tx queue  ──▶ serve ──▶ Muxer::tx ──▶ Connection ──▶ sendmsg ──▶ Unix stream
//!                                             └─ Outgoing: what the stream did not take yet, at most the window
//! ```

mod buffers;
#[cfg(feature = "conformance")]
pub mod conformance;
mod connection;
mod credit;
mod handshake;
mod header;
mod limits;
mod muxer;
mod outgoing;
mod poll;
mod queues;
mod reset;
mod socket;
mod table;
mod timers;

pub use buffers::{Buffers, BuffersError};
pub use header::{HEADER_BYTES, HOST_CID, Header, Op, shutdown};
pub use limits::Limits;
pub use muxer::{Config, Muxer, MuxerError};
pub use queues::{Rings, ServeError, Served, serve};
pub use reset::TransportReset;
