//! Descriptors over Unix sockets: SCM_RIGHTS, unix(7), cmsg(3).

use core::mem::size_of;

use libc::{c_int, c_void};

use crate::call::{bytes, error, narrow, result, run};
use crate::fd::aerie_close;

/// Descriptors of one message at most. The kernel's own bound is 253; none of our peers sends more than a few.
pub const FDS_MAX: usize = 16;

/// One control message with room for [`FDS_MAX`] descriptors; on 64 bits its parts follow without padding.
#[repr(C)]
struct Control {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; FDS_MAX],
}

const HEADER_BYTES: usize = 16; // sizeof(struct cmsghdr)
const _: () = assert!(size_of::<Control>() == HEADER_BYTES + FDS_MAX * 4);

impl Control {
    const fn empty() -> Self {
        Self {
            len: 0,
            level: 0,
            kind: 0,
            fds: [-1; FDS_MAX],
        }
    }
}

/// Sends `len` bytes (1 or more) and copies of `fds_count` descriptors with the first of them: sendmsg(2). The bytes
/// taken, which may be fewer (the descriptors have gone nevertheless). EAGAIN: the socket is full; EPIPE: nobody is there
/// (no signal is raised); EINVAL: more than [`FDS_MAX`]; EBADF; ETOOMANYREFS: too many in flight.
///
/// # Safety
/// `data` is null or valid for `len` bytes, `fds` is null or valid for `fds_count` ints.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_send_fds(
    socket: c_int,
    data: *const u8,
    len: u32,
    fds: *const c_int,
    fds_count: u32,
) -> i32 {
    narrow(run(|| {
        let mut control = Control::empty();
        // SAFETY: the caller's promise.
        let data = unsafe { bytes(data, len) }?;
        let count = usize::try_from(fds_count).unwrap_or(usize::MAX);
        if data.is_empty() || count > FDS_MAX {
            return Err(error(libc::EINVAL));
        }
        if count > 0 && fds.is_null() {
            return Err(error(libc::EFAULT));
        }
        for (index, to) in control.fds.iter_mut().enumerate().take(count) {
            // SAFETY: below `fds_count`, which the caller promises; FFI buffers need not be aligned.
            *to = unsafe { fds.wrapping_add(index).read_unaligned() };
        }
        control.len = HEADER_BYTES.saturating_add(count.saturating_mul(size_of::<c_int>()));
        control.level = libc::SOL_SOCKET;
        control.kind = libc::SCM_RIGHTS;
        let mut part = libc::iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        };
        let control_bytes = if count == 0 { 0 } else { control.len };
        let message = message(&mut part, &mut control, control_bytes);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: everything that `message` points to is alive over the call; sendmsg does not write to it.
        Ok(result(unsafe {
            libc::syscall(libc::SYS_sendmsg, socket, &raw const message, flags)
        }))
    }))
}

/// Receives at most `len` bytes and the descriptors that came with them: recvmsg(2). The bytes, 0 at the end of the
/// stream; how many descriptors there are in `fds` is put into `fds_count`, which says on the way in how many fit.
/// EAGAIN: nothing there. EMSGSIZE: more descriptors came than fit; all of them were closed and the bytes are lost.
///
/// # Safety
/// `data` is null or valid for `len` bytes, `fds_count` for one u32, and `fds` for that many ints.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aerie_recv_fds(
    socket: c_int,
    data: *mut u8,
    len: u32,
    fds: *mut c_int,
    fds_count: *mut u32,
) -> i32 {
    narrow(run(|| {
        if data.is_null() || fds_count.is_null() {
            return Err(error(libc::EFAULT));
        }
        // SAFETY: not null, and the caller's promise.
        let room = usize::try_from(unsafe { fds_count.read_unaligned() }).unwrap_or(usize::MAX);
        // SAFETY: as above.
        unsafe { fds_count.write_unaligned(0) };
        if len == 0 || (room > 0 && fds.is_null()) {
            return Err(error(libc::EINVAL));
        }
        let mut control = Control::empty();
        let mut part = libc::iovec {
            iov_base: data.cast::<c_void>(),
            iov_len: usize::try_from(len).map_err(|_| error(libc::EINVAL))?,
        };
        let mut message = message(&mut part, &mut control, size_of::<Control>());
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: everything that `message` points to is alive over the call and as long as it says.
        let received =
            result(unsafe { libc::syscall(libc::SYS_recvmsg, socket, &raw mut message, flags) });
        if received < 0 {
            return Err(received);
        }
        let came = received_fds(&control, message.msg_controllen);
        if message.msg_flags & libc::MSG_CTRUNC != 0 || came.len() > room {
            came.iter().for_each(|&fd| {
                aerie_close(fd);
            });
            return Err(error(libc::EMSGSIZE));
        }
        for (index, &fd) in came.iter().enumerate() {
            // SAFETY: below `room`, which the caller promises.
            unsafe { fds.wrapping_add(index).write_unaligned(fd) };
        }
        // SAFETY: not null, and the caller's promise.
        unsafe { fds_count.write_unaligned(u32::try_from(came.len()).unwrap_or(0)) };
        Ok(received)
    }))
}

fn message(part: &mut libc::iovec, control: &mut Control, control_bytes: usize) -> libc::msghdr {
    // SAFETY: all-zero bytes are a msghdr without parts.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = core::ptr::from_mut(control).cast();
    message.msg_controllen = control_bytes;
    message
}

fn received_fds(control: &Control, control_bytes: usize) -> &[c_int] {
    let rights = control.level == libc::SOL_SOCKET && control.kind == libc::SCM_RIGHTS;
    if !rights || control_bytes < HEADER_BYTES {
        return &[];
    }
    // 4: sizeof(int)
    let count = control.len.saturating_sub(HEADER_BYTES) / 4;
    control.fds.get(..count).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::aerie_socketpair;

    fn pair() -> [c_int; 2] {
        let mut pair = [-1; 2];
        // SAFETY: two ints to write to.
        assert_eq!(unsafe { aerie_socketpair(0, &raw mut pair) }, 0);
        pair
    }

    /// The kernel's own sendmsg: ours refuses to send more than [`FDS_MAX`].
    fn send_many(socket: c_int, count: usize) {
        let mut control = vec![0_u64; 2 + count.div_ceil(2)];
        let header: *mut libc::cmsghdr = control.as_mut_ptr().cast();
        let mut byte = [b'x'];
        let mut part = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        // SAFETY: `control` is aligned and has room for the header and `count` ints (all zero: stdin); everything
        // that the message points to is alive over the call.
        let sent = unsafe {
            (*header).cmsg_len = HEADER_BYTES + count * 4;
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = HEADER_BYTES + count * 4;
            libc::sendmsg(socket, &raw const message, 0)
        };
        assert_eq!(sent, 1);
    }

    fn receive(socket: c_int, room: u32) -> (i32, Vec<c_int>) {
        let (mut data, mut fds, mut count) = ([0_u8; 8], [-1; FDS_MAX], room);
        let got =
            // SAFETY: eight bytes, `FDS_MAX` ints, one u32; no test gives a larger room.
            unsafe { aerie_recv_fds(socket, data.as_mut_ptr(), 8, fds.as_mut_ptr(), &raw mut count) };
        (
            got,
            fds.iter()
                .copied()
                .take(usize::try_from(count).unwrap())
                .collect(),
        )
    }

    /// Copies of this process's stdin: what `send_many` sends.
    fn copies_of_stdin() -> usize {
        let of = |path: &std::path::Path| {
            std::fs::metadata(path).map(|m| {
                use std::os::unix::fs::MetadataExt;
                (m.dev(), m.ino(), m.rdev())
            })
        };
        let stdin = of("/proc/self/fd/0".as_ref()).unwrap();
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        fds.filter(|entry| of(&entry.as_ref().unwrap().path()).is_ok_and(|it| it == stdin))
            .count()
    }

    #[test]
    fn a_message_with_too_many_descriptors_leaves_none_open() {
        let [ours, theirs] = pair();
        let before = copies_of_stdin();
        for (count, room) in [(40, 16), (17, 16), (3, 2), (1, 0)] {
            send_many(theirs, count);
            assert_eq!(
                receive(ours, room),
                (-libc::EMSGSIZE, vec![]),
                "{count} into {room}"
            );
        }
        assert_eq!(copies_of_stdin(), before);

        send_many(theirs, 16);
        let (bytes, fds) = receive(ours, 16);
        assert_eq!((bytes, fds.len()), (1, 16));
        fds.into_iter()
            .chain([ours, theirs])
            .for_each(|fd| assert_eq!(aerie_close(fd), 0));
    }
}
