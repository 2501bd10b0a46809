//! What an archive is: a manifest that names files of the archive makes it an image, whatever else lies beside them and in
//! whatever order they came. All else is a root tree, but for what can only be an image that lacks its manifest.

use super::{docker, members::Members, model::Image, oci};
use crate::pack::error::{Error, Result};

/// The image in an archive and its format; `None` for a root tree. `only_layout` is whether every name in the archive is
/// one that writers of images use.
///
/// # Errors
/// The `image_*` codes, for an image archive that is broken; `digest_mismatch`.
pub fn image_in(members: &Members, only_layout: bool) -> Result<Option<(&'static str, Image)>> {
    if docker::is_in(members) {
        Ok(Some(("docker", docker::image(members)?)))
    } else if oci::is_in(members) {
        Ok(Some(("oci", oci::image(members)?)))
    } else if !only_layout {
        Ok(None)
    } else if members.has(docker::MANIFEST) {
        Ok(Some(("docker", docker::image(members)?)))
    } else if members.has(oci::INDEX) {
        Ok(Some(("oci", oci::image(members)?)))
    } else {
        Err(Error::ManifestMissing)
    }
}

/// Whether an archive that begins with this file is most likely that of an image: only a guess, which decides where its
/// contents go first.
pub fn is_layout_file(path: &[u8]) -> bool {
    let packed = [&b".json"[..], b".tar", b".tar.gz"];
    is_layout_name(path)
        || (!path.contains(&b'/') && packed.iter().any(|suffix| path.ends_with(suffix)))
}

/// Names that the writers of image archives use at the top: Docker of all times, Podman, Skopeo, BuildKit, Kaniko.
pub fn is_layout_name(path: &[u8]) -> bool {
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
            assert!(is_layout_name(path.as_bytes()), "{path}");
        }
        for path in [
            "bin",
            "etc/manifest.json",
            "0123456789abcdef",
            &format!("{hash}0"),
            "usr/blobs",
        ] {
            assert!(!is_layout_name(path.as_bytes()), "{path}");
        }
    }
}
