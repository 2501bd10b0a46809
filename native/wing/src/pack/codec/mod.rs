//! Formats of archives and of compressed data, read and written as streams: nothing here knows what is inside.

pub mod cpio;
pub mod decompress;
mod lz4_legacy;
pub mod tar;
mod zstd;
