//! PAX extended headers: records `LENGTH KEY=VALUE\n` (POSIX.1-2017 `pax`, "Extended Header").

use super::{header::decimal, sparse::PIECES_MAX};
use crate::pack::error::{Error, Result};

/// Attributes per entry and bytes of them: what an EROFS inode can hold at most.
const XATTRS_BYTES_MAX: usize = 128 << 10;

/// What the records of one or more extended headers say.
#[derive(Debug, Clone, Default)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Option<SparseKeys>,
    /// What the records hold in a form that we do not read.
    pub unread: Option<&'static str>,
}

/// The `GNU.sparse.*` records (GNU tar manual, "PAX Format, Version 0.0 to 1.0").
#[derive(Debug, Clone, Default)]
pub struct SparseKeys {
    pub major: u64,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// Offset and length of each piece that is stored (versions 0.0 and 0.1).
    pub map: Vec<(u64, u64)>,
}

impl Pax {
    /// Reads records; later ones replace earlier ones.
    pub fn parse(&mut self, mut records: &[u8], offset: u64) -> Result<()> {
        let bad = |reason: &str| Error::Malformed {
            offset,
            reason: format!("a PAX header: {reason}"),
        };
        while !records.is_empty() {
            let digits = records
                .iter()
                .take(20)
                .position(|&byte| byte == b' ')
                .ok_or_else(|| bad("a record has no length"))?;
            let len = decimal(&records[..digits])
                .and_then(|len| usize::try_from(len).ok())
                .filter(|&len| {
                    len > digits + 1 && len <= records.len() && records[len - 1] == b'\n'
                })
                .ok_or_else(|| bad("a record has a wrong length"))?;
            let record = &records[digits + 1..len - 1];
            let equals = record
                .iter()
                .position(|&byte| byte == b'=')
                .ok_or_else(|| bad("a record has no \"=\""))?;
            self.set(&record[..equals], &record[equals + 1..])
                .map_err(bad)?;
            records = &records[len..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> std::result::Result<(), &'static str> {
        match key {
            b"path" => self.path = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = optional_number(value)?,
            b"uid" => self.uid = optional_number(value)?,
            b"gid" => self.gid = optional_number(value)?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or("a time is out of range")?),
            b"hdrcharset"
                if value == b"BINARY"
                    || value == b"ISO-IR 10646 2000 UTF-8"
                    || value.is_empty() => {}
            b"hdrcharset" => return Err("its character set is unknown"),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value)?;
                } else if key.starts_with(b"SCHILY.acl.") {
                    self.unread = Some("an access control list in words");
                } else if key.starts_with(b"RHT.security.") {
                    self.unread = Some("an SELinux label of GNU tar");
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.set_sparse(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> std::result::Result<(), &'static str> {
        if name.is_empty()
            || name.len() > 255
            || name.contains(&0)
            || value.len() > usize::from(u16::MAX)
        {
            return Err("an extended attribute is out of bounds");
        }
        self.xattrs.retain(|(known, _)| known != name);
        let used: usize = self
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if used + name.len() + value.len() > XATTRS_BYTES_MAX {
            return Err("its extended attributes are longer than 128 KiB");
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    fn set_sparse(&mut self, key: &[u8], value: &[u8]) -> std::result::Result<(), &'static str> {
        let sparse = self.sparse.get_or_insert_default();
        match key {
            b"major" => sparse.major = number(value)?,
            b"name" => sparse.name = some(value),
            b"size" | b"realsize" => sparse.real_size = Some(number(value)?),
            // One more is let through: who makes the map refuses it by its limit.
            b"offset" if sparse.map.len() > PIECES_MAX => {}
            b"offset" => sparse.map.push((number(value)?, 0)),
            b"numbytes" => {
                sparse
                    .map
                    .last_mut()
                    .ok_or("a sparse piece has no offset")?
                    .1 = number(value)?
            }
            b"map" => {
                let numbers: Vec<u64> = value
                    .split(|&byte| byte == b',')
                    .map(number)
                    .collect::<std::result::Result<_, _>>()?;
                if !numbers.len().is_multiple_of(2) {
                    return Err("a sparse map has an odd count");
                }
                sparse.map = numbers
                    .chunks_exact(2)
                    .map(|pair| (pair[0], pair[1]))
                    .collect();
            }
            // minor and numblocks say nothing that the map does not.
            _ => {}
        }
        Ok(())
    }

    /// These records, with `global` where they are silent.
    pub fn over(mut self, global: &Self) -> Self {
        for (name, value) in &global.xattrs {
            if !self.xattrs.iter().any(|(known, _)| known == name) {
                self.xattrs.push((name.clone(), value.clone()));
            }
        }
        Self {
            path: self.path.or_else(|| global.path.clone()),
            link: self.link.or_else(|| global.link.clone()),
            size: self.size.or(global.size),
            uid: self.uid.or(global.uid),
            gid: self.gid.or(global.gid),
            mtime: self.mtime.or(global.mtime),
            xattrs: self.xattrs,
            sparse: self.sparse,
            unread: self.unread.or(global.unread),
        }
    }
}

/// An empty value takes the record back.
fn some(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn number(value: &[u8]) -> std::result::Result<u64, &'static str> {
    decimal(value).ok_or("a number is out of range")
}

fn optional_number(value: &[u8]) -> std::result::Result<Option<u64>, &'static str> {
    if value.is_empty() {
        Ok(None)
    } else {
        number(value).map(Some)
    }
}

/// `[-]SECONDS[.FRACTION]`, rounded down as POSIX asks.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let dot = text
        .iter()
        .position(|&byte| byte == b'.')
        .unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..dot])?).ok()?;
    let fraction = text.get(dot + 1..).unwrap_or(b"");
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanos = 0;
    for at in 0..9 {
        nanos = nanos * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
    }
    let below = fraction.iter().skip(9).any(|&digit| digit != b'0');
    match (negative, nanos, below) {
        (false, nanos, _) => Some((seconds, nanos)),
        (true, 0, false) => Some((-seconds, 0)),
        (true, nanos, below) => {
            let nanos = nanos + u32::from(below);
            Some((-seconds - 1, 1_000_000_000 - nanos)).map(|(s, n)| {
                if n == 1_000_000_000 {
                    (s + 1, 0)
                } else {
                    (s, n)
                }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(records: &[u8]) -> Result<Pax> {
        let mut pax = Pax::default();
        pax.parse(records, 0)?;
        Ok(pax)
    }

    #[test]
    fn records_are_read_by_their_length() {
        let pax = parse(b"12 path=a\nb\n26 SCHILY.xattr.user.x=\0=\n13 uid=70000\n").unwrap();

        assert_eq!(pax.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"\0=".to_vec())]);
        assert_eq!(pax.uid, Some(70000));
    }

    #[test]
    fn broken_records_are_errors() {
        for records in [
            &b"path=a\n"[..],
            b"5 path=a\n",
            b"99 path=a\n",
            b"10 path=abc",
            b"0 ",
            b"3 \n",
            b"8 patha\n",
            b"9 uid=-1\n",
            b"18446744073709551616 x=\n",
            b"14 mtime=1.2x\n",
        ] {
            assert!(
                parse(records).is_err(),
                "{}",
                String::from_utf8_lossy(records)
            );
        }
    }

    #[test]
    fn times_are_rounded_down() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12.0000000019"), Some((12, 1)));
        assert_eq!(time(b"-1"), Some((-1, 0)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-1.0000000001"), Some((-2, 999_999_999)));
        assert_eq!(time(b"-0.9999999999"), Some((-1, 0)));
        assert_eq!(time(b""), None);
    }

    #[test]
    fn an_empty_value_takes_a_record_back() {
        assert_eq!(parse(b"9 path=a\n8 path=\n").unwrap().path, None);
    }
}
