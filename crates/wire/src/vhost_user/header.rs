//! The 12 bytes before every payload.

use crate::fields::{Fields, PutFields};
use crate::{DecodeError, Framing};

/// Size of a header in bytes: request, flags and size, 32 bits each ("Header").
pub const HEADER_LEN: usize = 12;

/// The only version there is, in bits 0-1 of the flags ("Header").
pub const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;

/// Bit 2 of the flags: this message is a reply ("Header").
pub const REPLY: u32 = 1 << 2;

/// Bit 3 of the flags: the sender waits for an acknowledgement ("REPLY_ACK").
pub const NEED_REPLY: u32 = 1 << 3;

/// Largest payload accepted, in bytes. The largest structure known here is the shared memory
/// configuration with 2056 bytes; the limit is the same as that of the `vhost` crate.
pub const MAX_PAYLOAD: usize = 4096;

/// Names the protocol for a [`Framer`](crate::Framer).
#[derive(Clone, Copy, Debug)]
pub struct VhostUser;

/// A decoded header, whose version and size have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which request this is, or which one it answers.
    pub request: u32,
    /// Version and flags; unknown bits are kept and mean nothing.
    pub flags: u32,
    /// Size of the payload in bytes, at most [`MAX_PAYLOAD`].
    pub size: u32,
}

impl Header {
    /// Decodes a header and checks its version and size.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        let header = Self { request: fields.u32()?, flags: fields.u32()?, size: fields.u32()? };
        let found = header.flags & VERSION_MASK;
        if found != VERSION {
            return Err(DecodeError::Version { found, expected: VERSION });
        }
        if header.size as usize > MAX_PAYLOAD {
            let limit = MAX_PAYLOAD as u64;
            return Err(DecodeError::TooLarge { size: header.size.into(), limit });
        }
        Ok(header)
    }

    /// Whether this message answers a request.
    pub fn is_reply(&self) -> bool {
        self.flags & REPLY != 0
    }

    /// Whether the sender waits for an answer.
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    pub(super) fn expect_reply(&self, expected: bool) -> Result<(), DecodeError> {
        let found = self.is_reply();
        if found == expected { Ok(()) } else { Err(DecodeError::Direction { found, expected }) }
    }
}

impl Framing for VhostUser {
    const HEADER_LEN: usize = HEADER_LEN;
    type Header = Header;

    fn decode_header(bytes: &[u8]) -> Result<Header, DecodeError> {
        Header::decode(&Fields::new(bytes).array()?)
    }

    fn payload_len(header: &Header) -> usize {
        header.size as usize
    }
}

/// Appends a header and whatever `payload` puts behind it. `flags` are [`REPLY`] and
/// [`NEED_REPLY`]; the version is added here.
pub(super) fn put_message(
    out: &mut Vec<u8>,
    request: u32,
    flags: u32,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    out.put_u32(request);
    out.put_u32(flags & !VERSION_MASK | VERSION);
    let size_at = out.len();
    out.put_u32(0);
    let payload_at = out.len();
    payload(out);
    let size = u32::try_from(out.len() - payload_at).unwrap_or(u32::MAX);
    out[size_at..payload_at].copy_from_slice(&size.to_ne_bytes());
}
