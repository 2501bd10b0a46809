//! The control interface: Cloud Hypervisor's REST dialect on a Unix socket, a strict subset with the same names and
//! meanings, plus `vm.fork` and `vm.events`.

pub mod http;
pub mod routes;
pub mod server;
