//! The stream between two machines: messages and records, cut and put together.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use sys::Received;
use wire::cosim::{
    Cosim, HEADER_BYTES, HEADER_LEN, HEADER_WORDS, Kind, MAX_PAYLOAD, Message, Record,
};
use wire::{DecodeError, Framer};

use super::{Carrier, FarError};
use crate::limits::{FAR_OUTPUT_BYTES, FAR_SILENCE, FAR_TICK};

/// The kind of a message that is a record: its five words, then its data.
const RECORD: u16 = 16;
/// The kind of a message that only says that this end is there.
const ALIVE: u16 = 17;
/// Bytes taken from the socket by one call.
const INPUT_BYTES: usize = 64 << 10;

/// What comes.
#[derive(Debug)]
pub enum Frame<K: Kind> {
    /// A message as on the socket of a port.
    Message(Message),
    /// A record; its data is where [`Stream::receive`] was told to put it.
    Record(Record<K>),
    /// The other end is there.
    Alive,
}

/// One end of the stream.
#[derive(Debug)]
pub struct Stream {
    carrier: Box<dyn Carrier>,
    framer: Framer<Cosim>,
    input: Vec<u8>,
    begin: usize,
    end: usize,
    /// What is not sent yet: from `sent` on.
    output: Vec<u8>,
    sent: usize,
    heard: Instant,
    spoke: Instant,
}

impl Stream {
    /// Over what has been proved, or not.
    pub fn new(carrier: Box<dyn Carrier>) -> Self {
        let now = Instant::now();
        Self {
            carrier,
            framer: Framer::new(MAX_PAYLOAD),
            input: vec![0; INPUT_BYTES],
            begin: 0,
            end: 0,
            output: Vec::new(),
            sent: 0,
            heard: now,
            spoke: now,
        }
    }

    /// What has come next; `data` gets the bytes of a record.
    ///
    /// # Errors
    /// The stream is over, or the other end breaks the rules.
    pub fn receive<K: Kind>(&mut self, data: &mut Vec<u8>) -> Result<Option<Frame<K>>, FarError> {
        loop {
            // Twice around at most for what is there: until the message is whole, or all is taken.
            while self.begin < self.end {
                self.begin += self.framer.feed(&self.input[self.begin..self.end])?;
                let Some((header, payload)) = self.framer.message() else { continue };
                let frame = match header.kind {
                    RECORD => Frame::Record(record(payload, data)?),
                    ALIVE => Frame::Alive,
                    // No descriptor comes with it, whatever number it says.
                    _ => Frame::Message(Message::decode(&header, payload, header.fds.into())?),
                };
                self.framer.next_message();
                return Ok(Some(frame));
            }
            match self.carrier.receive(&mut self.input)? {
                Received::Bytes(len) => {
                    (self.begin, self.end) = (0, len);
                    self.heard = Instant::now();
                }
                Received::Nothing => return Ok(None),
                Received::Closed => return Err(FarError::Gone),
            }
        }
    }

    /// Says a message, when there is room in the socket.
    pub fn put_message(&mut self, message: &Message) {
        message.encode(&mut self.output);
    }

    /// Says a record, when there is room in the socket.
    pub fn put_record<K: Kind>(&mut self, record: &Record<K>, data: &[u8]) {
        self.put_header(HEADER_BYTES + data.len(), RECORD);
        for word in record.encode() {
            self.output.extend_from_slice(&word.to_ne_bytes());
        }
        self.output.extend_from_slice(data);
    }

    fn put_header(&mut self, len: usize, kind: u16) {
        self.output.extend_from_slice(&(len as u32).to_ne_bytes());
        self.output.extend_from_slice(&kind.to_ne_bytes());
        self.output.extend_from_slice(&0u16.to_ne_bytes());
    }

    /// Says a message before the stream is closed, if the socket has room for it.
    pub fn say_last(&mut self, message: &Message) {
        self.put_message(message);
        let _ = self.flush();
    }

    /// Whether more may be put: what waits is bounded.
    pub fn has_room(&self) -> bool {
        self.output.len() - self.sent < FAR_OUTPUT_BYTES
    }

    /// Whether something waits for room in the socket.
    pub fn has_output(&self) -> bool {
        self.waits() || self.carrier.has_output()
    }

    /// Whether something waits for room in the carrier.
    fn waits(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// The stream is over.
    pub fn flush(&mut self) -> Result<(), FarError> {
        while self.waits() {
            match self.carrier.send(&self.output[self.sent..])? {
                Some(sent) => {
                    self.sent += sent;
                    self.spoke = Instant::now();
                }
                None => {
                    // Not copied more often than it is sent.
                    if self.sent >= FAR_OUTPUT_BYTES {
                        self.output.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(self.carrier.flush()?)
    }

    /// Counts as heard: nothing was listened to meanwhile.
    pub fn excuse(&mut self) {
        self.heard = Instant::now();
    }

    /// Sends what waits, and a sign of life now and then; notes when none comes.
    ///
    /// # Errors
    /// The stream is over, or nothing was heard for too long.
    pub fn tick(&mut self) -> Result<(), FarError> {
        if self.heard.elapsed() > FAR_SILENCE {
            return Err(FarError::Silent);
        }
        if !self.has_output() && self.spoke.elapsed() >= FAR_TICK {
            self.put_header(0, ALIVE);
        }
        self.flush()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.carrier.as_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.carrier.shutdown();
    }
}

/// Reads a record, whose data is all that is behind it.
fn record<K: Kind>(payload: &[u8], data: &mut Vec<u8>) -> Result<Record<K>, DecodeError> {
    let have = payload.len() as u64;
    let Some((head, rest)) = payload.split_at_checked(HEADER_BYTES) else {
        return Err(DecodeError::Truncated { need: HEADER_BYTES as u64, have });
    };
    let mut words = [0; HEADER_WORDS];
    for (word, bytes) in words.iter_mut().zip(head.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(bytes);
        *word = u64::from_ne_bytes(eight);
    }
    let record = Record::<K>::decode(words)?;
    if record.data_len as usize != rest.len() {
        return Err(DecodeError::Value { field: "length of a record", value: have });
    }
    data.clear();
    data.extend_from_slice(rest);
    Ok(record)
}

const _: () = assert!(HEADER_BYTES + wire::cosim::MAX_DATA <= MAX_PAYLOAD && HEADER_LEN == 8);
