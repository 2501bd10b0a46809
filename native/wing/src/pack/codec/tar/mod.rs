//! A tar reader for hostile input: v7, ustar, GNU long names and base-256 numbers, PAX records with extended
//! attributes, and sparse files of every GNU dialect. Whoever reads a sparse file gets zeros for its holes, or passes
//! over them ([`Contents`]).
//! Sources: POSIX.1-2017 `pax`, GNU tar manual "Basic Tar Format", `SCHILY.xattr` of star(4).

mod block;
mod header;
mod pax;
mod sparse;
pub mod write;

use std::io::{self, Read};

use block::BLOCK;
use header::Header;
use pax::Pax;
use sparse::Sparse;

use crate::pack::error::{Error, Result, show};

/// Bound of a PAX header or a GNU long name, bytes; the kernel's own bound of one attribute is 64 KiB.
const EXTENSION_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry of an archive, before any judgement about its path.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Target of a link; empty otherwise.
    pub link: Vec<u8>,
    /// Bytes of the file with its holes; 0 for all but files.
    pub size: u64,
    /// Permission bits, `0o7777`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, possibly before.
    pub mtime: i64,
    pub mtime_nsec: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes by their full name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the archive says of it in a form that is not read.
    pub unread: Option<&'static str>,
    /// Offset and length of each piece of a sparse file that is stored, in order and apart; `None` for other files.
    pub pieces: Option<Vec<(u64, u64)>>,
}

/// The contents of a file, which may have holes.
pub trait Contents: Read {
    /// Passes over the hole that begins here, or `max` bytes of it; gives 0 where data follow.
    fn skip_hole(&mut self, _max: u64) -> u64 {
        0
    }
}

impl Contents for io::Empty {}

#[cfg(test)]
impl Contents for &[u8] {}

impl<R: Read> Contents for Archive<R> {
    fn skip_hole(&mut self, max: u64) -> u64 {
        self.sparse
            .as_mut()
            .map_or(0, |sparse| sparse.skip_hole(max))
    }
}

/// An archive, read once from its beginning to its end.
pub struct Archive<R> {
    input: R,
    /// Bytes of `input` taken so far.
    offset: u64,
    /// Stored bytes of the current entry that no one has read, and the padding after them.
    stored_left: u64,
    padding: u64,
    sparse: Option<Sparse>,
    global: Pax,
    /// Path of the current entry, for messages.
    path: Vec<u8>,
    has_end_mark: bool,
}

impl<R: Read> Archive<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            stored_left: 0,
            padding: 0,
            sparse: None,
            global: Pax::default(),
            path: Vec::new(),
            has_end_mark: false,
        }
    }

    /// Refuses an archive that was read to its end and has no end mark: one of ours has it, so this is not all of it.
    ///
    /// # Errors
    /// `archive_truncated`.
    pub fn expect_end_mark(&self) -> Result<()> {
        if self.has_end_mark {
            Ok(())
        } else {
            Err(self.truncated())
        }
    }

    /// The next entry; whatever was left unread of the one before is skipped. `None` after the last,
    /// when the input is read to its end too. An input that ends where a header could begin is whole, as for other
    /// readers: some builders leave the two empty blocks out.
    ///
    /// # Errors
    /// `archive_truncated` if the input ends within an entry; `archive_malformed`, `archive_unsupported`; and those of
    /// reading.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut pax: Option<Pax> = None;
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.skip_data()?;
            let Some(header) = self.next_header()? else {
                if pax.is_some() || long_path.is_some() || long_link.is_some() {
                    return Err(self.truncated());
                }
                self.drain()?;
                return Ok(None);
            };
            match header.typeflag() {
                b'x' | b'X' => {
                    self.path = extended(&header.path());
                    let records = self.extension(&header)?;
                    let pax = pax.get_or_insert_default();
                    let parsed = pax.parse(&records, self.offset);
                    parsed.map_err(|error| self.of_entry(error, pax))?;
                }
                b'g' => {
                    self.path.clear();
                    let records = self.extension(&header)?;
                    self.global.parse(&records, self.offset)?;
                }
                b'L' => long_path = Some(until_nul(self.extension(&header)?)),
                b'K' => long_link = Some(until_nul(self.extension(&header)?)),
                // A volume label is no file.
                b'V' => self.expect_data(header.size()?),
                _ => {
                    let pax = match pax {
                        Some(pax) => pax.over(&self.global),
                        None => self.global.clone(),
                    };
                    return self.entry(&header, pax, long_path, long_link).map(Some);
                }
            }
        }
    }

    /// Gives an error about a bound the name of the entry that met it, and others unchanged.
    fn blame(&self, error: Error) -> Error {
        error.of_path(&self.path)
    }

    /// Names the entry whose extended header is wrong: by its record, if it has come, else by the header's own name.
    fn of_entry(&self, error: Error, pax: &Pax) -> Error {
        match error {
            Error::Malformed { offset, reason } => {
                let path = pax.path.as_deref().unwrap_or(&self.path);
                let reason = match path {
                    b"" => reason,
                    path => format!("in \"{}\", {reason}", show(path)),
                };
                Error::Malformed { offset, reason }
            }
            other => self.blame(other),
        }
    }

    fn truncated(&self) -> Error {
        Error::Truncated {
            what: "the archive",
            offset: self.offset,
        }
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Malformed {
            offset: self.offset,
            reason: reason.into(),
        }
    }

    fn unsupported(&self, feature: impl Into<String>) -> Error {
        Error::Unsupported {
            offset: self.offset,
            feature: feature.into(),
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let sparse_name = pax.sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = sparse_name
            .or_else(|| pax.path.clone())
            .or(long_path)
            .unwrap_or_else(|| header.path());
        self.path.clone_from(&path);
        let kind = match header.typeflag() {
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'M' => return Err(self.unsupported("a file continued from another volume")),
            other => return Err(self.unsupported(format!("entry type {:?}", char::from(other)))),
        };
        let size = self.begin_data(kind, header, &pax)?;
        let pieces = self.sparse.as_ref().map(|sparse| sparse.pieces().to_vec());
        let (mtime, mtime_nsec) = match pax.mtime {
            Some(mtime) => mtime,
            None => (header.mtime()?, 0),
        };
        Ok(Entry {
            path,
            kind,
            link: match kind {
                Kind::HardLink | Kind::Symlink => {
                    pax.link.or(long_link).unwrap_or_else(|| header.link())
                }
                _ => Vec::new(),
            },
            size,
            mode: header.mode()?,
            uid: self.id(pax.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: self.id(pax.gid.map_or_else(|| header.gid(), Ok)?)?,
            mtime,
            mtime_nsec,
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => header.device()?,
                _ => (0, 0),
            },
            xattrs: pax.xattrs,
            unread: pax.unread,
            pieces,
        })
    }

    /// Prepares for the data of an entry; gives the bytes of the file with its holes.
    fn begin_data(&mut self, kind: Kind, header: &Header, pax: &Pax) -> Result<u64> {
        let stored = pax.size.map_or_else(|| header.size(), Ok)?;
        match kind {
            // Writers disagree on what the size of these means; none of them writes data (as Go's archive/tar).
            Kind::HardLink | Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {}
            Kind::Directory if header.typeflag() == b'5' => {}
            Kind::Directory => self.expect_data(stored),
            Kind::File => {
                self.expect_data(stored);
                if header.typeflag() == b'S' || pax.sparse.is_some() {
                    let sparse = self.sparse_map(header, pax.sparse.as_ref())?;
                    let size = sparse.real_size();
                    self.sparse = Some(sparse);
                    return Ok(size);
                }
                return Ok(stored);
            }
        }
        Ok(0)
    }

    fn id(&self, id: u64) -> Result<u32> {
        // The largest value means "no one" to the kernel.
        u32::try_from(id)
            .ok()
            .filter(|&id| id != u32::MAX)
            .ok_or_else(|| self.malformed("an owner's number is out of range"))
    }

    fn sparse_map(&mut self, header: &Header, pax: Option<&pax::SparseKeys>) -> Result<Sparse> {
        let offset = self.offset;
        let Some(keys) = pax else {
            let stored = self.stored_left;
            let path = self.path.clone();
            return Sparse::from_gnu_header(header, || self.map_block(), offset)
                .map_err(|error| error.of_path(&path))?
                .holding(stored, offset);
        };
        let real_size = keys
            .real_size
            .ok_or_else(|| self.malformed("a sparse file without its size"))?;
        let sparse = if keys.major == 1 {
            let next_block = || {
                self.stored_left = self
                    .stored_left
                    .checked_sub(BLOCK as u64)
                    .ok_or_else(|| self.malformed("a sparse map longer than its file"))?;
                self.map_block()
            };
            Sparse::from_data(real_size, next_block, offset)
        } else {
            Sparse::new(keys.map.clone(), real_size, offset)
        }
        .map_err(|error| self.blame(error))?;
        sparse.holding(self.stored_left, offset)
    }

    fn map_block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.input_exact(&mut block)?;
        Ok(block)
    }

    fn expect_data(&mut self, stored: u64) {
        self.stored_left = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
    }

    /// The data of an extension header.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.size()?;
        if size > EXTENSION_MAX {
            return Err(self.blame(Error::too_large(
                "bytes in an extension header",
                EXTENSION_MAX,
            )));
        }
        self.expect_data(size);
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        self.stored_left = 0;
        self.input_exact(&mut data)?;
        Ok(data)
    }

    fn next_header(&mut self) -> Result<Option<Header>> {
        let first = self.offset == 0;
        let mut block = [0; BLOCK];
        let filled = self.input_up_to(&mut block)?;
        if filled < BLOCK {
            return match (first, filled) {
                (true, 0) => Err(self.truncated()),
                (true, _) => Err(Error::NotAnArchive),
                // The padding of a writer of records may be cut anywhere.
                (false, _) if block.iter().all(|&byte| byte == 0) => Ok(None),
                (false, _) => Err(self.truncated()),
            };
        }
        if block.iter().all(|&byte| byte == 0) {
            self.has_end_mark = true;
            return Ok(None);
        }
        let header = Header::new(block);
        if !header.checksum_is_right() {
            return Err(if first {
                Error::NotAnArchive
            } else {
                self.malformed("a header's checksum is wrong")
            });
        }
        Ok(Some(header.at(self.offset)))
    }

    fn skip_data(&mut self) -> Result<()> {
        let skip = self.stored_left + self.padding;
        self.stored_left = 0;
        self.padding = 0;
        self.sparse = None;
        if skip == 0 {
            return Ok(());
        }
        let skipped = io::copy(&mut self.input.by_ref().take(skip), &mut io::sink())
            .map_err(|error| self.blame(Error::from_read("the archive", error)))?;
        self.offset += skipped;
        if skipped < skip {
            return Err(self.truncated());
        }
        Ok(())
    }

    /// What follows the end mark is read too: the writer at the other end of a pipe must not be cut off, and a
    /// compressed stream has its checksum there.
    fn drain(&mut self) -> Result<()> {
        self.offset += io::copy(&mut self.input, &mut io::sink())
            .map_err(|error| Error::from_read("the archive", error))?;
        Ok(())
    }

    fn input_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        if self.input_up_to(buf)? < buf.len() {
            return Err(self.truncated());
        }
        Ok(())
    }

    fn input_up_to(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.input.read(&mut buf[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.blame(Error::from_read("the archive", error))),
            }
        }
        self.offset += filled as u64;
        Ok(filled)
    }

    fn read_stored(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.stored_left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let count = match self.input.read(&mut buf[..want]) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(self.blame(Error::from_read("the archive", error)).into());
            }
            result => result?,
        };
        if count == 0 {
            return Err(self.truncated().into());
        }
        self.stored_left -= count as u64;
        self.offset += count as u64;
        Ok(count)
    }
}

/// The data of the current entry, with the holes of a sparse file as zeros. Ends exactly after `Entry::size` bytes.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(sparse) = &mut self.sparse else {
            return self.read_stored(buf);
        };
        match sparse.next(buf.len()) {
            sparse::Piece::End => Ok(0),
            sparse::Piece::Hole(len) => {
                buf[..len].fill(0);
                sparse.advance(len);
                Ok(len)
            }
            sparse::Piece::Data(len) => {
                let count = self.read_stored(&mut buf[..len])?;
                if let (Some(sparse), true) = (&mut self.sparse, count > 0) {
                    sparse.advance(count);
                    return Ok(count);
                }
                Err(self
                    .malformed("a sparse file is shorter than its map")
                    .into())
            }
        }
    }
}

/// The file that an extended header is about, by the header's own name: `DIR/PaxHeaders/FILE` of GNU tar and star,
/// `DIR/PaxHeaders.PID/FILE` of others. Empty where a writer gives all its headers one name.
fn extended(path: &[u8]) -> Vec<u8> {
    let parts = || path.split(|&byte| byte == b'/');
    let is_mark = |part: &&[u8]| part.starts_with(b"PaxHeaders");
    if !parts().any(|part| is_mark(&part)) {
        return Vec::new();
    }
    let own: Vec<&[u8]> = parts().filter(|part| !is_mark(part)).collect();
    own.join(&b'/')
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests;
