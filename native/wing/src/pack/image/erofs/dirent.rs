//! Directories on disk: blocks of fixed records, sorted by name, the names behind them (`struct erofs_dirent`).

use crate::pack::image::tree::{Body, NodeId, Tree};

use super::BLOCK;

/// `struct erofs_dirent`.
const DIRENT: usize = 12;

/// All names of a directory in the order of their bytes, its own two among them.
pub struct Listing<'a> {
    names: Vec<(&'a [u8], NodeId)>,
}

impl<'a> Listing<'a> {
    pub fn new(tree: &'a Tree, directory: NodeId) -> Self {
        let mut names = Vec::with_capacity(tree.entries(directory).len() + 2);
        let mut own = [(&b"."[..], directory), (&b".."[..], tree.parent(directory))]
            .into_iter()
            .peekable();
        for entry in tree.entries(directory) {
            names.extend(std::iter::from_fn(|| own.next_if(|own| own.0 < entry.0)));
            names.push(entry);
        }
        names.extend(own);
        Self { names }
    }

    /// The names of each block and the bytes they use there.
    fn blocks(&self) -> impl Iterator<Item = (&[(&'a [u8], NodeId)], usize)> {
        let mut rest = &self.names[..];
        std::iter::from_fn(move || {
            let mut used = 0;
            let mut count = 0;
            for (name, _) in rest {
                if used + DIRENT + name.len() > BLOCK {
                    break;
                }
                used += DIRENT + name.len();
                count += 1;
            }
            let (block, behind) = rest.split_at(count);
            rest = behind;
            (count > 0).then_some((block, used))
        })
    }

    /// Whole blocks before the last, and the bytes that the last one uses.
    pub fn size(&self) -> (u32, usize) {
        let (count, last) = self
            .blocks()
            .fold((0u32, 0), |(count, _), (_, used)| (count + 1, used));
        (count - 1, last)
    }

    /// The bytes of each block but the last, and those that the last uses.
    pub fn encode(
        &self,
        tree: &Tree,
        nid: impl Fn(NodeId) -> u64,
        mut block_done: impl FnMut(&[u8]),
    ) {
        let mut bytes = Vec::with_capacity(BLOCK);
        let mut blocks = self.blocks().peekable();
        while let Some((names, _)) = blocks.next() {
            bytes.clear();
            let mut name_at = names.len() * DIRENT;
            for &(name, node) in names {
                bytes.extend(nid(node).to_le_bytes());
                bytes.extend(u16::try_from(name_at).unwrap_or(0).to_le_bytes());
                bytes.extend([file_type(&tree.node(node).body), 0]);
                name_at += name.len();
            }
            for (name, _) in names {
                bytes.extend(*name);
            }
            if blocks.peek().is_some() {
                bytes.resize(BLOCK, 0);
            }
            block_done(&bytes);
        }
    }
}

/// `FT_*` of `include/linux/fs_types.h`.
fn file_type(body: &Body) -> u8 {
    match body {
        Body::File(_) => 1,
        Body::Directory(_) => 2,
        Body::CharDevice(..) => 3,
        Body::BlockDevice(..) => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::image::tree::Attributes;

    #[test]
    fn dots_are_sorted_among_the_names() {
        let mut tree = Tree::new();
        for name in ["-a", "zz", ".a", "..."] {
            tree.insert(name.as_bytes(), Attributes::default(), Body::Fifo)
                .unwrap();
        }

        let names: Vec<&[u8]> = Listing::new(&tree, 0)
            .names
            .iter()
            .map(|entry| entry.0)
            .collect();

        assert_eq!(names, [&b"-a"[..], b".", b"..", b"...", b".a", b"zz"]);
    }

    #[test]
    fn blocks_are_filled_and_only_the_last_is_short() {
        let mut tree = Tree::new();
        for number in 0..1000 {
            let name = format!("{number:0width$}", width = 4 + number % 200);
            tree.insert(name.as_bytes(), Attributes::default(), Body::Fifo)
                .unwrap();
        }
        let listing = Listing::new(&tree, 0);
        let mut lens = Vec::new();

        listing.encode(&tree, u64::from, |bytes| lens.push(bytes.len()));

        let (whole, last) = listing.size();
        assert_eq!(lens.len(), whole as usize + 1);
        assert_eq!(lens.pop(), Some(last));
        assert!(lens.iter().all(|&len| len == BLOCK));
    }
}
