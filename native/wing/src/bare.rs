//! `wing bare --pid-fd N`: takes the file system away from a program that has opened all it needs.
//!
//! QEMU needs its libraries, its firmware and `/proc` until its machine runs, and nothing of a file system after that.
//! So its root is emptied from outside then: this process enters its mount namespace (and its user namespace, where that
//! is what gives us the right to), mounts an empty read-only file system and makes it the root of all who are in there:
//! pivot_root(2) moves every process whose root or working folder is the old one.

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::RawFd;
use std::process::ExitCode;

use libc::{c_int, c_long, c_ulong};

use crate::error_line::error_line;

#[derive(Debug, thiserror::Error)]
enum BareError {
    #[error("usage: wing bare --pid-fd N")]
    Usage,
    #[error("cannot {what}")]
    Step {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl BareError {
    fn code(&self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Step { .. } => "bare_failed",
        }
    }
}

pub fn main(argv: impl Iterator<Item = OsString>) -> ExitCode {
    let Err(error) = parse(argv).and_then(empty_root) else {
        return ExitCode::SUCCESS;
    };
    eprint!("{}", error_line(error.code(), &error));
    ExitCode::from(1)
}

fn parse(mut argv: impl Iterator<Item = OsString>) -> Result<RawFd, BareError> {
    match (argv.next(), argv.next(), argv.next()) {
        (Some(name), Some(value), None) if name == "--pid-fd" => value
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or(BareError::Usage),
        _ => Err(BareError::Usage),
    }
}

/// A step of this command with the name that an error gives it.
fn step(what: &'static str, ret: c_long) -> Result<(), BareError> {
    if ret < 0 {
        let source = io::Error::last_os_error();
        return Err(BareError::Step { what, source });
    }
    Ok(())
}

fn enter(process: RawFd, namespaces: c_int) -> c_long {
    // SAFETY: integers only; this process has one thread, as setns(2) wants it for a user namespace.
    unsafe { libc::setns(process, namespaces) }.into()
}

fn mount(what: &CStr, at: &CStr, kind: &CStr, flags: c_ulong, options: &CStr) -> c_long {
    // SAFETY: all are strings that end with a NUL and outlive the call.
    unsafe {
        libc::mount(
            what.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    }
    .into()
}

fn empty_root(process: RawFd) -> Result<(), BareError> {
    // With the rights of the user namespace where it is another than ours: EINVAL says that it is our own.
    if enter(process, libc::CLONE_NEWUSER | libc::CLONE_NEWNS) < 0 {
        let result = enter(process, libc::CLONE_NEWNS);
        step("enter the namespace of its mounts", result)?;
    }
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // `/proc` is there on every host, and empty for nobody: what is mounted over it is seen for a moment only.
    let result = mount(c"none", c"/proc", c"tmpfs", flags, c"size=4k,mode=555");
    step("mount an empty file system", result)?;
    // SAFETY: strings that end with a NUL.
    let result = unsafe { libc::chdir(c"/proc".as_ptr()) };
    step("enter the empty file system", result.into())?;
    let here = c".".as_ptr();
    // SAFETY: strings that end with a NUL. Old and new root may be one folder: the old lies over the new then.
    let result = unsafe { libc::syscall(libc::SYS_pivot_root, here, here) };
    step("change the root", result)?;
    // SAFETY: a string that ends with a NUL.
    let result = unsafe { libc::umount2(here, libc::MNT_DETACH) };
    step("let go of the old root", result.into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Option<RawFd> {
        parse(words.iter().map(OsString::from)).ok()
    }

    #[test]
    fn it_takes_a_process_and_nothing_else() {
        assert_eq!(parsed(&["--pid-fd", "4"]), Some(4));
        for words in [
            &[][..],
            &["--pid-fd"],
            &["--pid-fd", "x"],
            &["--pid", "4"],
            &["--pid-fd", "4", "5"],
        ] {
            assert_eq!(parsed(words), None, "{words:?}");
        }
    }

    #[test]
    fn what_is_no_process_is_told() {
        let error = empty_root(-1).unwrap_err();
        assert_eq!(error.code(), "bare_failed");
    }
}
