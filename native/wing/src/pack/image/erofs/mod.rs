//! An EROFS image, uncompressed, written by us: no `mkfs` is needed on the host, and the bytes depend on nothing but
//! the archive. The format is that of Linux's `fs/erofs/erofs_fs.h`, features of 5.10 only, unless a file has holes of a MiB
//! or more: those ask for 5.15.
//!
//! ```text
//! block 0          superblock at byte 1024
//! 1 … d            contents of files, whole blocks, in the order in which they come (free room is used again)
//! d … m            whole blocks of directories
//! m … end          inodes, each followed by its extended attributes and by the last part of its data ("tail") when
//!                  both fit into one block; the root is the first
//! ```
//! Contents go straight to the output as they are read; metadata follows when all is known. So memory holds names,
//! attributes and tails (these up to a bound, after which they get blocks of their own), never a file.

mod chunks;
pub mod data;
mod dirent;
mod inode;
mod layout;
mod tails;
mod writer;
mod xattr;

pub use chunks::{Cut, FILE_MAX};
pub use data::{DataArea, StoredContents};
pub use inode::DEVICE_MAX;
pub use writer::{Summary, finish};
pub use xattr::is_storable as xattr_is_storable;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Unit of an inode's address ("nid").
const SLOT: usize = 32;
/// Slots of a block.
const SLOTS: usize = BLOCK / SLOT;

/// Bytes that an inode with these attributes takes at most.
pub fn inode_len_max(xattrs: &[(Vec<u8>, Vec<u8>)]) -> usize {
    inode::Form::Extended.len() + xattr::len(xattrs)
}
