//! The two files of an import: one for what came, and, where that was an image archive, one for what is made of it.
//! Either may be the output: a first guess saves the copy in nearly all cases, and a wrong one costs no more than that.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use crate::pack::error::{Error, Result};

/// Bytes that are copied at once.
const BUFFER: usize = 1 << 20;

/// The output and the scratch file, in the order in which they are written.
#[derive(Debug)]
pub struct Files {
    first: Option<File>,
    second: Option<File>,
    /// Whether the second is the output.
    second_is_out: bool,
}

impl Files {
    /// Puts what comes into the scratch file where the archive begins like that of an image, else into the output.
    pub fn new(out: File, scratch: Option<File>, begins_like_image: bool) -> Self {
        match scratch {
            Some(scratch) if begins_like_image => Self {
                first: Some(scratch),
                second: Some(out),
                second_is_out: true,
            },
            scratch => Self {
                first: Some(out),
                second: scratch,
                second_is_out: false,
            },
        }
    }

    /// The file for what comes.
    pub fn take_first(&mut self) -> Result<File> {
        self.first.take().ok_or(Error::ScratchRequired)
    }

    /// The file for an image that is made of what came.
    ///
    /// # Errors
    /// `scratch_required` if there is one file only.
    pub fn take_second(&mut self) -> Result<File> {
        self.second.take().ok_or(Error::ScratchRequired)
    }

    /// Ends with what came as the result, of `bytes` bytes.
    pub fn leave_first(self, first: File, bytes: u64) -> Result<()> {
        match self.second {
            Some(out) if self.second_is_out => copy(&first, &out, bytes),
            _ => Ok(()),
        }
    }

    /// Ends with what was made as the result.
    pub fn leave_second(self, first: File, second: File, bytes: u64) -> Result<()> {
        if self.second_is_out {
            Ok(())
        } else {
            copy(&second, &first, bytes)
        }
    }
}

/// Makes `to` the same as `from`, which has `bytes` bytes, holes included.
fn copy(from: &File, to: &File, bytes: u64) -> Result<()> {
    let unreadable = |source| Error::Read {
        what: "the scratch file",
        source,
    };
    let unwritable = |source| Error::Write {
        what: "the image",
        source,
    };
    to.set_len(0).map_err(unwritable)?;
    let mut buffer = vec![0; BUFFER];
    let mut position = 0;
    while let Some(data) = seek(from, position, libc::SEEK_DATA).map_err(unreadable)? {
        let end = seek(from, data, libc::SEEK_HOLE)
            .map_err(unreadable)?
            .unwrap_or(bytes)
            .min(bytes);
        position = data;
        while position < end {
            let want = usize::try_from(end - position)
                .unwrap_or(BUFFER)
                .min(BUFFER);
            let part = &mut buffer[..want];
            from.read_exact_at(part, position).map_err(unreadable)?;
            to.write_all_at(part, position).map_err(unwritable)?;
            position += want as u64;
        }
    }
    to.set_len(bytes).map_err(unwritable)
}

/// Finds where the next data, or the next hole, begins from `position` on; `None` at the end of the file.
fn seek(file: &File, position: u64, what: libc::c_int) -> io::Result<Option<u64>> {
    let position = i64::try_from(position).map_err(io::Error::other)?;
    // SAFETY: takes numbers only; the descriptor is owned by `file`, whose position nobody uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), position, what) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            end if end.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        use std::os::unix::fs::MetadataExt as _;
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&[1; 5000], 3 << 20).unwrap();
        from.write_all_at(&[2; 10], (9 << 20) + 7).unwrap();
        from.set_len(12 << 20).unwrap();
        to.write_all_at(&[9; 70_000], 0).unwrap();

        copy(&from, &to, 12 << 20).unwrap();

        let read = |file: &File| {
            let mut bytes = vec![0; 12 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&from) == read(&to));
        assert_eq!(to.metadata().unwrap().len(), 12 << 20);
        assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks());
    }
}
