//! (skeleton)
use std::{ffi::OsString, process::ExitCode};

pub fn main(_argv: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::from(2)
}
