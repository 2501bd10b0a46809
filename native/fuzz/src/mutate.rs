//! Inputs out of inputs: the same sequence from the same seed.

/// Longest input.
pub const BYTES_MAX: usize = 8192;

/// xorshift64*, as in Marsaglia's and Vigna's papers: good enough to choose bytes.
#[derive(Debug, Clone)]
pub struct Chance(u64);

/// Values at which comparisons and sums go wrong.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

impl Chance {
    /// A sequence; zero would be no seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or(0) % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[5]
    }

    /// A new input out of one of `corpus`, sometimes with a part of another.
    pub fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let pick = self.below(corpus.len());
        let mut bytes = corpus.get(pick).cloned().unwrap_or_default();
        for _ in 0..=self.below(8) {
            self.change(&mut bytes, corpus);
        }
        bytes.truncate(BYTES_MAX);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.byte(),
            2 => bytes.insert(at, self.byte()),
            3 => bytes.truncate(at),
            4 if at < bytes.len() => {
                let end = at + self.below(bytes.len() - at + 1);
                bytes.drain(at..end);
            }
            5 => {
                let value = EDGES[self.below(EDGES.len())].to_le_bytes();
                let width = 1 << self.below(4);
                for (place, byte) in bytes.iter_mut().skip(at).zip(&value[..width]) {
                    *place = *byte;
                }
            }
            6 => {
                // Some of itself once more: requests come in rows.
                let from = self.below(bytes.len());
                let end = from + self.below((bytes.len() - from + 1).min(64));
                let again = bytes[from..end].to_vec();
                bytes.splice(at..at, again);
            }
            7 => {
                let pick = self.below(corpus.len());
                let other = corpus.get(pick).map_or(&[][..], Vec::as_slice);
                let from = self.below(other.len());
                bytes.splice(at..at, other[from..].iter().copied());
            }
            _ => {
                let more: Vec<_> = (0..self.below(48)).map(|_| self.byte()).collect();
                bytes.splice(at..at, more);
            }
        }
        bytes.truncate(BYTES_MAX);
    }
}
