//! How a guest ends, and how it stands still for a snapshot.

pub mod button;
pub mod freeze;
pub mod power;
pub mod supervisor;
