//! Fuzzing of everything that reads what others write, with nothing but stable Rust: no sanitizer runtime, no C++.
//!
//! `cargo test` runs the corpus and a fixed number of mutations of it, the same in every run. `scripts/fuzz TARGET SECONDS`
//! builds with coverage counters and goes on for as long as wanted, keeping what reaches new code.

pub mod coverage;
pub mod frames;
pub mod mutate;
pub mod talon;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Names of all targets; each has a folder in the corpus.
#[must_use]
pub fn targets() -> Vec<&'static str> {
    let mut names = talon::TARGETS.to_vec();
    names.push("frames");
    names
}

/// Runs one target on one input.
///
/// # Panics
/// When the input found a mistake.
pub fn run(target: &str, input: &[u8]) {
    if target == "frames" {
        frames::read(input);
    } else {
        talon::run(target, input);
    }
}

/// The folder with the corpus of a target.
#[must_use]
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// The inputs of a folder, in the order of their names; none where there is no such folder.
///
/// # Errors
/// When one cannot be read.
pub fn inputs(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut paths: Vec<_> = match fs::read_dir(folder) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    paths.sort();
    paths.iter().map(fs::read).collect()
}
