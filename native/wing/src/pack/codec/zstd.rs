//! A zstd stream: frames one after another, skippable ones left out, checksums compared (RFC 8878).

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder, errors::FrameDecoderError};

use crate::pack::error::Error;

/// The largest window that zstd(1) itself accepts without `--long`: 128 MiB.
const WINDOW_MAX: u64 = 128 << 20;

/// Decodes all frames of `input`.
pub struct Zstd<R> {
    input: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    pub fn new(input: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_MAX);
        Self {
            input,
            decoder,
            in_frame: false,
        }
    }

    /// Begins the next frame; `false` at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            self.input.read_exact(&mut magic)?;
            if u32::from_le_bytes(magic) & 0xffff_fff0 == 0x184d_2a50 {
                let mut len = [0; 4];
                self.input.read_exact(&mut len)?;
                let len = u64::from(u32::from_le_bytes(len));
                if io::copy(&mut self.input.by_ref().take(len), &mut io::sink())? < len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            return match self.decoder.reset(magic.as_slice().chain(&mut self.input)) {
                Ok(()) => {
                    self.in_frame = true;
                    Ok(true)
                }
                Err(FrameDecoderError::WindowSizeTooBig { .. }) => Err(Error::Compression {
                    what: "zstd",
                    reason: "it asks for a window above 128 MiB",
                }
                .into()),
                Err(error) => Err(io::Error::other(error)),
            };
        }
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        match self.decoder.get_checksum_from_data() {
            Some(expected) if self.decoder.get_calculated_checksum() != Some(expected) => Err(
                io::Error::new(io::ErrorKind::InvalidData, "frame checksum mismatch"),
            ),
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buf);
            }
            if self.decoder.is_finished() {
                self.end_frame()?;
                continue;
            }
            self.decoder
                .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(io::Error::other)?;
        }
    }
}
