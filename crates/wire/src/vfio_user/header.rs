//! The 16 bytes before every payload.

use crate::fields::{Fields, PutFields};
use crate::{DecodeError, Framing};

/// Size of a header in bytes: id and command with 16 bits, size, flags and error with 32
/// ("Header").
pub const HEADER_LEN: usize = 16;

/// Bits 0-3 of the flags: the type of the message ("Header").
const TYPE_MASK: u32 = 0xf;
/// Type of a command.
const TYPE_COMMAND: u32 = 0;
/// Type of a reply.
const TYPE_REPLY: u32 = 1;

/// Bit 4 of the flags: the sender wants no reply ("Header").
pub const NO_REPLY: u32 = 1 << 4;

/// Bit 5 of the flags: a reply that says that the command failed ("Header").
pub const ERROR: u32 = 1 << 5;

/// Most bytes of data in one message: the default of `max_data_xfer_size` ("Version"), and what
/// is announced by this project. QEMU accepts announcements up to 64 MiB.
pub const MAX_DATA_XFER: u32 = 1 << 20;

/// Largest payload accepted, in bytes: the data and room for the fields before it, which no
/// command has more than 32 bytes of.
pub const MAX_PAYLOAD: usize = MAX_DATA_XFER as usize + 4096;

/// Names the protocol for a [`Framer`](crate::Framer).
#[derive(Clone, Copy, Debug)]
pub struct VfioUser;

/// A decoded header, whose size has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the sender of the command and repeated in the reply; not unique.
    pub message_id: u16,
    /// Which command this is, or which one it answers.
    pub command: u16,
    /// Size of the payload in bytes. On the wire the header's own 16 are added.
    pub payload_len: u32,
    /// Type and flags; unknown bits are kept and mean nothing.
    pub flags: u32,
    /// An errno, in a reply with [`ERROR`]; may be 0 even there.
    pub error: u32,
}

impl Header {
    /// Decodes a header and checks its size.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        let (message_id, command, size) = (fields.u16()?, fields.u16()?, fields.u32()?);
        let truncated = DecodeError::Truncated { need: HEADER_LEN as u64, have: size.into() };
        let payload_len = size.checked_sub(HEADER_LEN as u32).ok_or(truncated)?;
        Ok(Self { message_id, command, payload_len, flags: fields.u32()?, error: fields.u32()? })
    }

    /// Whether this message answers a command.
    pub fn is_reply(&self) -> bool {
        self.flags & TYPE_MASK == TYPE_REPLY
    }

    /// Whether the sender of a command waits for a reply.
    pub fn wants_reply(&self) -> bool {
        self.flags & NO_REPLY == 0
    }

    /// Whether a reply says that the command failed.
    pub fn is_error(&self) -> bool {
        self.flags & ERROR != 0
    }

    pub(super) fn expect_reply(&self, expected: bool) -> Result<(), DecodeError> {
        let wanted = if expected { TYPE_REPLY } else { TYPE_COMMAND };
        if self.flags & TYPE_MASK == wanted {
            Ok(())
        } else {
            Err(DecodeError::Direction { found: !expected, expected })
        }
    }
}

impl Framing for VfioUser {
    const HEADER_LEN: usize = HEADER_LEN;
    type Header = Header;

    fn decode_header(bytes: &[u8]) -> Result<Header, DecodeError> {
        Header::decode(&Fields::new(bytes).array()?)
    }

    fn payload_len(header: &Header) -> usize {
        header.payload_len as usize
    }
}

/// What goes into the header of a message that is written.
pub(super) struct Outgoing {
    pub message_id: u16,
    pub command: u16,
    pub flags: u32,
    pub error: u32,
}

impl Outgoing {
    pub(super) fn command(message_id: u16, command: u16, flags: u32) -> Self {
        Self { message_id, command, flags: flags & !TYPE_MASK | TYPE_COMMAND, error: 0 }
    }

    pub(super) fn reply(message_id: u16, command: u16) -> Self {
        Self { message_id, command, flags: TYPE_REPLY, error: 0 }
    }

    pub(super) fn failure(message_id: u16, command: u16, error: u32) -> Self {
        Self { message_id, command, flags: TYPE_REPLY | ERROR, error }
    }

    /// Appends the header and whatever `payload` puts behind it.
    pub(super) fn put(self, out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.put_u16(self.message_id);
        out.put_u16(self.command);
        let size_at = out.len();
        out.put_u32(0);
        out.put_u32(self.flags);
        out.put_u32(self.error);
        payload(out);
        let size = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
        out[size_at..size_at + size_of::<u32>()].copy_from_slice(&size.to_ne_bytes());
    }
}
