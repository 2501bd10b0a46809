//! Compressed streams by their magic number: gzip, xz, zstd, and the LZ4 "legacy" frames of boot images.
//! Each decoder has a bounded window, so that a few hostile bytes cannot ask for gigabytes of memory.

use std::{
    error::Error as StdError,
    io::{self, BufRead, BufReader, Cursor, Read},
};

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;

use super::{lz4_legacy::Lz4Legacy, zstd::Zstd};
use crate::pack::error::Error;

/// `xz -9` asks for a window of 64 MiB; twice that leaves room for nothing that is in use.
const XZ_MEMORY_KIB_MAX: u32 = 128 << 10;

/// Bytes that decide on the format.
const MAGIC_LEN: usize = 6;

/// A compression format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Plain,
    Gzip,
    Xz,
    Zstd,
    Lz4Legacy,
}

impl Format {
    /// Recognizes the first bytes of a stream; what is not known is plain.
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd stream may begin with a skippable frame: 0x184D2A50 to 0x184D2A5F (RFC 8878, 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4Legacy,
            _ => Self::Plain,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "LZ4",
        }
    }
}

/// Reads `input` through the decoder that its first bytes ask for.
///
/// # Errors
/// Only those of reading; damage shows when the decoded stream is read.
pub fn open<'a>(input: impl Read + 'a) -> io::Result<(Format, Box<dyn Read + 'a>)> {
    let mut input = input;
    let mut head = Vec::with_capacity(MAGIC_LEN);
    input
        .by_ref()
        .take(MAGIC_LEN as u64)
        .read_to_end(&mut head)?;
    let format = Format::detect(&head);
    Ok((format, decoder(format, Cursor::new(head).chain(input))))
}

/// Reads `input` through the decoder of `format`.
pub fn decoder<'a>(format: Format, input: impl Read + 'a) -> Box<dyn Read + 'a> {
    const BUFFER: usize = 256 << 10;
    let buffered = BufReader::with_capacity(BUFFER, input);
    match format {
        Format::Plain => Box::new(buffered),
        Format::Gzip => Box::new(Decoder {
            format,
            inner: Gzip {
                member: Some(GzDecoder::new(buffered)),
            },
        }),
        Format::Xz => Box::new(Decoder {
            format,
            inner: XzReader::new_mem_limit(buffered, true, XZ_MEMORY_KIB_MAX),
        }),
        Format::Zstd => Box::new(Decoder {
            format,
            inner: Zstd::new(buffered),
        }),
        Format::Lz4Legacy => Box::new(Decoder {
            format,
            inner: Lz4Legacy::new(buffered),
        }),
    }
}

/// Gives a decoder's complaint the shape of ours, and lets ours pass through it unchanged.
struct Decoder<D> {
    format: Format,
    inner: D,
}

impl<D: Read> Read for Decoder<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner
            .read(buf)
            .map_err(|error| blame(self.format.name(), error))
    }
}

fn blame(format: &'static str, error: io::Error) -> io::Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Error>())
        || error.kind() == io::ErrorKind::Interrupted
    {
        return error;
    }
    let mut next: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(cause) = next {
        if let Some(io_error) = cause.downcast_ref::<io::Error>() {
            if io_error.kind() == io::ErrorKind::UnexpectedEof {
                return Error::CompressedTruncated { format }.into();
            }
            if io_error.kind() == io::ErrorKind::OutOfMemory {
                return Error::Compression {
                    what: format,
                    reason: "it asks for a window above 128 MiB",
                }
                .into();
            }
        }
        next = cause.source();
    }
    Error::Corrupt {
        format,
        source: error,
    }
    .into()
}

/// gzip with any number of members; zeros after the last one are padding, as for gzip(1).
struct Gzip<R> {
    /// `None` at the end, and while one member gives way to the next.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let count = member.read(buf)?;
            if count > 0 || buf.is_empty() {
                return Ok(count);
            }
            let mut rest = self.member.take().map(GzDecoder::into_inner);
            while let Some(input) = &mut rest {
                let available = input.fill_buf()?;
                match (
                    available.len(),
                    available.iter().position(|&byte| byte != 0),
                ) {
                    (0, _) => rest = None,
                    (_, Some(zeros)) => {
                        input.consume(zeros);
                        self.member = rest.take().map(GzDecoder::new);
                    }
                    (zeros, None) => input.consume(zeros),
                }
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::pack::error::Code;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut encoder =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn sample() -> Vec<u8> {
        (0..60_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
    }

    fn unpack(packed: &[u8]) -> io::Result<(Format, Vec<u8>)> {
        let (format, mut reader) = open(packed)?;
        let mut plain = Vec::new();
        reader.read_to_end(&mut plain)?;
        Ok((format, plain))
    }

    #[test]
    fn each_format_is_recognized_and_gives_back_what_went_in() {
        let data = sample();
        for (format, packed) in [
            (Format::Plain, data.clone()),
            (Format::Gzip, gzip(&data)),
            (Format::Xz, xz(&data)),
            (Format::Zstd, zstd(&data)),
        ] {
            assert_eq!(unpack(&packed).unwrap(), (format, data.clone()));
        }
    }

    #[test]
    fn streams_one_after_another_are_one_stream() {
        let data = sample();
        for pack in [gzip, xz, zstd] {
            let packed = [pack(&data), pack(b""), pack(b"tail")].concat();

            assert_eq!(unpack(&packed).unwrap().1, [&data[..], b"tail"].concat());
        }
    }

    #[test]
    fn a_zstd_stream_may_begin_with_a_skippable_frame() {
        let packed = [
            &[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9][..],
            &zstd(b"after"),
        ]
        .concat();

        assert_eq!(unpack(&packed).unwrap(), (Format::Zstd, b"after".to_vec()));
    }

    #[test]
    fn a_cut_stream_is_truncated_wherever_it_is_cut() {
        let data = sample();
        for pack in [gzip, xz, zstd] {
            let packed = pack(&data);
            for keep in [10, packed.len() / 3, packed.len() - 1] {
                let error = Error::from_read("test", unpack(&packed[..keep]).unwrap_err());

                assert_eq!(
                    error.code(),
                    Code::ArchiveTruncated,
                    "{keep} of {}: {error}",
                    packed.len()
                );
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_an_error_and_never_other_data() {
        let data = sample();
        for pack in [gzip, xz, zstd] {
            let packed = pack(&data);
            for at in (8..packed.len()).step_by(packed.len() / 97 + 1) {
                let mut damaged = packed.clone();
                damaged[at] ^= 0x10;

                // A bit of a header may be one that no decoder looks at; the data may not change.
                if let Ok((_, plain)) = unpack(&damaged) {
                    assert_eq!(plain, data, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn a_window_of_gigabytes_is_refused_before_it_is_allocated() {
        let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd];
        // Frame header: no single segment, window descriptor 2^31.
        packed.extend([0x00, (31 - 10) << 3, 0x01, 0x00, 0x00]);

        let error = Error::from_read("test", unpack(&packed).unwrap_err());

        assert_eq!(error.code(), Code::CompressionUnsupported, "{error}");
    }
}
