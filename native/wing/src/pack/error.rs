//! Everything that can go wrong in `wing pack`, each with the code that the daemon turns into a fault.
//! The message says what was tried; what the system or a decoder answered is the source and goes into the chain.

use std::{error::Error as StdError, fmt::Write as _, io};

/// What `wing pack` functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Stable names for programs; the table in `native/README.md` explains them to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Usage,
    ConfinementFailed,
    ReadFailed,
    WriteFailed,
    DiskFull,
    ArchiveUnrecognized,
    ArchiveTruncated,
    ArchiveMalformed,
    ArchiveUnsupported,
    ArchiveTooLarge,
    EntryEscapes,
    EntryPathInvalid,
    EntryConflict,
    LinkTargetMissing,
    CompressionCorrupt,
    CompressionUnsupported,
    ScratchRequired,
    ImageManifestMissing,
    ImageManifestInvalid,
    ImageLayerMissing,
    ImagePlatformMissing,
    ImageAmbiguous,
    DigestMismatch,
    PackageMalformed,
    KernelMissing,
    KernelAmbiguous,
    KernelMalformed,
    KernelModuleMissing,
    ModuleMalformed,
    ModuleCycle,
}

impl Code {
    /// The code as it stands in the JSON line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::ConfinementFailed => "confinement_failed",
            Self::ReadFailed => "read_failed",
            Self::WriteFailed => "write_failed",
            Self::DiskFull => "disk_full",
            Self::ArchiveUnrecognized => "archive_unrecognized",
            Self::ArchiveTruncated => "archive_truncated",
            Self::ArchiveMalformed => "archive_malformed",
            Self::ArchiveUnsupported => "archive_unsupported",
            Self::ArchiveTooLarge => "archive_too_large",
            Self::EntryEscapes => "entry_escapes",
            Self::EntryPathInvalid => "entry_path_invalid",
            Self::EntryConflict => "entry_conflict",
            Self::LinkTargetMissing => "link_target_missing",
            Self::CompressionCorrupt => "compression_corrupt",
            Self::CompressionUnsupported => "compression_unsupported",
            Self::ScratchRequired => "scratch_required",
            Self::ImageManifestMissing => "image_manifest_missing",
            Self::ImageManifestInvalid => "image_manifest_invalid",
            Self::ImageLayerMissing => "image_layer_missing",
            Self::ImagePlatformMissing => "image_platform_missing",
            Self::ImageAmbiguous => "image_ambiguous",
            Self::DigestMismatch => "digest_mismatch",
            Self::PackageMalformed => "package_malformed",
            Self::KernelMissing => "kernel_missing",
            Self::KernelAmbiguous => "kernel_ambiguous",
            Self::KernelMalformed => "kernel_malformed",
            Self::KernelModuleMissing => "kernel_module_missing",
            Self::ModuleMalformed => "module_malformed",
            Self::ModuleCycle => "module_cycle",
        }
    }
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
    #[error("Cannot unpack the archive: it has more than {limit} {what}")]
    TooLarge { what: &'static str, limit: u64 },
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
            Self::TooLarge { .. } => Code::ArchiveTooLarge,
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

    /// The messages of the sources, outermost first.
    pub fn chain(&self) -> Vec<String> {
        let mut chain = Vec::new();
        let mut next = self.source();
        while let Some(error) = next {
            chain.push(error.to_string());
            next = error.source();
        }
        chain
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
