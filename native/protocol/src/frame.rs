//! One frame: its types on the wire and what each payload must look like.

use crate::json::{JsonError, check_json};
use crate::{
    ARGUMENTS_JSON_BYTES_MAX, GENERATION, JSON_BYTES_MAX, MAGIC, OK_BYTES_MAX, PAYLOAD_BYTES_MAX,
};

/// The type bytes (README, "Frames").
pub mod kind_byte {
    pub const OPEN: u8 = 0x01;
    pub const OK: u8 = 0x02;
    pub const ERROR: u8 = 0x03;
    pub const STDIN: u8 = 0x10;
    pub const STDOUT: u8 = 0x11;
    pub const STDERR: u8 = 0x12;
    pub const EOF: u8 = 0x13;
    pub const RESIZE: u8 = 0x14;
    pub const SIGNAL: u8 = 0x15;
    pub const EXIT: u8 = 0x16;
    pub const EVENT: u8 = 0x17;
    pub const ACK: u8 = 0x18;
    pub const REQUEST: u8 = 0x19;
    pub const REPLY: u8 = 0x1a;
    pub const WINDOW: u8 = 0x1b;
    pub const LOG: u8 = 0x1c;
}

/// Bytes of an `open` payload in front of its JSON.
pub(crate) const OPEN_PREFIX_BYTES: usize = 8;
/// Bytes of a `log` payload in front of its data.
pub(crate) const LOG_PREFIX_BYTES: usize = 17;
const SIGNAL_MAX: u8 = 64;

/// The source of a piece of log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
    Kestrel,
}

impl LogStream {
    /// The wire value.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Kestrel => 3,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            3 => Some(Self::Kestrel),
            _ => None,
        }
    }
}

/// A decoded frame; it borrows from the decoder's buffer. JSON is checked for form and bounds but not yet typed, since
/// the type of a body hangs on the conversation (`message`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// `kind` is raw, and `body` is unchecked when `generation` is not ours: the answer to such an open is a typed error,
    /// not a closed connection.
    Open {
        generation: u16,
        kind: u8,
        body: &'a [u8],
    },
    Ok(&'a [u8]),
    Error(&'a [u8]),
    Stdin(&'a [u8]),
    Stdout(&'a [u8]),
    Stderr(&'a [u8]),
    Eof,
    Resize {
        columns: u16,
        rows: u16,
    },
    /// 1 to 64.
    Signal(u8),
    Exit(&'a [u8]),
    Event(&'a [u8]),
    Ack(u64),
    Request(&'a [u8]),
    Reply(&'a [u8]),
    Window(u32),
    Log {
        stream: LogStream,
        offset: u64,
        time_ns: u64,
        data: &'a [u8],
    },
}

/// Why bytes are no frame. After it the stream has no known boundary any more: the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame type {0:#04x} is unknown")]
    TypeUnknown(u8),
    #[error("a frame of type {kind:#04x} claims {bytes} bytes, {max} are allowed")]
    TooLong { kind: u8, bytes: usize, max: usize },
    #[error("a frame of type {kind:#04x} has {bytes} bytes, which do not fit it")]
    PayloadInvalid { kind: u8, bytes: usize },
    #[error("the first bytes are not those of this protocol")]
    MagicInvalid,
    #[error("a frame of type {kind:#04x} carries no valid JSON")]
    Json { kind: u8, source: JsonError },
}

impl FrameError {
    /// The stable code, for `error` frames and golden vectors.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TypeUnknown(_) => "frame_type_unknown",
            Self::TooLong { .. }
            | Self::Json {
                source: JsonError::TooLong { .. },
                ..
            } => "frame_too_long",
            Self::PayloadInvalid { .. } => "frame_payload_invalid",
            Self::MagicInvalid => "frame_magic_invalid",
            Self::Json {
                source: JsonError::TooDeep,
                ..
            } => "frame_json_too_deep",
            Self::Json {
                source: JsonError::Malformed,
                ..
            } => "frame_json_invalid",
        }
    }
}

/// The longest JSON of the two frames that differ by who says them, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub open: usize,
    pub ok: usize,
}

impl Limits {
    /// What anybody may say.
    pub const COMMON: Self = Self {
        open: JSON_BYTES_MAX,
        ok: OK_BYTES_MAX,
    };
    /// What the daemon may say to an agent: its requests and its configuration hold arguments.
    pub const OF_HOST: Self = Self {
        open: ARGUMENTS_JSON_BYTES_MAX,
        ok: ARGUMENTS_JSON_BYTES_MAX,
    };
}

/// The shortest and longest payload of a type: known before one byte of payload is kept.
pub(crate) const fn payload_bounds(kind: u8, limits: Limits) -> Option<(usize, usize)> {
    Some(match kind {
        kind_byte::OPEN => (OPEN_PREFIX_BYTES, OPEN_PREFIX_BYTES + limits.open),
        kind_byte::OK => (1, limits.ok),
        kind_byte::ERROR
        | kind_byte::EXIT
        | kind_byte::EVENT
        | kind_byte::REQUEST
        | kind_byte::REPLY => (1, JSON_BYTES_MAX),
        kind_byte::STDIN | kind_byte::STDOUT | kind_byte::STDERR => (0, PAYLOAD_BYTES_MAX),
        kind_byte::EOF => (0, 0),
        kind_byte::RESIZE | kind_byte::WINDOW => (4, 4),
        kind_byte::SIGNAL => (1, 1),
        kind_byte::ACK => (8, 8),
        kind_byte::LOG => (LOG_PREFIX_BYTES, PAYLOAD_BYTES_MAX),
        _ => return None,
    })
}

/// Checks a header alone, so that a bad one costs nothing.
pub(crate) fn check_header(kind: u8, bytes: usize, limits: Limits) -> Result<(), FrameError> {
    let (min, max) = payload_bounds(kind, limits).ok_or(FrameError::TypeUnknown(kind))?;
    if bytes > max {
        // A fixed-size type that is too long is malformed like one that is too short.
        return Err(if min == max {
            FrameError::PayloadInvalid { kind, bytes }
        } else {
            FrameError::TooLong { kind, bytes, max }
        });
    }
    if bytes < min {
        return Err(FrameError::PayloadInvalid { kind, bytes });
    }
    Ok(())
}

impl<'a> Frame<'a> {
    /// Reads a whole payload whose header has passed [`check_header`].
    pub(crate) fn parse(kind: u8, payload: &'a [u8], limits: Limits) -> Result<Self, FrameError> {
        let invalid = FrameError::PayloadInvalid {
            kind,
            bytes: payload.len(),
        };
        let json = |max: usize| match check_json(payload, max) {
            Ok(()) => Ok(payload),
            Err(source) => Err(FrameError::Json { kind, source }),
        };
        Ok(match kind {
            kind_byte::OPEN => return Self::parse_open(payload, limits),
            kind_byte::OK => Self::Ok(json(limits.ok)?),
            kind_byte::ERROR => Self::Error(json(JSON_BYTES_MAX)?),
            kind_byte::STDIN => Self::Stdin(payload),
            kind_byte::STDOUT => Self::Stdout(payload),
            kind_byte::STDERR => Self::Stderr(payload),
            kind_byte::EOF => Self::Eof,
            kind_byte::RESIZE => {
                let [a, b, c, d] = *payload.first_chunk::<4>().ok_or(invalid)?;
                Self::Resize {
                    columns: u16::from_le_bytes([a, b]),
                    rows: u16::from_le_bytes([c, d]),
                }
            }
            kind_byte::SIGNAL => match payload {
                [number @ 1..=SIGNAL_MAX] => Self::Signal(*number),
                _ => return Err(invalid),
            },
            kind_byte::EXIT => Self::Exit(json(JSON_BYTES_MAX)?),
            kind_byte::EVENT => Self::Event(json(JSON_BYTES_MAX)?),
            kind_byte::ACK => Self::Ack(u64::from_le_bytes(*payload.first_chunk().ok_or(invalid)?)),
            kind_byte::REQUEST => Self::Request(json(JSON_BYTES_MAX)?),
            kind_byte::REPLY => Self::Reply(json(JSON_BYTES_MAX)?),
            kind_byte::WINDOW => {
                Self::Window(u32::from_le_bytes(*payload.first_chunk().ok_or(invalid)?))
            }
            kind_byte::LOG => {
                let (stream, rest) = payload.split_first().ok_or(invalid)?;
                let (offset, rest) = rest.split_first_chunk::<8>().ok_or(invalid)?;
                let (time_ns, data) = rest.split_first_chunk::<8>().ok_or(invalid)?;
                Self::Log {
                    stream: LogStream::from_byte(*stream).ok_or(invalid)?,
                    offset: u64::from_le_bytes(*offset),
                    time_ns: u64::from_le_bytes(*time_ns),
                    data,
                }
            }
            other => return Err(FrameError::TypeUnknown(other)),
        })
    }

    fn parse_open(payload: &'a [u8], limits: Limits) -> Result<Self, FrameError> {
        let kind = kind_byte::OPEN;
        let invalid = FrameError::PayloadInvalid {
            kind,
            bytes: payload.len(),
        };
        let (prefix, body) = payload
            .split_first_chunk::<OPEN_PREFIX_BYTES>()
            .ok_or(invalid)?;
        let [m0, m1, m2, m3, g0, g1, open_kind, reserved] = *prefix;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::MagicInvalid);
        }
        let generation = u16::from_le_bytes([g0, g1]);
        if generation == GENERATION {
            if reserved != 0 {
                return Err(invalid);
            }
            check_json(body, limits.open).map_err(|source| FrameError::Json { kind, source })?;
        }
        Ok(Self::Open {
            generation,
            kind: open_kind,
            body,
        })
    }
}
