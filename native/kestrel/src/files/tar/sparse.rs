//! Sparse files: where they hold data. GNU tar has four ways to say it ("Storing Sparse Files", "The Old GNU Format").

use super::BLOCK_BYTES;
use super::error::TarError;

/// Pieces of one file: a map of them takes 16 bytes each.
pub const PIECES_MAX: usize = 250_000;

/// A file with holes. Its data in the archive are the pieces, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// The file's length with its holes.
    pub size: u64,
    /// Offset and length of each piece, in order and apart.
    pub pieces: Vec<(u64, u64)>,
}

impl Sparse {
    /// Checks a map against the file's length, and against the data that the archive holds of it.
    pub fn new(size: u64, pieces: Vec<(u64, u64)>, stored: u64) -> Result<Self, TarError> {
        let mut end = 0;
        let mut held = 0_u64;
        for &(offset, length) in &pieces {
            let after = offset.checked_add(length).filter(|&after| after <= size);
            let (true, Some(after)) = (offset >= end, after) else {
                return Err(TarError::Malformed("a sparse map that is out of order"));
            };
            end = after;
            held += length;
        }
        match held == stored && i64::try_from(size).is_ok() {
            true => Ok(Self { size, pieces }),
            false => Err(TarError::Malformed(
                "a sparse map of another size than its data",
            )),
        }
    }

    /// The map as it stands in front of the data (PAX 1.0): decimal numbers, each on a line.
    pub fn map(&self) -> Vec<u8> {
        let end = self
            .pieces
            .last()
            .map_or(0, |(offset, length)| offset + length);
        // A piece of no bytes at the end says how long the file is to readers that look at the map alone.
        let last = (end < self.size).then_some((self.size, 0));
        let count = self.pieces.len() + usize::from(last.is_some());
        let mut map = format!("{count}\n").into_bytes();
        for (offset, length) in self.pieces.iter().copied().chain(last) {
            map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
        }
        map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
        map
    }
}

/// The `GNU.sparse.*` records of a PAX header.
#[derive(Clone, Debug, Default)]
pub struct SparseKeys {
    pub major: u64,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub pieces: Vec<(u64, u64)>,
}

impl SparseKeys {
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            b"major" => self.major = decimal(value)?,
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" => self.push((decimal(value)?, 0))?,
            b"numbytes" => match self.pieces.last_mut() {
                Some(last) => last.1 = decimal(value)?,
                None => return Err(TarError::Malformed("a sparse map that is out of order")),
            },
            b"map" => {
                self.pieces.clear();
                let mut numbers = value.split(|&byte| byte == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().unwrap_or_default();
                    self.push((decimal(offset)?, decimal(length)?))?;
                }
            }
            // minor and numblocks say nothing that the map does not.
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, piece: (u64, u64)) -> Result<(), TarError> {
        push(&mut self.pieces, piece)
    }
}

fn push(pieces: &mut Vec<(u64, u64)>, piece: (u64, u64)) -> Result<(), TarError> {
    if pieces.len() >= PIECES_MAX {
        return Err(TarError::Malformed("a sparse file of too many pieces"));
    }
    pieces.push(piece);
    Ok(())
}

fn decimal(digits: &[u8]) -> Result<u64, TarError> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .ok_or(TarError::Malformed(
            "a sparse map that is no list of numbers",
        ))
}

/// A map of PAX 1.0, block by block.
#[derive(Debug, Default)]
pub struct MapReader {
    wanted: Option<u64>,
    half: Option<u64>,
    line: Vec<u8>,
    pub pieces: Vec<(u64, u64)>,
}

impl MapReader {
    /// Takes a block; `true` when the map is whole. What stands behind it in its last block is padding.
    pub fn take(&mut self, block: &[u8]) -> Result<bool, TarError> {
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > 20 {
                    return Err(TarError::Malformed(
                        "a sparse map that is no list of numbers",
                    ));
                }
                continue;
            }
            let number = decimal(&std::mem::take(&mut self.line))?;
            match (self.wanted, self.half.take()) {
                (None, _) => self.wanted = Some(number),
                (Some(_), None) => self.half = Some(number),
                (Some(_), Some(offset)) => push(&mut self.pieces, (offset, number))?,
            }
            if self.wanted == Some(self.pieces.len() as u64) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_read_as_it_is_written() {
        for pieces in [
            vec![],
            vec![(0, 10)],
            vec![(4096, 4096), (1 << 40, 1)],
            (0..500).map(|at| (at * 8192, 4096)).collect(),
        ] {
            let sparse = Sparse {
                size: 1 << 41,
                pieces: pieces.clone(),
            };
            let mut reader = MapReader::default();

            let blocks: Vec<_> = sparse
                .map()
                .chunks(BLOCK_BYTES)
                .map(<[u8]>::to_vec)
                .collect();
            let done: Vec<_> = blocks
                .iter()
                .map(|block| reader.take(block).unwrap())
                .collect();

            assert_eq!(done.iter().filter(|&&done| done).count(), 1);
            assert_eq!(done.last(), Some(&true));
            assert_eq!(reader.pieces.split_last().unwrap().1, pieces);
        }
    }

    #[test]
    fn maps_that_lie_are_malformed() {
        for (size, pieces, stored) in [
            (10, vec![(0, 11)], 11),
            (10, vec![(5, 5), (0, 5)], 10),
            (10, vec![(0, 5), (4, 5)], 10),
            (10, vec![(0, 5)], 6),
            (u64::MAX, vec![(u64::MAX, u64::MAX)], u64::MAX),
            (u64::MAX, vec![], 0),
        ] {
            assert!(
                Sparse::new(size, pieces.clone(), stored).is_err(),
                "{pieces:?}"
            );
        }
        for map in [
            &b"x\n"[..],
            b"1\n-1\n1\n",
            b"123456789012345678901\n",
            b"1\n\n1\n",
        ] {
            assert!(MapReader::default().take(map).is_err(), "{map:?}");
        }
    }
}
