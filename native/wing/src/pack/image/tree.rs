//! The tree of a root filesystem in RAM: metadata only, file contents are elsewhere and known by where they lie.
//! It obeys the rules of an extraction inside a root: symlinks on the way to an entry are followed but never out,
//! folders that the archive left out are made, and what comes later replaces what came before.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
};

use crate::pack::{
    error::{Error, Result, show},
    path::{DEPTH_MAX, NAME_MAX, components, split},
};

/// Index of a node. Never used again after the node is gone.
pub type NodeId = u32;

/// The root of every tree.
pub const ROOT: NodeId = 0;

/// Symlinks in one lookup; the kernel has the same bound.
const HOPS_MAX: u32 = 40;

/// Bytes of metadata in RAM. Two million entries with names of 60 bytes need 430 MiB.
const MEMORY_MAX: u64 = 900 << 20;
/// What a node, its place in a folder and its layout need beside the name, bytes (168 measured with two million files).
const NODE_COST: u64 = 170;

/// The contents of a regular file: how many bytes, and where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// Bytes.
    pub size: u64,
    pub place: Place,
}

/// The place of a file's bytes in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Whole blocks in a row, and the rest beside the inode.
    Row {
        block: u32,
        /// Handle of the part that is stored beside the inode.
        tail: Option<u32>,
    },
    /// Chunks with holes between; the handle of their map.
    Chunks(u32),
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Body {
    /// Index of the folder's entries.
    Directory(u32),
    File(Contents),
    Symlink(Box<[u8]>),
    /// Major and minor number.
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Owner, permissions and time of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `0o7777`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    /// Set of extended attributes; 0 is the empty set.
    pub xattrs: u32,
}

/// An inode.
#[derive(Debug, Clone)]
pub struct Node {
    pub attributes: Attributes,
    /// Names of it; for a directory its own "." and its children's ".." too. 0 when it is gone.
    pub links: u32,
    pub body: Body,
}

#[derive(Debug)]
struct Directory {
    entries: BTreeMap<Box<[u8]>, NodeId>,
    parent: NodeId,
    depth: u16,
}

/// Extended attributes of one node, sorted by name.
pub type XattrSet = Vec<(Vec<u8>, Vec<u8>)>;

/// A root filesystem.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    directories: Vec<Directory>,
    xattr_sets: Vec<XattrSet>,
    xattr_index: HashMap<XattrSet, u32>,
    freed: Vec<Contents>,
    memory: u64,
    steps: Cell<u64>,
}

impl Tree {
    /// An empty root, 0755, of time 0.
    pub fn new() -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            directories: Vec::new(),
            xattr_sets: vec![Vec::new()],
            xattr_index: HashMap::from([(Vec::new(), 0)]),
            freed: Vec::new(),
            memory: 0,
            steps: Cell::new(0),
        };
        tree.nodes.push(Node {
            attributes: Attributes {
                mode: 0o755,
                ..Attributes::default()
            },
            links: 2,
            body: Body::Directory(0),
        });
        tree.directories.push(Directory {
            entries: BTreeMap::new(),
            parent: ROOT,
            depth: 0,
        });
        tree
    }

    /// Counts the memory of a tree that stays beside this one into this one's bound.
    pub fn share_memory(&mut self, other: &Self) {
        self.memory += other.memory;
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// Nodes ever made: more than every `NodeId`.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub fn xattrs(&self, set: u32) -> &XattrSet {
        &self.xattr_sets[set as usize]
    }

    /// Names and nodes of a folder in the order of their bytes; nothing for what is no folder.
    pub fn entries(&self, id: NodeId) -> impl ExactSizeIterator<Item = (&[u8], NodeId)> {
        static EMPTY: BTreeMap<Box<[u8]>, NodeId> = BTreeMap::new();
        let entries = self
            .directory(id)
            .map_or(&EMPTY, |directory| &directory.entries);
        entries.iter().map(|(name, &node)| (&**name, node))
    }

    /// The folder above a folder; the root is its own.
    pub fn parent(&self, id: NodeId) -> NodeId {
        self.directory(id)
            .map_or(ROOT, |directory| directory.parent)
    }

    /// Contents that no node refers to any more, each given once.
    pub fn take_freed(&mut self) -> Vec<Contents> {
        std::mem::take(&mut self.freed)
    }

    /// The number of a set of extended attributes.
    pub fn intern_xattrs(&mut self, mut set: XattrSet) -> Result<u32> {
        set.sort();
        if let Some(&known) = self.xattr_index.get(&set) {
            return Ok(known);
        }
        let bytes: usize = set
            .iter()
            .map(|(name, value)| name.len() + value.len() + 64)
            .sum();
        self.charge(2 * bytes as u64)?;
        let number = u32::try_from(self.xattr_sets.len()).unwrap_or(u32::MAX);
        self.xattr_sets.push(set.clone());
        self.xattr_index.insert(set, number);
        Ok(number)
    }

    /// Puts a file, symlink, device or fifo at `path` (clean, not the root), in place of what was there.
    ///
    /// # Errors
    /// `entry_conflict` when something on the way is no folder; `entry_path_invalid` for a loop of symlinks or a
    /// tree too deep; `archive_too_large` for too much metadata.
    pub fn insert(&mut self, path: &[u8], attributes: Attributes, body: Body) -> Result<NodeId> {
        let (folder, name) = self.place(path)?;
        self.remove_name(folder, name);
        let extra = if let Body::Symlink(target) = &body {
            target.len() as u64
        } else {
            0
        };
        self.charge(NODE_COST + name.len() as u64 + extra)?;
        let id = self.push(Node {
            attributes,
            links: 1,
            body,
        });
        self.add_name(folder, name, id);
        Ok(id)
    }

    /// Makes the folder `path` (empty: the root), or gives the one that is there other attributes.
    pub fn insert_directory(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        let id = match split(path) {
            None => ROOT,
            Some(_) => {
                let (folder, name) = self.place(path)?;
                match self.child(folder, name) {
                    Some(id) if self.is_directory(id) => id,
                    _ => {
                        self.remove_name(folder, name);
                        self.make_directory(folder, name, path)?
                    }
                }
            }
        };
        self.nodes[id as usize].attributes = attributes;
        Ok(())
    }

    /// Gives the node at `target` (clean) the second name `path` (clean, not the root).
    ///
    /// # Errors
    /// `link_target_missing` when there is no such node or it is a folder; those of [`Tree::insert`].
    pub fn insert_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let missing = || Error::LinkTarget {
            path: show(path),
            target: show(target),
        };
        let node = self
            .find(target)
            .filter(|&node| !self.is_directory(node))
            .ok_or_else(missing)?;
        let (folder, name) = self.place(path)?;
        if self.child(folder, name) == Some(node) {
            return Ok(());
        }
        self.nodes[node as usize].links =
            self.node(node).links.checked_add(1).ok_or_else(missing)?;
        self.remove_name(folder, name);
        self.charge(NODE_COST + name.len() as u64)?;
        self.add_name(folder, name, node);
        Ok(())
    }

    /// Names looked at in all lookups so far.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// The node that the next new entry will be; those made later have greater numbers.
    pub fn next_id(&self) -> NodeId {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// The node at `path` (clean), symlinks on the way followed, the last name not.
    pub fn find(&self, path: &[u8]) -> Option<NodeId> {
        match split(path) {
            None => Some(ROOT),
            Some((folder, name)) => self.child(self.find_directory(folder)?, name),
        }
    }

    /// The folder at `path` (clean), all symlinks followed.
    pub fn find_directory(&self, path: &[u8]) -> Option<NodeId> {
        let mut hops = 0;
        self.lookup_from(ROOT, path, &mut hops)
    }

    fn lookup_from(&self, start: NodeId, path: &[u8], hops: &mut u32) -> Option<NodeId> {
        let mut here = if path.first() == Some(&b'/') {
            ROOT
        } else {
            start
        };
        for component in components(path) {
            self.steps.set(self.steps.get() + 1);
            if component == b".." {
                here = self.parent(here);
                continue;
            }
            let child = self.child(here, component)?;
            here = match &self.node(child).body {
                Body::Directory(_) => child,
                Body::Symlink(target) => {
                    *hops += 1;
                    if *hops > HOPS_MAX {
                        return None;
                    }
                    self.lookup_from(here, target, hops)?
                }
                _ => return None,
            };
        }
        Some(here)
    }

    /// The folder that an entry goes into, made if need be, and the entry's name there.
    fn place<'a>(&mut self, path: &'a [u8]) -> Result<(NodeId, &'a [u8])> {
        let (folder, name) = split(path).ok_or_else(|| Error::Path {
            path: "/".into(),
            reason: "the root must be a directory",
        })?;
        let mut hops = 0;
        Ok((self.walk(ROOT, folder, path, &mut hops)?, name))
    }

    /// Looks a folder up and makes what is missing. `..` in a symlink stops at the root, as after chroot(2).
    fn walk(&mut self, start: NodeId, way: &[u8], path: &[u8], hops: &mut u32) -> Result<NodeId> {
        let mut here = if way.first() == Some(&b'/') {
            ROOT
        } else {
            start
        };
        for component in components(way) {
            self.steps.set(self.steps.get() + 1);
            if component == b".." {
                here = self.parent(here);
                continue;
            }
            let Some(child) = self.child(here, component) else {
                here = self.make_directory(here, component, path)?;
                continue;
            };
            here = match &self.node(child).body {
                Body::Directory(_) => child,
                Body::Symlink(target) => {
                    *hops += 1;
                    if *hops > HOPS_MAX {
                        return Err(Error::Path {
                            path: show(path),
                            reason: "it goes through a loop of symlinks",
                        });
                    }
                    let target = target.clone();
                    self.walk(here, &target, path, hops)?
                }
                _ => {
                    return Err(Error::Conflict {
                        path: show(path),
                        parent: show(component),
                    });
                }
            };
        }
        Ok(here)
    }

    fn make_directory(&mut self, folder: NodeId, name: &[u8], path: &[u8]) -> Result<NodeId> {
        if name.len() > NAME_MAX {
            return Err(Error::Path {
                path: show(path),
                reason: "a symlink on its way names more than 255 bytes",
            });
        }
        let depth = self
            .directory(folder)
            .map_or(0, |directory| directory.depth)
            + 1;
        if usize::from(depth) > DEPTH_MAX {
            return Err(Error::Path {
                path: show(path),
                reason: "it is deeper than 256 directories",
            });
        }
        self.charge(NODE_COST + 64 + name.len() as u64)?;
        let index = u32::try_from(self.directories.len()).unwrap_or(u32::MAX);
        self.directories.push(Directory {
            entries: BTreeMap::new(),
            parent: folder,
            depth,
        });
        let attributes = Attributes {
            mode: 0o755,
            ..Attributes::default()
        };
        let id = self.push(Node {
            attributes,
            links: 2,
            body: Body::Directory(index),
        });
        self.add_name(folder, name, id);
        self.nodes[folder as usize].links += 1;
        Ok(id)
    }

    fn push(&mut self, node: Node) -> NodeId {
        let id = self.next_id();
        self.nodes.push(node);
        id
    }

    fn directory(&self, id: NodeId) -> Option<&Directory> {
        match self.node(id).body {
            Body::Directory(index) => self.directories.get(index as usize),
            _ => None,
        }
    }

    fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).body, Body::Directory(_))
    }

    /// The node of a name in a folder.
    pub fn child(&self, folder: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory(folder)?.entries.get(name).copied()
    }

    fn add_name(&mut self, folder: NodeId, name: &[u8], id: NodeId) {
        if let Body::Directory(index) = self.nodes[folder as usize].body {
            self.directories[index as usize]
                .entries
                .insert(name.into(), id);
        }
    }

    /// Takes a name of a folder away, and what has no name after that with all below it.
    pub fn remove_name(&mut self, folder: NodeId, name: &[u8]) {
        let Body::Directory(index) = self.nodes[folder as usize].body else {
            return;
        };
        let Some(gone) = self.directories[index as usize].entries.remove(name) else {
            return;
        };
        if self.is_directory(gone) {
            self.nodes[folder as usize].links -= 1;
        }
        let mut doomed = vec![gone];
        while let Some(id) = doomed.pop() {
            let node = &mut self.nodes[id as usize];
            match &node.body {
                Body::Directory(index) => {
                    let entries = std::mem::take(&mut self.directories[*index as usize].entries);
                    doomed.extend(entries.into_values());
                    node.links = 0;
                }
                body => {
                    node.links -= 1;
                    if let (0, Body::File(contents)) = (node.links, body) {
                        self.freed.push(*contents);
                    }
                }
            }
        }
    }

    fn charge(&mut self, bytes: u64) -> Result<()> {
        self.memory += bytes;
        if self.memory > MEMORY_MAX {
            return Err(Error::too_large(
                "MiB of names and attributes",
                MEMORY_MAX >> 20,
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(block: u32) -> Body {
        Body::File(Contents {
            size: 1,
            place: Place::Row { block, tail: None },
        })
    }

    fn insert(tree: &mut Tree, path: &str, body: Body) -> Result<NodeId> {
        tree.insert(path.as_bytes(), Attributes::default(), body)
    }

    fn symlink(tree: &mut Tree, path: &str, target: &str) {
        insert(tree, path, Body::Symlink(target.as_bytes().into())).unwrap();
    }

    #[test]
    fn an_entry_below_a_symlink_goes_where_the_symlink_leads() {
        let mut tree = Tree::new();
        symlink(&mut tree, "lib", "usr/lib");
        symlink(&mut tree, "abs", "/usr/lib");
        symlink(&mut tree, "up", "../../../../usr/lib");

        for (at, path) in ["lib/a", "abs/b", "up/c"].iter().enumerate() {
            insert(&mut tree, path, file(u32::try_from(at).unwrap())).unwrap();
        }

        let folder = tree.find(b"usr/lib").unwrap();
        let names: Vec<&[u8]> = tree.entries(folder).map(|(name, _)| name).collect();
        assert_eq!(names, [b"a", b"b", b"c"]);
        assert_eq!(tree.find(b"lib/a"), tree.find(b"usr/lib/a"));
    }

    #[test]
    fn loops_of_symlinks_and_files_on_the_way_are_refused() {
        let mut tree = Tree::new();
        symlink(&mut tree, "a", "b");
        symlink(&mut tree, "b", "a/x");
        insert(&mut tree, "file", file(0)).unwrap();

        assert_eq!(
            insert(&mut tree, "a/c", file(1))
                .unwrap_err()
                .code()
                .as_str(),
            "entry_path_invalid"
        );
        assert_eq!(
            insert(&mut tree, "file/c", file(1))
                .unwrap_err()
                .code()
                .as_str(),
            "entry_conflict"
        );
    }

    #[test]
    fn depth_counts_after_symlinks() {
        let mut tree = Tree::new();
        let deep = vec!["d"; 200].join("/");
        tree.insert_directory(deep.as_bytes(), Attributes::default())
            .unwrap();
        symlink(&mut tree, "s", &deep);

        let error = tree
            .insert_directory(format!("s/{deep}").as_bytes(), Attributes::default())
            .unwrap_err();

        assert_eq!(error.code().as_str(), "entry_path_invalid");
    }

    #[test]
    fn what_comes_later_replaces_what_was_there() {
        let mut tree = Tree::new();
        insert(&mut tree, "d/one", file(1)).unwrap();
        insert(&mut tree, "d/two", file(2)).unwrap();
        tree.insert_link(b"kept", b"d/two").unwrap();

        insert(&mut tree, "d", file(3)).unwrap();

        assert_eq!(tree.node(ROOT).links, 2);
        assert_eq!(
            tree.take_freed()
                .iter()
                .map(|contents| contents.place)
                .collect::<Vec<_>>(),
            [Place::Row {
                block: 1,
                tail: None
            }]
        );
        assert_eq!(tree.node(tree.find(b"kept").unwrap()).links, 1);
    }

    #[test]
    fn a_directory_over_a_directory_keeps_its_children() {
        let mut tree = Tree::new();
        insert(&mut tree, "d/one", file(1)).unwrap();

        tree.insert_directory(
            b"d",
            Attributes {
                mode: 0o700,
                ..Attributes::default()
            },
        )
        .unwrap();

        assert!(tree.find(b"d/one").is_some());
        assert_eq!(tree.node(tree.find(b"d").unwrap()).attributes.mode, 0o700);
    }

    #[test]
    fn a_hard_link_needs_a_target_that_is_no_directory() {
        let mut tree = Tree::new();
        tree.insert_directory(b"d", Attributes::default()).unwrap();

        for target in [&b"d"[..], b"", b"none", b"d/none"] {
            assert_eq!(
                tree.insert_link(b"l", target).unwrap_err().code().as_str(),
                "link_target_missing"
            );
        }
    }

    #[test]
    fn a_link_to_itself_changes_nothing() {
        let mut tree = Tree::new();
        insert(&mut tree, "a", file(1)).unwrap();

        tree.insert_link(b"a", b"a").unwrap();

        assert_eq!(tree.node(tree.find(b"a").unwrap()).links, 1);
        assert!(tree.take_freed().is_empty());
    }

    #[test]
    fn two_trees_share_one_bound_of_memory() {
        let (mut first, mut second) = (Tree::new(), Tree::new());
        first.charge(MEMORY_MAX - 1000).unwrap();
        second.share_memory(&first);

        insert(&mut second, "a", file(1)).unwrap();
        let error = insert(&mut second, &"n".repeat(900), file(2)).unwrap_err();

        assert_eq!(error.code().as_str(), "archive_too_large");
    }
}
