//! The contents of files: whole blocks go to the output at once, the last part of each stays in RAM to be stored
//! beside its inode.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use crate::pack::{
    error::{Error, Result},
    image::tree::Contents,
};

use super::BLOCK;

const BUFFER: usize = 1 << 20;
/// Tails kept in RAM, bytes; a Debian tree of 100,000 files has 150 MiB of them.
const TAILS_MAX: usize = 256 << 20;
/// Tails lie in pieces of this size, so that they never have to be moved.
const PIECE: usize = 1 << 20;

/// The part of an image that holds contents, and the file that it goes to.
#[derive(Debug)]
pub struct DataArea {
    out: File,
    /// First block that was never given out.
    end: u32,
    /// Runs of blocks that a replaced file left: (length, first).
    free: BTreeSet<(u32, u32)>,
    tails: Tails,
    /// Bytes that are not yet in the file, and where they belong.
    pending: Vec<u8>,
    pending_at: u64,
    checksum: u32,
}

impl DataArea {
    /// Begins an image in `out`, whose old contents go away.
    ///
    /// # Errors
    /// `write_failed` if `out` is not a regular file open for writing.
    pub fn new(out: File) -> Result<Self> {
        out.set_len(0).map_err(|source| Error::Write {
            what: "the image",
            source,
        })?;
        Ok(Self {
            out,
            end: 1,
            free: BTreeSet::new(),
            tails: Tails::default(),
            pending: Vec::with_capacity(BUFFER),
            pending_at: BLOCK as u64,
            checksum: 0,
        })
    }

    /// Stores the next `size` bytes of `input`. The tail may lie beside an inode that takes `inode_len` bytes with
    /// its attributes.
    ///
    /// # Errors
    /// Those of reading and writing; `archive_too_large` beyond 2^32 blocks.
    pub fn store(
        &mut self,
        input: &mut impl Read,
        size: u64,
        inode_len: usize,
    ) -> Result<Contents> {
        let tail_len = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let inline = tail_len > 0 && inode_len + tail_len <= BLOCK && self.tails.has_room(tail_len);
        let whole = if inline { size - tail_len as u64 } else { size };
        let block = self.store_blocks(input, whole)?;
        let tail = if inline {
            Some(self.tails.store(input, tail_len)?)
        } else {
            None
        };
        Ok(Contents { size, block, tail })
    }

    /// Stores whole blocks, the last filled up with zeros; gives the first.
    fn store_blocks(&mut self, input: &mut impl Read, size: u64) -> Result<u32> {
        let count = blocks(size).ok_or(Error::TooLarge {
            what: "blocks",
            limit: u64::from(u32::MAX),
        })?;
        if count == 0 {
            return Ok(0);
        }
        let first = self.allocate(count)?;
        self.seek(first)?;
        let mut left = size;
        while left > 0 {
            if self.pending.len() == BUFFER {
                self.flush()?;
            }
            let start = self.pending.len();
            let want = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(BUFFER - start);
            self.pending.resize(start + want, 0);
            let count = read_some(input, &mut self.pending[start..]);
            self.pending
                .truncate(start + count.as_ref().map_or(0, |&count| count));
            left -= count? as u64;
        }
        let filled = self.pending.len().next_multiple_of(BLOCK);
        self.pending.resize(filled, 0);
        Ok(first)
    }

    /// Appends blocks that are no file's: those of directories and of inodes. `bytes` is a multiple of a block.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u32> {
        let count = blocks(bytes.len() as u64).unwrap_or(u32::MAX);
        let first = self.extend(count)?;
        self.seek(first)?;
        if self.pending.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        self.pending.extend_from_slice(bytes);
        Ok(first)
    }

    /// First block that is not in use.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The bytes of a tail.
    pub fn tail(&self, handle: u32) -> &[u8] {
        self.tails.get(handle)
    }

    /// A checksum of all blocks in the order of their writing.
    pub fn checksum(&mut self) -> Result<u32> {
        self.flush()?;
        Ok(self.checksum)
    }

    /// Gives back what a file used.
    pub fn release(&mut self, contents: &Contents) {
        let whole = contents.size - contents.tail.map_or(0, |_| contents.size % BLOCK as u64);
        if let Some(count @ 1..) = blocks(whole) {
            self.free.insert((count, contents.block));
        }
    }

    /// Empties what no file uses any more, so that an image is the same whatever lay there, and ends the file.
    pub fn finish(&mut self) -> Result<&File> {
        self.flush()?;
        self.out
            .set_len(u64::from(self.end) * BLOCK as u64)
            .map_err(|source| Error::Write {
                what: "the image",
                source,
            })?;
        for (count, first) in std::mem::take(&mut self.free) {
            self.clear(first, count)?;
        }
        Ok(&self.out)
    }

    fn clear(&self, first: u32, count: u32) -> Result<()> {
        let (offset, len) = (i64::from(first) * 4096, i64::from(count) * 4096);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no pointers; the descriptor is owned by `self.out` and the range is inside the file.
        if unsafe { libc::fallocate(self.out.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        // A file system without holes gets zeros.
        for block in first..first + count {
            self.write_at(&[0; BLOCK], u64::from(block) * BLOCK as u64)?;
        }
        Ok(())
    }

    /// The shortest free run that is long enough, or new blocks at the end.
    fn allocate(&mut self, count: u32) -> Result<u32> {
        match self.free.range((count, 0)..).next().copied() {
            Some((len, first)) => {
                self.free.remove(&(len, first));
                if len > count {
                    self.free.insert((len - count, first + count));
                }
                Ok(first)
            }
            None => self.extend(count),
        }
    }

    fn extend(&mut self, count: u32) -> Result<u32> {
        let first = self.end;
        self.end = first.checked_add(count).ok_or(Error::TooLarge {
            what: "blocks",
            limit: u64::from(u32::MAX),
        })?;
        Ok(first)
    }

    fn seek(&mut self, block: u32) -> Result<()> {
        let offset = u64::from(block) * BLOCK as u64;
        if self.pending_at + self.pending.len() as u64 != offset {
            self.flush()?;
            self.pending_at = offset;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.write_at(&self.pending, self.pending_at)?;
        self.checksum = crc32c::crc32c_append(self.checksum, &self.pending);
        self.pending_at += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes at a byte offset, beside the buffer.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.out
            .write_all_at(bytes, offset)
            .map_err(|source| Error::Write {
                what: "the image",
                source,
            })
    }
}

/// Blocks that hold `size` bytes.
fn blocks(size: u64) -> Option<u32> {
    u32::try_from(size.div_ceil(BLOCK as u64)).ok()
}

/// At least one byte, or the error that the archive ended.
fn read_some(input: &mut impl Read, buf: &mut [u8]) -> Result<usize> {
    loop {
        match input.read(buf) {
            Ok(0) => {
                return Err(Error::Truncated {
                    what: "a file's contents",
                    offset: 0,
                });
            }
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::from_read("the archive", error)),
        }
    }
}

/// Tails, each in one of many pieces of memory; a handle is the piece and the place in it.
#[derive(Debug, Default)]
struct Tails {
    pieces: Vec<Vec<u8>>,
    /// Start and length of each tail.
    index: Vec<(u32, u16)>,
}

impl Tails {
    fn has_room(&self, len: usize) -> bool {
        // The index counts too: a hostile archive may hold nothing but files of one byte.
        self.pieces.len() * PIECE + self.index.len() * 8 + len <= TAILS_MAX
    }

    fn store(&mut self, input: &mut impl Read, len: usize) -> Result<u32> {
        if self
            .pieces
            .last()
            .is_none_or(|piece| piece.len() + len > PIECE)
        {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let number = self.pieces.len() - 1;
        let piece = &mut self.pieces[number];
        let start = piece.len();
        piece.resize(start + len, 0);
        let mut filled = start;
        while filled < start + len {
            filled += read_some(input, &mut piece[filled..])?;
        }
        let too_many = |_| Error::TooLarge {
            what: "tails",
            limit: u64::from(u32::MAX),
        };
        let at = u32::try_from(number * PIECE + start).map_err(too_many)?;
        self.index.push((at, u16::try_from(len).unwrap_or(0)));
        u32::try_from(self.index.len() - 1).map_err(too_many)
    }

    fn get(&self, handle: u32) -> &[u8] {
        let (at, len) = self.index[handle as usize];
        let start = at as usize % PIECE;
        &self.pieces[at as usize / PIECE][start..start + usize::from(len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> DataArea {
        DataArea::new(tempfile::tempfile().unwrap()).unwrap()
    }

    #[test]
    fn room_of_a_replaced_file_is_used_again_and_the_rest_is_emptied() {
        let mut area = area();
        let old = area
            .store(&mut &[1; 5 * BLOCK][..], 5 * BLOCK as u64, 64)
            .unwrap();
        let other = area.store(&mut &[2; BLOCK][..], BLOCK as u64, 64).unwrap();

        area.release(&old);
        let new = area
            .store(&mut &[3; 2 * BLOCK][..], 2 * BLOCK as u64, 64)
            .unwrap();

        assert_eq!(
            (old.block, other.block, new.block, area.end()),
            (1, 6, 1, 7)
        );
        let file = area.finish().unwrap();
        let mut bytes = vec![9; 7 * BLOCK];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let firsts: Vec<u8> = bytes.chunks(BLOCK).map(|block| block[0]).collect();
        assert_eq!(firsts, [0, 3, 3, 0, 0, 0, 2]);
    }

    #[test]
    fn a_tail_stays_in_memory_only_where_it_fits_beside_its_inode() {
        let mut area = area();
        let data = [5; BLOCK + 4000];

        let beside = area.store(&mut &data[..], BLOCK as u64 + 4000, 64).unwrap();
        let apart = area
            .store(&mut &data[..], BLOCK as u64 + 4000, 128)
            .unwrap();

        assert_eq!(area.tail(beside.tail.unwrap()), &[5; 4000]);
        assert_eq!((apart.tail, area.end()), (None, 4));
    }

    #[test]
    fn contents_that_end_early_are_an_error() {
        for size in [10, 5000] {
            let error = area().store(&mut &[1; 9][..], size, 64).unwrap_err();

            assert_eq!(error.code().as_str(), "archive_truncated");
        }
    }
}
