//! Puts a vmlinux where its program headers say (ELF-64, System V ABI, x86-64). The file is the caller's and may be
//! hostile: every number in it is checked against the guest's memory before it is used.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Program headers read at most; Linux has five.
const SEGMENTS_MAX: u16 = 64;
const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const EM_X86_64: u16 = 62;

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading failed or the file ended early.
    #[error("cannot read the kernel")]
    Read(#[source] io::Error),
    /// Not an ELF-64 executable for x86-64.
    #[error("kernel is not an x86-64 ELF executable (a bzImage must be unpacked to vmlinux first)")]
    NotElf,
    /// Program headers that no kernel has.
    #[error("kernel has {0} program headers, at most {SEGMENTS_MAX} are read")]
    Segments(u16),
    /// A segment lies outside RAM, or below 1 MiB where the boot tables are.
    #[error("kernel segment {index} (at {address:#x}, {bytes} bytes) is outside guest memory")]
    OutsideMemory {
        /// Number of the program header.
        index: u16,
        /// Physical address it asks for.
        address: u64,
        /// Bytes in memory.
        bytes: u64,
    },
    /// The entry is in no segment.
    #[error("kernel entry {0:#x} is in none of its segments")]
    Entry(u64),
}

/// Where a loaded kernel starts and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Physical address of the 64-bit entry.
    pub entry: u64,
    /// First byte above its last segment.
    pub end: u64,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        out.copy_from_slice(found);
    }
    out
}

/// Loads `kernel` into `memory`, no byte of it below `lowest`.
///
/// # Errors
/// When the file is not a kernel, lies about itself, or does not fit.
pub fn load(memory: &GuestMemoryMmap, kernel: &File, lowest: u64) -> Result<Loaded, KernelError> {
    let mut header = [0; HEADER_BYTES];
    kernel
        .read_exact_at(&mut header, 0)
        .map_err(|_| KernelError::NotElf)?;
    let class_64_little = [0x7f, b'E', b'L', b'F', 2, 1];
    let headers_at = u64::from_le_bytes(field(&header, 32));
    if header[..6] != class_64_little
        || u16::from_le_bytes(field(&header, 18)) != EM_X86_64
        || u16::from_le_bytes(field(&header, 54)) as usize != SEGMENT_BYTES
    {
        return Err(KernelError::NotElf);
    }
    let count = u16::from_le_bytes(field(&header, 56));
    if count == 0 || count > SEGMENTS_MAX {
        return Err(KernelError::Segments(count));
    }
    let entry = u64::from_le_bytes(field(&header, 24));
    let mut headers = vec![0; usize::from(count) * SEGMENT_BYTES];
    kernel
        .read_exact_at(&mut headers, headers_at)
        .map_err(KernelError::Read)?;

    let mut loaded = Loaded { entry, end: 0 };
    let mut entry_found = false;
    for (index, segment) in (0u16..).zip(headers.chunks_exact(SEGMENT_BYTES)) {
        if u32::from_le_bytes(field(segment, 0)) != PT_LOAD {
            continue;
        }
        let offset = u64::from_le_bytes(field(segment, 8));
        let address = u64::from_le_bytes(field(segment, 24));
        let in_file = u64::from_le_bytes(field(segment, 32));
        let bytes = u64::from_le_bytes(field(segment, 40));
        let outside = KernelError::OutsideMemory {
            index,
            address,
            bytes,
        };
        let (Some(end), Ok(length)) = (address.checked_add(bytes), usize::try_from(bytes)) else {
            return Err(outside);
        };
        if in_file > bytes || address < lowest || !memory.check_range(GuestAddress(address), length)
        {
            return Err(outside);
        }
        read_at(memory, kernel, offset, address, in_file)?;
        loaded.end = loaded.end.max(end);
        entry_found |= (address..end).contains(&entry);
    }
    if entry_found {
        Ok(loaded)
    } else {
        Err(KernelError::Entry(entry))
    }
}

/// Reads `bytes` of `file` from `offset` straight into guest memory. The range must lie inside one region.
///
/// # Errors
/// When the file ends early or cannot be read.
pub fn read_at(
    memory: &GuestMemoryMmap,
    file: &File,
    offset: u64,
    address: u64,
    bytes: u64,
) -> Result<(), KernelError> {
    let mut done = 0;
    while done < bytes {
        let at = GuestAddress(address + done);
        let host = memory
            .get_host_address(at)
            .map_err(|_| KernelError::Read(io::ErrorKind::AddrNotAvailable.into()))?;
        let length = usize::try_from(bytes - done).unwrap_or(usize::MAX);
        let Ok(from) = i64::try_from(offset.saturating_add(done)) else {
            return Err(KernelError::Read(io::ErrorKind::InvalidInput.into()));
        };
        // SAFETY: the caller checked that `address .. address + bytes` is one piece of guest memory, which stays mapped
        // while `memory` is borrowed; the kernel writes there and no Rust reference to it exists.
        let read = unsafe { libc::pread(file.as_raw_fd(), host.cast(), length, from) };
        match u64::try_from(read) {
            Ok(0) => return Err(KernelError::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => done += read,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(KernelError::Read(error));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile();
        file.write_all(bytes).unwrap();
        file
    }

    fn tempfile() -> File {
        crate::memory::Ram::memfd(0).unwrap()
    }

    fn kernel(address: u64, in_file: u64, in_memory: u64, entry: u64) -> Vec<u8> {
        let mut elf = vec![0u8; 256];
        elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        elf[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        elf[24..32].copy_from_slice(&entry.to_le_bytes());
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
        elf[72..80].copy_from_slice(&128u64.to_le_bytes());
        elf[88..96].copy_from_slice(&address.to_le_bytes());
        elf[96..104].copy_from_slice(&in_file.to_le_bytes());
        elf[104..112].copy_from_slice(&in_memory.to_le_bytes());
        elf[128..136].copy_from_slice(b"the code");
        elf
    }

    #[test]
    fn a_segment_lands_at_its_physical_address() {
        let memory = memory();

        let loaded = load(
            &memory,
            &file(&kernel(0x10_0000, 8, 0x2000, 0x10_0000)),
            0x10_0000,
        )
        .unwrap();

        assert_eq!(
            loaded,
            Loaded {
                entry: 0x10_0000,
                end: 0x10_2000
            }
        );
        let mut found = [0; 8];
        memory
            .read_slice(&mut found, GuestAddress(0x10_0000))
            .unwrap();
        assert_eq!(&found, b"the code");
    }

    #[test]
    fn lies_about_sizes_are_typed_errors() {
        for (address, in_file, in_memory) in [
            (0x1000, 8, 8),
            (0x10_0000, 9, 8),
            (u64::MAX - 4, 8, 8),
            (0x3f_ffff, 8, 8),
            (0x10_0000, 8, u64::MAX),
        ] {
            let bytes = kernel(address, in_file, in_memory, address);
            assert!(matches!(
                load(&memory(), &file(&bytes), 0x10_0000),
                Err(KernelError::OutsideMemory { .. })
            ));
        }
        let bytes = kernel(0x10_0000, 4096, 4096, 0x10_0000);
        assert!(matches!(
            load(&memory(), &file(&bytes), 0x10_0000),
            Err(KernelError::Read(_))
        ));
        let bytes = kernel(0x10_0000, 8, 8, 0x20_0000);
        assert!(matches!(
            load(&memory(), &file(&bytes), 0x10_0000),
            Err(KernelError::Entry(0x20_0000))
        ));
        assert!(matches!(
            load(&memory(), &file(b"MZ"), 0x10_0000),
            Err(KernelError::NotElf)
        ));
    }
}
