//! What can be wrong with a message, in one type for all protocols.

use thiserror::Error;

/// Why bytes are not a valid message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The header names a protocol version that this codec does not speak.
    #[error("protocol version {found} where {expected} belongs")]
    Version {
        /// The version in the header.
        found: u32,
        /// The version that this codec speaks.
        expected: u32,
    },
    /// The header announces a message larger than the limit.
    #[error("message of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// The announced size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The message ends before its fields do, and the protocol has no way to say so to the peer.
    #[error("message ends after {have} bytes, {need} are needed")]
    Truncated {
        /// Bytes needed for the field that is missing, counted from the start of the payload.
        need: u64,
        /// Bytes in the payload.
        have: u64,
    },
    /// The message ends before its fields do; the peer can be told.
    #[error("message ends after {have} bytes, {need} are needed")]
    Short {
        /// Bytes needed for the field that is missing, counted from the start of the payload.
        need: u64,
        /// Bytes in the payload.
        have: u64,
    },
    /// The header says reply where a request belongs, or the other way round.
    #[error("reply flag is {found} where it must be {expected}")]
    Direction {
        /// Whether the header is marked as a reply.
        found: bool,
        /// Whether it must be.
        expected: bool,
    },
    /// The message came with a number of file descriptors that its kind does not allow.
    #[error("{found} file descriptors where {least} to {most} belong")]
    Fds {
        /// How many came.
        found: usize,
        /// The least that the message needs.
        least: usize,
        /// The most that it may carry.
        most: usize,
    },
    /// A field has a value outside its range.
    #[error("{field} is {value:#x}, which is outside its range")]
    Value {
        /// The name of the field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The capabilities of a version message are not acceptable JSON.
    #[error("bad JSON at byte {at}: {problem}")]
    Json {
        /// Offset of the byte in the text.
        at: usize,
        /// What is wrong there.
        problem: &'static str,
    },
}

impl DecodeError {
    /// Whether the peer no longer follows the framing, so that nothing after this message can be
    /// trusted and the connection must end. Other errors concern one message, which is refused.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Version { .. }
            | Self::TooLarge { .. }
            | Self::Truncated { .. }
            | Self::Direction { .. } => true,
            Self::Short { .. } | Self::Fds { .. } | Self::Value { .. } | Self::Json { .. } => false,
        }
    }

    /// For protocols in which every request can be refused: there, a short payload in a message
    /// of the announced size is no reason to give up.
    pub(crate) fn refusable(self) -> Self {
        match self {
            Self::Truncated { need, have } => Self::Short { need, have },
            other => other,
        }
    }
}
