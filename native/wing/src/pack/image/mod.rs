//! `wing pack image`: an archive on standard input becomes an EROFS image.
//! It is a root tree, or holds an image as `docker save` writes it (`manifest.json`) or in the OCI layout
//! (`index.json`). Which of them shows at its end, so every archive is stored as a root tree first. Of an image that is
//! what its layers are read from; there are two files, one for what came and one for the image that is made of it.

mod docker;
mod erofs;
mod files;
mod layer;
mod members;
mod model;
mod oci;
mod recognize;
mod rootfs;
mod text;
mod tree;

use std::{fs::File, io};

use serde::Serialize;

use super::{
    args::Limits,
    codec::{
        decompress,
        tar::{Archive, Entry, Kind},
    },
    error::{Error, Result},
    hex::hex,
    input::{Limited, stdin},
    path::normalize,
};
use files::Files;
use model::{Config, add_image};
use rootfs::{Rootfs, Skipped};

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

/// Reads the archive on standard input to its end and leaves an image in `out`. `scratch` is needed for an image
/// archive only, whose layers come in no useful order.
///
/// # Errors
/// `scratch_required` for an image archive without a scratch file; the `image_*` codes; those of [`Rootfs::add`].
pub fn run(out: File, scratch: Option<File>, limits: Limits) -> Result<Report> {
    let unreadable = |error: io::Error| Error::from_read("standard input", error);
    let (_, plain) = decompress::open(stdin()).map_err(unreadable)?;
    let mut archive = Archive::new(Limited::new(plain, limits.bytes_max));
    let mut root = None;
    let mut next = archive.next_entry()?;
    while next.as_ref().is_some_and(is_root) {
        root = next;
        next = archive.next_entry()?;
    }
    let begins_like_image = match &next {
        Some(entry) => recognize::is_layout_file(&normalize(&entry.path)?),
        None => false,
    };
    let mut files = Files::new(out, scratch, begins_like_image);
    let mut came = Rootfs::new(files.take_first()?, limits)?;
    if let Some(root) = root {
        came.admit(&root)?;
        came.add(&root, b"", &mut io::empty())?;
    }
    let mut only_layout = next.is_some();
    while let Some(entry) = next {
        let path = came.admit(&entry)?;
        only_layout &= path.is_empty() || recognize::is_layout_name(&path);
        came.add(&entry, &path, &mut archive)?;
        next = archive.next_entry()?;
    }
    drop(archive);
    match recognize::image_in(&came.members()?, only_layout)? {
        None => {
            let report = report("rootfs", Config::default(), &mut came)?;
            files.leave_first(came.into_file(), report.bytes)?;
            Ok(report)
        }
        Some((format, image)) => {
            let mut made = Rootfs::beside(&came, files.take_second()?)?;
            let config = add_image(&mut made, &came.members()?, image, limits)?;
            let report = report(format, config, &mut made)?;
            files.leave_second(came.into_file(), made.into_file(), report.bytes)?;
            Ok(report)
        }
    }
}

/// Whether an entry is the root itself, which tar(1) puts first.
fn is_root(entry: &Entry) -> bool {
    entry.kind == Kind::Directory && normalize(&entry.path).is_ok_and(|path| path.is_empty())
}

fn report(format: &'static str, config: Config, rootfs: &mut Rootfs) -> Result<Report> {
    let summary = rootfs.finish()?;
    Ok(Report {
        format,
        config,
        erofs_sha256: hex(&summary.sha256),
        bytes: summary.bytes,
        entries: rootfs.entries(),
        skipped: std::mem::take(&mut rootfs.skipped),
        skipped_count: rootfs.skipped_count,
    })
}
