//! Two PCI buses, reached by ECAM alone (PCI Express 5.0, section 7.2.2; no port 0xcf8), whose configuration pages and
//! device registers lie in a read-only memory slot.
//!
//! Why: enumeration is a thousand reads and two hundred writes. A read of a page in a slot costs no exit; a write to a
//! read-only slot exits as MMIO, and then we change the page. So whoever changes a register's value must also write it to
//! the [`Window`].

pub mod config;
pub mod msix;
pub mod window;

pub use config::ConfigSpace;
pub use msix::{MsiSink, Msix};
pub use window::Window;
