//! A file that is written from its beginning, whatever its descriptor's position was.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::error::{Error, Result};

const BUFFER: usize = 256 << 10;

/// Writes one after another, with a buffer.
#[derive(Debug)]
pub struct FileWriter {
    file: File,
    what: &'static str,
    written: u64,
    pending: Vec<u8>,
}

impl FileWriter {
    /// Begins in `file`, whose old contents go away.
    ///
    /// # Errors
    /// `write_failed` if `file` is not a regular file open for writing.
    pub fn new(file: File, what: &'static str) -> Result<Self> {
        file.set_len(0)
            .map_err(|source| Error::Write { what, source })?;
        Ok(Self {
            file,
            what,
            written: 0,
            pending: Vec::with_capacity(BUFFER),
        })
    }

    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.pending.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            return self.write(bytes);
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Bytes put so far.
    pub fn position(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    /// Writes what is left in the buffer.
    pub fn finish(&mut self) -> Result<()> {
        self.flush()
    }

    /// Takes all back and begins again.
    pub fn restart(&mut self) -> Result<()> {
        self.pending.clear();
        self.written = 0;
        self.file.set_len(0).map_err(|source| Error::Write {
            what: self.what,
            source,
        })
    }

    /// Reads back bytes that were put; the buffer is written first.
    ///
    /// # Errors
    /// `read_failed`; also when the file was opened for writing only.
    pub fn read_back(&mut self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.flush()?;
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|source| Error::Read {
                what: self.what,
                source,
            })?;
        Ok(bytes)
    }

    /// All that was put, from its beginning; the buffer is written first. Needs a file that is open for reading too.
    pub fn contents(&mut self) -> Result<Contents<'_>> {
        self.flush()?;
        Ok(Contents {
            file: &self.file,
            at: 0,
        })
    }

    fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.write(&pending)?;
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, self.written)
            .map_err(|source| Error::Write {
                what: self.what,
                source,
            })?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// See [`FileWriter::contents`].
#[derive(Debug)]
pub struct Contents<'a> {
    file: &'a File,
    at: u64,
}

impl io::Read for Contents<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buf, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl io::Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(self.finish()?)
    }
}
