//! What makes a guest out of a kernel: modules, disks, mounts, network, names.

pub mod boot;
pub mod disks;
pub mod identity;
pub mod modules;
pub mod mounts;
pub mod network;
pub mod settings;
pub mod users;
