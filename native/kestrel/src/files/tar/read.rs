//! Reads a tar stream.

use std::io::{self, Read};

use super::error::TarError;
use super::sparse::{MapReader, Sparse, SparseKeys};
use super::{BLOCK_BYTES, Entry, EntryKind};

/// A PAX header or a GNU long name: xattrs of an entry, and little else, make it long.
const EXTENSION_BYTES_MAX: u64 = 1024 * 1024;

/// What PAX headers say over the plain ones (POSIX pax, "Extended Header Keywords").
#[derive(Clone, Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<SparseKeys>,
}

/// A tar stream; see [`Reader::next_entry`].
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    /// Data of the current entry that was not read.
    left: u64,
    /// Bytes from the end of that data to the next block.
    padding: u64,
    global: Pax,
}

impl<R: Read> Reader<R> {
    pub fn new(source: R) -> Self {
        Self {
            source,
            left: 0,
            padding: 0,
            global: Pax::default(),
        }
    }

    /// The next entry, `None` at the end. Data of the last one that was not read is passed over.
    ///
    /// # Errors
    /// See [`TarError`]; none can be read on after.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pax = self.global.clone();
        loop {
            self.pass_over()?;
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let kind = block[156];
            let size = number(&block[124..136])?;
            match kind {
                b'x' | b'g' | b'L' | b'K' => {
                    let body = self.extension(size)?;
                    match kind {
                        b'x' => pax.read(&body)?,
                        b'g' => {
                            self.global.read(&body)?;
                            // A map is one file's.
                            self.global.sparse = None;
                            pax.read(&body)?;
                        }
                        b'L' => pax.path = Some(until_nul(&body).to_vec()),
                        _ => pax.link = Some(until_nul(&body).to_vec()),
                    }
                }
                _ => return self.entry(&block, size, pax).map(Some),
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    ///
    /// # Errors
    /// A stream that ends before the entry does.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = buffer.len().min(most);
        if room == 0 {
            return Ok(0);
        }
        let count = self.read_some(buffer.get_mut(..room).unwrap_or_default())?;
        if count == 0 {
            return Err(TarError::Truncated);
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// Reads the stream to its end, so that its writer is not cut off: tar pads with more than two blocks.
    ///
    /// # Errors
    /// The source's own.
    pub fn drain(&mut self) -> Result<(), TarError> {
        let mut scrap = [0; 4096];
        while self.read_some(&mut scrap)? > 0 {}
        Ok(())
    }

    fn entry(&mut self, block: &[u8; BLOCK_BYTES], size: u64, pax: Pax) -> Result<Entry, TarError> {
        let keys = pax.sparse;
        let path = keys
            .as_ref()
            .and_then(|keys| keys.name.clone())
            .or(pax.path)
            .unwrap_or_else(|| name(block));
        let kind = match block[156] {
            // Before POSIX a folder was a file whose name ends so.
            b'0' | 0 | b'7' if path.ends_with(b"/") => EntryKind::Dir,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Char,
            b'4' => EntryKind::Block,
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            _ => EntryKind::Other,
        };
        let size = match kind {
            EntryKind::File | EntryKind::Other => pax.size.unwrap_or(size),
            // Some writers state the target's size; no data follows.
            _ => 0,
        };
        self.expect(size)?;
        let sparse = match (kind, keys) {
            (EntryKind::File, _) if block[156] == b'S' => Some(self.old_map(block, size)?),
            (EntryKind::File, Some(keys)) => Some(self.pax_map(keys)?),
            _ => None,
        };
        let id = |field: &[u8], over: Option<u32>| match over {
            Some(id) => Ok(id),
            None => number(field)?
                .try_into()
                .map_err(|_| TarError::Malformed("an owner beyond 32 bits")),
        };
        let device = |field: &[u8]| number(field).map(|number| u32::try_from(number).unwrap_or(0));
        Ok(Entry {
            kind,
            path,
            link: pax
                .link
                .unwrap_or_else(|| until_nul(&block[157..257]).to_vec()),
            mode: u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0),
            uid: id(&block[108..116], pax.uid)?,
            gid: id(&block[116..124], pax.gid)?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => (signed_number(&block[136..148])?, 0),
            },
            size: self.left,
            sparse,
            device: match kind {
                EntryKind::Char | EntryKind::Block => {
                    (device(&block[329..337])?, device(&block[337..345])?)
                }
                _ => (0, 0),
            },
            xattrs: pax.xattrs,
        })
    }

    /// The map of a GNU header of type S: four pieces in the header, 21 in each block that follows.
    fn old_map(&mut self, block: &[u8; BLOCK_BYTES], size: u64) -> Result<Sparse, TarError> {
        let mut pieces = Vec::new();
        let mut collect = |pairs: &[u8]| {
            for pair in pairs.chunks_exact(24).take_while(|pair| pair[0] != 0) {
                if pieces.len() >= super::PIECES_MAX {
                    return Err(TarError::Malformed("a sparse file of too many pieces"));
                }
                pieces.push((number(&pair[..12])?, number(&pair[12..])?));
            }
            Ok(())
        };
        collect(&block[386..482])?;
        let mut more = block[482] != 0;
        while more {
            let mut next = [0; BLOCK_BYTES];
            if self.read_full(&mut next)? != BLOCK_BYTES {
                return Err(TarError::Truncated);
            }
            collect(&next[..504])?;
            more = next[504] != 0;
        }
        Sparse::new(number(&block[483..495])?, pieces, size)
    }

    /// The map of a PAX sparse file, which stands in its records (0.0, 0.1) or in front of its data (1.0).
    fn pax_map(&mut self, keys: SparseKeys) -> Result<Sparse, TarError> {
        let size = keys
            .size
            .ok_or(TarError::Malformed("a sparse file without its size"))?;
        if keys.major == 0 {
            return Sparse::new(size, keys.pieces, self.left);
        }
        let mut reader = MapReader::default();
        loop {
            let mut block = [0; BLOCK_BYTES];
            if self.left < BLOCK_BYTES as u64 {
                return Err(TarError::Malformed("a sparse map that is cut off"));
            }
            if self.read_full(&mut block)? != BLOCK_BYTES {
                return Err(TarError::Truncated);
            }
            self.left -= BLOCK_BYTES as u64;
            if reader.take(&block)? {
                return Sparse::new(size, reader.pieces, self.left);
            }
        }
    }

    fn expect(&mut self, size: u64) -> Result<(), TarError> {
        let over = size % BLOCK_BYTES as u64;
        self.left = size;
        self.padding = match over {
            0 => 0,
            over => BLOCK_BYTES as u64 - over,
        };
        match size.checked_add(self.padding) {
            Some(_) => Ok(()),
            None => Err(TarError::Malformed("a size beyond 64 bits")),
        }
    }

    fn pass_over(&mut self) -> Result<(), TarError> {
        let mut scrap = [0; 4096];
        while self.left > 0 {
            self.read_data(&mut scrap)?;
        }
        // The last padding of a stream is missing at times; then nothing else follows.
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        let count = self.read_full(scrap.get_mut(..padding).unwrap_or_default())?;
        if count != padding && count != 0 {
            return Err(TarError::Truncated);
        }
        Ok(())
    }

    /// The next header; `None` at a block of zeros, or where the stream ends between entries.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        match self.read_full(&mut block)? {
            0 => return Ok(None),
            BLOCK_BYTES => {}
            _ => return Err(TarError::Truncated),
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        check_sum(&block)?;
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(TarError::Malformed("an extended header beyond 1 MiB"));
        }
        self.expect(size)?;
        // It grows with what comes, not with what is claimed.
        let mut body = Vec::new();
        let mut part = [0; 4096];
        loop {
            match self.read_data(&mut part)? {
                0 => break,
                count => body.extend_from_slice(part.get(..count).unwrap_or_default()),
            }
        }
        Ok(body)
    }

    fn read_full(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read_some(rest)? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.source.read(buffer) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Source(error)),
            }
        }
    }
}

/// The sum of all bytes with the field itself as spaces; old writers took the bytes as signed.
fn check_sum(block: &[u8; BLOCK_BYTES]) -> Result<(), TarError> {
    let stated = number(&block[148..156])?;
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    match i64::try_from(stated) {
        Ok(stated) if stated == unsigned || stated == signed => Ok(()),
        _ => Err(TarError::Malformed("a header whose checksum is wrong")),
    }
}

/// Octal in ASCII, or binary when the first bit is set (GNU).
fn number(field: &[u8]) -> Result<u64, TarError> {
    u64::try_from(signed_number(field)?).map_err(|_| TarError::Malformed("a negative number"))
}

fn signed_number(field: &[u8]) -> Result<i64, TarError> {
    let bad = TarError::Malformed("a number that is none");
    match field.first() {
        Some(&first) if first & 0x80 != 0 => {
            // Two's complement with the marker bit as a further sign.
            let mut value: i128 = if first & 0x40 == 0 {
                i128::from(first & 0x3f)
            } else {
                i128::from(first.cast_signed())
            };
            for &byte in field.get(1..).unwrap_or_default() {
                value = value << 8 | i128::from(byte);
            }
            i64::try_from(value).map_err(|_| bad)
        }
        _ => {
            let text = std::str::from_utf8(until_nul(field)).unwrap_or("?");
            match text.trim_matches(' ') {
                "" => Ok(0),
                digits => i64::from_str_radix(digits, 8)
                    .ok()
                    .filter(|_| !digits.starts_with(['+', '-']))
                    .ok_or(bad),
            }
        }
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The name of a plain header; POSIX has a second field for its front.
fn name(block: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    let prefix = until_nul(&block[345..500]);
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

impl Pax {
    /// Records of the form `length key=value\n`, where the length counts all of it.
    fn read(&mut self, mut body: &[u8]) -> Result<(), TarError> {
        const BAD: TarError = TarError::Malformed("a bad PAX record");
        while !body.is_empty() {
            let space = body.iter().position(|&byte| byte == b' ').ok_or(BAD)?;
            let length: usize = body
                .get(..space)
                .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
                .ok_or(BAD)?;
            let record = body.get(space + 1..length).ok_or(BAD)?;
            body = body.get(length..).unwrap_or_default();
            let record = record.strip_suffix(b"\n").ok_or(BAD)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
            let (key, value) = record.split_at(equals);
            self.set(key, value.get(1..).unwrap_or_default())?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        const BAD: TarError = TarError::Malformed("a PAX number that is none");
        let text = || std::str::from_utf8(value).map_err(|_| BAD);
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(text()?.parse().map_err(|_| BAD)?),
            b"uid" => self.uid = Some(text()?.parse().map_err(|_| BAD)?),
            b"gid" => self.gid = Some(text()?.parse().map_err(|_| BAD)?),
            b"mtime" => self.mtime = Some(time(text()?).ok_or(BAD)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().set(key, value)?;
                }
            }
        }
        Ok(())
    }
}

/// Decimal seconds, perhaps negative, perhaps with a fraction.
fn time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = nanos.parse().ok()?;
    match (seconds.starts_with('-'), nanos) {
        // -1.25 is the second before -1, and three quarters.
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((whole, nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tar::{end, header, padding};

    fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (entry, data) in entries {
            bytes.extend(header(entry));
            bytes.extend_from_slice(data);
            bytes.extend(padding(entry.size));
        }
        bytes.extend(end());
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
        let mut reader = Reader::new(bytes);
        let mut all = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut data = Vec::new();
            let mut part = [0; 7];
            loop {
                match reader.read_data(&mut part)? {
                    0 => break,
                    count => data.extend_from_slice(&part[..count]),
                }
            }
            all.push((entry, data));
        }
        Ok(all)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let long = "d/".repeat(200);
        let entries = [
            (Entry::file("a", 5), &b"hello"[..]),
            (
                Entry {
                    path: format!("{long}file").into(),
                    mode: 0o4755,
                    uid: 3_000_000_000,
                    gid: 12,
                    mtime: (-5, 250_000_000),
                    xattrs: vec![(b"user.x".to_vec(), vec![0, b'\n', b'=', 255])],
                    ..Entry::file("", 513)
                },
                &[7; 513],
            ),
            (
                Entry {
                    kind: EntryKind::Symlink,
                    link: long.clone().into(),
                    ..Entry::file("link", 0)
                },
                b"",
            ),
            (
                Entry {
                    kind: EntryKind::Char,
                    device: (300, 70_000),
                    ..Entry::file("dev", 0)
                },
                b"",
            ),
            (
                Entry {
                    kind: EntryKind::Dir,
                    ..Entry::file("dir/", 0)
                },
                b"",
            ),
            (Entry::file("\u{fc}\u{20ac}", 0), b""),
        ];

        let read = read_all(&archive(&entries)).unwrap();

        assert_eq!(read.len(), entries.len());
        for ((entry, data), (expected, expected_data)) in read.iter().zip(&entries) {
            assert_eq!(entry, expected);
            assert_eq!(data, expected_data);
        }
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_inside_of_an_entry_says_so() {
        let bytes = archive(&[
            (Entry::file("a", 600), &[1; 600]),
            (Entry::file("b", 0), b""),
        ]);

        for cut in 1..bytes.len() {
            // Between entries, or in the zeros of the end: an end that some writers leave.
            let whole = [512 + 600, 512 + 1024, 512 + 1024 + 512];
            let read = read_all(&bytes[..cut]);
            if whole.contains(&cut) || cut == 2560 {
                assert!(read.is_ok(), "{cut}");
            } else if cut < 2048 {
                assert!(matches!(read, Err(TarError::Truncated)), "{cut}: {read:?}");
            }
        }
    }

    #[test]
    fn a_header_that_was_changed_is_malformed() {
        let bytes = archive(&[(Entry::file("a", 1), b"x")]);

        for at in 0..512 {
            let mut changed = bytes.clone();
            changed[at] ^= 0x15;
            assert!(read_all(&changed).is_err(), "{at}");
        }
    }

    #[test]
    fn sizes_that_are_lies_cost_nothing() {
        let mut block: [u8; 512] = header(&Entry::file("a", 0)).try_into().unwrap();
        let with_size = |kind: u8, size: &[u8; 12], block: &mut [u8; 512]| {
            block[124..136].copy_from_slice(size);
            block[156] = kind;
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            read_all(&*block)
        };
        let huge = [0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255];
        let beyond = [0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let negative = [0xff; 12];

        assert!(matches!(
            with_size(b'0', &huge, &mut block),
            Err(TarError::Truncated)
        ));
        for kind in [b'x', b'L', b'K', b'g'] {
            assert!(matches!(
                with_size(kind, &huge, &mut block),
                Err(TarError::Malformed(_))
            ));
        }
        assert!(matches!(
            with_size(b'0', &beyond, &mut block),
            Err(TarError::Malformed(_))
        ));
        assert!(matches!(
            with_size(b'0', &negative, &mut block),
            Err(TarError::Malformed(_))
        ));
    }

    #[test]
    fn bad_pax_records_are_malformed() {
        for bad in [
            "x",
            "5 a=b",
            "99 a=b\n",
            "3 \n",
            "7 ab\n\n",
            " a=b\n",
            "-1 a=b\n",
            "0 a=b\n",
            "8 uid=x\n",
        ] {
            assert!(Pax::default().read(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_signs_and_fractions() {
        assert_eq!(time("12"), Some((12, 0)));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12.0000000019"), Some((12, 1)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("1.x"), None);
        assert_eq!(time(""), None);
    }
}
