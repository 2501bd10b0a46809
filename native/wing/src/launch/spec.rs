//! The specification of one launch: what the daemon writes to fd 3, and nothing more.
//!
//! It is read to its end before anything is done, and every rule that can be checked without an effect is
//! checked here, so that a refused specification has changed nothing. Unknown fields are refused: a field
//! that a newer daemon relies on (say, a limit) must not be skipped in silence by an older launcher.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::RawFd;

use serde::Deserialize;

use super::error::LaunchError;

/// Bytes of JSON accepted on fd 3. A real specification is below 16 KiB; the bound keeps a mistaken or
/// hostile writer from sizing our memory.
pub const SPEC_BYTES_MAX: u64 = 1024 * 1024;
/// The descriptor that carries the specification.
pub const SPEC_FD: RawFd = 3;
/// Highest descriptor number that a program may be given. Placing works through numbers above the highest that
/// is used, and both must fit the usual soft limit of 1024 open files.
pub const TARGET_FD_MAX: RawFd = 255;
const FDS_MAX: usize = 64;
const CGROUPS_MAX: usize = 32;
const GROUPS_MAX: usize = 64;

/// One launch. Field by field in `native/README.md`, "wing launch".
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub argv: Vec<String>,
    pub exe: Exe,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default = "root")]
    pub cwd: String,
    #[serde(default)]
    pub cwd_by: CwdBy,
    #[serde(default)]
    pub cgroups: Vec<String>,
    #[serde(default)]
    pub setsid: bool,
    pub umask: Option<u32>,
    pub oom_score_adj: Option<i32>,
    #[serde(default)]
    pub rlimits: BTreeMap<Resource, (Option<u64>, Option<u64>)>,
    #[serde(default)]
    pub namespaces: BTreeSet<Namespace>,
    #[serde(default)]
    pub fds: Vec<(RawFd, RawFd)>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: Option<Vec<u32>>,
    #[serde(default = "yes")]
    pub no_new_privs: bool,
    #[serde(default)]
    pub capabilities: Capabilities,
    pub report_fd: Option<RawFd>,
}

/// The program: a path, or a descriptor (a sealed memfd has no path that another process could change).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Exe {
    Path(String),
    Fd(ExeFd),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExeFd {
    pub fd: RawFd,
}

/// getrlimit(2), without the prefix `RLIMIT_`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// namespaces(7).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    User,
    Mount,
    Net,
    Pid,
    Ipc,
}

/// `Drop`: no capability is held by the program or can be gained by it (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Capabilities {
    #[default]
    Drop,
    Keep,
}

/// Whose rights enter `cwd`. Those of the caller: a folder that the program's user could not reach by its path, one in
/// the home of another user for instance.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum CwdBy {
    #[default]
    User,
    Caller,
}

fn root() -> String {
    "/".to_owned()
}

const fn yes() -> bool {
    true
}

impl Spec {
    /// Parses and checks a specification.
    ///
    /// # Errors
    /// `spec_invalid`: not JSON of this shape, or a rule below is broken.
    pub fn parse(json: &[u8]) -> Result<Self, LaunchError> {
        let spec: Self = serde_json::from_slice(json).map_err(LaunchError::Malformed)?;
        spec.check().map_err(LaunchError::Refused)?;
        Ok(spec)
    }

    pub fn has(&self, namespace: Namespace) -> bool {
        self.namespaces.contains(&namespace)
    }

    fn check(&self) -> Result<(), String> {
        if self.argv.is_empty() {
            return Err("argv is empty".to_owned());
        }
        if let Exe::Path(path) = &self.exe {
            absolute("exe", path)?;
        }
        absolute("cwd", &self.cwd)?;
        at_most("cgroups", self.cgroups.len(), CGROUPS_MAX)?;
        for path in &self.cgroups {
            absolute("cgroups", path)?;
        }
        if self.umask.is_some_and(|mask| mask > 0o777) {
            return Err("umask is above 0777".to_owned());
        }
        if self
            .oom_score_adj
            .is_some_and(|adj| !(-1000..=1000).contains(&adj))
        {
            return Err("oom_score_adj is not within -1000 and 1000".to_owned());
        }
        for (resource, (soft, hard)) in &self.rlimits {
            if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
                return Err(format!(
                    "the soft limit of {resource:?} is above its hard limit"
                ));
            }
        }
        self.check_identity()?;
        self.check_fds()
    }

    fn check_identity(&self) -> Result<(), String> {
        // A uid without a gid would keep root's group, which is rarely what anybody wants and never what they see.
        if self.uid.is_some() != self.gid.is_some() {
            return Err("uid and gid go together".to_owned());
        }
        if self.groups.is_some() && self.uid.is_none() {
            return Err("groups are given without uid and gid".to_owned());
        }
        // 2^32 - 1 means "leave as it is" to setresuid(2).
        let mut ids = self
            .uid
            .iter()
            .chain(&self.gid)
            .chain(self.groups.iter().flatten());
        if ids.any(|&id| id == u32::MAX) {
            return Err("4294967295 is not an id".to_owned());
        }
        at_most(
            "groups",
            self.groups.as_ref().map_or(0, Vec::len),
            GROUPS_MAX,
        )
    }

    fn check_fds(&self) -> Result<(), String> {
        at_most("fds", self.fds.len(), FDS_MAX)?;
        let mut taken = BTreeSet::new();
        for &(from, to) in &self.fds {
            if from < 0 || from == SPEC_FD {
                return Err(format!("fds: {from} cannot be handed on"));
            }
            if !(3..=TARGET_FD_MAX).contains(&to) {
                return Err(format!("fds: {to} is not within 3 and {TARGET_FD_MAX}"));
            }
            if !taken.insert(to) {
                return Err(format!("fds: {to} is given twice"));
            }
        }
        if let Exe::Fd(ExeFd { fd }) = self.exe
            && (fd < 0 || fd == SPEC_FD)
        {
            return Err(format!("exe: {fd} cannot be a program"));
        }
        match self.report_fd {
            Some(fd) if fd <= SPEC_FD || self.fds.iter().any(|&(from, _)| from == fd) => {
                // The reader takes the end of this stream for "the program runs", so nobody else may hold it.
                Err("report_fd is not a descriptor of its own".to_owned())
            }
            None if self.has(Namespace::Pid) => {
                Err("the pid namespace needs a report_fd".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The argument vector for execve(2).
    ///
    /// # Errors
    /// `spec_invalid` for a NUL inside an argument.
    pub fn argv(&self) -> Result<Vec<CString>, LaunchError> {
        self.argv.iter().map(|arg| c_string("argv", arg)).collect()
    }

    /// The environment for execve(2), `NAME=value`.
    ///
    /// # Errors
    /// `spec_invalid` for a NUL, and for a name that is empty or holds `=`.
    pub fn env(&self) -> Result<Vec<CString>, LaunchError> {
        self.env
            .iter()
            .map(|(name, value)| {
                if name.is_empty() || name.contains('=') {
                    return Err(LaunchError::Refused(format!("env: {name:?} is not a name")));
                }
                c_string("env", &format!("{name}={value}"))
            })
            .collect()
    }
}

/// Finds where to report, as far as it can be told: a specification that is refused has somebody waiting for the
/// reason too. Nothing else is read, and nothing refused.
pub fn report_fd(json: &[u8]) -> Option<RawFd> {
    #[derive(Deserialize)]
    struct Report {
        report_fd: Option<RawFd>,
    }
    let report: Report = serde_json::from_slice(json).ok()?;
    report.report_fd.filter(|&fd| fd > SPEC_FD)
}

/// `text` with a NUL at its end.
///
/// # Errors
/// `spec_invalid` for a NUL inside.
pub fn c_string(field: &str, text: &str) -> Result<CString, LaunchError> {
    CString::new(text).map_err(|_| LaunchError::Refused(format!("{field}: NUL inside a string")))
}

fn absolute(field: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') {
        Ok(())
    } else {
        Err(format!("{field}: {path:?} is not an absolute path"))
    }
}

fn at_most(field: &str, len: usize, max: usize) -> Result<(), String> {
    if len <= max {
        Ok(())
    } else {
        Err(format!("{field}: {len} entries, at most {max}"))
    }
}
