//! The suite on a muxer without any VMM.

#![allow(
    clippy::unwrap_used,
    reason = "a rig that cannot be made fails its case"
)]

mod in_process;

use in_process::in_process;

aerie_vsock::conformance!(in_process);
