//! What makes a guest out of a kernel: modules, disks, mounts, network, names.

pub mod boot;
pub mod disks;
pub mod guest_file;
pub mod identity;
pub mod limits;
pub mod modules;
pub mod mounts;
pub mod names;
pub mod network;
pub mod settings;
pub mod users;
