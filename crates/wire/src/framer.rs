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
//!
//! `eager_space` reaches so far beyond a header that one call brings all of a short message. That
//! may be more than the message was; whose descriptors are is then for the caller to tell.

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
        self.end().saturating_sub(self.filled)
    }

    /// Where to put the next bytes; its length is [`Self::wanted`].
    pub fn space(&mut self) -> &mut [u8] {
        let end = self.end();
        &mut self.buffer[self.filled..end]
    }

    /// As [`Self::space`], and where a header comes next with room for `more` bytes behind it. What
    /// is taken this way is to be left with [`Self::next_eagerly`].
    pub fn eager_space(&mut self, more: usize) -> &mut [u8] {
        let end = if self.header.is_none() { P::HEADER_LEN + more } else { self.end() };
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        &mut self.buffer[self.filled..end]
    }

    /// Whether bytes of the next message have arrived behind this one, which is complete.
    pub fn has_more(&self) -> bool {
        self.header.is_some() && self.filled > self.end()
    }

    /// Accepts `len` bytes that have been put into [`Self::space`]. After an error, the stream can
    /// no longer be cut into messages and the connection must end.
    ///
    /// # Panics
    /// If `len` is more than there was room for: a mistake of the caller, not of the peer.
    pub fn commit(&mut self, len: usize) -> Result<(), DecodeError> {
        let room = self.buffer.len() - self.filled;
        assert!(len <= room, "more bytes committed than there was space for");
        self.filled += len;
        if self.header.is_none() && self.filled >= P::HEADER_LEN {
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
        (self.wanted() == 0).then(|| (header, &self.buffer[P::HEADER_LEN..self.end()]))
    }

    /// Forgets the current message, so that the next one can be read.
    pub fn next_message(&mut self) {
        self.filled = 0;
        self.header = None;
    }

    /// As [`Self::next_message`], but what [`Self::eager_space`] took of the next one stays; it may
    /// be all of it.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn next_eagerly(&mut self) -> Result<(), DecodeError> {
        let more = self.filled.saturating_sub(self.end());
        self.buffer.copy_within(self.filled - more..self.filled, 0);
        self.next_message();
        self.commit(more)
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
    fn an_eager_reader_loses_nothing_of_what_comes_behind() {
        // Without payload, so that taking one more byte takes one of the next.
        let mut bytes = Vec::new();
        for _ in 0..3 {
            Request::SetOwner.encode(0, &mut bytes);
        }
        Request::SetFeatures(7).encode(0, &mut bytes);
        for chunk in 1..=bytes.len() {
            for more in 0..=HEADER_LEN {
                let mut framer = Framer::<VhostUser>::new(MAX_PAYLOAD);
                let (mut rest, mut seen) = (&bytes[..], Vec::new());
                while !rest.is_empty() {
                    let space = framer.eager_space(more);
                    let len = space.len().min(chunk).min(rest.len());
                    space[..len].copy_from_slice(&rest[..len]);
                    rest = &rest[len..];
                    framer.commit(len).unwrap();
                    while let Some((header, payload)) = framer.message() {
                        seen.push((header.request, payload.to_vec()));
                        framer.next_eagerly().unwrap();
                    }
                }
                assert!(framer.is_empty(), "{chunk} bytes at a time, {more} more");
                let payloads: Vec<usize> = seen.iter().map(|(_, payload)| payload.len()).collect();
                assert_eq!(payloads, [0, 0, 0, 8], "{chunk} bytes at a time, {more} more");
                assert_eq!(seen[3].1, 7u64.to_ne_bytes());
            }
        }
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
