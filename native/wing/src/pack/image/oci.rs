//! The OCI image layout: an index names manifests, a manifest names a configuration and layers, all by digest.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    members::Members,
    model::{Image, ambiguous, check_digest, parse},
};
use crate::pack::error::{Error, Result, show};

/// The file that decides.
pub const INDEX: &str = "index.json";
/// Says which version of the layout this is; some writers leave it out.
const MARKER: &str = "oci-layout";
/// Indexes inside indexes.
const DEPTH_MAX: u32 = 4;
/// Manifests in all indexes.
const MANIFESTS_MAX: usize = 1000;

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Whether there is an index of this kind, and either the layout's own mark or something that the index names.
pub fn is_in(members: &Members<'_>) -> bool {
    #[derive(Deserialize)]
    struct Named {
        manifests: Vec<Descriptor>,
    }
    let index: Option<Named> = members
        .document(INDEX)
        .ok()
        .and_then(|bytes| parse(INDEX, &bytes).ok());
    index.is_some_and(|index| {
        let mut named = index.manifests.iter();
        members.has(MARKER) || named.any(|it| blob(&it.digest).is_ok_and(|name| members.has(&name)))
    })
}

/// The one image for linux/amd64.
///
/// # Errors
/// `image_platform_missing`, `image_ambiguous`, `image_manifest_invalid`, `image_layer_missing`, `digest_mismatch`.
pub fn image(members: &Members<'_>) -> Result<Image> {
    let mut manifests = Vec::new();
    collect(
        INDEX,
        &members.document(INDEX)?,
        members,
        DEPTH_MAX,
        &mut manifests,
    )?;
    let found = platforms(&manifests);
    manifests.retain(|descriptor| descriptor.platform.as_ref().is_none_or(is_ours));
    manifests.sort_by(|a, b| a.digest.cmp(&b.digest));
    manifests.dedup_by(|a, b| a.digest == b.digest);
    let chosen = match &manifests[..] {
        [] => return Err(Error::PlatformMissing { found }),
        [one] => one,
        several => {
            return Err(ambiguous(
                several.len(),
                several.iter().map(Descriptor::name),
            ));
        }
    };
    let (name, bytes) = document(members, &chosen.digest)?;
    let manifest: Manifest = parse(&name, &bytes)?;
    let kind = &manifest.config.media_type;
    if !(kind.is_empty()
        || kind.contains("container.image.v1")
        || kind.contains("oci.image.config"))
    {
        let reason = format!("it is no container image but \"{}\"", show(kind.as_bytes()));
        return Err(Error::Manifest { file: name, reason });
    }
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        if layer.media_type.contains("encrypted") {
            return Err(Error::Manifest {
                file: name,
                reason: "its layers are encrypted".into(),
            });
        }
        layers.push(blob(&layer.digest)?);
    }
    let (config_name, config) = document(members, &manifest.config.digest)?;
    Ok(Image {
        config,
        config_name,
        layers,
    })
}

fn collect(
    name: &str,
    bytes: &[u8],
    members: &Members<'_>,
    depth_left: u32,
    found: &mut Vec<Descriptor>,
) -> Result<()> {
    let index: Index = parse(name, bytes)?;
    for descriptor in index.manifests {
        // BuildKit stores how an image was built as one more "manifest" of an unknown platform.
        let attestation = descriptor
            .annotations
            .as_ref()
            .is_some_and(|notes| notes.contains_key("vnd.docker.reference.type"));
        if attestation {
            continue;
        }
        if descriptor.media_type.contains("image.index")
            || descriptor.media_type.contains("manifest.list")
        {
            if depth_left == 0 {
                return Err(Error::Manifest {
                    file: name.into(),
                    reason: "its indexes are nested too deep".into(),
                });
            }
            let (name, bytes) = document(members, &descriptor.digest)?;
            collect(&name, &bytes, members, depth_left - 1, found)?;
        } else if found.len() == MANIFESTS_MAX {
            return Err(Error::too_large("manifests", MANIFESTS_MAX as u64));
        } else {
            found.push(descriptor);
        }
    }
    Ok(())
}

impl Descriptor {
    fn name(&self) -> &str {
        let notes = self.annotations.as_ref();
        notes
            .and_then(|notes| {
                notes
                    .get("io.containerd.image.name")
                    .or_else(|| notes.get("org.opencontainers.image.ref.name"))
            })
            .unwrap_or(&self.digest)
    }
}

fn is_ours(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == "amd64"
}

fn platforms(manifests: &[Descriptor]) -> String {
    let known = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref());
    let names: Vec<String> = known
        .take(5)
        .map(|it| show(format!("{}/{}", it.os, it.architecture).as_bytes()))
        .collect();
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}

/// The path of a blob.
fn blob(digest: &str) -> Result<String> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(format!("blobs/sha256/{hex}"))
        }
        _ => Err(Error::Manifest {
            file: INDEX.into(),
            reason: format!("\"{}\" is no SHA-256 digest", show(digest.as_bytes())),
        }),
    }
}

/// A JSON blob whose digest is right.
fn document(members: &Members<'_>, digest: &str) -> Result<(String, Vec<u8>)> {
    let name = blob(digest)?;
    let bytes = members.document(&name)?;
    check_digest(&name, digest, &Sha256::digest(&bytes))?;
    Ok((name, bytes))
}
