//! Ports of the host that lead to guests. The sockets were opened by the daemon, which may use any port and chooses who can
//! reach it; this process accepts, dials the guest and carries bytes.

mod listener;
mod pair;
mod ports;

pub use pair::Side;
pub use ports::Ports;
