//! DNS: names of ours are answered, those of others asked of the upstreams.

mod client;
mod flight;
mod learn;
mod public;
mod question;
mod server;
mod zone;

pub use server::Dns;
