//! Entries of an archive made into a root filesystem: each is judged, its contents stored, its node put into the tree.

use std::fs::File;

use serde::Serialize;

use super::{
    erofs::{self, Cut, DataArea, Summary},
    members::Members,
    tree::{Attributes, Body, Tree},
};
use crate::pack::{
    args::Limits,
    codec::tar::{Contents, Entry, Kind},
    error::{Bound, Error, Result, show},
    path::normalize,
};

/// What is left out is listed up to here; then it is only counted.
const SKIPPED_MAX: usize = 100;

/// Names looked at in lookups, for each entry that may come. Trees ten folders deep need ten or twenty; symlinks that
/// lead through thousands of names each could ask for hours.
const STEPS_PER_ENTRY: u64 = 32;

/// Something that the image does not hold, and why.
#[derive(Debug, Serialize)]
pub struct Skipped {
    pub path: String,
    pub reason: String,
}

/// An image that grows.
#[derive(Debug)]
pub struct Rootfs {
    pub tree: Tree,
    data: DataArea,
    limits: Limits,
    entries: u64,
    bytes: u64,
    pub skipped: Vec<Skipped>,
    pub skipped_count: u64,
}

impl Rootfs {
    /// An empty image in `out`.
    ///
    /// # Errors
    /// `write_failed` if `out` is not a regular file open for writing.
    pub fn new(out: File, limits: Limits) -> Result<Self> {
        Ok(Self {
            tree: Tree::new(),
            data: DataArea::new(out)?,
            limits,
            entries: 0,
            bytes: 0,
            skipped: Vec::new(),
            skipped_count: 0,
        })
    }

    /// An empty image in `out` beside `other`, which stays: the bounds of entries and of memory are those of both.
    ///
    /// # Errors
    /// `write_failed` if `out` is not a regular file open for writing.
    pub fn beside(other: &Self, out: File) -> Result<Self> {
        let mut rootfs = Self::new(out, other.limits)?;
        rootfs.entries = other.entries;
        rootfs.tree.share_memory(&other.tree);
        Ok(rootfs)
    }

    /// Entries taken so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// What was stored so far, to be read as the members of an archive.
    pub fn members(&mut self) -> Result<Members<'_>> {
        self.data.settle()?;
        Ok(Members::new(&self.tree, &self.data))
    }

    /// The file of the image.
    pub fn into_file(self) -> File {
        self.data.into_file()
    }

    /// Counts an entry and gives its clean path.
    ///
    /// # Errors
    /// `archive_too_large`, `entry_escapes`, `entry_path_invalid`.
    pub fn admit(&mut self, entry: &Entry) -> Result<Vec<u8>> {
        self.entries += 1;
        let limit = self.limits.entries_max;
        if self.entries > limit {
            return Err(Error::limit(Bound::Entries, limit).of_path(&entry.path));
        }
        if self.tree.steps() > limit.saturating_mul(STEPS_PER_ENTRY) {
            return Err(Error::too_large(
                "names to look up",
                limit.saturating_mul(STEPS_PER_ENTRY),
            )
            .of_path(&entry.path));
        }
        normalize(&entry.path)
    }

    /// Adds one admitted entry, its contents from `input`.
    ///
    /// # Errors
    /// `archive_too_large` when the image would become larger than allowed; those of [`Tree`] and of storing.
    pub fn add(&mut self, entry: &Entry, path: &[u8], input: &mut impl Contents) -> Result<()> {
        self.charge(entry)?;
        let invalid = |reason| Error::Path {
            path: show(&entry.path),
            reason,
        };
        if path.is_empty() && entry.kind != Kind::Directory {
            return Err(invalid("the root must be a directory"));
        }
        if entry.kind == Kind::HardLink {
            self.tree.insert_link(path, &normalize(&entry.link)?)?;
            self.release();
            return Ok(());
        }
        let attributes = self.attributes(entry)?;
        let (major, minor) = entry.device;
        let body = match entry.kind {
            Kind::Directory => {
                self.tree.insert_directory(path, attributes)?;
                self.release();
                return Ok(());
            }
            Kind::File => {
                let inode_len = erofs::inode_len_max(self.tree.xattrs(attributes.xattrs));
                Body::File(self.data.store(
                    input,
                    entry.size,
                    entry.pieces.as_deref(),
                    inode_len,
                )?)
            }
            Kind::Symlink
                if entry.link.is_empty() || entry.link.len() >= 4096 || entry.link.contains(&0) =>
            {
                return Err(invalid(
                    "its target is empty, longer than 4095 bytes, or holds NUL",
                ));
            }
            Kind::Symlink => Body::Symlink(entry.link.as_slice().into()),
            Kind::CharDevice | Kind::BlockDevice
                if major > erofs::DEVICE_MAX.0 || minor > erofs::DEVICE_MAX.1 =>
            {
                return Err(invalid("its device number is out of range"));
            }
            Kind::CharDevice => Body::CharDevice(major, minor),
            Kind::BlockDevice => Body::BlockDevice(major, minor),
            Kind::Fifo | Kind::HardLink => Body::Fifo,
        };
        self.tree.insert(path, attributes, body)?;
        self.release();
        Ok(())
    }

    /// Writes the metadata; the image is complete after this.
    pub fn finish(&mut self) -> Result<Summary> {
        erofs::finish(&self.tree, &mut self.data)
    }

    /// Counts what an entry takes in the image: contents in whole blocks, since a small file may need one, the chunks of
    /// a file with holes and their map, and names and attributes, which an archive can give to all its entries at once.
    fn charge(&mut self, entry: &Entry) -> Result<()> {
        let attributes = entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let names = attributes.sum::<usize>() + entry.link.len();
        if entry.size > erofs::FILE_MAX {
            return Err(Error::too_large("bytes in a file", erofs::FILE_MAX).of_path(&entry.path));
        }
        let cut = entry
            .pieces
            .as_ref()
            .and_then(|pieces| Cut::best(entry.size, pieces));
        let contents = match cut {
            Some(cut) => cut.bytes(entry.size),
            None => entry.size.next_multiple_of(4096),
        };
        self.bytes = self.bytes.saturating_add(contents + names as u64);
        let limit = self.limits.bytes_max;
        if self.bytes > limit {
            return Err(Error::limit(Bound::Bytes, limit).of_path(&entry.path));
        }
        Ok(())
    }

    /// Notes that something is left out.
    pub fn skip(&mut self, path: &[u8], reason: String) {
        self.skipped_count += 1;
        if self.skipped.len() < SKIPPED_MAX {
            self.skipped.push(Skipped {
                path: show(path),
                reason,
            });
        }
    }

    /// Gives back the room of what is no longer in the tree.
    pub fn release(&mut self) {
        for contents in self.tree.take_freed() {
            self.data.release(&contents);
        }
    }

    fn attributes(&mut self, entry: &Entry) -> Result<Attributes> {
        if let Some(unread) = entry.unread {
            self.skip(&entry.path, format!("{unread} is not read"));
        }
        let mut set = Vec::new();
        for (name, value) in &entry.xattrs {
            if erofs::xattr_is_storable(name) {
                set.push((name.clone(), value.clone()));
            } else {
                self.skip(
                    &entry.path,
                    format!(
                        "EROFS has no place for the extended attribute \"{}\"",
                        show(name)
                    ),
                );
            }
        }
        Ok(Attributes {
            // Linux gives symlinks no other mode; tar(1) stores what it is told.
            mode: if entry.kind == Kind::Symlink {
                0o777
            } else {
                entry.mode
            },
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
            xattrs: self.tree.intern_xattrs(set)?,
        })
    }
}
