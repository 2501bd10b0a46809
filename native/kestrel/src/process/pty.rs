//! Pseudo-terminals (pty(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::sys::{check, own, set_nonblocking};

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

impl Size {
    /// Takes the size that the host said, and a VT100's for what it did not.
    pub fn or_default(columns: Option<u16>, rows: Option<u16>) -> Self {
        Self {
            columns: columns.filter(|&columns| columns > 0).unwrap_or(80),
            rows: rows.filter(|&rows| rows > 0).unwrap_or(24),
        }
    }
}

/// A new terminal, (master, slave), owned by `uid`. The master does not block.
pub fn open(size: Size, uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: a valid C string.
    let master = own(unsafe { libc::open(c"/dev/ptmx".as_ptr(), flags) })?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    // By descriptor and not by name: /dev/pts may be anything in the guest's view.
    // SAFETY: TIOCGPTPEER takes the open flags as its argument.
    let slave = own(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    resize(master.as_fd(), size)?;
    // Group tty (5) may write to it, as write(1) expects; a user namespace without that group is no reason to fail.
    // SAFETY: fchown and fchmod touch no memory.
    unsafe {
        libc::fchown(slave.as_raw_fd(), uid, libc::gid_t::MAX);
        libc::fchmod(slave.as_raw_fd(), 0o620);
    }
    set_nonblocking(master.as_fd(), true)?;
    Ok((master, slave))
}

/// Sets the size; the foreground group gets SIGWINCH.
pub fn resize(master: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// The character that ends the input of a terminal: the EOF character, ^D, which it has for this.
pub const EOF_CHARACTER: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{poll, poll_entry, read_now, write_now};

    #[test]
    fn what_is_typed_is_echoed_and_the_size_is_seen() {
        let size = Size {
            columns: 132,
            rows: 43,
        };
        // SAFETY: geteuid touches no memory.
        let (master, slave) = open(size, unsafe { libc::geteuid() }).unwrap();

        write_now(master.as_fd(), b"hi\n").unwrap();
        let mut entries = [poll_entry(master.as_raw_fd(), libc::POLLIN)];
        poll(&mut entries, None).unwrap();
        let mut buffer = [0; 64];
        let count = read_now(master.as_fd(), &mut buffer).unwrap().unwrap();

        assert_eq!(&buffer[..count], b"hi\r\n");
        // SAFETY: winsize is plain integers; zero is a value of it.
        let mut seen: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: TIOCGWINSZ writes one winsize.
        check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCGWINSZ, &raw mut seen) }).unwrap();
        assert_eq!((seen.ws_col, seen.ws_row), (132, 43));
    }

    #[test]
    fn a_size_of_nothing_is_the_default() {
        assert_eq!(
            Size::or_default(Some(0), None),
            Size {
                columns: 80,
                rows: 24
            }
        );
    }
}
