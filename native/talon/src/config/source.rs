//! Where a resource of a machine comes from.

use super::node::{ConfigError, Fields};

/// Bytes of a path at most.
pub(super) const PATH_MAX: usize = 4096;
/// Bytes of a device's name at most.
pub(super) const ID_MAX: usize = 64;

/// Where bytes come from or go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An inherited descriptor.
    Fd(i32),
    /// A file to open, outside the jail only.
    Path(String),
}

impl Source {
    fn parse(text: &str) -> Result<Self, String> {
        let number = text
            .strip_prefix("/dev/fd/")
            .or_else(|| text.strip_prefix("/proc/self/fd/"));
        match number {
            None if text.is_empty() => Err("is empty".to_owned()),
            None => Ok(Self::Path(text.to_owned())),
            Some(number) => match number.parse::<i32>() {
                Ok(fd) if fd >= 0 => Ok(Self::Fd(fd)),
                _ => Err(format!("{text} names no descriptor")),
            },
        }
    }
}

/// A field that names a resource.
pub(super) fn source(
    fields: &mut Fields<'_>,
    key: &'static str,
) -> Result<Option<Source>, ConfigError> {
    fields
        .text(key, PATH_MAX)?
        .map(|text| Source::parse(text).map_err(|problem| fields.problem(key, problem)))
        .transpose()
}
