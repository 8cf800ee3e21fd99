//! Cuts a byte stream into messages, one at a time.
//!
//! ```text
//!   space() -> [ header ........ ]            read into it, then commit(n)
//!   space() -> [ payload of exactly this message ........ ]
//!   message() -> Some((header, payload)), then next() and space() starts the next header
//! ```
//!
//! `space` never reaches beyond the current message. A stream socket hands over descriptors with
//! the bytes that they were sent with, so a reader that never takes bytes of two messages in one
//! call always knows whose the descriptors are.

use crate::DecodeError;

/// The part of a protocol that a [`Framer`] must know.
pub trait Framing {
    /// Size of the header in bytes.
    const HEADER_LEN: usize;

    /// The decoded header.
    type Header: Copy + core::fmt::Debug;

    /// Decodes a header of exactly [`Self::HEADER_LEN`] bytes.
    fn decode_header(bytes: &[u8]) -> Result<Self::Header, DecodeError>;

    /// Size in bytes of the payload that follows this header.
    fn payload_len(header: &Self::Header) -> usize;
}

/// Accumulates one message from a byte stream.
#[derive(Debug)]
pub struct Framer<P: Framing> {
    /// Header and payload; grows to the largest message seen, never beyond the limit, and is not
    /// cleared between messages.
    buffer: Vec<u8>,
    filled: usize,
    header: Option<P::Header>,
    max_payload: usize,
}

impl<P: Framing> Framer<P> {
    /// A framer that refuses payloads larger than `max_payload` bytes.
    pub fn new(max_payload: usize) -> Self {
        Self { buffer: vec![0; P::HEADER_LEN], filled: 0, header: None, max_payload }
    }

    /// Changes the payload limit, in bytes; it holds from the next header on.
    pub fn set_max_payload(&mut self, max_payload: usize) {
        self.max_payload = max_payload;
    }

    /// How many bytes to read next at most: the rest of the header, or the rest of the payload.
    /// Zero when a message is complete and has to be taken with [`Self::next_message`].
    pub fn wanted(&self) -> usize {
        self.end() - self.filled
    }

    /// Where to put the next bytes; its length is [`Self::wanted`].
    pub fn space(&mut self) -> &mut [u8] {
        let end = self.end();
        &mut self.buffer[self.filled..end]
    }

    /// Accepts `len` bytes that have been put into [`Self::space`]. After an error, the stream can
    /// no longer be cut into messages and the connection must end.
    ///
    /// # Panics
    /// If `len` is more than [`Self::wanted`]: a mistake of the caller, not of the peer.
    pub fn commit(&mut self, len: usize) -> Result<(), DecodeError> {
        assert!(len <= self.wanted(), "more bytes committed than there was space for");
        self.filled += len;
        if self.header.is_none() && self.filled == P::HEADER_LEN {
            let header = P::decode_header(&self.buffer[..P::HEADER_LEN])?;
            let payload = P::payload_len(&header);
            if payload > self.max_payload {
                return Err(DecodeError::TooLarge {
                    size: payload as u64,
                    limit: self.max_payload as u64,
                });
            }
            if self.buffer.len() < P::HEADER_LEN + payload {
                self.buffer.resize(P::HEADER_LEN + payload, 0);
            }
            self.header = Some(header);
        }
        Ok(())
    }

    /// Copies as many bytes as the current message wants from the front of `bytes` and says how
    /// many; for input that is in memory already.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut taken = 0;
        // At most twice around: the header, then the payload.
        while self.wanted() > 0 && taken < bytes.len() {
            let len = self.wanted().min(bytes.len() - taken);
            self.space()[..len].copy_from_slice(&bytes[taken..taken + len]);
            self.commit(len)?;
            taken += len;
        }
        Ok(taken)
    }

    /// The message, if all of it has arrived.
    pub fn message(&self) -> Option<(P::Header, &[u8])> {
        let header = self.header?;
        (self.wanted() == 0).then(|| (header, &self.buffer[P::HEADER_LEN..self.filled]))
    }

    /// Forgets the current message, so that the next one can be read.
    pub fn next_message(&mut self) {
        self.filled = 0;
        self.header = None;
    }

    /// Whether no byte of a message has arrived: descriptors received with the next bytes belong
    /// to a new message, and an end of the stream here is an orderly one.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    fn end(&self) -> usize {
        match &self.header {
            None => P::HEADER_LEN,
            Some(header) => P::HEADER_LEN + P::payload_len(header),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::{HEADER_LEN, MAX_PAYLOAD, Request, VhostUser};

    #[test]
    fn never_wants_a_byte_of_the_next_message() {
        let mut bytes = Vec::new();
        Request::SetFeatures(7).encode(0, &mut bytes);
        let first = bytes.len();
        Request::SetOwner.encode(0, &mut bytes);
        let mut framer = Framer::<VhostUser>::new(MAX_PAYLOAD);
        assert_eq!(framer.wanted(), HEADER_LEN);
        assert_eq!(framer.feed(&bytes[..HEADER_LEN - 1]), Ok(HEADER_LEN - 1));
        assert_eq!((framer.wanted(), framer.is_empty()), (1, false));
        assert_eq!(framer.feed(&bytes[HEADER_LEN - 1..]), Ok(first - HEADER_LEN + 1));
        assert_eq!((framer.wanted(), framer.space().len()), (0, 0));
        let payload = 7u64.to_ne_bytes();
        assert_eq!(framer.message().map(|(_, payload)| payload), Some(&payload[..]));
        assert_eq!(framer.feed(&bytes[first..]), Ok(0), "the first message is still there");
        framer.next_message();
        assert_eq!(framer.feed(&bytes[first..]), Ok(HEADER_LEN));
        assert_eq!(framer.message().map(|(_, payload)| payload), Some(&[][..]));
    }

    #[test]
    fn limit_holds_from_the_next_header_on() {
        let mut bytes = Vec::new();
        Request::SetFeatures(7).encode(0, &mut bytes);
        let mut framer = Framer::<VhostUser>::new(8);
        assert_eq!(framer.feed(&bytes), Ok(bytes.len()));
        framer.next_message();
        framer.set_max_payload(7);
        assert_eq!(framer.feed(&bytes), Err(DecodeError::TooLarge { size: 8, limit: 7 }));
        assert_eq!(framer.message(), None);
    }
}
