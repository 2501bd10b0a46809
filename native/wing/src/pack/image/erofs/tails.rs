//! The last parts of files, kept in RAM until each is stored beside its inode.

use std::io::Read;

use crate::pack::{
    error::{Error, Result},
    input::read_contents,
};

/// Tails kept in RAM, bytes; a Debian tree of 100,000 files has 150 MiB of them.
const TAILS_MAX: usize = 256 << 20;
/// Tails lie in pieces of this size, so that they never have to be moved.
const PIECE: usize = 1 << 20;

/// Tails, each in one of many pieces of memory; a handle is the piece and the place in it.
#[derive(Debug, Default)]
pub struct Tails {
    pieces: Vec<Vec<u8>>,
    /// Start and length of each tail.
    index: Vec<(u32, u16)>,
}

impl Tails {
    pub fn has_room(&self, len: usize) -> bool {
        // The index counts too: a hostile archive may hold nothing but files of one byte.
        self.pieces.len() * PIECE + self.index.len() * 8 + len <= TAILS_MAX
    }

    /// Keeps the next `len` bytes of `input`; gives their handle.
    pub fn store(&mut self, input: &mut impl Read, len: usize) -> Result<u32> {
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
        read_contents(input, &mut piece[start..])?;
        let too_many = |_| Error::too_large("tails", u64::from(u32::MAX));
        let at = u32::try_from(number * PIECE + start).map_err(too_many)?;
        self.index.push((at, u16::try_from(len).unwrap_or(0)));
        u32::try_from(self.index.len() - 1).map_err(too_many)
    }

    pub fn get(&self, handle: u32) -> &[u8] {
        let (at, len) = self.index[handle as usize];
        let start = at as usize % PIECE;
        &self.pieces[at as usize / PIECE][start..start + usize::from(len)]
    }
}
