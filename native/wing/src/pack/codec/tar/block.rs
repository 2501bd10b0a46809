//! The unit of every tar archive.

/// Size of a tar block, bytes.
pub const BLOCK: usize = 512;
