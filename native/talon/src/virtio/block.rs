//! virtio block device (virtio 1.2, section 5.2) over a raw image. It has a thread of its own, on which reading and
//! writing may wait; behind [`Engine`] another way to do I/O can stand.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use super::rate::Limiter;
use super::{Backend, CONFIG_BYTES, Chain, Io, Kind, Next, ServeError, Taken, Work};

/// Bytes of a sector, whatever the device's block size.
const SECTOR: u64 = 512;
/// Requests that need no I/O, served before the lock is given up for once.
const BATCH: usize = 16;
/// Buffers of data in one request: the queue less header and status.
const SEGMENTS_MAX: u32 = 254;
/// Bytes of one buffer. Linux obeys both, so that its requests stay below [`REQUEST_BYTES_MAX`].
const SEGMENT_BYTES_MAX: u32 = 16 << 10;
/// Data of one request. A chain may name one page many times, so without a limit one request could keep the disk busy, and
/// who waits for it, for as long as the guest likes.
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// Ranges in one discard request, and sectors in one of them (64 MiB).
const DISCARD_RANGES_MAX: u32 = 32;
const DISCARD_SECTORS_MAX: u32 = 1 << 17;
/// One range of zeroes, of 4 MiB: a file system without holes writes them.
const ZERO_RANGES_MAX: u32 = 1;
const ZERO_SECTORS_MAX: u32 = 1 << 13;
const HEADER_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;
const ID_BYTES: usize = 20;

const F_SIZE_MAX: u64 = 1 << 1;
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
pub trait Engine: Send + Sync + std::fmt::Debug {
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

/// Guest memory of a request, which stays mapped as long as the machine's worker lives.
struct Vectors(Vec<libc::iovec>);

// SAFETY: the addresses are of guest memory, which any thread may read and write; no Rust reference to it exists.
unsafe impl Send for Vectors {}

impl Vectors {
    fn as_mut(&mut self) -> &mut [libc::iovec] {
        &mut self.0
    }
}

/// A range of the disk in bytes, checked to lie on it.
#[derive(Debug, Clone, Copy)]
struct Range {
    offset: u64,
    bytes: u64,
    unmap: bool,
}

/// What a request comes to.
enum Request {
    /// Nothing that waits: its status, and the bytes written for the guest.
    Done(u8, u64),
    /// I/O.
    Wait { work: Work, slow: bool },
}

const REFUSED: Request = Request::Done(S_IOERR, 0);

/// The device.
#[derive(Debug)]
pub struct Block {
    engine: Arc<dyn Engine>,
    sectors: u64,
    readonly: bool,
    serial: [u8; ID_BYTES],
    limiter: Limiter,
    /// The request under way.
    current: Option<Chain>,
    reads: u64,
    writes: u64,
    flushes: u64,
    read_bytes: u64,
    write_bytes: u64,
    errors: u64,
}

impl Block {
    /// Over `bytes` of `engine`; a last part of a sector is not shown.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
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
            current: None,
            reads: 0,
            writes: 0,
            flushes: 0,
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

    /// Where data of a request goes to or comes from.
    fn data(&self, sector: u64, bytes: u64) -> Option<u64> {
        if bytes > REQUEST_BYTES_MAX || !bytes.is_multiple_of(SECTOR) {
            return None;
        }
        self.place(sector, bytes)
    }

    fn request(&mut self, io: &Io<'_>, chain: &Chain, kind: u32, sector: u64) -> Request {
        let data_out = chain.readable_bytes() - HEADER_BYTES;
        let data_in = chain.writable_bytes() - 1;
        let engine = Arc::clone(&self.engine);
        match kind {
            T_IN => {
                let Some(offset) = self.data(sector, data_in) else {
                    return REFUSED;
                };
                self.reads += 1;
                self.read_bytes += data_in;
                let mut into = Vectors(chain.writable_vectors(io.memory, 0, data_in));
                let work = move || engine.read(into.as_mut(), offset).map(|()| data_in);
                Request::Wait {
                    work: Box::new(work),
                    slow: false,
                }
            }
            T_OUT => {
                let Some(offset) = self.data(sector, data_out).filter(|_| !self.readonly) else {
                    return REFUSED;
                };
                self.writes += 1;
                self.write_bytes += data_out;
                let mut from = Vectors(chain.readable_vectors(io.memory, HEADER_BYTES, data_out));
                let work = move || engine.write(from.as_mut(), offset).map(|()| 0);
                Request::Wait {
                    work: Box::new(work),
                    slow: false,
                }
            }
            T_FLUSH if self.readonly => Request::Done(S_OK, 0),
            T_FLUSH => {
                self.flushes += 1;
                Request::Wait {
                    work: Box::new(move || engine.flush().map(|()| 0)),
                    slow: true,
                }
            }
            T_GET_ID => {
                let room = ID_BYTES.min(crate::bytes::to_usize(data_in));
                let written = chain.write(io.memory, 0, &self.serial[..room]);
                Request::Done(S_OK, written as u64)
            }
            T_DISCARD | T_WRITE_ZEROES => match self.ranges(io, chain, kind, data_out) {
                Err(status) => Request::Done(status, 0),
                Ok(ranges) => Request::Wait {
                    work: Box::new(move || clear(&*engine, kind, &ranges).map(|()| 0)),
                    slow: true,
                },
            },
            _ => Request::Done(S_UNSUPP, 0),
        }
    }

    /// The ranges of a discard or write-zeroes request, or the status that it deserves: `S_UNSUPP` when a flag is set that
    /// nobody defined (5.2.6.2).
    fn ranges(&self, io: &Io<'_>, chain: &Chain, kind: u32, bytes: u64) -> Result<Vec<Range>, u8> {
        const UNMAP: u32 = 1;
        let (ranges_max, sectors_max) = if kind == T_DISCARD {
            (DISCARD_RANGES_MAX, DISCARD_SECTORS_MAX)
        } else {
            (ZERO_RANGES_MAX, ZERO_SECTORS_MAX)
        };
        let count = bytes / RANGE_BYTES;
        if self.readonly
            || !bytes.is_multiple_of(RANGE_BYTES)
            || count == 0
            || count > u64::from(ranges_max)
        {
            return Err(S_IOERR);
        }
        let mut ranges = Vec::new();
        for index in 0..count {
            let mut raw = [0; 16];
            chain.read(io.memory, HEADER_BYTES + index * RANGE_BYTES, &mut raw);
            let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = raw;
            let sector = u64::from_le_bytes(sector);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            if flags & !UNMAP != 0 || (kind == T_DISCARD && flags != 0) {
                return Err(S_UNSUPP);
            }
            let bytes = u64::from(sectors) * SECTOR;
            let offset = self
                .place(sector, bytes)
                .filter(|_| sectors <= sectors_max)
                .ok_or(S_IOERR)?;
            if sectors > 0 {
                ranges.push(Range {
                    offset,
                    bytes,
                    unmap: flags & UNMAP != 0,
                });
            }
        }
        Ok(ranges)
    }

    fn answer(
        &mut self,
        io: &mut Io<'_>,
        chain: &Chain,
        status: u8,
        written: u64,
    ) -> Result<(), ServeError> {
        if status == S_IOERR {
            self.errors += 1;
        }
        chain.write(io.memory, chain.writable_bytes() - 1, &[status]);
        io.push(
            0,
            chain.head,
            u32::try_from(written + 1).unwrap_or(u32::MAX),
        )
    }
}

fn clear(engine: &dyn Engine, kind: u32, ranges: &[Range]) -> io::Result<()> {
    ranges.iter().try_for_each(|range| match kind {
        T_DISCARD => engine.discard(range.offset, range.bytes),
        _ => engine.zero(range.offset, range.bytes, range.unmap),
    })
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
        F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | access
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256]
    }

    fn config(&self, out: &mut [u8; CONFIG_BYTES]) -> usize {
        out[..8].copy_from_slice(&self.sectors.to_le_bytes());
        for (at, value) in [
            (8, SEGMENT_BYTES_MAX),
            (12, SEGMENTS_MAX),
            (20, 512),
            (36, DISCARD_SECTORS_MAX),
            (40, DISCARD_RANGES_MAX),
            (44, 8),
            (48, ZERO_SECTORS_MAX),
            (52, ZERO_RANGES_MAX),
        ] {
            out[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        out[34] = 1;
        out[56] = 1;
        60
    }

    fn waits(&self) -> bool {
        true
    }

    /// Whoever serves by this alone waits for the disk.
    fn serve(&mut self, io: &mut Io<'_>) -> Result<Next, ServeError> {
        loop {
            match self.take(io)? {
                Taken::Work { work, .. } => self.finish(io, work())?,
                Taken::Nothing(next) => return Ok(next),
            }
        }
    }

    fn take(&mut self, io: &mut Io<'_>) -> Result<Taken, ServeError> {
        io.quiet(0)?;
        for _ in 0..BATCH {
            let Some(chain) = io.pop(0)? else {
                return Ok(Taken::Nothing(if io.listen(0)? {
                    Next::Again
                } else {
                    Next::Wait
                }));
            };
            let mut header = [0; 16];
            if chain.read(io.memory, 0, &mut header) < header.len() || chain.writable_bytes() == 0 {
                return Err(ServeError::Request(
                    "block request without header or status",
                ));
            }
            let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
            let kind = u32::from_le_bytes([k0, k1, k2, k3]);
            let bytes = chain.readable_bytes() - HEADER_BYTES + chain.writable_bytes() - 1;
            let flushes = u64::from(kind == T_FLUSH && !self.readonly);
            let now = Instant::now();
            if let Err(at) = self.limiter.take(bytes, flushes, now) {
                io.unpop(0);
                return Ok(Taken::Nothing(Next::At(at)));
            }
            match self.request(io, &chain, kind, u64::from_le_bytes(sector)) {
                Request::Done(status, written) => self.answer(io, &chain, status, written)?,
                Request::Wait { work, slow } => {
                    self.current = Some(chain);
                    return Ok(Taken::Work { work, slow });
                }
            }
        }
        Ok(Taken::Nothing(Next::Again))
    }

    fn finish(&mut self, io: &mut Io<'_>, outcome: io::Result<u64>) -> Result<(), ServeError> {
        let Some(chain) = self.current.take() else {
            return Ok(());
        };
        match outcome {
            Ok(written) => self.answer(io, &chain, S_OK, written),
            Err(_) => self.answer(io, &chain, S_IOERR, 0),
        }
    }

    fn reset(&mut self) {
        self.current = None;
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("read_ops", self.reads),
            ("read_bytes", self.read_bytes),
            ("write_ops", self.writes),
            ("write_bytes", self.write_bytes),
            ("flush_ops", self.flushes),
            ("errors", self.errors),
        ]
    }
}
