//! Readers that name what they read and that bound how much may come.

use std::{
    fs::File,
    io::{self, Read},
    mem::ManuallyDrop,
    os::fd::FromRawFd as _,
};

use super::error::{Bound, Error, Result};

/// A reader whose failures say what was read.
pub struct Named<R> {
    inner: R,
    what: &'static str,
}

impl<R> Named<R> {
    pub fn new(inner: R, what: &'static str) -> Self {
        Self { inner, what }
    }
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buf) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                Err(Error::from_read(self.what, error).into())
            }
            result => result,
        }
    }
}

/// Descriptor 0 without the buffer of `std::io::stdin`.
pub struct Stdin(ManuallyDrop<File>);

impl Read for Stdin {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }
}

/// Standard input.
pub fn stdin() -> Named<Stdin> {
    // SAFETY: descriptor 0 stays open for the life of the process: nothing here closes it, and `ManuallyDrop` keeps
    // this `File` from doing so. If it was closed before we began, reads answer EBADF.
    let file = unsafe { File::from_raw_fd(0) };
    Named::new(Stdin(ManuallyDrop::new(file)), "standard input")
}

/// Gives `archive_too_large` after a number of bytes: what a small archive unpacks to has an end.
pub struct Limited<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R> Limited<R> {
    pub fn new(inner: R, limit: u64) -> Self {
        Self {
            inner,
            left: limit,
            limit,
        }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.left = match self.left.checked_sub(count as u64) {
            Some(left) => left,
            None => {
                return Err(Error::limit(Bound::Bytes, self.limit).into());
            }
        };
        Ok(count)
    }
}

/// Reads all of `input`, at most `max` bytes.
///
/// # Errors
/// `archive_too_large` beyond `max`, else those of reading.
pub fn read_all(input: impl Read, max: u64, what: &'static str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Limited::new(input, max)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::from_read(what, error))?;
    Ok(bytes)
}

/// Fills `buf` with the next contents of a file of the archive.
///
/// # Errors
/// `archive_truncated` if they end before, else those of reading.
pub fn read_contents(input: &mut impl Read, buf: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < buf.len() {
        match input.read(&mut buf[filled..]) {
            Ok(0) => {
                return Err(Error::Truncated {
                    what: "a file's contents",
                    offset: 0,
                });
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::from_read("the archive", error)),
        }
    }
    Ok(())
}
