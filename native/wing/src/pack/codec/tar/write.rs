//! A tar writer for our own small archives: ustar headers of regular files, the same bytes for the same files.

use std::io::Write;

use crate::pack::error::{Error, Result};

use super::block::BLOCK;

/// Appends a file of owner 0:0, mode 0644 and time 0. `name` is at most 100 bytes and `data` below 8 GiB.
///
/// # Errors
/// `write_failed`, `disk_full`; `archive_malformed` if the name is too long to be written.
pub fn append(out: &mut impl Write, name: &str, data: &[u8]) -> Result<()> {
    let mut header = [0; BLOCK];
    if name.len() > 100 {
        return Err(Error::Malformed {
            offset: 0,
            reason: format!("\"{name}\" is longer than a tar name may be"),
        });
    }
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = (BLOCK - data.len() % BLOCK) % BLOCK;
    write(out, &header)?;
    write(out, data)?;
    write(out, &[0; BLOCK][..padding])
}

/// The two empty blocks at the end.
pub fn finish(out: &mut impl Write) -> Result<()> {
    write(out, &[0; 2 * BLOCK])
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|source| Error::Write {
        what: "a tar archive",
        source,
    })
}
