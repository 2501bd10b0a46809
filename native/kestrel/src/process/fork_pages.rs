//! Makes every program draw new randomness after a wake from a file.
//!
//! Two guests restored from one file have the same memory, so also the same state in every generator of random numbers. That
//! of the kernel is seeded anew. A library that keeps its own (BoringSSL, AWS-LC) notices a fork by a page of
//! `MADV_WIPEONFORK`, which the kernel empties in a child; to a program a restored guest is a fork, so kestrel does to each
//! of these pages what fork would have done: it writes zeros.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Without `CONFIG_PROC_PAGE_MONITOR` the kernel does not tell these pages from others.
const SMAPS: &str = "smaps";
/// Bits of an entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst): in memory, or swapped out.
const PAGE_IS_THERE: u64 = 3 << 62;
/// Entries of the pagemap that are read at once.
const ENTRIES: usize = 512;

/// Wipes the pages of every process. One that ends meanwhile needs nothing.
///
/// # Errors
/// The first process that refused, after all others are done.
pub fn wipe_all() -> io::Result<()> {
    let mut first = Ok(());
    for entry in fs::read_dir("/proc")?.flatten() {
        if entry
            .file_name()
            .to_str()
            .is_none_or(|name| name.parse::<u32>().is_err())
        {
            continue;
        }
        match wipe(&entry.path()) {
            Ok(_) => {}
            // Of a process without memory: a thread of the kernel, or one that has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(_) if !entry.path().exists() => {}
            Err(error) => first = first.and(Err(error)),
        }
    }
    first
}

/// Wipes the pages of the process of this folder of `/proc`; gives how many.
fn wipe(process: &Path) -> io::Result<usize> {
    let ranges = ranges(BufReader::new(File::open(process.join(SMAPS))?))?;
    if ranges.is_empty() {
        return Ok(0);
    }
    let pages = File::open(process.join("pagemap"))?;
    let memory = OpenOptions::new().write(true).open(process.join("mem"))?;
    let page_bytes = page_bytes();
    let zeros = vec![0; usize::try_from(page_bytes).unwrap_or(4096)];
    let mut wiped = 0;
    for range in ranges {
        // A page that was never touched is zeros, and must not become memory.
        let mut address = range.start;
        let mut entries = [0_u8; ENTRIES * 8];
        while address < range.end {
            let count = ((range.end - address) / page_bytes).min(ENTRIES as u64);
            let room = entries
                .get_mut(..usize::try_from(count * 8).unwrap_or(0))
                .unwrap_or_default();
            pages.read_exact_at(room, address / page_bytes * 8)?;
            for (entry, at) in room.chunks_exact(8).zip((address..).step_by(zeros.len())) {
                let bits = entry
                    .first_chunk()
                    .map_or(0, |bytes| u64::from_ne_bytes(*bytes));
                if bits & PAGE_IS_THERE != 0 {
                    memory.write_all_at(&zeros, at)?;
                    wiped += 1;
                }
            }
            address += count.max(1) * page_bytes;
        }
    }
    Ok(wiped)
}

/// The ranges that a child would find empty (`wf`, proc_pid_smaps(5)).
fn ranges(smaps: impl BufRead) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.split(b'\n') {
        let line = line?;
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let is_wiped = flags
                .split(u8::is_ascii_whitespace)
                .any(|flag| flag == b"wf");
            found.extend(current.take().filter(|_| is_wiped));
        } else if let Some(range) = range(&line) {
            current = Some(range);
        }
    }
    Ok(found)
}

/// The addresses at the begin of a mapping's first line.
fn range(line: &[u8]) -> Option<Range<u64>> {
    let word = line.split(u8::is_ascii_whitespace).next()?;
    let (start, end) = str::from_utf8(word).ok()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

fn page_bytes() -> u64 {
    // SAFETY: sysconf touches no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of this process, given back when dropped.
    struct Pages(*mut u8, usize);

    impl Pages {
        fn new(count: u64, is_wiped_on_fork: bool) -> Self {
            let bytes = usize::try_from(count * page_bytes()).unwrap();
            // SAFETY: a fresh mapping of this size, used by this test alone.
            unsafe {
                let at = libc::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
                assert_ne!(at, libc::MAP_FAILED);
                if is_wiped_on_fork {
                    assert_eq!(libc::madvise(at, bytes, libc::MADV_WIPEONFORK), 0);
                }
                Self(at.cast(), bytes)
            }
        }

        fn byte(&self, page: u64) -> *mut u8 {
            let at = usize::try_from(page * page_bytes()).unwrap();
            assert!(at < self.1);
            self.0.wrapping_add(at)
        }

        fn set(&self, page: u64, value: u8) {
            // SAFETY: inside the mapping. Volatile: it is changed from outside.
            unsafe { self.byte(page).write_volatile(value) };
        }

        fn get(&self, page: u64) -> u8 {
            // SAFETY: as above.
            unsafe { self.byte(page).read_volatile() }
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: the mapping that `new` made.
            unsafe { libc::munmap(self.0.cast(), self.1) };
        }
    }

    #[test]
    fn pages_that_a_fork_empties_are_emptied_and_no_others() {
        let (fork, other) = (Pages::new(2000, true), Pages::new(1, false));
        for page in [0, 700, 1999] {
            fork.set(page, 7);
        }
        other.set(0, 7);

        let wiped = wipe(Path::new("/proc/self")).unwrap();

        // Two thousand pages were asked for, and only those that were used have become memory.
        assert_eq!(wiped, 3);
        assert_eq!([0, 1, 700, 1999].map(|page| fork.get(page)), [0; 4]);
        assert_eq!(other.get(0), 7);
    }

    #[test]
    fn the_flag_is_told_from_others_and_belongs_to_its_mapping() {
        let smaps =
            b"7f00-8f00 rw-p 00000000 00:00 0  wf-\xff\nRss:   4 kB\nVmFlags: rd wr mr mw me ac \n\
            9f00-af00 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me ac wf sd \n\
            bf00-cf00 rw-p 00000000 00:00 0 \nVmFlags: rd wfx \n";

        let starts = |smaps: &[u8]| -> Vec<(u64, u64)> {
            let found = ranges(smaps).unwrap().into_iter();
            found.map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(starts(smaps), [(0x9f00, 0xaf00)]);
        assert_eq!(starts(b"VmFlags: wf\n"), []);
    }
}
