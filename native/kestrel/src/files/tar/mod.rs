//! tar streams (POSIX ustar with PAX headers, and what GNU tar writes), read and written without holding more than a header.
//!
//! Ours and not a crate's: entries must keep owners, xattrs and devices, names are bytes, every size in a header is hostile,
//! and PID 1 must stay small.

mod error;
mod read;
mod sparse;
mod write;

pub use error::TarError;
pub use read::Reader;
pub use sparse::{PIECES_MAX, Sparse};
pub use write::{end, header, padding};

/// Everything in tar is in blocks of this size.
pub const BLOCK_BYTES: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File,
    /// To an earlier entry, by its name.
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
    /// A vendor's own, to be passed over.
    Other,
}

/// One entry without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    /// As the stream has it: bytes, perhaps absolute, perhaps with `..`.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds within.
    pub mtime: (i64, u32),
    /// Bytes of data that follow.
    pub size: u64,
    /// Where they belong in a file with holes.
    pub sparse: Option<Sparse>,
    /// Major and minor.
    pub device: (u32, u32),
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    #[cfg(test)]
    pub fn file(path: &str, size: u64) -> Self {
        Self {
            kind: EntryKind::File,
            path: path.into(),
            link: vec![],
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size,
            sparse: None,
            device: (0, 0),
            xattrs: vec![],
        }
    }
}
