//! What the seccomp filters of wing's confined processes have in common: a table of calls with any arguments, memory that
//! cannot be run, and death for everything else.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// A condition that an argument, counted from 0, has this value in its lower 32 bits.
///
/// # Errors
/// An argument's number above 5.
pub fn equal(argument: u8, value: i32) -> Result<SeccompCondition, seccompiler::Error> {
    let value = u64::from(value.unsigned_abs());
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    Ok(condition)
}

/// Makes the filter of a process that may make the calls of `free` with any arguments, those of `narrow` where all conditions of
/// one of their entries hold, and memory that is not executable. Any other call kills it.
///
/// # Errors
/// A filter that is larger than the kernel takes.
pub fn program(
    free: &[i64],
    narrow: Vec<(i64, Vec<SeccompCondition>)>,
) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        free.iter().map(|&call| (call, Vec::new())).collect();
    for (call, conditions) in narrow {
        rules
            .entry(call)
            .or_default()
            .push(SeccompRule::new(conditions)?);
    }
    // The third argument of both is the protection.
    let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let not_exec =
            SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(exec), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![not_exec])?]);
    }
    // The standard library asks in debug builds whether a descriptor is open before it closes it.
    let getfd = vec![equal(1, libc::F_GETFD)?];
    rules
        .entry(libc::SYS_fcntl)
        .or_default()
        .push(SeccompRule::new(getfd)?);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

/// Confines this process for good to a filter, and to no more privileges than it has.
///
/// # Errors
/// Those of the filter, and what the kernel says.
pub fn confine(filter: Result<BpfProgram, seccompiler::Error>) -> io::Result<()> {
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    seccompiler::apply_filter(&filter.map_err(io::Error::other)?).map_err(io::Error::other)
}

#[cfg(test)]
pub mod tests {
    /// Runs `body` in a child that `confine` has confined, and gives the signal that ended it, or its exit code as a
    /// negative number.
    pub fn end_of<E>(confine: impl FnOnce() -> Result<(), E>, body: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child confines itself, runs `body`, which only makes system calls, and leaves by exit_group.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let code = if confine().is_ok() { body() } else { 99 };
            // SAFETY: ends the child without the handlers of the test's process.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: `pid` is our child and `status` a valid place.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        if libc::WIFSIGNALED(status) {
            libc::WTERMSIG(status)
        } else {
            -libc::WEXITSTATUS(status)
        }
    }
}
