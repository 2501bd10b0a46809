//! The places of all inodes: decided for the whole tree before the first is written, since directories name addresses.

use std::collections::VecDeque;

use crate::pack::{
    error::{Error, Result},
    image::tree::{Body, Contents, NodeId, Place, ROOT, Tree},
};

use super::{
    BLOCK, DataArea, SLOT, SLOTS,
    dirent::Listing,
    inode::{Form, Shape},
    xattr,
};

/// The place and shape of every inode that is in use.
pub struct Layout {
    /// Shapes by node; `None` for what was replaced.
    shapes: Vec<Option<Shape>>,
    /// Nodes in the order of their addresses.
    order: Vec<NodeId>,
    /// Directories in the order in which their whole blocks are written.
    directories: Vec<NodeId>,
    /// Blocks of inodes.
    pub blocks: u32,
    /// The time of most inodes, which then need not carry it.
    pub epoch: (i64, u32),
    /// Whether a file is stored in chunks, which a kernel must know of.
    pub has_chunks: bool,
}

impl Layout {
    pub fn new(tree: &Tree, data: &DataArea) -> Result<Self> {
        let (nodes, directories) = breadth_first(tree);
        let epoch = prevailing_time(tree, &nodes);
        let mut layout = Self {
            shapes: vec![None; tree.node_count()],
            order: nodes,
            directories,
            blocks: 0,
            epoch,
            has_chunks: false,
        };
        let mut space = InodeBlocks::new();
        for &id in &layout.order {
            let mut shape = layout.shape(tree, id, data);
            shape.slot = space.take(shape.head(), shape.tail_len)?;
            layout.has_chunks |= shape.map_len > 0;
            layout.shapes[id as usize] = Some(shape);
        }
        layout.blocks = space.blocks;
        let shapes = &layout.shapes;
        layout
            .order
            .sort_unstable_by_key(|&id| shapes[id as usize].map(|shape| shape.slot));
        // erofs-utils 1.5 reads behind each inode, whether it has attributes or not: there must be something.
        let ends_with_inode = layout.by_address().next_back().is_some_and(|(_, last)| {
            last.slot as usize * SLOT + last.form.len() == layout.blocks as usize * BLOCK
        });
        layout.blocks += u32::from(ends_with_inode);
        Ok(layout)
    }

    fn shape(&self, tree: &Tree, id: NodeId, data: &DataArea) -> Shape {
        let node = tree.node(id);
        let xattr_len = xattr::len(tree.xattrs(node.attributes.xattrs));
        let (blocks, tail_len) = match &node.body {
            Body::Directory(_) => Listing::new(tree, id).size(),
            Body::File(Contents {
                place: Place::Row { tail, .. },
                ..
            }) => (0, tail.map_or(0, |tail| data.tail(tail).len())),
            Body::File(_) => (0, 0),
            Body::Symlink(target) => (0, target.len()),
            Body::CharDevice(..) | Body::BlockDevice(..) | Body::Fifo => (0, 0),
        };
        let size = match &node.body {
            Body::File(contents) => contents.size,
            _ => u64::from(blocks) * BLOCK as u64 + tail_len as u64,
        };
        let map_len = match &node.body {
            Body::File(Contents {
                place: Place::Chunks(map),
                ..
            }) => data.map(*map).len(),
            _ => 0,
        };
        let form = Form::smallest(node, size, self.epoch);
        let mut shape = Shape {
            slot: 0,
            form,
            xattr_len,
            map_len,
            size,
            blocks,
            tail_len,
            apart: false,
        };
        // A tail that does not fit beside its inode gets a block of its own, behind the whole ones.
        if shape.tail_len > 0 && shape.head() % BLOCK + shape.tail_len > BLOCK {
            shape.apart = true;
            shape.blocks += 1;
            shape.tail_len = 0;
        }
        shape
    }

    /// Nodes by address.
    pub fn by_address(
        &self,
    ) -> impl ExactSizeIterator<Item = (NodeId, Shape)> + DoubleEndedIterator {
        self.order.iter().map(|&id| (id, self.get(id)))
    }

    /// Nodes that have blocks of our making: directories, and symlinks whose target does not fit beside them.
    pub fn with_blocks(&self) -> impl Iterator<Item = (NodeId, Shape)> {
        self.directories
            .iter()
            .map(|&id| (id, self.get(id)))
            .filter(|(_, shape)| shape.blocks > 0)
    }

    pub fn get(&self, id: NodeId) -> Shape {
        self.shapes[id as usize].unwrap_or_default()
    }

    /// The address of a node.
    pub fn nid(&self, id: NodeId) -> u64 {
        u64::from(self.get(id).slot)
    }
}

/// All nodes, each folder's children together, and what may need blocks of its own.
fn breadth_first(tree: &Tree) -> (Vec<NodeId>, Vec<NodeId>) {
    let mut seen = vec![false; tree.node_count()];
    let mut nodes = vec![ROOT];
    let mut with_blocks = Vec::new();
    let mut queue = VecDeque::from([ROOT]);
    seen[ROOT as usize] = true;
    while let Some(directory) = queue.pop_front() {
        with_blocks.push(directory);
        for (_, id) in tree.entries(directory) {
            if std::mem::replace(&mut seen[id as usize], true) {
                continue;
            }
            nodes.push(id);
            match tree.node(id).body {
                Body::Directory(_) => queue.push_back(id),
                Body::Symlink(_) => with_blocks.push(id),
                _ => {}
            }
        }
    }
    (nodes, with_blocks)
}

/// The time that more than half of the inodes have, if there is one (Boyer and Moore's vote): images made for
/// reproduction have one time throughout, and then an inode takes 32 bytes instead of 64.
fn prevailing_time(tree: &Tree, nodes: &[NodeId]) -> (i64, u32) {
    let mut candidate = (0, 0);
    let mut votes = 0u32;
    for &id in nodes {
        let attributes = tree.node(id).attributes;
        let time = (attributes.mtime, attributes.mtime_nsec);
        if votes == 0 {
            candidate = time;
        }
        if time == candidate {
            votes += 1
        } else {
            votes -= 1
        }
    }
    // The superblock's base time is unsigned.
    if candidate.0 < 0 { (0, 0) } else { candidate }
}

/// Blocks for inodes. An inode with its tail never crosses the end of a block, so blocks keep gaps; the gap that
/// fits best is used first.
struct InodeBlocks {
    blocks: u32,
    /// Blocks by the number of slots free at their end.
    gaps: Vec<Vec<u32>>,
}

impl InodeBlocks {
    /// The first slot stays empty: the inode number 0 means "none" to programs.
    fn new() -> Self {
        let mut gaps = vec![Vec::new(); SLOTS + 1];
        gaps[SLOTS - 1].push(0);
        Self { blocks: 1, gaps }
    }

    /// Finds room for `head` bytes and a tail that must not cross into another block.
    fn take(&mut self, head: usize, tail: usize) -> Result<u32> {
        let slots = (head + tail).div_ceil(SLOT);
        let whole = slots / SLOTS;
        if whole > 0 && slots > SLOTS {
            // Only attributes and maps make an inode longer than a block; it gets blocks in a row.
            let first = self.blocks;
            self.grow(u32::try_from(slots.div_ceil(SLOTS)).unwrap_or(u32::MAX))?;
            let left = slots.div_ceil(SLOTS) * SLOTS - slots;
            self.gaps[left].push(self.blocks - 1);
            return address(first, 0);
        }
        match (slots..=SLOTS).find(|&free| !self.gaps[free].is_empty()) {
            Some(free) => {
                let block = self.gaps[free].pop().unwrap_or(0);
                self.gaps[free - slots].push(block);
                address(block, SLOTS - free)
            }
            None => {
                let block = self.blocks;
                self.grow(1)?;
                self.gaps[SLOTS - slots].push(block);
                address(block, 0)
            }
        }
    }

    fn grow(&mut self, count: u32) -> Result<()> {
        self.blocks = self.blocks.checked_add(count).ok_or_else(too_large)?;
        Ok(())
    }
}

fn address(block: u32, slot: usize) -> Result<u32> {
    let slot = block as usize * SLOTS + slot;
    u32::try_from(slot).map_err(|_| too_large())
}

fn too_large() -> Error {
    Error::too_large("bytes of inodes", (u64::from(u32::MAX) + 1) * SLOT as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_with_tails_stay_inside_a_block_and_fill_gaps() {
        let mut space = InodeBlocks::new();

        let first = space.take(64, 0).unwrap();
        let big = space.take(64, 4000).unwrap();
        let small = space.take(64, 100).unwrap();
        let long = space.take(9000, 50).unwrap();

        assert_eq!(first, 1);
        assert_eq!(big, 128);
        assert_eq!(small, 3, "goes into the gap of the first block");
        assert_eq!(long, 256);
        assert_eq!(space.blocks, 5);
        for (slot, len) in [(big, 4064), (small, 164)] {
            assert!(slot as usize % SLOTS * SLOT + len <= BLOCK);
        }
    }
}
