//! What kestrel (PID 1 of a guest) and the daemon say to each other, generation 1.
//!
//! `docs/protocol.md` is the specification; this is its Rust half. [`Decoder`] turns bytes into
//! [`Frame`]s, [`encode()`] turns frames into bytes, [`message`] holds the JSON bodies. `golden/` pins both down for the
//! TypeScript half, so neither can drift alone.
//!
//! Both peers are hostile to each other here: every limit is checked before anything is kept, and what the decoder keeps
//! is never more than what was received.

mod decode;
mod encode;
mod frame;
#[cfg(any(test, feature = "hostile"))]
pub mod hostile;
mod json;
mod kind;
pub mod message;

pub use decode::Decoder;
pub use encode::{EncodeError, bytes_header, encode};
pub use frame::{Frame, FrameError, LogStream, kind_byte};
pub use json::{JSON_DEPTH_MAX, JsonError, check_json, parse_json};
pub use kind::Kind;

/// The generation of the protocol that this crate speaks.
pub const GENERATION: u16 = 1;

/// The vsock port of both listeners: the daemon's (on the host) and kestrel's (in the guest).
pub const PORT: u32 = 1024;

/// The host's vsock context id (virtio 1.2, section 5.10.4).
pub const HOST_CID: u32 = 2;

/// Bytes in front of every payload: u32 length, u8 type.
pub const HEADER_BYTES: usize = 5;

/// The longest payload of any frame, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// The longest JSON of any frame but `ok`, in bytes; see also [`ARGUMENTS_JSON_BYTES_MAX`].
pub const JSON_BYTES_MAX: usize = 256 * 1024;

/// The longest JSON of an `ok` frame, in bytes: the configuration and listings travel in one.
pub const OK_BYTES_MAX: usize = PAYLOAD_BYTES_MAX;

/// The longest JSON of an `open` or `ok` frame that the daemon says to an agent, in bytes: the 2 MiB of arguments and environment that
/// Linux takes (execve(2)), of which each may be six in JSON (`\u0001`), with the quotes and commas round them.
pub const ARGUMENTS_JSON_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many bytes of stdin may be on their way before the first `window` frame.
pub const STDIN_WINDOW_BYTES: u32 = 262_144;

/// The first four bytes of the first frame's payload.
pub const MAGIC: [u8; 4] = *b"KSTR";
