//! virtio block device (virtio 1.2, section 5.2) over a raw image. It has a thread of its own, on which reading and
//! writing may wait; behind [`Engine`] another way to do I/O can stand.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::rate::Limiter;
use super::{Backend, CONFIG_BYTES, Chain, Io, Kind, Next, ServeError};

/// Bytes of a sector, whatever the device's block size.
const SECTOR: u64 = 512;
/// Requests served before the lock is given up for once.
const BATCH: usize = 16;
/// Buffers of data in one request: the queue less header and status.
const SEGMENTS_MAX: u32 = 254;
/// Ranges in one discard or write-zeroes request, and sectors in one of them (2 GiB).
const RANGES_MAX: u32 = 32;
const RANGE_SECTORS_MAX: u32 = 1 << 22;
const HEADER_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;
const ID_BYTES: usize = 20;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// Does the I/O.
pub trait Engine: Send + std::fmt::Debug {
    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// When not all could be read.
    fn read(&self, into: &mut [libc::iovec], offset: u64) -> io::Result<()>;
    /// Writes `from` at `offset`.
    ///
    /// # Errors
    /// When not all could be written.
    fn write(&self, from: &mut [libc::iovec], offset: u64) -> io::Result<()>;
    /// Makes what was written last.
    ///
    /// # Errors
    /// When the host cannot say so.
    fn flush(&self) -> io::Result<()>;
    /// The bytes are not needed; they may read as anything.
    ///
    /// # Errors
    /// When the host fails at it.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// The bytes read as zeroes from now on; with `unmap` they need no room.
    ///
    /// # Errors
    /// When the host fails at it.
    fn zero(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()>;
}

/// Plain system calls on a file or block device.
#[derive(Debug)]
pub struct FileEngine(pub File);

/// `preadv` or `pwritev`, by number: std declares such functions weak, see `rng::fill`.
type Vectored = libc::c_long;

impl FileEngine {
    fn all(
        &self,
        call: Vectored,
        mut vectors: &mut [libc::iovec],
        mut offset: u64,
    ) -> io::Result<()> {
        while !vectors.is_empty() {
            let count = i32::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            // SAFETY: the vectors describe guest memory that stays mapped during the call (the caller holds it), and no
            // Rust reference to it exists; the call is preadv or pwritev, which take exactly these arguments.
            let done =
                unsafe { libc::syscall(call, self.0.as_raw_fd(), vectors.as_ptr(), count, at, 0) };
            let mut done = match usize::try_from(done) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => done,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            offset += done as u64;
            while let Some(first) = vectors.first_mut() {
                if done < first.iov_len {
                    first.iov_base = first.iov_base.cast::<u8>().wrapping_add(done).cast();
                    first.iov_len -= done;
                    break;
                }
                done -= first.iov_len;
                vectors = &mut vectors[1..];
            }
        }
        Ok(())
    }

    fn allocate(&self, mode: i32, offset: u64, bytes: u64) -> io::Result<()> {
        let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: fallocate with integers on our own descriptor.
        if unsafe {
            libc::fallocate(
                self.0.as_raw_fd(),
                mode | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                bytes,
            )
        } < 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}

impl Engine for FileEngine {
    fn read(&self, into: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        self.all(libc::SYS_preadv, into, offset)
    }

    fn write(&self, from: &mut [libc::iovec], offset: u64) -> io::Result<()> {
        self.all(libc::SYS_pwritev, from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match self.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, bytes) {
            // A discard is a hint: a file system without holes may ignore it.
            Err(error) if is_unsupported(&error) => Ok(()),
            other => other,
        }
    }

    fn zero(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap {
            libc::FALLOC_FL_PUNCH_HOLE
        } else {
            libc::FALLOC_FL_ZERO_RANGE
        };
        match self.allocate(mode, offset, bytes) {
            Err(error) if is_unsupported(&error) => {
                let zeroes = [0; 64 << 10];
                let mut done = 0;
                while done < bytes {
                    let part = (bytes - done).min(zeroes.len() as u64);
                    self.0
                        .write_all_at(&zeroes[..crate::bytes::to_usize(part)], offset + done)?;
                    done += part;
                }
                Ok(())
            }
            other => other,
        }
    }
}

/// The device.
#[derive(Debug)]
pub struct Block {
    engine: Box<dyn Engine>,
    sectors: u64,
    readonly: bool,
    serial: [u8; ID_BYTES],
    limiter: Limiter,
    reads: u64,
    writes: u64,
    read_bytes: u64,
    write_bytes: u64,
    errors: u64,
}

impl Block {
    /// Over `bytes` of `engine`; a last part of a sector is not shown.
    #[must_use]
    pub fn new(
        engine: Box<dyn Engine>,
        bytes: u64,
        readonly: bool,
        serial: &str,
        limiter: Limiter,
    ) -> Self {
        let mut id = [0; ID_BYTES];
        let length = serial.len().min(ID_BYTES);
        id[..length].copy_from_slice(&serial.as_bytes()[..length]);
        Self {
            engine,
            sectors: bytes / SECTOR,
            readonly,
            serial: id,
            limiter,
            reads: 0,
            writes: 0,
            read_bytes: 0,
            write_bytes: 0,
            errors: 0,
        }
    }

    /// Whether `bytes` from `sector` on lie on the disk, and where they begin.
    fn place(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = sector.checked_add(bytes.div_ceil(SECTOR))?;
        (end <= self.sectors).then_some(sector * SECTOR)
    }

    /// Does one request. Returns its status and the bytes written before the status byte.
    fn perform(&mut self, io: &Io<'_>, chain: &Chain, kind: u32, sector: u64) -> (u8, u64) {
        let data_out = chain.readable_bytes() - HEADER_BYTES;
        let data_in = chain.writable_bytes() - 1;
        let outcome = match kind {
            T_IN => match self.place(sector, data_in) {
                Some(offset) if data_in.is_multiple_of(SECTOR) => {
                    self.reads += 1;
                    self.read_bytes += data_in;
                    let mut vectors = chain.writable_vectors(io.memory, 0, data_in);
                    self.engine.read(&mut vectors, offset).map(|()| data_in)
                }
                _ => Err(io::ErrorKind::InvalidInput.into()),
            },
            T_OUT => match self.place(sector, data_out) {
                Some(offset) if data_out.is_multiple_of(SECTOR) && !self.readonly => {
                    self.writes += 1;
                    self.write_bytes += data_out;
                    let mut vectors = chain.readable_vectors(io.memory, HEADER_BYTES, data_out);
                    self.engine.write(&mut vectors, offset).map(|()| 0)
                }
                _ => Err(io::ErrorKind::InvalidInput.into()),
            },
            T_FLUSH if self.readonly => Ok(0),
            T_FLUSH => self.engine.flush().map(|()| 0),
            T_GET_ID => Ok(chain.write(
                io.memory,
                0,
                &self.serial[..ID_BYTES.min(crate::bytes::to_usize(data_in))],
            ) as u64),
            T_DISCARD | T_WRITE_ZEROES => match self.clear(io, chain, kind, data_out) {
                Some(outcome) => outcome.map(|()| 0),
                None => return (S_UNSUPP, 0),
            },
            _ => return (S_UNSUPP, 0),
        };
        match outcome {
            Ok(written) => (S_OK, written),
            Err(_) => {
                self.errors += 1;
                (S_IOERR, 0)
            }
        }
    }

    /// Discards or zeroes ranges; none when a flag is set that nobody defined (5.2.6.2).
    fn clear(&self, io: &Io<'_>, chain: &Chain, kind: u32, bytes: u64) -> Option<io::Result<()>> {
        const UNMAP: u32 = 1;
        let bad = || Some(Err(io::ErrorKind::InvalidInput.into()));
        let count = bytes / RANGE_BYTES;
        if self.readonly
            || !bytes.is_multiple_of(RANGE_BYTES)
            || count == 0
            || count > u64::from(RANGES_MAX)
        {
            return bad();
        }
        for index in 0..count {
            let mut raw = [0; 16];
            chain.read(io.memory, HEADER_BYTES + index * RANGE_BYTES, &mut raw);
            let [
                s0,
                s1,
                s2,
                s3,
                s4,
                s5,
                s6,
                s7,
                n0,
                n1,
                n2,
                n3,
                f0,
                f1,
                f2,
                f3,
            ] = raw;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            if flags & !UNMAP != 0 || (kind == T_DISCARD && flags != 0) {
                return None;
            }
            let length = u64::from(sectors) * SECTOR;
            let Some(offset) = self
                .place(sector, length)
                .filter(|_| sectors <= RANGE_SECTORS_MAX)
            else {
                return bad();
            };
            if sectors == 0 {
                continue;
            }
            let done = match kind {
                T_DISCARD => self.engine.discard(offset, length),
                _ => self.engine.zero(offset, length, flags & UNMAP != 0),
            };
            if done.is_err() {
                return Some(done);
            }
        }
        Some(Ok(()))
    }
}

impl Backend for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let access = if self.readonly {
            F_RO
        } else {
            F_DISCARD | F_WRITE_ZEROES
        };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | access
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256]
    }

    fn config(&self, out: &mut [u8; CONFIG_BYTES]) -> usize {
        out[..8].copy_from_slice(&self.sectors.to_le_bytes());
        for (at, value) in [
            (12, SEGMENTS_MAX),
            (20, 512),
            (36, RANGE_SECTORS_MAX),
            (40, RANGES_MAX),
            (44, 8),
            (48, RANGE_SECTORS_MAX),
            (52, RANGES_MAX),
        ] {
            out[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        out[34] = 1;
        out[56] = 1;
        60
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        io.quiet(0)?;
        for _ in 0..BATCH {
            let Some(chain) = io.pop(0)? else {
                return Ok(if io.listen(0)? {
                    Next::Again
                } else {
                    Next::Wait
                });
            };
            let mut header = [0; 16];
            if chain.read(io.memory, 0, &mut header) < header.len() || chain.writable_bytes() == 0 {
                return Err(ServeError::Request(
                    "block request without header or status",
                ));
            }
            let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
            let bytes = chain.readable_bytes() - HEADER_BYTES + chain.writable_bytes() - 1;
            if let Err(at) = self.limiter.take(bytes, Instant::now()) {
                io.unpop(0);
                return Ok(Next::At(at));
            }
            let kind = u32::from_le_bytes([k0, k1, k2, k3]);
            let (status, written) = self.perform(io, &chain, kind, u64::from_le_bytes(sector));
            chain.write(io.memory, chain.writable_bytes() - 1, &[status]);
            io.push(
                0,
                chain.head,
                u32::try_from(written + 1).unwrap_or(u32::MAX),
            )?;
        }
        Ok(Next::Again)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("read_ops", self.reads),
            ("read_bytes", self.read_bytes),
            ("write_ops", self.writes),
            ("write_bytes", self.write_bytes),
            ("errors", self.errors),
        ]
    }
}
