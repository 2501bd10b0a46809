//! A console's log: appended to for ever, its old part given back to the disk. A guest may print without end; what a person
//! wants to read is how it ended.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::config::KEPT_BYTES_MIN;
use crate::memory::PAGE;

/// Bytes between two looks at the length of a log, at most.
const LOOK_BYTES_MAX: u64 = 1 << 20;

/// A sink: a regular file, whose newest part is kept, or whatever else takes bytes, of which nothing is kept.
#[derive(Debug, Clone)]
pub struct Log {
    file: Arc<File>,
    regular: bool,
    kept: u64,
    /// Bytes since the last look.
    unseen: u64,
    /// The file system makes no holes: nothing more is written.
    full: bool,
}

/// Adds to the status flags of an open file.
fn set_flag(file: &File, flag: i32) {
    // SAFETY: fcntl with integers on a descriptor that we own.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | flag);
    }
}

/// Turns the first `bytes` of a file into a hole; its length stays.
fn punch(file: &File, bytes: u64) -> bool {
    let Ok(bytes) = i64::try_from(bytes) else {
        return false;
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: integers only; the file is a log, which nobody maps.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, bytes) == 0 }
}

impl Log {
    /// Appends to `file`, of which the newest `kept` bytes stay and a quarter more at most.
    #[must_use]
    pub fn new(file: File, kept: u64) -> Self {
        let regular = file.metadata().is_ok_and(|found| found.is_file());
        // A reader of a pipe that stands still must not stop the guest; and who else writes into a file is not overwritten.
        set_flag(
            &file,
            if regular {
                libc::O_APPEND
            } else {
                libc::O_NONBLOCK
            },
        );
        Self {
            file: Arc::new(file),
            regular,
            kept: kept.max(KEPT_BYTES_MIN),
            unseen: 0,
            full: false,
        }
    }

    /// Writes what it can; the rest is lost.
    pub fn put(&mut self, bytes: &[u8]) {
        if self.full {
            return;
        }
        let mut out: &File = &self.file;
        let Ok(count) = out.write(bytes) else { return };
        self.unseen += count as u64;
        if self.regular && self.unseen >= LOOK_BYTES_MAX.min(self.kept / 4) {
            self.unseen = 0;
            self.give_back();
        }
    }

    /// The length is asked for rather than counted: others may write into the same file.
    fn give_back(&mut self) {
        let Ok(length) = self.file.metadata().map(|found| found.len()) else {
            return;
        };
        let old = length.saturating_sub(self.kept) & !(PAGE - 1);
        self.full = old > 0 && !punch(&self.file, old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Ram;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const KEPT: u64 = 1 << 20;

    #[test]
    fn a_flood_keeps_its_end_and_costs_a_bounded_part_of_the_disk() {
        let file = Ram::memfd(0).unwrap();
        file.write_all_at(b"of an earlier boot", 0).unwrap();
        let mut log = Log::new(file.try_clone().unwrap(), KEPT);

        for line in 0..200_000 {
            log.put(format!("{line:015}\n").as_bytes());
            if line % 1024 == 0 {
                assert!(file.metadata().unwrap().blocks() * 512 <= KEPT + KEPT / 4 + 2 * PAGE);
            }
        }

        let length = file.metadata().unwrap().len();
        assert_eq!(length, 18 + 3_200_000);
        let mut kept = vec![0; 1 << 20];
        file.read_exact_at(&mut kept, length - KEPT).unwrap();
        assert!(!kept.contains(&0));
        assert!(kept.ends_with(b"000000000199998\n000000000199999\n"));
    }

    #[test]
    fn two_that_write_into_one_file_overwrite_nothing() {
        let file = Ram::memfd(0).unwrap();
        let mut one = Log::new(file.try_clone().unwrap(), KEPT);
        let mut two = Log::new(file.try_clone().unwrap(), KEPT);

        one.put(b"one ");
        two.put(b"two ");
        one.put(b"three");

        let mut all = [0; 13];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(&all, b"one two three");
    }

    #[test]
    fn a_pipe_that_nobody_reads_stops_nobody() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut log = Log::new(File::from(std::os::fd::OwnedFd::from(writer)), KEPT);

        for _ in 0..100 {
            log.put(&[b'x'; 8192]);
        }
        drop(reader);
        log.put(b"nobody");
    }
}
