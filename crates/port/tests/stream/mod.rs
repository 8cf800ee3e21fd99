//! What must hold whatever the other machine says: no panic, an end, and the same frames however
//! the bytes are cut on their way. Shared by the property test and the fuzz target.
#![allow(clippy::unwrap_used)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use port::far::{Carrier, Frame, Stream};
use sys::{EventFd, Received};
use wire::cosim::{AnswerKind, Kind, Record, RequestKind};

/// Says what it is given, piece by piece, and takes a few bytes at a time.
#[derive(Debug)]
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    /// Lengths of the pieces, over and over; 0 is nothing for once.
    cuts: Vec<u8>,
    turn: usize,
    taken: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    event: EventFd,
}

impl Pieces {
    fn new(bytes: &[u8], cuts: &[u8]) -> Self {
        let (bytes, cuts) = (bytes.to_vec(), cuts.to_vec());
        let event = EventFd::new().unwrap();
        Self { bytes, at: 0, cuts, turn: 0, taken: Default::default(), event }
    }

    fn next_cut(&mut self) -> usize {
        self.turn += 1;
        self.cuts.get(self.turn % self.cuts.len().max(1)).map_or(usize::MAX, |cut| (*cut).into())
    }
}

impl Carrier for Pieces {
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<Received> {
        let left = &self.bytes[self.at..];
        let (len, is_over) = (left.len().min(bytes.len()), left.is_empty());
        let len = len.min(self.next_cut());
        bytes[..len].copy_from_slice(&self.bytes[self.at..self.at + len]);
        self.at += len;
        Ok(match len {
            0 if is_over => Received::Closed,
            0 => Received::Nothing,
            len => Received::Bytes(len),
        })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let len = bytes.len().min(self.next_cut());
        self.taken.lock().unwrap().extend_from_slice(&bytes[..len]);
        Ok((len > 0).then_some(len))
    }

    fn shutdown(&mut self) {}
}

impl AsFd for Pieces {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// All frames, as text, and how it ended.
fn frames<K: Kind>(bytes: &[u8], cuts: &[u8]) -> Vec<String> {
    let (mut stream, mut data) = (Stream::new(Box::new(Pieces::new(bytes, cuts))), Vec::new());
    let mut found = Vec::new();
    // Each byte may come alone, with a pause before it for every cut that is one.
    for _ in 0..=(cuts.len() + 1) * (bytes.len() + 1) {
        match stream.receive::<K>(&mut data) {
            Ok(Some(Frame::Record(record))) => {
                assert_eq!(data.len(), record.data_len as usize);
                found.push(format!("{record:?} {data:?}"));
            }
            Ok(Some(frame)) => found.push(format!("{frame:?}")),
            Ok(None) => {}
            Err(error) => {
                found.push(error.to_string());
                return found;
            }
        }
    }
    panic!("no end of {} bytes", bytes.len());
}

/// Treats `bytes` as what another machine says, cut into pieces of all lengths.
pub fn withstands(bytes: &[u8]) {
    let (cuts, bytes) = bytes.split_at(bytes.len().min(5));
    let cuts: Vec<u8> = cuts.iter().map(|cut| cut % 64).chain([1]).collect();
    assert_eq!(frames::<AnswerKind>(bytes, &cuts), frames::<AnswerKind>(bytes, &[]));
    assert_eq!(frames::<RequestKind>(bytes, &cuts), frames::<RequestKind>(bytes, &[]));
    says(bytes, &cuts);
}

/// What is said arrives whole, however little the socket takes.
fn says(bytes: &[u8], cuts: &[u8]) {
    let pieces = Pieces::new(&[], cuts);
    let taken = std::sync::Arc::clone(&pieces.taken);
    let mut stream = Stream::new(Box::new(pieces));
    let mut said = Vec::new();
    for data in bytes.chunks(50) {
        let mut record = Record::new(RequestKind::Write).at(data.len() as u64);
        record.data_len = data.len() as u32;
        said.push(format!("{record:?} {data:?}"));
        stream.put_record(&record, data);
        stream.flush().unwrap();
    }
    while stream.has_output() {
        stream.flush().unwrap();
    }
    let heard = frames::<RequestKind>(&taken.lock().unwrap(), cuts);
    assert_eq!(heard[..heard.len() - 1], said);
}
