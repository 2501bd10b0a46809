//! Sparse files: which pieces of a file are stored, and that the rest is zeros (GNU tar manual, "Sparse Formats").

use crate::pack::error::{Error, Result};

use super::{
    block::BLOCK,
    header::{Header, decimal, parse_number},
};

/// Pieces of one file. A file of 64 GiB with a hole in every MiB has this many.
pub const PIECES_MAX: usize = 65_536;

/// The map of one file and how far it has been read.
#[derive(Debug, Clone)]
pub struct Sparse {
    pieces: Vec<(u64, u64)>,
    real_size: u64,
    next: usize,
    position: u64,
}

/// What comes next at the current position.
pub enum Piece {
    Hole(usize),
    Data(usize),
    End,
}

impl Sparse {
    /// Takes pieces that are in order, apart, and inside the file.
    pub fn new(mut pieces: Vec<(u64, u64)>, real_size: u64, offset: u64) -> Result<Self> {
        pieces.retain(|&(_, len)| len > 0);
        if pieces.len() > PIECES_MAX {
            return Err(Error::too_large(
                "pieces in a sparse file",
                PIECES_MAX as u64,
            ));
        }
        let mut end = 0;
        for &(at, len) in &pieces {
            end = at
                .checked_add(len)
                .filter(|&piece_end| at >= end && piece_end <= real_size)
                .ok_or_else(|| Error::Malformed {
                    offset,
                    reason: "a sparse map is out of order".into(),
                })?;
        }
        Ok(Self {
            pieces,
            real_size,
            next: 0,
            position: 0,
        })
    }

    /// The old GNU format: four pieces in the header, 21 in each block that continues it.
    pub fn from_gnu_header(
        header: &Header,
        mut next_block: impl FnMut() -> Result<[u8; BLOCK]>,
        offset: u64,
    ) -> Result<Self> {
        let real_size = header.number(483, 12, "real size")?;
        let mut pieces = Vec::new();
        read_pieces(&header.block()[386..482], &mut pieces, offset)?;
        let mut extended = header.block()[482] != 0;
        while extended {
            let block = next_block()?;
            read_pieces(&block[..504], &mut pieces, offset)?;
            extended = block[504] != 0;
        }
        Self::new(pieces, real_size, offset)
    }

    /// Version 1.0: decimal lines at the beginning of the data, padded to a block.
    pub fn from_data(
        real_size: u64,
        mut next_block: impl FnMut() -> Result<[u8; BLOCK]>,
        offset: u64,
    ) -> Result<Self> {
        let bad = || Error::Malformed {
            offset,
            reason: "a sparse map is no list of numbers".into(),
        };
        let mut line: Vec<u8> = Vec::new();
        let mut numbers = Vec::new();
        let mut expected = None;
        while expected.is_none_or(|expected| numbers.len() < expected) {
            for &byte in &next_block()? {
                if expected == Some(numbers.len()) {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(bad());
                    }
                    continue;
                }
                let number = decimal(&line).ok_or_else(bad)?;
                line.clear();
                if expected.is_some() {
                    numbers.push(number);
                } else {
                    let count = usize::try_from(number)
                        .ok()
                        .filter(|&count| count <= PIECES_MAX);
                    let count = count.ok_or(Error::too_large(
                        "pieces in a sparse file",
                        PIECES_MAX as u64,
                    ))?;
                    expected = Some(count * 2);
                }
            }
        }
        Self::new(
            numbers
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect(),
            real_size,
            offset,
        )
    }

    /// Checks that the stored bytes are those of the map.
    pub fn holding(self, stored: u64, offset: u64) -> Result<Self> {
        if self.pieces.iter().map(|&(_, len)| len).sum::<u64>() == stored {
            return Ok(self);
        }
        Err(Error::Malformed {
            offset,
            reason: "a sparse map and the size of its data differ".into(),
        })
    }

    /// Bytes of the file with its holes.
    pub fn real_size(&self) -> u64 {
        self.real_size
    }

    /// Offset and length of each piece that is stored.
    pub fn pieces(&self) -> &[(u64, u64)] {
        &self.pieces
    }

    /// Passes over the hole at the current position, or `max` bytes of it; gives 0 where data follow.
    pub fn skip_hole(&mut self, max: u64) -> u64 {
        let end = self
            .pieces
            .get(self.next)
            .map_or(self.real_size, |&(at, _)| at);
        let len = end.saturating_sub(self.position).min(max);
        self.position += len;
        len
    }

    /// What to give for the next `len` bytes or fewer.
    pub fn next(&self, len: usize) -> Piece {
        let bounded = |to: u64| {
            usize::try_from(to - self.position)
                .unwrap_or(usize::MAX)
                .min(len)
        };
        match self.pieces.get(self.next) {
            Some(&(at, _)) if self.position < at => Piece::Hole(bounded(at)),
            Some(&(at, piece)) => Piece::Data(bounded(at + piece)),
            None if self.position < self.real_size => Piece::Hole(bounded(self.real_size)),
            None => Piece::End,
        }
    }

    /// Notes that `len` bytes, all of one piece, were given.
    pub fn advance(&mut self, len: usize) {
        self.position += len as u64;
        if self
            .pieces
            .get(self.next)
            .is_some_and(|&(at, piece)| self.position >= at + piece)
        {
            self.next += 1;
        }
    }
}

fn read_pieces(table: &[u8], pieces: &mut Vec<(u64, u64)>, offset: u64) -> Result<()> {
    for slot in table.chunks_exact(24) {
        if slot[0] == 0 {
            break;
        }
        let part = |field| {
            parse_number(field)
                .and_then(|number| u64::try_from(number).ok())
                .ok_or_else(|| Error::Malformed {
                    offset,
                    reason: "a sparse map is no list of numbers".into(),
                })
        };
        pieces.push((part(&slot[..12])?, part(&slot[12..])?));
        if pieces.len() > PIECES_MAX {
            return Err(Error::too_large(
                "pieces in a sparse file",
                PIECES_MAX as u64,
            ));
        }
    }
    Ok(())
}
