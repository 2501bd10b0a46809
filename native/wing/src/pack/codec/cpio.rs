//! A cpio writer in the format "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::fs::File;

use crate::pack::{error::Result, output::FileWriter};

/// An archive that is being written.
pub struct Cpio {
    out: FileWriter,
    inode: u32,
}

impl Cpio {
    /// Begins an archive in `out`, whose old contents go away.
    ///
    /// # Errors
    /// `write_failed` if `out` is not a regular file open for writing.
    pub fn new(out: File, what: &'static str) -> Result<Self> {
        Ok(Self {
            out: FileWriter::new(out, what)?,
            inode: 0,
        })
    }

    /// Adds an entry of owner 0:0 and time 0; device numbers are those of a node.
    pub fn add(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<()> {
        self.inode += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        self.entry(name, [self.inode, mode, links], device, data)
    }

    fn entry(
        &mut self,
        name: &str,
        [inode, mode, links]: [u32; 3],
        (major, minor): (u32, u32),
        data: &[u8],
    ) -> Result<()> {
        let len = data.len();
        let name_len = name.len() + 1;
        // magic, inode, mode, uid, gid, links, mtime, size, device of the file (2), of the node (2), name size, check
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{len:08x}{0:08x}{0:08x}{major:08x}{minor:08x}{name_len:08x}{0:08x}",
            0
        );
        self.out.put(header.as_bytes())?;
        self.out.put(name.as_bytes())?;
        self.out.put(&[0])?;
        self.pad(4)?;
        self.out.put(data)?;
        self.pad(4)
    }

    /// The end mark; gives the size of the archive.
    pub fn finish(mut self) -> Result<u64> {
        self.entry("TRAILER!!!", [0, 0, 1], (0, 0), b"")?;
        self.pad(512)?;
        self.out.finish()?;
        Ok(self.out.position())
    }

    fn pad(&mut self, to: u64) -> Result<()> {
        let missing =
            usize::try_from(self.out.position().next_multiple_of(to) - self.out.position())
                .unwrap_or(0);
        self.out.put(&[0; 512][..missing])
    }
}
