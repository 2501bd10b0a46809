//! Files in and out of the guest.

pub mod copy_in;
pub mod copy_out;
pub mod stat;
pub mod tar;
