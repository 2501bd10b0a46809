//! The kernel's boot image, and the ELF file packed in it (`Documentation/arch/x86/boot.rst`, boot protocol 2.08).

use std::{
    fs::File,
    io::{self, Cursor, Read},
};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::pack::{
    codec::decompress::{Format, decoder},
    error::{Error, Result},
    hex::hex,
    input::{Limited, stdin},
    output::FileWriter,
};

/// Bytes that tell what a kernel is: the setup code has at most 64 sectors, its version string is in it.
pub const HEAD_LEN: usize = 65 * 512;
/// Unpacked kernels are below 100 MiB; one with debug data is below this.
const KERNEL_MAX: u64 = 1 << 30;

/// The two shapes that a VMM can boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    BzImage,
    Vmlinux,
}

/// What the first bytes of a kernel say.
#[derive(Debug)]
pub struct Head {
    pub shape: Shape,
    /// `uname -r`, where a bzImage tells.
    pub version: Option<String>,
    /// Start and length of the packed kernel, bytes from the start of the file.
    payload: (u64, u64),
}

impl Head {
    /// Reads the first bytes, up to [`HEAD_LEN`].
    ///
    /// # Errors
    /// `kernel_malformed` if this is neither a bzImage nor an ELF file for x86-64.
    pub fn parse(head: &[u8]) -> Result<Self> {
        let bad = |reason: &str| Error::Kernel {
            reason: reason.into(),
        };
        if head.starts_with(b"\x7fELF") {
            // 64 bits, little endian, ET_EXEC or ET_DYN, EM_X86_64.
            let fits = head.get(4..6) == Some(&[2, 1])
                && matches!(word(head, 16), Some(2 | 3))
                && word(head, 18) == Some(62);
            return match fits {
                true => Ok(Self {
                    shape: Shape::Vmlinux,
                    version: None,
                    payload: (0, 0),
                }),
                false => Err(bad("it is an ELF file, but no x86-64 executable")),
            };
        }
        if head.get(0x202..0x206) != Some(b"HdrS") || word(head, 0x1fe) != Some(0xaa55) {
            return Err(bad("it is neither a bzImage nor an ELF file"));
        }
        if word(head, 0x206).is_none_or(|protocol| protocol < 0x208) {
            return Err(bad("its boot protocol is older than 2.08 (Linux 2.6.26)"));
        }
        let sectors = match head.get(0x1f1) {
            Some(0) | None => 4,
            Some(&sectors) => u64::from(sectors),
        };
        let payload = match (long(head, 0x248), long(head, 0x24c)) {
            (Some(offset), Some(len)) if len > 4 => {
                ((sectors + 1) * 512 + u64::from(offset), u64::from(len))
            }
            _ => return Err(bad("it says nothing of a payload")),
        };
        let version = word(head, 0x20e)
            .filter(|&at| at > 0)
            .and_then(|at| head.get(usize::from(at) + 0x200..))
            .map(|text| {
                &text[..text
                    .iter()
                    .take(256)
                    .position(|&byte| byte == 0 || byte == b' ')
                    .unwrap_or(0)]
            })
            .filter(|version| is_version(version))
            .and_then(|version| String::from_utf8(version.to_vec()).ok());
        Ok(Self {
            shape: Shape::BzImage,
            version,
            payload,
        })
    }
}

/// Whether this can be the name of a folder below `lib/modules`.
pub fn is_version(version: &[u8]) -> bool {
    !version.is_empty()
        && version.len() <= 128
        && version[0] != b'.'
        && version
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-+~_".contains(byte))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What is told on standard output.
#[derive(Debug, Serialize)]
pub struct Report {
    sha256: String,
    bytes: u64,
}

/// `wing pack vmlinux`: the ELF file of the kernel on standard input.
pub fn run(out: File) -> Result<Report> {
    let unreadable = |error: io::Error| Error::from_read("standard input", error);
    let mut input = stdin();
    let mut head = Vec::with_capacity(HEAD_LEN);
    input
        .by_ref()
        .take(HEAD_LEN as u64)
        .read_to_end(&mut head)
        .map_err(unreadable)?;
    let parsed = Head::parse(&head)?;
    let mut whole = Cursor::new(head).chain(input);
    let mut out = FileWriter::new(out, "the kernel")?;
    let mut hash = Sha256::new();
    let bytes = each_part(&mut whole, &parsed, &mut |part| {
        hash.update(part);
        out.put(part)
    })?;
    // The rest of the boot image: a writer at the other end of a pipe must not be cut off.
    io::copy(&mut Limited::new(whole, KERNEL_MAX), &mut io::sink()).map_err(unreadable)?;
    out.finish()?;
    Ok(Report {
        sha256: hex(&hash.finalize()),
        bytes,
    })
}

/// Takes what a part of a kernel is to go to.
type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Gives the ELF file of the kernel `image`, whose first bytes said `head`, in parts to `sink`; its length.
///
/// # Errors
/// `compression_unsupported`, `archive_truncated`, `kernel_malformed`, those of reading, and those of `sink`.
pub fn each_part(image: &mut impl Read, head: &Head, sink: &mut Sink<'_>) -> Result<u64> {
    match head.shape {
        Shape::Vmlinux => copy(image, sink),
        Shape::BzImage => {
            let (start, len) = head.payload;
            skip(image, start)?;
            unpack(image.take(len), len, sink)
        }
    }
}

/// Unpacks the payload, whose last four bytes are the size of what comes out.
fn unpack(mut payload: impl Read, len: u64, sink: &mut Sink<'_>) -> Result<u64> {
    let short = || Error::Truncated {
        what: "the kernel",
        offset: 0,
    };
    let mut magic = [0; 6];
    payload
        .read_exact(&mut magic)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => short(),
            _ => Error::from_read("the kernel", error),
        })?;
    let format = match Format::detect(&magic) {
        Format::Plain => {
            let what = match &magic {
                [b'B', b'Z', b'h', ..] => "a kernel packed with bzip2",
                [0x5d, 0, 0, ..] => "a kernel packed with LZMA",
                [0x89, b'L', b'Z', b'O', ..] => "a kernel packed with LZO",
                _ => "a kernel of an unknown format",
            };
            return Err(Error::Compression {
                what,
                reason: "only gzip, xz, LZ4 and zstd are known",
            });
        }
        format => format,
    };
    // gzip ends with the size itself; behind the others the build puts it (`size_append` of scripts/Makefile.lib).
    let own_size = format == Format::Gzip;
    let packed_len = if own_size {
        len
    } else {
        len.checked_sub(4).ok_or_else(short)?
    };
    let mut tail = Tail {
        inner: Cursor::new(magic).chain(payload).take(len),
        last: [0; 4],
    };
    let mut head = [0; 20];
    let unpacked = {
        let mut plain = decoder(format, tail.by_ref().take(packed_len));
        let mut filled = 0;
        while filled < head.len() {
            match plain
                .read(&mut head[filled..])
                .map_err(|error| Error::from_read("the kernel", error))?
            {
                0 => break,
                count => filled += count,
            }
        }
        if Head::parse(&head[..filled])?.shape != Shape::Vmlinux {
            return Err(Error::Kernel {
                reason: "what is packed in it is no ELF file".into(),
            });
        }
        copy(&mut Cursor::new(head).chain(plain), sink)?
    };
    io::copy(&mut tail, &mut io::sink()).map_err(|error| Error::from_read("the kernel", error))?;
    if u64::from(u32::from_le_bytes(tail.last)) != unpacked & u64::from(u32::MAX) {
        return Err(Error::Kernel {
            reason: "it does not unpack to the size that it tells".into(),
        });
    }
    Ok(unpacked)
}

/// Remembers the last four bytes that went through.
struct Tail<R> {
    inner: R,
    last: [u8; 4],
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        for &byte in &buf[count.saturating_sub(4)..count] {
            self.last.rotate_left(1);
            self.last[3] = byte;
        }
        Ok(count)
    }
}

fn skip(input: &mut impl Read, len: u64) -> Result<()> {
    let skipped = io::copy(&mut input.by_ref().take(len), &mut io::sink())
        .map_err(|error| Error::from_read("the kernel", error))?;
    if skipped < len {
        return Err(Error::Truncated {
            what: "the kernel",
            offset: skipped,
        });
    }
    Ok(())
}

fn copy(input: &mut impl Read, sink: &mut Sink<'_>) -> Result<u64> {
    let mut limited = Limited::new(input, KERNEL_MAX);
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match limited
            .read(&mut buffer)
            .map_err(|error| Error::from_read("the kernel", error))?
        {
            0 => return Ok(total),
            count => {
                sink(&buffer[..count])?;
                total += count as u64;
            }
        }
    }
}
