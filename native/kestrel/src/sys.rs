//! The system calls that std has no word for: checked results, owned descriptors, poll, wake-ups.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A pending poll of nothing: poll(2) skips negative descriptors.
pub const NO_FD: RawFd = -1;

/// Turns the -1 of a system call into its errno.
pub fn check<T: PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes a descriptor that a system call has just returned.
pub fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the call succeeded and gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A path for the kernel. A NUL inside is `InvalidInput`.
pub fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// The request number of an ioctl, whose type differs between the C libraries.
pub const fn ioctl_request(number: u32) -> libc::Ioctl {
    number as libc::Ioctl
}

/// A lock whose holder panicked is still a lock: a panic here ends the process anyway.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One entry for [`poll`]; `fd` may be [`NO_FD`].
pub const fn poll_entry(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// poll(2) until something happens or `deadline` passes; `false` for the deadline.
pub fn poll(entries: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout_ms = match deadline {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // Rounded up: waking a millisecond early would spin.
                libc::c_int::try_from(left.as_nanos().div_ceil(1_000_000))
                    .unwrap_or(libc::c_int::MAX)
            }
        };
        let count = entries.len() as libc::nfds_t;
        // SAFETY: `entries` is a valid, exclusive array of `count` pollfd.
        match check(unsafe { libc::poll(entries.as_mut_ptr(), count, timeout_ms) }) {
            Ok(0) if timeout_ms != 0 && deadline.is_some_and(|at| Instant::now() < at) => {}
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Tells whether an entry of [`poll`] has anything to say: readiness, error or hang-up.
pub const fn is_ready(entry: &libc::pollfd) -> bool {
    entry.revents != 0
}

/// Reads once into `buffer`; `None` when nothing is there now.
pub fn read_now(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: `buffer` is valid for writes of its length.
        let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(count) {
            Ok(count) => return Ok(Some(count)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                error => return Err(error),
            },
        }
    }
}

/// Reads as [`read_now`] does, at most `max` bytes behind what `buffer` holds: bytes that will be overwritten need no zeros.
pub fn read_spare(
    fd: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    max: usize,
) -> io::Result<Option<usize>> {
    buffer.reserve(max);
    let room = buffer.spare_capacity_mut();
    let max = max.min(room.len());
    loop {
        // SAFETY: `room` is valid for writes of its length.
        let count = unsafe { libc::read(fd.as_raw_fd(), room.as_mut_ptr().cast(), max) };
        match usize::try_from(count) {
            Ok(count) => {
                let length = buffer.len() + count;
                // SAFETY: read has written `count` bytes behind the old length, within the capacity.
                unsafe { buffer.set_len(length) };
                return Ok(Some(count));
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                error => return Err(error),
            },
        }
    }
}

/// Writes once; `None` when there is no room now. Never raises SIGPIPE: kestrel ignores it.
pub fn write_now(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: `bytes` is valid for reads of its length.
        let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(count) {
            Ok(count) => return Ok(Some(count)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                error => return Err(error),
            },
        }
    }
}

/// Sets or clears `O_NONBLOCK`.
pub fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: fcntl with F_GETFL and F_SETFL touches no memory of ours.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let flags = if on {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) })?;
    Ok(())
}

/// A pipe, (read end, write end), closed on exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    let [read, write] = ends;
    Ok((own(read)?, own(write)?))
}

/// Counts the bytes that can be read at once now (FIONREAD).
pub fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// A wake-up that one thread sets and another polls (eventfd). Setting is idempotent until cleared.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd touches no memory of ours.
        own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(Self)
    }

    pub fn set(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight valid bytes. The only failure is a full counter, which is as set as can be.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub fn clear(&self) {
        let mut count = [0_u8; 8];
        // SAFETY: room for eight bytes. The only failure is that it was not set.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Threads are many and small: what they need is on the heap, and only touched pages of a stack are resident.
const STACK_BYTES: usize = 128 * 1024;

/// Starts a named thread with a small stack.
pub fn spawn_thread<F: FnOnce() + Send + 'static>(name: &str, body: F) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map(drop)
}

/// The wall clock in nanoseconds since 1970, 0 before it.
pub fn wall_clock_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

/// Sets the wall clock.
pub fn set_wall_clock(time_ns: u64) -> io::Result<()> {
    let since = Duration::from_nanos(time_ns);
    // SAFETY: timespec is plain integers; zero is a value of it.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    time.tv_sec = since.as_secs().try_into().map_err(io::Error::other)?;
    time.tv_nsec = libc::c_long::from(since.subsec_nanos().cast_signed());
    // SAFETY: a valid timespec.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) })?;
    Ok(())
}

/// Makes sure that descriptors 0 to 2 are something: `/dev/null` where the kernel had no console to give. Else one of our
/// own would take such a number, and a child's standard streams would go through it.
pub fn fill_standard_fds() -> io::Result<()> {
    loop {
        // SAFETY: a valid C string.
        let fd = check(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) })?;
        if fd > 2 {
            drop(own(fd)?);
            return Ok(());
        }
    }
}
