//! Why a tar stream is not read.

use std::io;

/// Why a stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("cannot read the tar stream")]
    Source(#[source] io::Error),
    #[error("the tar stream ends in the middle of an entry")]
    Truncated,
    #[error("the tar stream is malformed: {0}")]
    Malformed(&'static str),
}
