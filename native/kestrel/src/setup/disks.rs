//! Disks by role: virtio-blk shows the serial that the host gave (20 bytes) in sysfs, so no name hangs on probe order.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys::{check, ioctl_request};

/// `_IOW('f', 16, __u64)`, fs/ext4/ext4.h: the new size in blocks.
const EXT4_IOC_RESIZE_FS: u32 = 0x4008_6610;

/// Probing is done when a built-in or loaded driver returns; this is for a host that plugs slowly.
const APPEAR: Duration = Duration::from_secs(3);

/// A disk of this guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `/dev/vda`.
    pub device: PathBuf,
    pub bytes: u64,
    /// The host's file can be given back by discards.
    pub can_discard: bool,
}

/// Finds the disk with this serial, waiting a little for it.
pub fn find(serial: &str) -> Option<Disk> {
    let deadline = Instant::now() + APPEAR;
    loop {
        if let Some(disk) = find_in(Path::new("/sys/block"), serial) {
            return Some(disk);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Finds a disk as [`find`] does, without waiting.
pub fn find_now(serial: &str) -> Option<Disk> {
    find_in(Path::new("/sys/block"), serial)
}

fn find_in(sys_block: &Path, serial: &str) -> Option<Disk> {
    std::fs::read_dir(sys_block)
        .ok()?
        .flatten()
        .find_map(|entry| {
            let folder = entry.path();
            let found = std::fs::read_to_string(folder.join("serial")).ok()?;
            if found.trim_end_matches(['\n', '\0']) != serial {
                return None;
            }
            let number = |name: &str| -> Option<u64> {
                std::fs::read_to_string(folder.join(name))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            Some(Disk {
                device: Path::new("/dev").join(entry.file_name()),
                // sysfs counts in sectors of 512 bytes whatever the disk's own are.
                bytes: number("size")?.saturating_mul(512),
                can_discard: number("queue/discard_max_bytes").unwrap_or(0) > 0,
            })
        })
}

/// Grows the ext4 of `device`, mounted at `mount`, to `bytes`; never shrinks it. Online, by the kernel: nothing of
/// e2fsprogs is needed.
///
/// # Errors
/// What the kernel says; a file system made without room for its group descriptors cannot grow far.
pub fn grow_ext4(device: &Path, mount: &Path, bytes: u64) -> io::Result<()> {
    let mut superblock = [0_u8; 1024];
    File::open(device)?.read_exact_at(&mut superblock, 1024)?;
    let size = ext4_size(&superblock).ok_or(io::ErrorKind::InvalidData)?;
    let blocks = bytes / size.block_bytes;
    if blocks <= size.blocks {
        return Ok(());
    }
    let folder = File::open(mount)?;
    // SAFETY: the ioctl reads one u64.
    check(unsafe {
        libc::ioctl(
            folder.as_raw_fd(),
            ioctl_request(EXT4_IOC_RESIZE_FS),
            &raw const blocks,
        )
    })?;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ext4Size {
    blocks: u64,
    block_bytes: u64,
}

/// The size that a superblock states (`struct ext4_super_block`, fs/ext4/ext4.h).
fn ext4_size(superblock: &[u8; 1024]) -> Option<Ext4Size> {
    const INCOMPAT_64BIT: u32 = 0x80;
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(*superblock.get(at..)?.first_chunk()?))
    };
    let high = if word(0x60)? & INCOMPAT_64BIT == 0 {
        0
    } else {
        word(0x150)?
    };
    let shift = word(0x18).filter(|&shift| shift <= 6)?;
    Some(Ext4Size {
        blocks: u64::from(high) << 32 | u64::from(word(0x04)?),
        block_bytes: 1024 << shift,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    #[test]
    fn a_disk_is_found_by_its_serial_alone() {
        let folder = TestFolder::new();
        for (name, serial) in [("vda", "overlay"), ("vdb", "root\n"), ("vdc", "rootless")] {
            let disk = folder.path().join(name);
            std::fs::create_dir_all(disk.join("queue")).unwrap();
            std::fs::write(disk.join("serial"), serial).unwrap();
            std::fs::write(disk.join("size"), "8\n").unwrap();
            std::fs::write(disk.join("queue/discard_max_bytes"), "512\n").unwrap();
        }
        std::fs::create_dir_all(folder.path().join("loop0")).unwrap();

        assert_eq!(
            find_in(folder.path(), "root"),
            Some(Disk {
                device: PathBuf::from("/dev/vdb"),
                bytes: 4096,
                can_discard: true
            })
        );
        assert_eq!(find_in(folder.path(), "vol1"), None);
    }

    #[test]
    fn the_size_of_an_ext4_is_read_with_and_without_64_bits() {
        let mut superblock = [0_u8; 1024];
        superblock[0x04..0x08].copy_from_slice(&16_384_u32.to_le_bytes());
        superblock[0x18..0x1c].copy_from_slice(&2_u32.to_le_bytes());
        superblock[0x150..0x154].copy_from_slice(&1_u32.to_le_bytes());
        let small = Ext4Size {
            blocks: 16_384,
            block_bytes: 4096,
        };

        assert_eq!(ext4_size(&superblock), Some(small));
        superblock[0x60] = 0x80;
        assert_eq!(
            ext4_size(&superblock),
            Some(Ext4Size {
                blocks: (1 << 32) + 16_384,
                ..small
            })
        );
        superblock[0x18] = 60;
        assert_eq!(ext4_size(&superblock), None);
    }
}
