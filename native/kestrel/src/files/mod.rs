//! Files in and out of the guest.

mod at;
pub mod copy_in;
pub mod copy_out;
pub mod stat;
pub mod tar;
mod walk;
