//! The contents of files: whole blocks go to the output at once, the last part of each stays in RAM to be stored
//! beside its inode. Holes are left out: those that the archive tells of, and zeros by the MiB in what it does not.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use super::{
    BLOCK,
    chunks::{ChunkMap, ChunkMaps, Cut, FOUND_BITS, HOLE, Pieces},
    tails::Tails,
};
use crate::pack::{
    codec::tar,
    error::{Error, Result},
    image::tree::{Contents, Place},
    input::read_contents,
};

/// Bytes that are written at once.
const BUFFER: usize = CHUNK;
/// See [`FOUND_BITS`].
const CHUNK: usize = 1 << FOUND_BITS;

/// The part of an image that holds contents, and the file that it goes to.
#[derive(Debug)]
pub struct DataArea {
    out: File,
    /// First block that was never given out.
    end: u32,
    /// Runs of blocks that a replaced file left: (length, first).
    free: BTreeSet<(u32, u32)>,
    tails: Tails,
    maps: ChunkMaps,
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
        out.set_len(0).map_err(write_failed)?;
        Ok(Self {
            out,
            end: 1,
            free: BTreeSet::new(),
            tails: Tails::default(),
            maps: ChunkMaps::default(),
            pending: Vec::with_capacity(BUFFER),
            pending_at: BLOCK as u64,
            checksum: 0,
        })
    }

    /// Stores the next `size` bytes of `input`, of which `pieces` are no holes. The tail may lie beside an inode that
    /// takes `inode_len` bytes with its attributes.
    ///
    /// # Errors
    /// Those of reading and writing; `archive_too_large` beyond 2^32 blocks.
    pub fn store(
        &mut self,
        input: &mut impl tar::Contents,
        size: u64,
        pieces: Option<&Pieces>,
        inode_len: usize,
    ) -> Result<Contents> {
        if let Some((pieces, cut)) = pieces.and_then(|it| Some((it, Cut::best(size, it)?))) {
            return self.store_pieces(input, size, pieces, cut);
        }
        let tail_len = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let inline = tail_len > 0 && inode_len + tail_len <= BLOCK && self.tails.has_room(tail_len);
        let whole = if inline { size - tail_len as u64 } else { size };
        let place = match self.store_blocks(input, whole)? {
            Stored::Row(block) => Place::Row {
                block,
                tail: if inline {
                    Some(self.tails.store(input, tail_len)?)
                } else {
                    None
                },
            },
            Stored::Chunks(mut map) => {
                if inline {
                    self.append_tail(input, tail_len, whole, &mut map)?;
                }
                self.keep_used(&mut map);
                Place::Chunks(self.maps.add(map)?)
            }
        };
        Ok(Contents { size, place })
    }

    /// Stores whole blocks, the last filled up with zeros, without the chunks that are zeros throughout.
    fn store_blocks(&mut self, input: &mut impl Read, size: u64) -> Result<Stored> {
        let count = blocks(size).ok_or_else(too_many_blocks)?;
        if count == 0 {
            return Ok(Stored::Row(0));
        }
        let first = self.allocate(count)?;
        self.seek(u64::from(first) * BLOCK as u64)?;
        let mut next = first;
        let mut chunks = Vec::new();
        let mut has_holes = false;
        let mut left = size;
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            if self.pending.len() + len > BUFFER {
                self.flush()?;
            }
            let start = self.pending.len();
            self.pending.resize(start + len, 0);
            let read = read_contents(input, &mut self.pending[start..]);
            if read.is_err() {
                self.pending.truncate(start);
            }
            read?;
            if len == CHUNK && is_zero(&self.pending[start..]) {
                self.pending.truncate(start);
                chunks.push(HOLE);
                has_holes = true;
            } else {
                self.fill_block();
                if size >= CHUNK as u64 {
                    chunks.push(next);
                }
                next += blocks(len as u64).unwrap_or(0);
            }
            left -= len as u64;
        }
        Ok(if has_holes {
            Stored::Chunks(ChunkMap {
                bits: FOUND_BITS,
                chunks,
                run: (first, count),
            })
        } else {
            Stored::Row(first)
        })
    }

    /// Puts the tail of a file that turned out to have holes behind its last chunk, or into one of its own. A chunk was
    /// left out, so there is room in the file's run.
    fn append_tail(
        &mut self,
        input: &mut impl Read,
        len: usize,
        whole: u64,
        map: &mut ChunkMap,
    ) -> Result<()> {
        let next = (self.pending_at + self.pending.len() as u64) / BLOCK as u64;
        if whole.is_multiple_of(CHUNK as u64) {
            map.chunks.push(u32::try_from(next).unwrap_or(HOLE));
        }
        if self.pending.len() + BLOCK > BUFFER {
            self.flush()?;
        }
        let start = self.pending.len();
        self.pending.resize(start + len, 0);
        let read = read_contents(input, &mut self.pending[start..]);
        self.fill_block();
        read
    }

    /// Gives back what a file with holes did not need of its run: all behind what was written last.
    fn keep_used(&mut self, map: &mut ChunkMap) {
        let (first, count) = map.run;
        let end = (self.pending_at + self.pending.len() as u64) / BLOCK as u64;
        let used = u32::try_from(end - u64::from(first)).unwrap_or(count);
        map.run = (first, used);
        if first + count == self.end {
            self.end = first + used;
        } else if used < count {
            self.free.insert((count - used, first + used));
        }
    }

    /// Stores a file of which the archive says where its holes are.
    fn store_pieces(
        &mut self,
        input: &mut impl tar::Contents,
        size: u64,
        pieces: &Pieces,
        cut: Cut,
    ) -> Result<Contents> {
        let first = match cut.blocks {
            0 => 0,
            count => self.allocate_empty(count)?,
        };
        let map = ChunkMap::laid_out(size, pieces, cut, first);
        let mut position = 0;
        for &(at, len) in pieces {
            pass_hole(input, at - position)?;
            position = at;
            while position < at + len {
                let (place, left) = map.place(position);
                let part = left.min(at + len - position).min(BUFFER as u64);
                self.put(input, place.unwrap_or(0), part)?;
                position += part;
            }
        }
        pass_hole(input, size - position)?;
        Ok(Contents {
            size,
            place: Place::Chunks(self.maps.add(map)?),
        })
    }

    /// Stores `len` bytes, at most a buffer, at a byte of the image.
    fn put(&mut self, input: &mut impl Read, offset: u64, len: u64) -> Result<()> {
        let len = usize::try_from(len).unwrap_or(0);
        self.seek(offset)?;
        if self.pending.len() + len > BUFFER {
            self.flush()?;
        }
        let start = self.pending.len();
        self.pending.resize(start + len, 0);
        read_contents(input, &mut self.pending[start..])
    }

    fn fill_block(&mut self) {
        let filled = self.pending.len().next_multiple_of(BLOCK);
        self.pending.resize(filled, 0);
    }

    /// Appends blocks that are no file's: those of directories and of inodes. `bytes` is a multiple of a block.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u32> {
        let count = blocks(bytes.len() as u64).unwrap_or(u32::MAX);
        let first = self.extend(count)?;
        self.seek(u64::from(first) * BLOCK as u64)?;
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

    /// The map of a file with holes.
    pub fn map(&self, handle: u32) -> &ChunkMap {
        self.maps.get(handle)
    }

    /// A checksum of all blocks in the order of their writing.
    pub fn checksum(&mut self) -> Result<u32> {
        self.flush()?;
        Ok(self.checksum)
    }

    /// Gives back what a file used.
    pub fn release(&mut self, contents: &Contents) {
        let (first, count) = match contents.place {
            Place::Row { block, tail } => {
                let beside = tail.map_or(0, |_| contents.size % BLOCK as u64);
                (block, blocks(contents.size - beside).unwrap_or(0))
            }
            Place::Chunks(map) => self.maps.remove(map),
        };
        if count > 0 {
            self.free.insert((count, first));
        }
    }

    /// Empties what no file uses any more, so that an image is the same whatever lay there, and ends the file.
    pub fn finish(&mut self) -> Result<&File> {
        self.flush()?;
        self.out
            .set_len(u64::from(self.end) * BLOCK as u64)
            .map_err(write_failed)?;
        for (count, first) in std::mem::take(&mut self.free) {
            self.clear(first, count)?;
        }
        Ok(&self.out)
    }

    /// Writes what is pending: all that was stored can be read then.
    pub fn settle(&mut self) -> Result<()> {
        self.flush()?;
        // Chunks that end with zeros may reach behind what was written.
        self.out
            .set_len(u64::from(self.end) * BLOCK as u64)
            .map_err(write_failed)
    }

    /// The contents of a file, once they are settled.
    pub fn reader(&self, contents: Contents) -> StoredContents<'_> {
        StoredContents {
            area: self,
            contents,
            position: 0,
        }
    }

    /// The file, after all is written.
    pub fn into_file(self) -> File {
        self.out
    }

    fn clear(&self, first: u32, count: u32) -> Result<()> {
        let (offset, len) = (i64::from(first) * 4096, i64::from(count) * 4096);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no pointers; the descriptor is owned by `self.out`, which the call can at most make emptier.
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

    /// Blocks that read as zeros where nothing is written.
    fn allocate_empty(&mut self, count: u32) -> Result<u32> {
        let end = self.end;
        let first = self.allocate(count)?;
        if first < end {
            // What is pending may belong to the file whose blocks these were.
            self.flush()?;
            self.clear(first, count)?;
        }
        Ok(first)
    }

    fn extend(&mut self, count: u32) -> Result<u32> {
        let first = self.end;
        self.end = first.checked_add(count).ok_or_else(too_many_blocks)?;
        Ok(first)
    }

    fn seek(&mut self, offset: u64) -> Result<()> {
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
        self.out.write_all_at(bytes, offset).map_err(write_failed)
    }
}

/// What became of a file whose holes nobody told of.
enum Stored {
    /// Blocks in a row, from this one on.
    Row(u32),
    Chunks(ChunkMap),
}

fn write_failed(source: io::Error) -> Error {
    Error::Write {
        what: "the image",
        source,
    }
}

fn too_many_blocks() -> Error {
    Error::too_large("blocks", u64::from(u32::MAX))
}

/// Blocks that hold `size` bytes.
fn blocks(size: u64) -> Option<u32> {
    u32::try_from(size.div_ceil(BLOCK as u64)).ok()
}

/// Whether all bytes of whole blocks are 0.
fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    bytes
        .chunks(BLOCK)
        .all(|block| block == &ZEROS[..block.len()])
}

/// Passes over `len` bytes that are a hole.
fn pass_hole(input: &mut impl tar::Contents, len: u64) -> Result<()> {
    let mut left = len;
    while left > 0 {
        match input.skip_hole(left) {
            0 => {
                return Err(Error::Truncated {
                    what: "a file's contents",
                    offset: 0,
                });
            }
            passed => left -= passed,
        }
    }
    Ok(())
}

/// The contents of a stored file from its beginning.
#[derive(Debug)]
pub struct StoredContents<'a> {
    area: &'a DataArea,
    contents: Contents,
    position: u64,
}

impl StoredContents<'_> {
    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.contents.size
    }

    /// Finds the bytes at the current position, and how many of them lie there in a row.
    fn here(&self) -> (Source<'_>, u64) {
        let left = self.contents.size - self.position;
        match self.contents.place {
            Place::Chunks(map) => match self.area.map(map).place(self.position) {
                (Some(offset), len) => (Source::File(offset), len.min(left)),
                (None, len) => (Source::Zeros, len.min(left)),
            },
            Place::Row { block, tail } => {
                let tail = tail.map_or(&[][..], |tail| self.area.tail(tail));
                let whole = self.contents.size - tail.len() as u64;
                if self.position < whole {
                    let offset = u64::from(block) * BLOCK as u64 + self.position;
                    (Source::File(offset), whole - self.position)
                } else {
                    let at = usize::try_from(self.position - whole).unwrap_or(0);
                    (Source::Memory(&tail[at..]), left)
                }
            }
        }
    }
}

enum Source<'a> {
    File(u64),
    Memory(&'a [u8]),
    Zeros,
}

impl Read for StoredContents<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (source, len) = self.here();
        let want = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
        let count = match source {
            Source::File(offset) => self.area.out.read_at(&mut buf[..want], offset)?,
            Source::Memory(bytes) => {
                buf[..want].copy_from_slice(&bytes[..want]);
                want
            }
            Source::Zeros => {
                buf[..want].fill(0);
                want
            }
        };
        if count == 0 && want > 0 {
            return Err(Error::Truncated {
                what: "what was put aside",
                offset: self.position,
            }
            .into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(contents: Contents) -> (u32, Option<u32>) {
        match contents.place {
            Place::Row { block, tail } => (block, tail),
            Place::Chunks(_) => panic!("{contents:?}"),
        }
    }

    fn area() -> DataArea {
        DataArea::new(tempfile::tempfile().unwrap()).unwrap()
    }

    #[test]
    fn room_of_a_replaced_file_is_used_again_and_the_rest_is_emptied() {
        let mut area = area();
        let old = area
            .store(&mut &[1; 5 * BLOCK][..], 5 * BLOCK as u64, None, 64)
            .unwrap();
        let other = area
            .store(&mut &[2; BLOCK][..], BLOCK as u64, None, 64)
            .unwrap();

        area.release(&old);
        let new = area
            .store(&mut &[3; 2 * BLOCK][..], 2 * BLOCK as u64, None, 64)
            .unwrap();

        assert_eq!(
            ([old, other, new].map(|it| place(it).0), area.end()),
            ([1, 6, 1], 7)
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

        let beside = area
            .store(&mut &data[..], BLOCK as u64 + 4000, None, 64)
            .unwrap();
        let apart = area
            .store(&mut &data[..], BLOCK as u64 + 4000, None, 128)
            .unwrap();

        assert_eq!(area.tail(place(beside).1.unwrap()), &[5; 4000]);
        assert_eq!((place(apart).1, area.end()), (None, 4));
    }

    #[test]
    fn contents_that_end_early_are_an_error() {
        for size in [10, 5000] {
            let error = area().store(&mut &[1; 9][..], size, None, 64).unwrap_err();

            assert_eq!(error.code().as_str(), "archive_truncated");
        }
    }

    /// A file in memory of which some pieces are stored.
    struct Holey {
        bytes: Vec<u8>,
        pieces: Vec<(u64, u64)>,
        at: u64,
    }

    impl Holey {
        fn new(size: usize, pieces: &[(u64, u64)]) -> Self {
            let mut bytes = vec![0; size];
            for (number, &(at, len)) in pieces.iter().enumerate() {
                let (at, len) = (usize::try_from(at).unwrap(), usize::try_from(len).unwrap());
                bytes[at..at + len].fill(u8::try_from(number + 1).unwrap());
            }
            Self {
                bytes,
                pieces: pieces.to_vec(),
                at: 0,
            }
        }

        fn store(&mut self, area: &mut DataArea) -> Contents {
            let pieces = self.pieces.clone();
            let size = self.bytes.len() as u64;
            area.store(self, size, Some(&pieces), 64).unwrap()
        }
    }

    impl Read for Holey {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let count = (&self.bytes[usize::try_from(self.at).unwrap()..]).read(buf)?;
            self.at += count as u64;
            Ok(count)
        }
    }

    impl tar::Contents for Holey {
        fn skip_hole(&mut self, max: u64) -> u64 {
            let end = self.bytes.len() as u64;
            let ahead = self.pieces.iter().find(|&&(at, len)| at + len > self.at);
            let len = (ahead.map_or(end, |&(at, _)| at.max(self.at)) - self.at).min(max);
            self.at += len;
            len
        }
    }

    fn read_back(area: &mut DataArea, contents: Contents) -> Vec<u8> {
        area.settle().unwrap();
        let mut bytes = Vec::new();
        area.reader(contents).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_file_with_holes_is_stored_without_them_and_read_with_them() {
        let mut area = area();
        for (size, pieces) in [
            (40 << 20, vec![]),
            (40 << 20, vec![(0, 1)]),
            ((40 << 20) + 4097, vec![(1, 9000), ((40 << 20) + 4096, 1)]),
            (
                20_000_000,
                (0..19).map(|at| (at * 1_000_000 + 77, 3000)).collect(),
            ),
        ] {
            let mut file = Holey::new(size, &pieces);
            let end = area.end();

            let stored = file.store(&mut area);

            assert!(matches!(stored.place, Place::Chunks(_)), "{size}");
            assert!(area.end() - end < 1024, "{} blocks", area.end() - end);
            assert!(read_back(&mut area, stored) == file.bytes, "{size}");
        }
    }

    #[test]
    fn zeros_that_nobody_called_a_hole_are_one() {
        let mut area = area();
        let mib = 1 << 20;
        for (size, data) in [
            (3 * mib, vec![mib]),
            (3 * mib + 5000, vec![]),
            (2 * mib + 100, vec![]),
            (2 * mib, vec![]),
            (5 * mib + 9, vec![0, 4 * mib + 1, 5 * mib + 8]),
            (4 * mib + 8192, vec![4 * mib]),
        ] {
            let mut bytes = vec![0; size];
            data.iter().for_each(|&at| bytes[at] = 7);
            let end = area.end();

            let stored = area.store(&mut &bytes[..], size as u64, None, 64).unwrap();

            assert!(matches!(stored.place, Place::Chunks(_)), "{size}");
            let used = usize::try_from(area.end() - end).unwrap() * BLOCK;
            assert!(used <= data.len() * mib + 8192, "{size}: {used}");
            assert!(read_back(&mut area, stored) == bytes, "{size}");
        }
    }

    #[test]
    fn holes_are_empty_where_another_file_lay() {
        let mut area = area();
        let old = vec![9; 30 << 20];
        let old = area
            .store(&mut &old[..], old.len() as u64, None, 64)
            .unwrap();
        area.release(&old);
        let mut file = Holey::new(20 << 20, &[(5, 5), (19 << 20, 70_000)]);

        let stored = file.store(&mut area);

        assert!(area.end() <= 30 * 256 + 1, "the room is used again");
        assert!(read_back(&mut area, stored) == file.bytes);
    }
}
