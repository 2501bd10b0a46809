//! Bodies of the conversations about files: copy-in, copy-out, stat, list. Paths are absolute and those of the guest.

use serde::{Deserialize, Serialize};

/// Whom the copied files belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// Owners stay as the tar stream says, by number.
    #[default]
    Keep,
    /// uid 0, gid 0.
    Root,
}

/// `open copy-in`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIn {
    /// The directory that the entries' names are relative to; made where it is missing.
    pub path: String,
    #[serde(default)]
    pub owner: Owner,
    /// Permission bits of directories that have to be made for `path`; 0o755 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Also set-id bits, file capabilities and devices; what exists takes the owner and mode of its entry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub archive: bool,
}

/// The final `ok` of copy-in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyInDone {
    /// Entries that are there now.
    pub entries: u64,
    /// Bytes of file contents written.
    pub bytes: u64,
    /// Entries and extended attributes that this file system cannot hold.
    #[serde(default)]
    pub skipped: u64,
}

/// `open copy-out`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOut {
    pub path: String,
    /// Whether a symlink at `path` itself is followed; links below are always archived as links.
    #[serde(default)]
    pub follow: bool,
    /// Whether holes of files are left out (PAX 1.0 sparse files); else they are zeros.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sparse: bool,
}

/// `ok` of copy-out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOutOk {
    /// The last component of the path: the name of the first entry of the tar stream (`.` for `/`).
    pub name: String,
    pub is_dir: bool,
}

/// `open stat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    pub path: String,
    #[serde(default)]
    pub follow: bool,
}

/// `ok` of stat. All but `exists` is zero, false and null when nothing is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    pub exists: bool,
    pub is_dir: bool,
    pub is_file: bool,
    pub is_symlink: bool,
    pub link_target: Option<String>,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    pub size: u64,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ms: i64,
}

/// `open list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    pub path: String,
    /// The most entries that are wanted; kestrel's own limit is 10,000 and half a mebibyte of answer.
    #[serde(default = "default_limit")]
    pub limit: u32,
}

const fn default_limit() -> u32 {
    1000
}

/// `ok` of list; entries by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListOk {
    pub entries: Vec<ListEntry>,
    pub truncated: bool,
}

/// One entry of a list; links are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// Bytes that are not UTF-8 are shown as U+FFFD.
    pub name: String,
    #[serde(flatten)]
    pub stat: FileStat,
}
