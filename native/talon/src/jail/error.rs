//! Why the jail could not be shut, and how a step of it says so.

use std::io;

/// Why the jail could not be shut. The process must not go on.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A step was refused.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel's Landlock is older than what was asked.
    #[error("this kernel has Landlock ABI {found}, {wanted} was asked for")]
    Landlock {
        /// What there is; 0 is none.
        found: u32,
        /// What was asked.
        wanted: u32,
    },
}

/// A step's result with its name.
pub(super) fn step(step: &'static str, done: io::Result<()>) -> Result<(), JailError> {
    done.map_err(|source| JailError::Step { step, source })
}

/// What a call of libc returned, as a result.
pub(super) fn checked(returned: i64) -> io::Result<i64> {
    if returned < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(returned)
    }
}
