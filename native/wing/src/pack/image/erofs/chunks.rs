//! Files with holes: a map from chunks of the file to blocks of the image, in which a hole has none ("chunk-based" inodes
//! of `erofs_fs.h`, Linux 5.15). A hole takes four bytes a chunk, whatever its size.

use super::BLOCK;
use crate::pack::error::{Error, Result};

/// `EROFS_NULL_ADDR`: a chunk that is a hole.
pub const HOLE: u32 = u32::MAX;
/// Size of a chunk where the holes are found only while the contents are read: 1 MiB.
pub const FOUND_BITS: u32 = 20;
/// What a map must save, bytes: reading through one costs more requests, and kernels before 5.15 do not know it.
const SAVED_MIN: u64 = 1 << 20;
/// Largest chunk that is chosen: 1 GiB.
const BITS_MAX: u32 = 30;
/// The largest file of ext4, on which a guest's own files lie: 16 TiB.
pub const FILE_MAX: u64 = 1 << 44;
/// Chunks of all files together; their maps are in memory to the end, four bytes each.
const CHUNKS_MAX: u64 = 16 << 20;
/// Zeros that only fill a chunk are a hole of the image file, so they cost reading and no room: this many for one byte.
const FILL_COST: u64 = 256;

/// Pieces of a file that are stored, (offset, length), in order and apart.
pub type Pieces = [(u64, u64)];

/// How a file with holes is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// A chunk has 2^bits bytes.
    pub bits: u32,
    /// Blocks of all chunks that are not holes.
    pub blocks: u32,
}

impl Cut {
    /// The chunk size with which a file of `size` bytes takes the least; `None` where holes are not worth a map.
    pub fn best(size: u64, pieces: &Pieces) -> Option<Self> {
        let data: u64 = pieces.iter().map(|&(_, len)| len).sum();
        if size - data < SAVED_MIN || size > FILE_MAX {
            return None;
        }
        let cost = |bits: u32| {
            let stored = stored(size, pieces, bits);
            let map = 4 * size.div_ceil(1 << bits);
            (map + stored.saturating_sub(data) / FILL_COST, stored, bits)
        };
        let (cost, stored, bits) = (BLOCK.ilog2()..=BITS_MAX).map(cost).min()?;
        let blocks = u32::try_from(stored / BLOCK as u64).ok()?;
        (data + cost + SAVED_MIN <= size).then_some(Self { bits, blocks })
    }

    /// Bytes that the file takes in the image.
    pub fn bytes(&self, size: u64) -> u64 {
        u64::from(self.blocks) * BLOCK as u64 + 4 * size.div_ceil(1 << self.bits)
    }
}

/// Bytes, in whole blocks, of the chunks that hold a piece.
fn stored(size: u64, pieces: &Pieces, bits: u32) -> u64 {
    let chunks = size.div_ceil(1 << bits);
    let mut counted = 0;
    let mut bytes = 0;
    for &(at, len) in pieces {
        let first = (at >> bits).max(counted);
        let end = ((at + len - 1) >> bits) + 1;
        if end > first {
            bytes += (end - first) << bits;
            counted = end;
        }
    }
    if counted == chunks && chunks > 0 {
        // The last chunk ends with the file.
        bytes -= (chunks << bits) - size.next_multiple_of(BLOCK as u64);
    }
    bytes
}

/// The map of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkMap {
    pub bits: u32,
    /// First block of each chunk, or [`HOLE`].
    pub chunks: Vec<u32>,
    /// The blocks that belong to the file: first and count.
    pub run: (u32, u32),
}

impl ChunkMap {
    /// Gives the chunks that hold pieces the blocks from `first` on, in their order.
    pub fn laid_out(size: u64, pieces: &Pieces, cut: Cut, first: u32) -> Self {
        let chunks = usize::try_from(size.div_ceil(1 << cut.bits)).unwrap_or(0);
        let mut map = vec![HOLE; chunks];
        let blocks = (1u32 << cut.bits) / u32::try_from(BLOCK).unwrap_or(1);
        let mut next = first;
        for &(at, len) in pieces {
            for chunk in at >> cut.bits..=(at + len - 1) >> cut.bits {
                let place = &mut map[usize::try_from(chunk).unwrap_or(0)];
                if *place == HOLE {
                    *place = next;
                    next = next.saturating_add(blocks);
                }
            }
        }
        Self {
            bits: cut.bits,
            chunks: map,
            run: (first, cut.blocks),
        }
    }

    /// Finds where the byte at `position` of the file lies in the image, `None` in a hole, and how many bytes are left of
    /// its chunk.
    pub fn place(&self, position: u64) -> (Option<u64>, u64) {
        let within = position & ((1 << self.bits) - 1);
        let chunk = usize::try_from(position >> self.bits).ok();
        let block = chunk
            .and_then(|chunk| self.chunks.get(chunk))
            .filter(|&&block| block != HOLE);
        (
            block.map(|&block| u64::from(block) * BLOCK as u64 + within),
            (1 << self.bits) - within,
        )
    }

    /// Bytes of the map behind its inode.
    pub fn len(&self) -> usize {
        self.chunks.len() * 4
    }

    /// `struct erofs_inode_chunk_info`: the size of a chunk in blocks, as a power of two.
    pub fn format(&self) -> u32 {
        self.bits - BLOCK.ilog2()
    }

    /// Appends the map as it stands behind its inode.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.chunks.iter().flat_map(|block| block.to_le_bytes()));
    }
}

/// The maps of all files with holes, by their handles.
#[derive(Debug, Default)]
pub struct ChunkMaps {
    maps: Vec<ChunkMap>,
    chunks: u64,
}

impl ChunkMaps {
    /// Keeps a map.
    ///
    /// # Errors
    /// `archive_too_large` beyond the chunks that are kept in memory.
    pub fn add(&mut self, map: ChunkMap) -> Result<u32> {
        self.chunks += map.chunks.len() as u64;
        if self.chunks > CHUNKS_MAX {
            return Err(Error::too_large("chunks of files with holes", CHUNKS_MAX));
        }
        self.maps.push(map);
        Ok(u32::try_from(self.maps.len() - 1).unwrap_or(u32::MAX))
    }

    pub fn get(&self, handle: u32) -> &ChunkMap {
        &self.maps[handle as usize]
    }

    /// Forgets the map of a file that is gone; gives the blocks that it had.
    pub fn remove(&mut self, handle: u32) -> (u32, u32) {
        let map = &mut self.maps[handle as usize];
        self.chunks -= map.chunks.len() as u64;
        map.chunks = Vec::new();
        map.run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_huge_hole_takes_some_kilobytes() {
        for (size, pieces, most) in [
            (100 * GIB, &[][..], 1 << 10),
            (100 * GIB, &[(0, 300_000)], 64 << 10),
            (1280 * GIB, &[(0, 292), (1280 * GIB - 292, 292)], 512 << 10),
            (16 * 1024 * GIB, &[(7, 1), (GIB, 5000)], 1 << 20),
        ] {
            let cut = Cut::best(size, pieces).unwrap();

            let map = 4 * size.div_ceil(1 << cut.bits);
            assert!(map <= most, "{size}: {map} bytes of map");
            assert!(cut.blocks <= 32 << 10, "{size}: {} blocks", cut.blocks);
        }
    }

    #[test]
    fn small_holes_are_zeros() {
        assert_eq!(Cut::best(900_000, &[(0, 1)]), None);
        assert_eq!(Cut::best(20 << 20, &[(0, 19 << 20)]), None);
        assert!(Cut::best(20 << 20, &[(0, 17 << 20)]).is_some());
    }

    #[test]
    fn chunks_lie_in_a_row_and_the_last_ends_with_the_file() {
        let size = (8 << 20) + 5000;
        let pieces = [(4096, 100), (5 << 20, 10), (size - 1, 1)];
        let cut = Cut {
            bits: 20,
            blocks: u32::try_from(stored(size, &pieces, 20) / 4096).unwrap(),
        };

        let map = ChunkMap::laid_out(size, &pieces, cut, 7);

        assert_eq!(cut.blocks, 256 + 256 + 2);
        let expected = [7, HOLE, HOLE, HOLE, HOLE, 263, HOLE, HOLE, 519];
        assert_eq!(map.chunks, expected);
        assert_eq!(map.place(5 << 20), (Some(263 * 4096), 1 << 20));
        assert_eq!(map.place((6 << 20) + 1), (None, (1 << 20) - 1));
    }
}
