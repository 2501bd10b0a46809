//! The command line of `wing pack`: `--name value` pairs, nothing positional.

use std::{collections::BTreeMap, ffi::OsString, fs::File, io, os::fd::FromRawFd as _};

use super::error::{Error, Result};

/// Bounds that a hostile archive runs into before it hurts.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one unpacked stream, and of all file contents together.
    pub bytes_max: u64,
    /// Entries of all archives and layers together.
    pub entries_max: u64,
}

/// What a file must be open for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

/// The flags of one command, taken out one by one; what is left over at the end is refused.
#[derive(Debug)]
pub struct Args {
    values: BTreeMap<String, String>,
    descriptors: Vec<i32>,
}

impl Args {
    /// Reads `--name value` pairs.
    ///
    /// # Errors
    /// `usage` for anything else, and for a flag given twice.
    pub fn parse(argv: impl Iterator<Item = OsString>) -> Result<Self> {
        let usage = |reason: String| Error::Usage { reason };
        let mut values = BTreeMap::new();
        let mut argv = argv.map(|arg| {
            arg.into_string()
                .map_err(|arg| usage(format!("{arg:?} is not UTF-8")))
        });
        while let Some(arg) = argv.next().transpose()? {
            let Some(name) = arg.strip_prefix("--") else {
                return Err(usage(format!("\"{arg}\" is not a flag")));
            };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => match argv.next().transpose()? {
                    Some(value) => (name.to_owned(), value),
                    None => return Err(usage(format!("--{name} needs a value"))),
                },
            };
            if values.insert(name.clone(), value).is_some() {
                return Err(usage(format!("--{name} is given twice")));
            }
        }
        Ok(Self {
            values,
            descriptors: Vec::new(),
        })
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        self.values
            .remove(name)
            .map(|value| {
                value.parse().map_err(|_| Error::Usage {
                    reason: format!("--{name} is not a number in range: \"{value}\""),
                })
            })
            .transpose()
    }

    /// The limits, or their defaults: `gib` GiB and two million entries.
    pub fn limits(&mut self, gib: u64) -> Result<Limits> {
        Ok(Limits {
            bytes_max: self.number("max-bytes")?.unwrap_or(gib << 30),
            entries_max: self.number("max-entries")?.unwrap_or(2_000_000),
        })
    }

    /// The open file behind `--name`.
    ///
    /// # Errors
    /// `usage` when the flag is absent, or its number is not a file that is open for what `access` says, one of 0, 1,
    /// 2, or used twice.
    pub fn file(&mut self, name: &'static str, access: Access) -> Result<File> {
        self.file_if_given(name, access)?
            .ok_or_else(|| Error::Usage {
                reason: format!("--{name} is missing"),
            })
    }

    /// Does the same as [`Args::file`] for a flag that may be absent.
    pub fn file_if_given(&mut self, name: &'static str, access: Access) -> Result<Option<File>> {
        let usage = |reason: String| Error::Usage { reason };
        let Some(fd) = self.number::<i32>(name)? else {
            return Ok(None);
        };
        if fd <= 2 || self.descriptors.contains(&fd) {
            return Err(usage(format!("--{name} {fd} is in use already")));
        }
        // SAFETY: F_GETFL takes no pointer and changes nothing; a wrong number is answered with EBADF.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        if flags < 0 {
            return Err(Error::Descriptor {
                fd,
                role: name,
                source: io::Error::last_os_error(),
            });
        }
        let mode = flags & libc::O_ACCMODE;
        let (is_open, needed) = match access {
            Access::Read => (mode != libc::O_WRONLY, "reading"),
            Access::Write => (mode != libc::O_RDONLY, "writing"),
            Access::ReadWrite => (mode == libc::O_RDWR, "reading and writing"),
        };
        if !is_open {
            return Err(usage(format!("--{name} {fd} is not open for {needed}")));
        }
        // Writes at an offset go to the end of such a file (pwrite(2), "BUGS").
        if access != Access::Read && flags & libc::O_APPEND != 0 {
            return Err(usage(format!("--{name} {fd} is open for appending")));
        }
        self.descriptors.push(fd);
        // SAFETY: the descriptor is open (just asked), is not one of the standard three, and was handed to
        // nobody else in this process: the list above refuses a second owner.
        Ok(Some(unsafe { File::from_raw_fd(fd) }))
    }

    /// Refuses what no one asked for.
    pub fn finish(self) -> Result<()> {
        match self.values.keys().next() {
            Some(name) => Err(Error::Usage {
                reason: format!("--{name} is not known here"),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Result<Args> {
        Args::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn flags_are_read_in_both_spellings() {
        let mut args = args(&["--max-bytes", "7", "--max-entries=9"]).unwrap();

        let limits = args.limits(1).unwrap();

        assert_eq!((limits.bytes_max, limits.entries_max), (7, 9));
        args.finish().unwrap();
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for words in [&["x"][..], &["--a"], &["--a", "1", "--a", "2"]] {
            assert_eq!(args(words).unwrap_err().code().as_str(), "usage");
        }
        assert!(args(&["--max-bytes", "-1"]).unwrap().limits(1).is_err());
        for fd in ["1", "999", "x"] {
            let file = args(&["--out-fd", fd])
                .unwrap()
                .file("out-fd", Access::Write);
            assert_eq!(file.unwrap_err().code().as_str(), "usage");
        }
        assert!(args(&["--other", "1"]).unwrap().finish().is_err());
    }
}
