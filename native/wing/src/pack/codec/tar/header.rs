//! The 512 bytes before each entry.

use crate::pack::error::{Error, Result};

use super::block::BLOCK;

/// A header block, its fields read on demand.
pub struct Header {
    block: [u8; BLOCK],
    offset: u64,
}

impl Header {
    pub fn new(block: [u8; BLOCK]) -> Self {
        Self { block, offset: 0 }
    }

    /// Remembers where the block ended, for messages.
    pub fn at(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    pub fn block(&self) -> &[u8; BLOCK] {
        &self.block
    }

    /// Sums of bytes, as POSIX says, or of signed bytes, as some writers did.
    pub fn checksum_is_right(&self) -> bool {
        let Ok(expected) = self.number(148, 8, "checksum") else {
            return false;
        };
        let bytes = || {
            self.block
                .iter()
                .enumerate()
                .map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte })
        };
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        expected == unsigned || i64::try_from(expected) == Ok(signed)
    }

    pub fn typeflag(&self) -> u8 {
        self.block[156]
    }

    pub fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // In GNU's own format the bytes of the prefix hold times.
        let prefix = if &self.block[257..263] == b"ustar\0" {
            self.text(345, 155)
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    pub fn mode(&self) -> Result<u16> {
        // Some writers put the file type into the upper bits; only the twelve of chmod(2) count.
        let mode = self.number(100, 8, "mode")? & 0o7777;
        Ok(u16::try_from(mode).unwrap_or(0))
    }

    pub fn uid(&self) -> Result<u64> {
        self.number(108, 8, "uid")
    }

    pub fn gid(&self) -> Result<u64> {
        self.number(116, 8, "gid")
    }

    pub fn size(&self) -> Result<u64> {
        let size = self.number(124, 12, "size")?;
        if size > i64::MAX.cast_unsigned() - BLOCK as u64 {
            return Err(self.bad("size"));
        }
        Ok(size)
    }

    pub fn mtime(&self) -> Result<i64> {
        self.signed(136, 12, "mtime")
    }

    pub fn device(&self) -> Result<(u32, u32)> {
        let part = |at, field| -> Result<u32> {
            u32::try_from(self.number(at, 8, field)?).map_err(|_| self.bad(field))
        };
        Ok((part(329, "device major")?, part(337, "device minor")?))
    }

    /// A number that may not be negative.
    pub fn number(&self, at: usize, len: usize, field: &'static str) -> Result<u64> {
        u64::try_from(self.signed(at, len, field)?).map_err(|_| self.bad(field))
    }

    fn bad(&self, field: &'static str) -> Error {
        Error::Malformed {
            offset: self.offset,
            reason: format!("a header's {field} is no number in range"),
        }
    }

    /// Octal digits amid spaces and NULs, or base 256 when the first bit is set (GNU tar manual, "Extensions").
    fn signed(&self, at: usize, len: usize, field: &'static str) -> Result<i64> {
        parse_number(&self.block[at..at + len]).ok_or_else(|| self.bad(field))
    }

    fn text(&self, at: usize, len: usize) -> &[u8] {
        let field = &self.block[at..at + len];
        &field[..field.iter().position(|&byte| byte == 0).unwrap_or(len)]
    }
}

/// One numeric field.
pub fn parse_number(field: &[u8]) -> Option<i64> {
    if field.first()? & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = i128::from(field[0] & 0x3f) - if negative { 0x40 } else { 0 };
        for &byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i128::from(byte))?;
        }
        return i64::try_from(value).ok();
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(blank).unwrap_or(digits.len())];
    digits.iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// A decimal number that fits a file offset.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let value = digits.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })?;
    (value < 1 << 62).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(parse_number(b"0000644\0"), Some(0o644));
        assert_eq!(parse_number(b"   644 \0"), Some(0o644));
        assert_eq!(parse_number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(parse_number(b"77777777777"), Some(0o77777777777));
        assert_eq!(
            parse_number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]),
            Some(0x2_0000_0000)
        );
        assert_eq!(parse_number(&[0xff; 12]), Some(-1));
        assert_eq!(parse_number(b"0000648\0"), None);
        assert_eq!(
            parse_number(&[0xbf, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
            None
        );
    }
}
