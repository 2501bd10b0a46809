//! Where consoles write: a descriptor of the host, never blocked on and never without bound. A guest may print for ever.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes of a log file before it starts again at the beginning. What is lost is the oldest.
pub const LOG_BYTES_MAX: u64 = 4 << 20;

/// A bounded sink.
#[derive(Debug, Clone)]
pub struct Log {
    file: Option<Arc<File>>,
    regular: bool,
    written: u64,
}

impl Log {
    /// Writes into `file`, or nowhere.
    #[must_use]
    pub fn new(file: Option<File>) -> Self {
        let regular = file
            .as_ref()
            .and_then(|file| file.metadata().ok())
            .is_some_and(|found| found.is_file());
        if let Some(file) = file.as_ref().filter(|_| !regular) {
            // A reader that stands still must not stop the guest.
            // SAFETY: fcntl with integers on a descriptor that we own.
            unsafe {
                let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
                libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
            }
        }
        Self {
            file: file.map(Arc::new),
            regular,
            written: 0,
        }
    }

    /// Writes what it can; the rest is dropped.
    pub fn put(&mut self, bytes: &[u8]) {
        let Some(file) = &self.file else { return };
        if !self.regular {
            let mut out: &File = file;
            let _ = out.write(bytes);
            return;
        }
        if self.written + bytes.len() as u64 > LOG_BYTES_MAX {
            const MARK: &[u8] = b"[older output dropped]\n";
            if file.set_len(0).is_err() || file.write_at(MARK, 0).is_err() {
                return;
            }
            self.written = MARK.len() as u64;
        }
        if let Ok(count) = file.write_at(bytes, self.written) {
            self.written += count as u64;
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Ram;

    #[test]
    fn a_log_never_grows_beyond_its_bound() {
        let file = Ram::memfd(0).unwrap();
        let mut log = Log::new(Some(file.try_clone().unwrap()));

        for _ in 0..600 {
            log.put(&[b'x'; 8192]);
        }
        log.put(b"the end");

        assert!(file.metadata().unwrap().len() <= LOG_BYTES_MAX);
        let mut tail = vec![0; 7];
        file.read_exact_at(&mut tail, file.metadata().unwrap().len() - 7)
            .unwrap();
        assert_eq!(tail, b"the end");
    }
}
