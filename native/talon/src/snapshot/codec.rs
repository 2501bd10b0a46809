//! The state format of snapshots: our own, versioned, checksummed, and never the memory of a struct.
//!
//! ```text
//! "TALONST\0"  u16 format  u16 machine generation  u64 bytes of body  body  u64 CRC-64/XZ of all before
//! body = sections: u32 tag, u32 bytes, content
//! ```
//!
//! A file that was cut short or changed by accident is refused before anything of it is used. It is still untrusted: who
//! can compute the checksum can write any content, so every decoder checks what it reads.

/// First bytes of a state file.
pub const MAGIC: [u8; 8] = *b"TALONST\0";
/// Version of this format. A change of any section's content is a new version.
pub const FORMAT: u16 = 1;
/// Largest state that is read.
pub const BYTES_MAX: usize = 16 << 20;

const HEADER_BYTES: usize = 8 + 2 + 2 + 8;
const TRAILER_BYTES: usize = 8;

/// Why a state cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Not a state file.
    #[error("not a talon state file")]
    Magic,
    /// Written by a version that this one does not know.
    #[error("state has format {found}, this talon reads {FORMAT}")]
    Format {
        /// Version in the file.
        found: u16,
    },
    /// Of another machine layout.
    #[error(
        "it was saved by another release (machine generation {found}, this one makes generation {}): start it anew, or restore it with the release that saved it",
        crate::layout::GENERATION
    )]
    Generation {
        /// Generation in the file.
        found: u16,
    },
    /// The file is shorter or longer than it says.
    #[error("state is cut short or has bytes behind its end")]
    Length,
    /// The checksum differs.
    #[error("state is damaged: its checksum does not match")]
    Checksum,
    /// A section ends before its content does.
    #[error("state ends inside a value")]
    Truncated,
    /// A section is not there.
    #[error("state lacks section {0:?}")]
    Missing(&'static str),
    /// A value that no state of ours has.
    #[error("state holds an impossible value: {0}")]
    Invalid(&'static str),
}

/// CRC-64/XZ (ECMA-182, reflected).
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;
    const TABLE: [u64; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u64;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 {
                    value >> 1 ^ POLYNOMIAL
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0u64, |sum, byte| {
        TABLE[((sum ^ u64::from(*byte)) & 0xff) as usize] ^ sum >> 8
    })
}

/// Writes values, little-endian, one behind the other.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Nothing written yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// A byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }
    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }
    /// 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Bytes with their number before them.
    pub fn bytes(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(value);
    }
    /// A section.
    pub fn section(&mut self, tag: u32, content: Encoder) {
        self.u32(tag);
        self.bytes(&content.bytes);
    }

    /// The whole file around these sections.
    #[must_use]
    pub fn seal(self, generation: u16) -> Vec<u8> {
        let mut file = Vec::with_capacity(HEADER_BYTES + self.bytes.len() + TRAILER_BYTES);
        file.extend_from_slice(&MAGIC);
        file.extend_from_slice(&FORMAT.to_le_bytes());
        file.extend_from_slice(&generation.to_le_bytes());
        file.extend_from_slice(&(self.bytes.len() as u64).to_le_bytes());
        file.extend_from_slice(&self.bytes);
        let sum = checksum(&file);
        file.extend_from_slice(&sum.to_le_bytes());
        file
    }
}

/// Reads values that an [`Encoder`] wrote.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads from `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Opens a whole file: the sections in it.
    ///
    /// # Errors
    /// When it is not a state file, is of another version or generation, is not whole, or is damaged.
    pub fn open(file: &'a [u8], generation: u16) -> Result<Self, StateError> {
        let mut header = Self::new(file);
        if header.take(8).map_err(|_| StateError::Magic)? != MAGIC {
            return Err(StateError::Magic);
        }
        let format = header.u16()?;
        if format != FORMAT {
            return Err(StateError::Format { found: format });
        }
        let found = header.u16()?;
        let length = usize::try_from(header.u64()?).map_err(|_| StateError::Length)?;
        if header.bytes.len().checked_sub(TRAILER_BYTES) != Some(length) {
            return Err(StateError::Length);
        }
        let (covered, sum) = file.split_at(HEADER_BYTES + length);
        if Self::new(sum).u64()? != checksum(covered) {
            return Err(StateError::Checksum);
        }
        if found != generation {
            return Err(StateError::Generation { found });
        }
        Ok(Self::new(&covered[HEADER_BYTES..]))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or(StateError::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// A byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self) -> Result<u8, StateError> {
        Ok(self.array::<1>()?[0])
    }
    /// A truth value.
    ///
    /// # Errors
    /// At the end, or when it is neither.
    pub fn bool(&mut self) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Invalid("truth value")),
        }
    }
    /// 16 bits.
    ///
    /// # Errors
    /// At the end.
    pub fn u16(&mut self) -> Result<u16, StateError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    /// 32 bits.
    ///
    /// # Errors
    /// At the end.
    pub fn u32(&mut self) -> Result<u32, StateError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// 64 bits.
    ///
    /// # Errors
    /// At the end.
    pub fn u64(&mut self) -> Result<u64, StateError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// Bytes with their number before them.
    ///
    /// # Errors
    /// At the end.
    pub fn bytes(&mut self) -> Result<&'a [u8], StateError> {
        let count = self.u32()?;
        self.take(usize::try_from(count).map_err(|_| StateError::Truncated)?)
    }
    /// A number of things, at most `max`, so that a decoder's loop and memory are bounded before it starts.
    ///
    /// # Errors
    /// At the end, or when there are more.
    pub fn count(&mut self, max: u32, what: &'static str) -> Result<u32, StateError> {
        let count = self.u32()?;
        if count > max {
            Err(StateError::Invalid(what))
        } else {
            Ok(count)
        }
    }
    /// The next section.
    ///
    /// # Errors
    /// When its length lies.
    pub fn section(&mut self) -> Result<Option<(u32, Decoder<'a>)>, StateError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.u32()?;
        Ok(Some((tag, Decoder::new(self.bytes()?))))
    }
    /// Nothing may follow.
    ///
    /// # Errors
    /// When something does.
    pub fn finish(&self) -> Result<(), StateError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(StateError::Invalid("bytes behind the last value"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_that_of_xz() {
        assert_eq!(checksum(b"123456789"), 0x995d_c9bb_df19_39fa);
    }

    fn file() -> Vec<u8> {
        let mut content = Encoder::new();
        content.u16(7);
        content.bytes(b"abc");
        let mut state = Encoder::new();
        state.section(1, content);
        state.seal(1)
    }

    #[test]
    fn what_was_written_is_read() {
        let file = file();
        let mut state = Decoder::open(&file, 1).unwrap();

        let (tag, mut content) = state.section().unwrap().unwrap();

        assert_eq!(
            (tag, content.u16().unwrap(), content.bytes().unwrap()),
            (1, 7, b"abc".as_slice())
        );
        content.finish().unwrap();
        assert!(state.section().unwrap().is_none());
    }

    #[test]
    fn another_generation_is_refused_by_name() {
        assert_eq!(
            Decoder::open(&file(), 2).unwrap_err(),
            StateError::Generation { found: 1 }
        );
        let sentence = StateError::Generation { found: 1 }.to_string();
        assert!(sentence.contains("machine generation 1"), "{sentence}");
        assert!(sentence.contains("start it anew"), "{sentence}");
    }

    proptest! {
        #[test]
        fn a_cut_file_is_never_whole(cut in 0usize..40) {
            let file = file();
            prop_assume!(cut < file.len());
            prop_assert!(Decoder::open(&file[..cut], 1).is_err());
        }

        #[test]
        fn a_flipped_bit_is_found(at in 0usize..40, bit in 0u8..8) {
            let mut file = file();
            prop_assume!(at < file.len());
            file[at] ^= 1 << bit;
            prop_assert!(Decoder::open(&file, 1).is_err());
        }

        #[test]
        fn any_bytes_are_an_error_or_a_state(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(mut state) = Decoder::open(&bytes, 1) {
                while let Ok(Some((_, mut content))) = state.section() {
                    let _ = content.bytes();
                }
            }
        }
    }
}
