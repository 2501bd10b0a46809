//! `wing pack image`: an archive on standard input becomes an EROFS image.

use std::{fs::File, io};

use serde::Serialize;

use super::{
    args::Limits,
    decompress,
    docker::{self, Config},
    error::{Error, Result},
    hex,
    input::{Limited, stdin},
    rootfs::{Rootfs, Skipped},
    tar::Archive,
};

/// What is told on standard output.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `rootfs`, `docker` or `oci`.
    format: &'static str,
    config: Config,
    erofs_sha256: String,
    /// Size of the image.
    bytes: u64,
    /// Entries read from the archive and its layers.
    entries: u64,
    /// The first hundred of what was left out.
    skipped: Vec<Skipped>,
    skipped_count: u64,
}

/// Reads the archive on standard input to its end and leaves an image in `out`. `scratch` holds the layers of an
/// image archive, which come in no useful order; a root tree does not need it.
pub fn run(out: File, scratch: Option<File>, limits: Limits) -> Result<Report> {
    let unreadable = |error: io::Error| Error::from_read("standard input", error);
    let (_, plain) = decompress::open(stdin()).map_err(unreadable)?;
    let mut archive = Archive::new(Limited::new(plain, limits.bytes_max));
    let mut rootfs = Rootfs::new(out, limits)?;
    let (format, config) = docker::add(&mut rootfs, &mut archive, scratch, limits)?;
    let summary = rootfs.finish()?;
    Ok(Report {
        format,
        config,
        erofs_sha256: hex(&summary.sha256),
        bytes: summary.bytes,
        entries: rootfs.entries(),
        skipped: rootfs.skipped,
        skipped_count: rootfs.skipped_count,
    })
}
