//! What `docker save` writes: `manifest.json`, which names a configuration and layers by their paths.

use serde::Deserialize;

use super::{
    members::Members,
    model::{Image, ambiguous, parse},
};
use crate::pack::error::{Error, Result};

/// The file that decides.
pub const MANIFEST: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Whether the manifest is one of this kind and names something that is in the archive.
pub fn is_in(members: &Members<'_>) -> bool {
    let images: Option<Vec<SavedImage>> = members
        .document(MANIFEST)
        .ok()
        .and_then(|bytes| parse(MANIFEST, &bytes).ok());
    images.is_some_and(|images| {
        images.iter().any(|image| {
            let mut names = image.layers.iter().chain([&image.config]);
            names.any(|name| members.has(name))
        })
    })
}

/// The one image that the manifest names.
///
/// # Errors
/// `image_manifest_invalid`, `image_ambiguous`, `image_layer_missing`.
pub fn image(members: &Members<'_>) -> Result<Image> {
    let mut images: Vec<SavedImage> = parse(MANIFEST, &members.document(MANIFEST)?)?;
    images.dedup_by(|a, b| a.config == b.config);
    let image = match (images.pop(), images.len()) {
        (Some(image), 0) => image,
        (None, _) => {
            return Err(Error::Manifest {
                file: MANIFEST.into(),
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
        config: members.document(&image.config)?,
        config_name: image.config,
        layers: image.layers,
    })
}
