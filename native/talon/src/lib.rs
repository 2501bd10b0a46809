//! talon: aerie's own virtual machine monitor on KVM. One process is one machine; there is no async runtime and nothing
//! is started besides threads.

pub mod api;
pub mod arena;
pub mod boot;
pub mod bytes;
pub mod config;
pub mod console;
pub mod events;
pub mod jail;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod reactor;
pub mod resources;
pub mod sigbus;
pub mod snapshot;

pub mod virtio;
pub mod vmm;

/// The sentences of an error and of what caused it, outermost first.
#[must_use]
pub fn chain_of(error: &dyn std::error::Error) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        chain.push(cause.to_string());
        source = cause.source();
    }
    chain
}
