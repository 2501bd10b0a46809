//! Puts the program's descriptors where the specification wants them and closes all others.
//!
//! `from` and `to` may overlap in any way ([[5,6],[6,5]] swaps), and the descriptors that the launcher itself
//! still needs (the report, the program) may sit where a target is. So everything is first copied above the
//! highest possible target, and then placed: no step can overwrite what a later one reads.

use std::os::fd::RawFd;

use super::error::{LaunchError, Step};
use super::spec::{Exe, ExeFd, SPEC_FD, Spec};
use super::sys;

/// # Errors
/// `fd_missing` for a descriptor that is not open. Changes nothing.
pub fn check(spec: &Spec) -> Result<(), LaunchError> {
    for fd in spec
        .fds
        .iter()
        .map(|&(from, _)| from)
        .chain(exe_fd(spec))
        .chain(spec.report_fd)
    {
        sys::fd_open(fd).map_err(Step::Fd.on(format!("descriptor {fd}")))?;
    }
    Ok(())
}

/// Moves the report out of the way of every target.
///
/// # Errors
/// `fd_failed` where the limit of open files is too low.
pub fn lift_report(spec: &Spec) -> Result<Option<RawFd>, LaunchError> {
    spec.report_fd.map(|fd| lift(fd, spec)).transpose()
}

/// Above the targets and not above a constant: the limit of open files may be low.
fn lift(fd: RawFd, spec: &Spec) -> Result<RawFd, LaunchError> {
    let highest = spec.fds.iter().map(|&(_, to)| to).max();
    let above = highest.unwrap_or(SPEC_FD).max(SPEC_FD) + 1;
    sys::dup_above(fd, above).map_err(Step::Fd.on(format!("descriptor {fd}")))
}

/// Places every descriptor; nothing else above 2 is left open but the report and the program, whose new number
/// is the result. Both close on exec.
///
/// # Errors
/// `fd_failed` where the limit of open files is too low.
pub fn arrange(spec: &Spec, report: Option<RawFd>) -> Result<Option<RawFd>, LaunchError> {
    let exe = exe_fd(spec).map(|fd| lift(fd, spec)).transpose()?;
    let lifted = spec
        .fds
        .iter()
        .map(|&(from, to)| Ok((lift(from, spec)?, to)));
    let lifted = lifted.collect::<Result<Vec<_>, LaunchError>>()?;
    for &(from, to) in &lifted {
        sys::dup_onto(from, to).map_err(Step::Fd.on(format!("descriptor {to}")))?;
    }
    let mut kept: Vec<RawFd> = lifted
        .iter()
        .map(|&(_, to)| to)
        .chain(exe)
        .chain(report)
        .collect();
    kept.sort_unstable();
    let mut next: RawFd = 3;
    for fd in kept {
        if next < fd {
            close(next, (fd - 1).unsigned_abs())?;
        }
        next = fd + 1;
    }
    close(next, u32::MAX)?;
    Ok(exe)
}

fn close(first: RawFd, last: u32) -> Result<(), LaunchError> {
    sys::close_range(first, last).map_err(Step::Fd.on(format!("nothing from {first} on")))
}

const fn exe_fd(spec: &Spec) -> Option<RawFd> {
    match spec.exe {
        Exe::Fd(ExeFd { fd }) => Some(fd),
        Exe::Path(_) => None,
    }
}
