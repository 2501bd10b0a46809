//! How kestrel and the host speak: the session, the conversations, their frames.

pub mod conn;
pub mod encoding;
pub mod events;
pub mod listen;
pub mod proxy;
pub mod session;
pub mod slots;
pub mod vsock;
