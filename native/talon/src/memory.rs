//! Guest RAM: one contiguous mapping of the host, aligned to 2 MiB so that huge pages fit, shown to the guest as one or
//! two regions around the hole of [`crate::layout`].
//!
//! The mapping is ours and not vm-memory's, because fork replaces it in place: the same addresses, private over the same
//! file, with KVM's slots untouched.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::{Address, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::bytes::to_usize;
use crate::layout::{HIGH_RAM_START, LOW_RAM_END};

/// Alignment of the mapping, and of sizes.
pub const HUGE_PAGE: u64 = 2 << 20;
/// Bytes of the smallest page.
pub const PAGE: u64 = 4096;

/// What holds the pages.
#[derive(Debug)]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// A memfd, mapped shared: it can become the frozen base of forks.
    Shared(File),
    /// A file or sealed memfd, mapped copy-on-write: this guest is a clone, or was forked.
    CopyOnWrite(File),
}

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no address space or memory for it.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// What mmap said.
        #[source]
        source: io::Error,
    },
    /// The file is smaller than the RAM.
    #[error("memory file holds {found} bytes, the machine needs {needed}")]
    FileTooShort {
        /// Bytes in the file.
        found: u64,
        /// Bytes of RAM.
        needed: u64,
    },
    /// A memfd could not be made or sized.
    #[error("cannot make the memory file")]
    File(#[source] io::Error),
    /// vm-memory refused the regions.
    #[error("cannot describe the memory regions")]
    Regions,
    /// Not a multiple of 2 MiB, or none.
    #[error("memory size {0} is not a positive multiple of 2 MiB")]
    Size(u64),
    /// Sealing failed: something still maps the file writable.
    #[error("cannot seal the memory file against writing")]
    Seal(#[source] io::Error),
}

/// One region as KVM is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical start.
    pub guest: u64,
    /// Bytes.
    pub bytes: u64,
    /// Offset in the mapping and in its file.
    pub offset: u64,
}

/// The regions of `size` bytes of RAM in generation 1.
#[must_use]
pub fn regions(size: u64) -> Vec<Region> {
    let low = size.min(LOW_RAM_END);
    let mut regions = vec![Region {
        guest: 0,
        bytes: low,
        offset: 0,
    }];
    if size > low {
        regions.push(Region {
            guest: HIGH_RAM_START,
            bytes: size - low,
            offset: low,
        });
    }
    regions
}

/// Guest RAM and the mapping under it.
#[derive(Debug)]
pub struct Ram {
    base: *mut u8,
    reserved: (*mut libc::c_void, usize),
    size: u64,
    backing: Mutex<Backing>,
    guest: GuestMemoryMmap,
}

// SAFETY: the pointers denote a mapping that lives as long as `Ram`; every access to it goes through vm-memory's volatile
// operations or through system calls, which allow any thread.
unsafe impl Send for Ram {}
// SAFETY: as above; `Ram` has no interior state besides the mapping.
unsafe impl Sync for Ram {}

impl Ram {
    /// Maps `size` bytes over `backing`. With `huge`, the host is asked for huge pages where it gives them on request.
    ///
    /// # Errors
    /// When the size is odd, the file short, or the host refuses.
    pub fn new(size: u64, backing: Backing, huge: bool) -> Result<Self, MemoryError> {
        if size == 0 || !size.is_multiple_of(HUGE_PAGE) {
            return Err(MemoryError::Size(size));
        }
        // A snapshot's memory has been measured by who checked that it is whole.
        if let Backing::Shared(file) = &backing {
            let found = file.metadata().map_err(MemoryError::File)?.len();
            if found < size {
                return Err(MemoryError::FileTooShort {
                    found,
                    needed: size,
                });
            }
        }
        let bytes = usize::try_from(size).map_err(|_| MemoryError::Size(size))?;
        let room = bytes
            .checked_add(2 * to_usize(HUGE_PAGE))
            .ok_or(MemoryError::Size(size))?;
        // SAFETY: a fresh reservation at an address of the kernel's choice; nothing is replaced.
        let reserved = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                room,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if reserved == libc::MAP_FAILED {
            return Err(MemoryError::Map {
                bytes: size,
                source: io::Error::last_os_error(),
            });
        }
        let base = reserved
            .cast::<u8>()
            .wrapping_add(reserved.cast::<u8>().align_offset(to_usize(HUGE_PAGE)));
        let mut ram = Self {
            base,
            reserved: (reserved, room),
            size,
            backing: Mutex::new(backing),
            guest: GuestMemoryMmap::new(),
        };
        ram.map(&ram.backing(), huge)?;
        let mut described = Vec::new();
        for region in regions(size) {
            let address = ram
                .base
                .wrapping_add(usize::try_from(region.offset).map_err(|_| MemoryError::Regions)?);
            let length = usize::try_from(region.bytes).map_err(|_| MemoryError::Regions)?;
            // SAFETY: address and length lie inside the mapping just made, which `Ram` keeps until it is dropped, and
            // `guest` is dropped with it.
            let mapping = unsafe {
                MmapRegion::build_raw(
                    address,
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_NORESERVE,
                )
            }
            .map_err(|_| MemoryError::Regions)?;
            described.push(
                GuestRegionMmap::new(mapping, GuestAddress(region.guest))
                    .ok_or(MemoryError::Regions)?,
            );
        }
        ram.guest = GuestMemoryMmap::from_regions(described).map_err(|_| MemoryError::Regions)?;
        Ok(ram)
    }

    /// A memfd of `size` bytes that can be sealed later.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn memfd(size: u64) -> Result<File, MemoryError> {
        // SAFETY: the name is a valid C string; the result is checked.
        let fd = unsafe {
            libc::memfd_create(
                c"guest".as_ptr(),
                libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(MemoryError::File(io::Error::last_os_error()));
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(size).map_err(MemoryError::File)?;
        Ok(file)
    }

    fn map(&self, backing: &Backing, huge: bool) -> Result<(), MemoryError> {
        let (flags, fd) = match backing {
            Backing::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            Backing::Shared(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            Backing::CopyOnWrite(file) => (libc::MAP_PRIVATE, file.as_raw_fd()),
        };
        let bytes = usize::try_from(self.size).map_err(|_| MemoryError::Size(self.size))?;
        // SAFETY: the range lies inside our own reservation, so MAP_FIXED replaces nothing but it.
        let mapped = unsafe {
            libc::mmap(
                self.base.cast(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_FIXED | libc::MAP_NORESERVE,
                fd,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(MemoryError::Map {
                bytes: self.size,
                source: io::Error::last_os_error(),
            });
        }
        // Private pages over a file are never huge.
        if huge && !matches!(backing, Backing::CopyOnWrite(_)) {
            // SAFETY: advice on our own mapping. A host without huge pages refuses it, which changes nothing.
            unsafe { libc::madvise(self.base.cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: as above. Guest memory is never part of a core dump.
        unsafe { libc::madvise(self.base.cast(), bytes, libc::MADV_DONTDUMP) };
        Ok(())
    }

    /// The guest's view.
    #[must_use]
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Start of the mapping in this process.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// What holds the pages.
    pub fn backing(&self) -> MutexGuard<'_, Backing> {
        self.backing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the pages of a region of the mapping back to the host; the guest reads zeroes (or the template) there
    /// afterwards. Offsets are into the mapping. A shared file is punched, so that no other user keeps the pages.
    pub fn discard(&self, offset: u64, bytes: u64) {
        if offset.checked_add(bytes).is_none_or(|end| end > self.size) {
            return;
        }
        let (Ok(start), Ok(length)) = (usize::try_from(offset), usize::try_from(bytes)) else {
            return;
        };
        match &*self.backing() {
            // SAFETY: the range was checked to lie in our mapping; the guest has said that it no longer uses it.
            Backing::Anonymous => unsafe {
                libc::madvise(
                    self.base.wrapping_add(start).cast(),
                    length,
                    libc::MADV_DONTNEED,
                );
            },
            Backing::Shared(file) => {
                let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else {
                    return;
                };
                // SAFETY: punches a hole in our own memfd; the range lies inside it.
                unsafe {
                    libc::fallocate(
                        file.as_raw_fd(),
                        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                        offset,
                        bytes,
                    );
                }
            }
            // The base belongs to others and stays; this guest's own pages go.
            // SAFETY: as for anonymous memory; the guest reads the template there until it writes again.
            Backing::CopyOnWrite(_) => unsafe {
                libc::madvise(
                    self.base.wrapping_add(start).cast(),
                    length,
                    libc::MADV_DONTNEED,
                );
            },
        }
    }

    /// [`Ram::discard`] by guest-physical address, whole pages inside the range only; what is not RAM is ignored.
    pub fn discard_guest(&self, start: GuestAddress, bytes: u64) {
        let Some((first, bytes)) = whole_pages(start, bytes) else {
            return;
        };
        let end = first + bytes;
        for region in regions(self.size) {
            let (from, to) = (
                first.max(region.guest),
                end.min(region.guest + region.bytes),
            );
            if from < to {
                self.discard(region.offset + (from - region.guest), to - from);
            }
        }
    }

    /// Turns a shared memfd into a frozen base: this guest goes on with private pages over it, and nobody can write to
    /// it any more. Must only be called while no vCPU and no device runs.
    ///
    /// # Errors
    /// When the host refuses to map or to seal.
    pub fn freeze(&self, huge: bool) -> Result<(), MemoryError> {
        let mut backing = self.backing();
        if let Backing::Shared(file) = &*backing {
            let file = file.try_clone().map_err(MemoryError::File)?;
            let seals =
                libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
            let fd = file.as_raw_fd();
            let private = Backing::CopyOnWrite(file);
            self.map(&private, huge)?;
            *backing = private;
            // SAFETY: fcntl with integers on a descriptor that we own.
            if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
                return Err(MemoryError::Seal(io::Error::last_os_error()));
            }
        }
        Ok(())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        let (address, bytes) = self.reserved;
        // SAFETY: the reservation was made by `new` and covers the mapping; `guest` does not outlive `self`.
        unsafe { libc::munmap(address, bytes) };
    }
}

/// Rounds a reported range inwards to whole pages of the host.
fn whole_pages(start: GuestAddress, bytes: u64) -> Option<(u64, u64)> {
    let first = start.raw_value().checked_next_multiple_of(PAGE)?;
    let end = start.raw_value().checked_add(bytes)? & !(PAGE - 1);
    (end > first).then_some((first, end - first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn ram_above_three_gibibytes_continues_at_four() {
        let found = regions(4 << 30);

        assert_eq!(
            found[0],
            Region {
                guest: 0,
                bytes: LOW_RAM_END,
                offset: 0
            }
        );
        assert_eq!(
            found[1],
            Region {
                guest: HIGH_RAM_START,
                bytes: 1 << 30,
                offset: LOW_RAM_END
            }
        );
    }

    #[test]
    fn a_frozen_base_keeps_its_bytes_and_refuses_writes() {
        let file = Ram::memfd(HUGE_PAGE).unwrap();
        let ram = Ram::new(HUGE_PAGE, Backing::Shared(file.try_clone().unwrap()), false).unwrap();
        ram.guest().write_obj(7u64, GuestAddress(4096)).unwrap();

        ram.freeze(false).unwrap();
        ram.guest().write_obj(8u64, GuestAddress(4096)).unwrap();

        let clone = Ram::new(
            HUGE_PAGE,
            Backing::CopyOnWrite(file.try_clone().unwrap()),
            false,
        )
        .unwrap();
        assert_eq!(
            clone.guest().read_obj::<u64>(GuestAddress(4096)).unwrap(),
            7
        );
        assert_eq!(ram.guest().read_obj::<u64>(GuestAddress(4096)).unwrap(), 8);
        assert!(std::os::unix::fs::FileExt::write_at(&file, b"x", 0).is_err());
    }

    #[test]
    fn a_short_file_is_refused() {
        let file = Ram::memfd(HUGE_PAGE / 2).unwrap();

        assert!(matches!(
            Ram::new(HUGE_PAGE, Backing::Shared(file), false),
            Err(MemoryError::FileTooShort { .. })
        ));
    }

    #[test]
    fn a_part_of_a_page_is_not_given_back() {
        assert_eq!(
            whole_pages(GuestAddress(0x1001), 0x2fff),
            Some((0x2000, 0x2000))
        );
        assert_eq!(whole_pages(GuestAddress(0x1001), 0x0fff), None);
        assert_eq!(whole_pages(GuestAddress(u64::MAX), 2), None);
    }
}
