//! The files of an image archive by their names. They were stored like those of a root tree, since only the whole archive
//! shows what it is; manifests name them in an order that the archive does not have.

use super::{
    erofs::{DataArea, StoredContents},
    tree::{Body, Tree},
};
use crate::pack::{
    error::{Error, Result, show},
    input::read_all,
    path::{components, split},
};

/// Symlinks from one file of an archive to another.
const HOPS_MAX: u32 = 8;
/// Manifests and configurations; registries refuse them above 4 MiB.
const DOCUMENT_MAX: u64 = 4 << 20;

/// The files of an archive.
#[derive(Debug, Clone, Copy)]
pub struct Members<'a> {
    tree: &'a Tree,
    data: &'a DataArea,
}

impl<'a> Members<'a> {
    /// Takes a tree whose contents are settled in `data`.
    pub fn new(tree: &'a Tree, data: &'a DataArea) -> Self {
        Self { tree, data }
    }

    /// Whether there is a file of this name.
    pub fn has(&self, path: &str) -> bool {
        self.open(path).is_ok()
    }

    /// The contents of a file, through links to other members.
    ///
    /// # Errors
    /// `image_layer_missing` if there is no such file.
    pub fn open(&self, path: &str) -> Result<StoredContents<'a>> {
        let missing = || Error::LayerMissing {
            file: show(path.as_bytes()),
        };
        let mut here = clean(b"", path.as_bytes());
        for _ in 0..HOPS_MAX {
            let node = self.tree.find(&here).ok_or_else(missing)?;
            here = match &self.tree.node(node).body {
                Body::File(contents) => return Ok(self.data.reader(*contents)),
                Body::Symlink(target) => {
                    clean(split(&here).map_or(b"", |(folder, _)| folder), target)
                }
                _ => return Err(missing()),
            };
        }
        Err(missing())
    }

    /// A short file as a whole.
    pub fn document(&self, path: &str) -> Result<Vec<u8>> {
        let contents = self.open(path)?;
        if contents.size() > DOCUMENT_MAX {
            return Err(Error::Manifest {
                file: show(path.as_bytes()),
                reason: "it is longer than 4 MiB".into(),
            });
        }
        read_all(contents, DOCUMENT_MAX, "what was put aside")
    }
}

/// `target` as seen from `folder`, in the spelling of the tree, which stops `..` at its root.
fn clean(folder: &[u8], target: &[u8]) -> Vec<u8> {
    let folder = if target.first() == Some(&b'/') {
        b""
    } else {
        folder
    };
    let parts: Vec<&[u8]> = components(folder).chain(components(target)).collect();
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_seen_from_its_folder() {
        assert_eq!(clean(b"a", b"../b/layer.tar"), b"a/../b/layer.tar");
        assert_eq!(clean(b"a", b"/c"), b"c");
        assert_eq!(clean(b"", b"./x//y/"), b"x/y");
    }
}
