//! The body of an `error` frame.

use serde::{Deserialize, Serialize};

/// Why a conversation ended. `code` is for programs and stable, `message` is one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub code: String,
    #[serde(default)]
    pub message: String,
    /// The generations that the refusing side speaks, with `generation_unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported: Option<Vec<u16>>,
}

impl ErrorBody {
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            supported: None,
        }
    }
}

/// The codes of errors; those of frames come from [`crate::FrameError::code`].
pub mod code {
    /// The other side speaks another generation; `supported` lists ours.
    pub const GENERATION_UNKNOWN: &str = "generation_unknown";
    pub const KIND_UNKNOWN: &str = "kind_unknown";
    pub const BODY_INVALID: &str = "body_invalid";
    /// A frame that is well-formed and has no place at this point of this conversation.
    pub const FRAME_UNEXPECTED: &str = "frame_unexpected";
    /// More stdin than the windows allowed.
    pub const WINDOW_EXCEEDED: &str = "window_exceeded";
    /// The guest is not yet ready, or is about to power off.
    pub const NOT_READY: &str = "not_ready";
    /// No such path, or workload.
    pub const NOT_FOUND: &str = "not_found";
    /// No such user, or group.
    pub const USER_NOT_FOUND: &str = "user_not_found";
    pub const NOT_EXECUTABLE: &str = "not_executable";
    pub const NOT_A_DIRECTORY: &str = "not_a_directory";
    /// A file of a copy would replace a directory.
    pub const IS_A_DIRECTORY: &str = "is_a_directory";
    /// A FIFO, a socket or a device stands where a file is to be.
    pub const NOT_A_FILE: &str = "not_a_file";
    pub const PERMISSION_DENIED: &str = "permission_denied";
    pub const NO_SPACE: &str = "no_space";
    /// A tar stream that is malformed, truncated, or has a name that leaves its destination.
    pub const TAR_INVALID: &str = "tar_invalid";
    /// Nothing listens on the proxied port or socket.
    pub const CONNECTION_REFUSED: &str = "connection_refused";
    /// A peer reset or timed out.
    pub const CONNECTION_LOST: &str = "connection_lost";
    /// A limit is reached: 256 conversations, or one stdin of a workload.
    pub const BUSY: &str = "busy";
    /// The session's secret is wrong, or a first session was seen already.
    pub const REFUSED: &str = "refused";
    /// A request's `op` that this generation does not know.
    pub const OP_UNKNOWN: &str = "op_unknown";
    pub const INTERNAL: &str = "internal";
}
