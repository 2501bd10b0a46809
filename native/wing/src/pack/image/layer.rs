//! One layer of an image put upon those below it, with whiteouts (OCI image specification, "Image Layer Filesystem
//! Changeset"): `.wh.NAME` hides NAME, `.wh..wh..opq` hides all that lower layers have in its folder.

use std::{collections::HashSet, io::Read};

use super::{rootfs::Rootfs, tree::NodeId};
use crate::pack::{
    codec::tar::{Archive, Contents, Entry, Kind},
    error::{Error, Result, show},
    path::split,
};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of this beginning are the bookkeeping of aufs.
const META: &[u8] = b".wh..wh.";

/// Adds the entries of a layer.
///
/// # Errors
/// As [`Rootfs::add`]; `entry_path_invalid` for a whiteout of nothing.
pub fn add(rootfs: &mut Rootfs, archive: &mut Archive<impl Read>) -> Result<()> {
    let mut layer = Layer {
        first: rootfs.tree.next_id(),
        touched: HashSet::new(),
        pruned: HashSet::new(),
    };
    while let Some(entry) = archive.next_entry()? {
        let path = rootfs.admit(&entry)?;
        match split(&path) {
            Some((folder, OPAQUE)) => {
                if let Some(folder) = rootfs.tree.find_directory(folder) {
                    layer.prune(rootfs, folder);
                }
                rootfs.release();
            }
            Some((_, name)) if name.starts_with(META) => {}
            Some((folder, name)) if name.starts_with(WHITEOUT) => {
                let hidden = &name[WHITEOUT.len()..];
                if matches!(hidden, b"" | b"." | b"..") {
                    return Err(Error::Path {
                        path: show(&entry.path),
                        reason: "it is a whiteout of no file",
                    });
                }
                if let Some(folder) = rootfs.tree.find_directory(folder) {
                    layer.hide(rootfs, folder, hidden);
                }
                rootfs.release();
            }
            _ => layer.add(rootfs, &entry, &path, archive)?,
        }
    }
    Ok(())
}

/// What this layer brought, which its own whiteouts do not hide, in whatever order they come.
struct Layer {
    /// Nodes from here on were made by this layer.
    first: NodeId,
    /// Nodes of lower layers that this one names again.
    touched: HashSet<NodeId>,
    /// Folders in which nothing of lower layers is left: a whiteout may come a million times.
    pruned: HashSet<NodeId>,
}

impl Layer {
    fn add(
        &mut self,
        rootfs: &mut Rootfs,
        entry: &Entry,
        path: &[u8],
        input: &mut impl Contents,
    ) -> Result<()> {
        rootfs.add(entry, path, input)?;
        let tree = &rootfs.tree;
        if matches!(entry.kind, Kind::Directory | Kind::HardLink) {
            self.touched
                .extend(tree.find(path).filter(|&id| id < self.first));
        }
        // A layer need not name the folders above what it brings.
        let mut folder = split(path).and_then(|(folder, _)| tree.find_directory(folder));
        while let Some(id) = folder {
            let above = tree.parent(id);
            folder = (id < self.first && self.touched.insert(id) && above != id).then_some(above);
        }
        Ok(())
    }

    /// Hides what lower layers have below `folder`.
    fn prune(&mut self, rootfs: &mut Rootfs, folder: NodeId) {
        if !self.pruned.insert(folder) {
            return;
        }
        let names: Vec<Box<[u8]>> = rootfs
            .tree
            .entries(folder)
            .map(|(name, _)| name.into())
            .collect();
        for name in names {
            self.hide(rootfs, folder, &name);
        }
    }

    fn hide(&mut self, rootfs: &mut Rootfs, folder: NodeId, name: &[u8]) {
        match rootfs.tree.child(folder, name) {
            Some(id) if id >= self.first => {}
            Some(id) if self.touched.contains(&id) => self.prune(rootfs, id),
            Some(_) => rootfs.tree.remove_name(folder, name),
            None => {}
        }
    }
}
