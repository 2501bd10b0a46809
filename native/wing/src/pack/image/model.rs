//! The model that every image archive comes down to: a configuration and layers, checked and put into a root.

use std::io::{self, Read};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use super::{layer, members::Members, rootfs::Rootfs, text};
use crate::pack::{
    args::Limits,
    codec::{decompress, tar::Archive},
    error::{Error, Result, show},
    hex::hex,
    input::Limited,
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
    serde_json::from_str(&text::readable(bytes)).map_err(|error| Error::Manifest {
        file: show(file.as_bytes()),
        reason: error.to_string(),
    })
}

/// Puts the layers of an image into `rootfs`; gives its configuration.
///
/// # Errors
/// `image_platform_missing`, `image_manifest_invalid`, `image_layer_missing`, `digest_mismatch`; those of the layers.
pub fn add_image(
    rootfs: &mut Rootfs,
    members: &Members<'_>,
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
        add_layer(rootfs, members, layer, digest, limits)?;
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
    members: &Members<'_>,
    layer: &str,
    digest: &str,
    limits: Limits,
) -> Result<()> {
    let (_, plain) = decompress::open(members.open(layer)?)
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
