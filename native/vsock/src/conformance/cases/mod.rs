//! The cases, by what they are about. Each takes a maker of rigs and panics where the device is wrong.

pub mod bulk;
pub mod ending;
pub mod hostile;
pub mod opening;
pub mod restart;

use std::time::Duration;

/// The guest port that cases listen on, and the host port that they dial.
const PORT: u32 = 1024;

/// The window of a guest's socket in Linux.
const WINDOW: u32 = 256 * 1024;

/// Long enough for a device to do what it should not.
const A_WHILE: Duration = Duration::from_millis(50);
