//! Everything that can go wrong in `wing pack`, each with the code that the daemon turns into a fault.
//! The message says what was tried; what the system or a decoder answered is the source and goes into the chain.

use std::{fmt::Write as _, io};

/// What `wing pack` functions return.
pub type Result<T> = std::result::Result<T, Error>;

macro_rules! codes {
    ($($name:ident = $text:literal,)*) => {
        /// Stable names for programs; the table in `native/README.md` explains them to people.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($name,)*
        }

        impl Code {
            /// The code as it stands in the JSON line.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

codes! {
    Usage = "usage",
    ConfinementFailed = "confinement_failed",
    ReadFailed = "read_failed",
    WriteFailed = "write_failed",
    DiskFull = "disk_full",
    ArchiveUnrecognized = "archive_unrecognized",
    ArchiveTruncated = "archive_truncated",
    ArchiveMalformed = "archive_malformed",
    ArchiveUnsupported = "archive_unsupported",
    ArchiveTooLarge = "archive_too_large",
    EntryEscapes = "entry_escapes",
    EntryPathInvalid = "entry_path_invalid",
    EntryConflict = "entry_conflict",
    LinkTargetMissing = "link_target_missing",
    CompressionCorrupt = "compression_corrupt",
    CompressionUnsupported = "compression_unsupported",
    ScratchRequired = "scratch_required",
    ImageManifestMissing = "image_manifest_missing",
    ImageManifestInvalid = "image_manifest_invalid",
    ImageLayerMissing = "image_layer_missing",
    ImagePlatformMissing = "image_platform_missing",
    ImageAmbiguous = "image_ambiguous",
    DigestMismatch = "digest_mismatch",
    PackageMalformed = "package_malformed",
    KernelMissing = "kernel_missing",
    KernelAmbiguous = "kernel_ambiguous",
    KernelMalformed = "kernel_malformed",
    KernelModuleMissing = "kernel_module_missing",
    ModuleMalformed = "module_malformed",
    ModuleCycle = "module_cycle",
}

/// The bounds that the command line sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Bytes,
    Entries,
}

impl Bound {
    /// The flag that raises it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Bytes => "max-bytes",
            Self::Entries => "max-entries",
        }
    }

    fn of(self, limit: u64) -> String {
        match self {
            Self::Bytes => format!("{} of contents", size(limit)),
            Self::Entries if limit == 1 => "1 entry".into(),
            Self::Entries => format!("{limit} entries"),
        }
    }
}

/// `16 GiB`; a number of bytes that is no whole number of MiB stays one.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".into(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ => format!("{bytes} bytes"),
    }
}

/// What a sentence is about: an entry, or the archive as a whole.
fn subject(path: Option<&str>) -> String {
    path.map_or_else(|| "the archive".into(), |path| format!("\"{path}\""))
}

/// A failure of `wing pack`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Cannot understand the command line: {reason}")]
    Usage { reason: String },
    #[error("Cannot use file descriptor {fd} as {role}")]
    Descriptor {
        fd: i32,
        role: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("Cannot confine the process: {step} failed")]
    Confinement {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("Cannot read {what}")]
    Read {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("Cannot write {what}")]
    Write {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("Cannot read the archive: it is neither tar nor gzip, xz or zstd of one")]
    NotAnArchive,
    #[error("Cannot read {what}: it ends too early, after {offset} bytes")]
    Truncated { what: &'static str, offset: u64 },
    #[error("Cannot read the archive at byte {offset}: {reason}")]
    Malformed { offset: u64, reason: String },
    #[error("Cannot read the archive at byte {offset}: {feature} is not supported")]
    Unsupported { offset: u64, feature: String },
    #[error("Cannot unpack {}: it has more than {limit} {what}", subject(path.as_deref()))]
    TooLarge {
        what: &'static str,
        limit: u64,
        /// The entry at which the bound was met, where it is known.
        path: Option<String>,
    },
    /// A bound that a flag raises.
    #[error("Cannot unpack {}: the limit is {}", subject(path.as_deref()), bound.of(*limit))]
    Limit {
        bound: Bound,
        limit: u64,
        path: Option<String>,
    },
    #[error("Cannot unpack \"{path}\": it leads out of the archive's root")]
    Escapes { path: String },
    #[error("Cannot unpack \"{path}\": {reason}")]
    Path { path: String, reason: &'static str },
    #[error("Cannot unpack \"{path}\": \"{parent}\" is not a directory")]
    Conflict { path: String, parent: String },
    #[error("Cannot unpack hard link \"{path}\": its target \"{target}\" is not in the archive")]
    LinkTarget { path: String, target: String },
    #[error("Cannot decompress {format} data: it is damaged")]
    Corrupt {
        format: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("Cannot decompress {format} data: it ends too early")]
    CompressedTruncated { format: &'static str },
    #[error("Cannot decompress {what}: {reason}")]
    Compression {
        what: &'static str,
        reason: &'static str,
    },
    #[error("Cannot unpack a layered image: no scratch file was given")]
    ScratchRequired,
    #[error(
        "Cannot find the image's manifest: the archive has neither \"manifest.json\" nor \"index.json\""
    )]
    ManifestMissing,
    #[error("Cannot understand \"{file}\" of the image: {reason}")]
    Manifest { file: String, reason: String },
    #[error("Cannot find \"{file}\", which the image's manifest names")]
    LayerMissing { file: String },
    #[error("Cannot find an image for linux/amd64: the archive has {found}")]
    PlatformMissing { found: String },
    #[error("Cannot choose an image: the archive holds {count}: {names}")]
    Ambiguous { count: usize, names: String },
    #[error("Cannot trust \"{file}\": its digest is {actual}, not {expected}")]
    Digest {
        file: String,
        expected: String,
        actual: String,
    },
    #[error("Cannot read the Debian package: {reason}")]
    Package { reason: String },
    #[error("Cannot find a kernel: no \"vmlinuz\" or \"vmlinux\" in {where_}")]
    KernelMissing { where_: &'static str },
    #[error("Cannot choose a kernel: {reason}")]
    KernelAmbiguous { reason: String },
    #[error("Cannot understand the kernel: {reason}")]
    Kernel { reason: String },
    #[error("Cannot use kernel {version}: it lacks {}", names.join(", "))]
    ModuleMissing { version: String, names: Vec<String> },
    #[error("Cannot understand module \"{name}\": {reason}")]
    Module { name: String, reason: String },
    #[error("Cannot order the modules: \"{name}\" depends on itself")]
    ModuleCycle { name: String },
}

impl Error {
    /// The stable name of this failure.
    pub fn code(&self) -> Code {
        match self {
            Self::Usage { .. } | Self::Descriptor { .. } => Code::Usage,
            Self::Confinement { .. } => Code::ConfinementFailed,
            Self::Read { .. } => Code::ReadFailed,
            Self::Write { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Code::DiskFull,
                _ => Code::WriteFailed,
            },
            Self::NotAnArchive => Code::ArchiveUnrecognized,
            Self::Truncated { .. } | Self::CompressedTruncated { .. } => Code::ArchiveTruncated,
            Self::Malformed { .. } => Code::ArchiveMalformed,
            Self::Unsupported { .. } => Code::ArchiveUnsupported,
            Self::TooLarge { .. } | Self::Limit { .. } => Code::ArchiveTooLarge,
            Self::Escapes { .. } => Code::EntryEscapes,
            Self::Path { .. } => Code::EntryPathInvalid,
            Self::Conflict { .. } => Code::EntryConflict,
            Self::LinkTarget { .. } => Code::LinkTargetMissing,
            Self::Corrupt { .. } => Code::CompressionCorrupt,
            Self::Compression { .. } => Code::CompressionUnsupported,
            Self::ScratchRequired => Code::ScratchRequired,
            Self::ManifestMissing => Code::ImageManifestMissing,
            Self::Manifest { .. } => Code::ImageManifestInvalid,
            Self::LayerMissing { .. } => Code::ImageLayerMissing,
            Self::PlatformMissing { .. } => Code::ImagePlatformMissing,
            Self::Ambiguous { .. } => Code::ImageAmbiguous,
            Self::Digest { .. } => Code::DigestMismatch,
            Self::Package { .. } => Code::PackageMalformed,
            Self::KernelMissing { .. } => Code::KernelMissing,
            Self::KernelAmbiguous { .. } => Code::KernelAmbiguous,
            Self::Kernel { .. } => Code::KernelMalformed,
            Self::ModuleMissing { .. } => Code::KernelModuleMissing,
            Self::Module { .. } => Code::ModuleMalformed,
            Self::ModuleCycle { .. } => Code::ModuleCycle,
        }
    }

    /// A bound of the whole archive that is not to be raised.
    pub fn too_large(what: &'static str, limit: u64) -> Self {
        Self::TooLarge {
            what,
            limit,
            path: None,
        }
    }

    /// A bound that a flag raises.
    pub fn limit(bound: Bound, limit: u64) -> Self {
        Self::Limit {
            bound,
            limit,
            path: None,
        }
    }

    /// Names the entry at which a bound was met; other errors, and one that names an entry, stay as they are.
    pub fn of_path(mut self, entry: &[u8]) -> Self {
        if let Self::TooLarge { path, .. } | Self::Limit { path, .. } = &mut self
            && path.is_none()
            && !entry.is_empty()
        {
            *path = Some(show(entry));
        }
        self
    }

    /// The flag that raises the bound that was met.
    pub fn flag(&self) -> Option<&'static str> {
        match self {
            Self::Limit { bound, .. } => Some(bound.flag()),
            _ => None,
        }
    }

    /// The messages of the sources, outermost first.
    pub fn chain(&self) -> Vec<String> {
        crate::error_line::chain(self)
    }

    /// Takes an error of ours out of the `io::Error` in which a stack of readers carried it,
    /// or says that `what` could not be read.
    pub fn from_read(what: &'static str, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(source) => Self::Read { what, source },
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// A path of an archive for a message: control characters and bytes that are not UTF-8 are escaped, long ones are cut.
pub fn show(path: &[u8]) -> String {
    const CHARS_MAX: usize = 300;
    let mut shown = String::new();
    for chunk in path.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() || char == '"' || char == '\\' {
                shown.extend(char.escape_default());
            } else {
                shown.push(char);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    match shown.char_indices().nth(CHARS_MAX) {
        Some((cut, _)) => format!("{}…", &shown[..cut]),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_explained() {
        let readme = include_str!("../../../README.md");
        let table: Vec<&str> = readme
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
            .collect();
        for code in Code::ALL {
            let name = format!("`{}`", code.as_str());
            assert!(table.iter().any(|cell| cell.contains(&name)), "{name}");
        }
    }

    #[test]
    fn a_failed_write_on_a_full_disk_has_its_own_code() {
        let full = Error::Write {
            what: "the image",
            source: io::Error::from_raw_os_error(libc::ENOSPC),
        };
        let other = Error::Write {
            what: "the image",
            source: io::Error::from_raw_os_error(libc::EIO),
        };

        assert_eq!(full.code().as_str(), "disk_full");
        assert_eq!(other.code().as_str(), "write_failed");
        assert!(
            !full.to_string().contains("space"),
            "the source belongs to the chain only"
        );
    }

    #[test]
    fn an_error_of_ours_survives_the_way_through_readers() {
        let wrapped: io::Error = Error::Escapes { path: "x".into() }.into();

        assert_eq!(Error::from_read("y", wrapped).code(), Code::EntryEscapes);
    }

    #[test]
    fn a_hostile_name_cannot_write_to_the_terminal() {
        assert_eq!(show(b"a\x1b[2J\xff\"b"), "a\\u{1b}[2J\\xff\\\"b");
        assert_eq!(show(&[b'x'; 5000]).chars().count(), 301);
    }
}
