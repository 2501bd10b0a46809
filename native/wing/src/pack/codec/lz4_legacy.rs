//! The LZ4 "legacy" frame (magic 0x184C2102), in which Linux packs boot images: blocks of at most 8 MiB, each with
//! its packed length before it, up to the end of the input (LZ4 frame format 1.6, "Legacy frame").

use std::io::{self, BufRead, Read};

/// Every block but the last unpacks to exactly this.
const BLOCK_MAX: usize = 8 << 20;
const MAGIC: u32 = 0x184c_2102;

/// Decodes the legacy frames of `input`.
pub struct Lz4Legacy<R> {
    input: R,
    packed: Vec<u8>,
    block: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl<R: BufRead> Lz4Legacy<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            packed: Vec::new(),
            block: Vec::new(),
            filled: 0,
            taken: 0,
        }
    }

    /// Unpacks the next block; `false` at the end of the input.
    fn next_block(&mut self) -> io::Result<bool> {
        let len = loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut word = [0; 4];
            self.input.read_exact(&mut word)?;
            match u32::from_le_bytes(word) {
                MAGIC => {}
                len => break len as usize,
            }
        };
        if len > lz4_flex::block::get_maximum_output_size(BLOCK_MAX) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "block is longer than a block may be",
            ));
        }
        self.packed.resize(len, 0);
        self.input.read_exact(&mut self.packed)?;
        self.block.resize(BLOCK_MAX, 0);
        self.filled = lz4_flex::block::decompress_into(&self.packed, &mut self.block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.taken = 0;
        Ok(true)
    }
}

impl<R: BufRead> Read for Lz4Legacy<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.filled {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let count = buf.len().min(self.filled - self.taken);
        buf[..count].copy_from_slice(&self.block[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(data: &[u8]) -> Vec<u8> {
        let mut packed = MAGIC.to_le_bytes().to_vec();
        for block in data.chunks(BLOCK_MAX) {
            let block = lz4_flex::block::compress(block);
            packed.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            packed.extend(block);
        }
        packed
    }

    #[test]
    fn blocks_come_back_in_order() {
        let data: Vec<u8> = (0..3_000_000u32)
            .flat_map(|i| (i / 3).to_le_bytes())
            .collect();
        let mut plain = Vec::new();

        Lz4Legacy::new(&pack(&data)[..])
            .read_to_end(&mut plain)
            .unwrap();

        assert!(plain == data, "12 MB in two blocks");
    }

    #[test]
    fn a_block_that_lies_about_its_length_is_an_error() {
        let mut huge = MAGIC.to_le_bytes().to_vec();
        huge.extend(u32::MAX.to_le_bytes());
        let mut cut = pack(b"hello hello hello hello");
        cut.pop();

        assert_eq!(
            Lz4Legacy::new(&huge[..])
                .read(&mut [0; 9])
                .unwrap_err()
                .kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(
            Lz4Legacy::new(&cut[..])
                .read(&mut [0; 9])
                .unwrap_err()
                .kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
