//! The one loop: the VMM's stream, the guest's kicks, the host's sockets.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aerie_vsock::{Config, Limits, Muxer};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{
    args::Args,
    confine::confine,
    device::{Device, RINGS},
    error::VsockError,
};

/// Epoll numbers; a ring has its index.
const MUXER: u64 = RINGS as u64;
const FRONTEND: u64 = MUXER + 1;

/// A thousand connections and the program's own dozen do not fit in the usual soft limit of 1,024.
const DESCRIPTORS: libc::rlim_t = 2048;

/// Serves until the VMM's end of the stream is closed.
pub fn run(args: Args) -> Result<(), VsockError> {
    let stream = UnixStream::from(inherit(args.vhost_fd, "a connected Unix stream", |fd| {
        matches!(option(fd, libc::SO_ACCEPTCONN), Ok(0))
    })?);
    let listener = UnixListener::from(inherit(args.listen_fd, "a listening Unix stream", |fd| {
        matches!(option(fd, libc::SO_ACCEPTCONN), Ok(1))
    })?);
    let mut limits = Limits::default();
    if let Some(timeout) = args.connect_timeout {
        limits.connect = timeout;
    }
    let config = Config {
        cid: args.cid,
        connect_prefix: args.connect_prefix,
        limits,
    };
    let muxer = Muxer::new(config, listener).map_err(VsockError::Device)?;

    raise_descriptors();
    let epoll = Arc::new(Epoll::new().map_err(failed("make an epoll"))?);
    for (fd, token) in [(muxer.poll_fd(), MUXER), (stream.as_raw_fd(), FRONTEND)] {
        epoll
            .ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )
            .map_err(failed("watch a descriptor"))?;
    }
    // The lock is the crate's wish; one thread takes it, so nobody ever waits.
    let device = Arc::new(Mutex::new(Device::new(muxer, &epoll, args.restored)?));
    let mut frontend = BackendReqHandler::from_stream(stream, Arc::clone(&device));

    confine()?;
    let mut events = [EpollEvent::default(); RINGS + 2];
    let mut more = false;
    loop {
        let there = match epoll.wait(if more { 0 } else { -1 }, &mut events) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("wait for events")(error)),
        };
        for event in &events[..there] {
            match event.data() {
                MUXER => locked(&device).on_muxer().map_err(VsockError::Muxer)?,
                FRONTEND => match frontend.handle_request() {
                    Ok(()) | Err(VhostError::SocketRetry(_)) => {}
                    Err(error) if is_end(&error) => return Ok(()),
                    Err(error) => return Err(VsockError::Protocol(error)),
                },
                ring => locked(&device).on_kick(usize::try_from(ring).unwrap_or(RINGS)),
            }
        }
        more = locked(&device).serve();
    }
}

/// Raises the limit of open files as far as the hard limit allows; under a lower one the muxer refuses what it has no
/// descriptors for.
fn raise_descriptors() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` lives through both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < DESCRIPTORS
        {
            limit.rlim_cur = DESCRIPTORS.min(limit.rlim_max);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

fn locked(device: &Mutex<Device>) -> MutexGuard<'_, Device> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> VsockError {
    move |source| VsockError::Io { what, source }
}

/// Whether the VMM is gone; one that is killed may leave half a message.
fn is_end(error: &VhostError) -> bool {
    matches!(
        error,
        VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_)
    )
}

/// Takes an inherited descriptor that `is` what it should be.
fn inherit(
    fd: RawFd,
    expected: &'static str,
    is: impl FnOnce(RawFd) -> bool,
) -> Result<OwnedFd, VsockError> {
    let bad = |source| VsockError::Descriptor {
        fd,
        expected,
        source,
    };
    let unix = option(fd, libc::SO_DOMAIN).map_err(bad)? == libc::AF_UNIX;
    let stream = option(fd, libc::SO_TYPE).map_err(bad)? == libc::SOCK_STREAM;
    if !(unix && stream && is(fd)) {
        return Err(bad(io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: the descriptor is open (the kernel just answered for it), and by the command line it is ours alone; `run`
    // takes each number once, before it has opened anything itself.
    Ok(unsafe { File::from_raw_fd(fd) }.into())
}

/// An integer option of a socket (socket(7)).
fn option(fd: RawFd, name: i32) -> io::Result<i32> {
    let mut value: i32 = 0;
    let mut len = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: `value` has room for `len` bytes and both live through the call.
    let got = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if got == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
