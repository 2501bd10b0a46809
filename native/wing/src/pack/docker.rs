//! Image archives: what `docker save` writes (`manifest.json`), and the OCI image layout (`index.json`).
//! A root tree comes through here too: what an archive is shows only in its names.

use std::{
    fs::File,
    io::{self, Read},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use super::{
    args::Limits,
    decompress,
    error::{Error, Result, show},
    hex,
    input::Limited,
    layer, oci,
    rootfs::Rootfs,
    scratch::Scratch,
    tar::{Archive, Kind},
};

/// How the image wants to be run; empty for a root tree.
#[derive(Debug, Default, Serialize)]
pub struct Config {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
    /// `PORT/PROTOCOL`, sorted.
    pub exposed_ports: Vec<String>,
}

/// An image that was chosen: its configuration and its layers from the lowest, by their names in the archive.
#[derive(Debug)]
pub struct Image {
    pub config: Vec<u8>,
    pub config_name: String,
    pub layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The image configuration (OCI image specification, "Image Configuration"; Docker's has the same fields).
#[derive(Debug, Deserialize)]
struct ImageConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<RunConfig>,
    rootfs: Option<LayerDigests>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<std::collections::BTreeMap<String, serde_json::Value>>,
}

#[derive(Debug, Deserialize)]
struct LayerDigests {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Adds what is in `archive`, a root tree or an image archive, to `rootfs`, and says which it was.
///
/// # Errors
/// `scratch_required` for an image archive without a scratch file; the `image_*` codes; those of [`Rootfs::add`].
pub fn add(
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
            add_image(rootfs, &scratch, saved_image(&scratch)?, limits)?,
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

fn saved_image(scratch: &Scratch) -> Result<Image> {
    const FILE: &str = "manifest.json";
    let mut images: Vec<SavedImage> = parse(FILE, &scratch.document(FILE)?)?;
    images.dedup_by(|a, b| a.config == b.config);
    let image = match (images.pop(), images.len()) {
        (Some(image), 0) => image,
        (None, _) => {
            return Err(Error::Manifest {
                file: FILE.into(),
                reason: "it names no image".into(),
            });
        }
        (Some(last), count) => {
            images.push(last);
            let names = images.iter().map(|image| match image.repo_tags.as_deref() {
                Some([tag, ..]) => tag.as_str(),
                _ => image.config.as_str(),
            });
            return Err(ambiguous(count + 1, names));
        }
    };
    Ok(Image {
        config: scratch.document(&image.config)?,
        config_name: image.config,
        layers: image.layers,
    })
}

/// The refusal to choose among images.
pub fn ambiguous<'a>(count: usize, names: impl Iterator<Item = &'a str>) -> Error {
    let names: Vec<String> = names.take(5).map(|name| show(name.as_bytes())).collect();
    Error::Ambiguous {
        count,
        names: names.join(", "),
    }
}

/// Reads JSON of the image.
pub fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::Manifest {
        file: show(file.as_bytes()),
        reason: error.to_string(),
    })
}

fn add_image(
    rootfs: &mut Rootfs,
    scratch: &Scratch,
    image: Image,
    limits: Limits,
) -> Result<Config> {
    let bad = |reason: String| Error::Manifest {
        file: show(image.config_name.as_bytes()),
        reason,
    };
    let config: ImageConfig = parse(&image.config_name, &image.config)?;
    let known = |value: &str, wanted: &str| value.is_empty() || value == wanted;
    if !known(&config.os, "linux") || !known(&config.architecture, "amd64") {
        return Err(Error::PlatformMissing {
            found: show(format!("{}/{}", config.os, config.architecture).as_bytes()),
        });
    }
    let digests = config
        .rootfs
        .map(|rootfs| rootfs.diff_ids)
        .unwrap_or_default();
    if digests.len() != image.layers.len() {
        return Err(bad(format!(
            "it has {} layer digests for {} layers",
            digests.len(),
            image.layers.len()
        )));
    }
    for (layer, digest) in image.layers.iter().zip(&digests) {
        add_layer(rootfs, scratch, layer, digest, limits)?;
    }
    let run = config.config.unwrap_or_default();
    let some = |value: Option<String>| value.filter(|value| !value.is_empty());
    Ok(Config {
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        user: some(run.user),
        working_dir: some(run.working_dir),
        stop_signal: some(run.stop_signal),
        exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
    })
}

/// Adds one layer and compares the digest of its plain tar.
fn add_layer(
    rootfs: &mut Rootfs,
    scratch: &Scratch,
    layer: &str,
    digest: &str,
    limits: Limits,
) -> Result<()> {
    let (_, plain) = decompress::open(scratch.open(layer)?)
        .map_err(|error| Error::from_read("a layer", error))?;
    let mut hashed = Hashed {
        inner: Limited::new(plain, limits.bytes_max),
        hash: Sha256::new(),
    };
    layer::add(rootfs, &mut Archive::new(&mut hashed))?;
    check_digest(layer, digest, &hashed.hash.finalize())
}

/// Compares `sha256:HEX` with a digest.
pub fn check_digest(file: &str, expected: &str, actual: &[u8]) -> Result<()> {
    let actual = format!("sha256:{}", hex(actual));
    if expected == actual {
        return Ok(());
    }
    Err(Error::Digest {
        file: show(file.as_bytes()),
        expected: show(expected.as_bytes()),
        actual,
    })
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.hash.update(&buf[..count]);
        Ok(count)
    }
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
