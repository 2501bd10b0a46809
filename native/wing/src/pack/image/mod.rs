//! `wing pack image`: an archive on standard input becomes an EROFS image.
//! It is a root tree, or holds an image as `docker save` writes it (`manifest.json`) or in the OCI layout
//! (`index.json`): what an archive is shows only in its names.

mod docker;
mod erofs;
mod layer;
mod model;
mod oci;
mod rootfs;
mod scratch;
mod tree;

use std::{
    fs::File,
    io::{self, Read},
};

use serde::Serialize;

use super::{
    args::Limits,
    codec::{
        decompress,
        tar::{Archive, Kind},
    },
    error::{Error, Result},
    hex::hex,
    input::{Limited, stdin},
};
use model::{Config, add_image};
use rootfs::{Rootfs, Skipped};
use scratch::Scratch;

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
    let (format, config) = add(&mut rootfs, &mut archive, scratch, limits)?;
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

/// Adds what is in `archive`, a root tree or an image archive, to `rootfs`, and says which it was.
///
/// # Errors
/// `scratch_required` for an image archive without a scratch file; the `image_*` codes; those of [`Rootfs::add`].
fn add(
    rootfs: &mut Rootfs,
    archive: &mut Archive<impl Read>,
    scratch: Option<File>,
    limits: Limits,
) -> Result<(&'static str, Config)> {
    let mut scratch_file = scratch;
    let mut scratch: Option<Scratch> = None;
    let mut root = None;
    while let Some(entry) = archive.next_entry()? {
        let path = rootfs.admit(&entry)?;
        if path.is_empty() && entry.kind == Kind::Directory && scratch.is_none() {
            root = Some(entry);
            continue;
        }
        if belongs_to_layout(&path) {
            if scratch.is_none() {
                scratch = Some(Scratch::new(
                    scratch_file.take().ok_or(Error::ScratchRequired)?,
                    limits.bytes_max,
                )?);
            }
            if let Some(scratch) = &mut scratch {
                scratch.store(entry, path, archive)?;
            }
            continue;
        }
        // A root tree, some of whose names may have looked like those of an image archive until here.
        if let Some(root) = root {
            rootfs.add(&root, b"", &mut io::empty())?;
        }
        if let Some(scratch) = &scratch {
            for (entry, path, mut contents) in scratch.members() {
                rootfs.add(entry, path, &mut contents)?;
            }
        }
        rootfs.add(&entry, &path, archive)?;
        rootfs.add_archive(archive)?;
        return Ok(("rootfs", Config::default()));
    }
    let Some(scratch) = scratch else {
        if let Some(root) = root {
            rootfs.add(&root, b"", &mut io::empty())?;
        }
        return Ok(("rootfs", Config::default()));
    };
    if scratch.has("manifest.json") {
        Ok((
            "docker",
            add_image(rootfs, &scratch, docker::image(&scratch)?, limits)?,
        ))
    } else if scratch.has("index.json") {
        Ok((
            "oci",
            add_image(rootfs, &scratch, oci::image(&scratch)?, limits)?,
        ))
    } else {
        Err(Error::ManifestMissing)
    }
}

/// Names that the writers of image archives use at the top: Docker of all times, Podman, Skopeo, BuildKit, Kaniko.
fn belongs_to_layout(path: &[u8]) -> bool {
    let first = path.split(|&byte| byte == b'/').next().unwrap_or(path);
    if matches!(first, b"blobs")
        || matches!(
            path,
            b"manifest.json" | b"index.json" | b"oci-layout" | b"repositories"
        )
    {
        return true;
    }
    let name = first.strip_prefix(b"sha256:").unwrap_or(first);
    name.len() >= 64
        && name[..64].iter().all(u8::is_ascii_hexdigit)
        && (name.len() == 64 || name[64] == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_image_archives_are_told_from_those_of_root_trees() {
        let hash = "0123456789abcdef".repeat(4);
        for path in [
            "blobs",
            "blobs/sha256/x",
            "manifest.json",
            &hash,
            &format!("{hash}.json"),
            &format!("{hash}/layer.tar"),
            &format!("sha256:{hash}"),
        ] {
            assert!(belongs_to_layout(path.as_bytes()), "{path}");
        }
        for path in [
            "bin",
            "etc/manifest.json",
            "0123456789abcdef",
            &format!("{hash}0"),
            "usr/blobs",
        ] {
            assert!(!belongs_to_layout(path.as_bytes()), "{path}");
        }
    }
}
