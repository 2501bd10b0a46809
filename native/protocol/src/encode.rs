//! Frames → bytes.

use crate::frame::{
    Frame, FrameError, LOG_PREFIX_BYTES, Limits, OPEN_PREFIX_BYTES, check_header, kind_byte,
};
use crate::{HEADER_BYTES, MAGIC};

/// Why a frame was not written: it would be refused by the other side's decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot encode a frame that no decoder takes")]
pub struct EncodeError(#[source] pub FrameError);

/// Appends `frame` to `out`.
///
/// # Errors
/// A payload that breaks the bounds of its type; `out` is unchanged then. JSON is not read again here: its author is our
/// own serializer.
pub fn encode(frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match *frame {
        Frame::Open {
            generation,
            kind,
            body,
        } => {
            header(kind_byte::OPEN, OPEN_PREFIX_BYTES + body.len(), out)?;
            out.extend_from_slice(&MAGIC);
            out.extend_from_slice(&generation.to_le_bytes());
            out.extend_from_slice(&[kind, 0]);
            out.extend_from_slice(body);
            Ok(())
        }
        Frame::Ok(body) => plain(kind_byte::OK, body, out),
        Frame::Error(body) => plain(kind_byte::ERROR, body, out),
        Frame::Stdin(body) => plain(kind_byte::STDIN, body, out),
        Frame::Stdout(body) => plain(kind_byte::STDOUT, body, out),
        Frame::Stderr(body) => plain(kind_byte::STDERR, body, out),
        Frame::Eof => plain(kind_byte::EOF, &[], out),
        Frame::Resize { columns, rows } => {
            let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
            plain(kind_byte::RESIZE, &[a, b, c, d], out)
        }
        Frame::Signal(number) => match number {
            1..=64 => plain(kind_byte::SIGNAL, &[number], out),
            _ => Err(EncodeError(FrameError::PayloadInvalid {
                kind: kind_byte::SIGNAL,
                bytes: 1,
            })),
        },
        Frame::Exit(body) => plain(kind_byte::EXIT, body, out),
        Frame::Event(body) => plain(kind_byte::EVENT, body, out),
        Frame::Ack(seq) => plain(kind_byte::ACK, &seq.to_le_bytes(), out),
        Frame::Request(body) => plain(kind_byte::REQUEST, body, out),
        Frame::Reply(body) => plain(kind_byte::REPLY, body, out),
        Frame::Window(bytes) => plain(kind_byte::WINDOW, &bytes.to_le_bytes(), out),
        Frame::Log {
            stream,
            offset,
            time_ns,
            data,
        } => {
            header(kind_byte::LOG, LOG_PREFIX_BYTES + data.len(), out)?;
            out.push(stream.byte());
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&time_ns.to_le_bytes());
            out.extend_from_slice(data);
            Ok(())
        }
    }
}

/// The header of a frame whose `bytes` of payload follow from somewhere else, so that bulk data is never copied to be
/// framed.
///
/// # Errors
/// A length that breaks the bounds of the type.
pub fn bytes_header(kind: u8, bytes: usize) -> Result<[u8; HEADER_BYTES], EncodeError> {
    check_header(kind, bytes, Limits::OF_HOST).map_err(EncodeError)?;
    let too_long = EncodeError(FrameError::TooLong {
        kind,
        bytes,
        max: crate::PAYLOAD_BYTES_MAX,
    });
    let [a, b, c, d] = u32::try_from(bytes).map_err(|_| too_long)?.to_le_bytes();
    Ok([a, b, c, d, kind])
}

fn header(kind: u8, bytes: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.extend_from_slice(&bytes_header(kind, bytes)?);
    Ok(())
}

fn plain(kind: u8, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    header(kind, body.len(), out)?;
    out.extend_from_slice(body);
    Ok(())
}
