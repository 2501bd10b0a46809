//! What `docker save` writes: `manifest.json`, which names a configuration and layers by their paths.

use serde::Deserialize;

use super::{
    model::{Image, ambiguous, parse},
    scratch::Scratch,
};
use crate::pack::error::{Error, Result};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The one image that the manifest names.
///
/// # Errors
/// `image_manifest_invalid`, `image_ambiguous`, `image_layer_missing`.
pub fn image(scratch: &Scratch) -> Result<Image> {
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
