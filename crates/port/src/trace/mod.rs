//! What went between a machine, a port and a model, in a file: every access, transfer and
//! interrupt, with its time.
//!
//! ```text
//!   "VDtrace\x01"   u32 length, the model's Hello   entry entry entry ...
//!
//!   entry:  length of the rest | kind, detail, flags: a byte each | nanoseconds since the entry
//!           before | tag | address | value | data, up to the end
//! ```
//!
//! Lengths and numbers are in groups of seven bits, the lowest first, the top bit set in all but
//! the last (LEB128). A file that ends in the middle of an entry, as one does whose writer was
//! killed, is whole up to there. Kinds are those of the rings (`wire::cosim`), and those of
//! [`kind`].

mod diff;
mod recorder;
mod replay;
mod show;

use wire::Framing;
use wire::cosim::{
    AnswerKind, Cosim, HEADER_LEN, Hello, Kind, MAX_DATA, Message, Record, RequestKind,
};

pub use diff::{Difference, difference};
pub use recorder::Recorder;
pub use replay::{Outcome, ReplayError, replay};
pub use show::{describe, json, vcd};

/// The first eight bytes of a file.
pub const MAGIC: &[u8; 8] = b"VDtrace\x01";

/// Longest entry: a record with all it may hold, or a message of memory regions.
const MAX_ENTRY: usize = wire::cosim::MAX_PAYLOAD + MAX_DATA;

/// Kinds of entries that are in no ring.
pub mod kind {
    /// The driver has read the configuration space.
    pub const CONFIG_READ: u8 = 0x41;
    /// The driver has written the configuration space.
    pub const CONFIG_WRITE: u8 = 0x42;
    /// A model was let in.
    pub const ATTACHED: u8 = 0x43;
    /// The model was lost.
    pub const LOST: u8 = 0x44;
    /// A line of text.
    pub const NOTE: u8 = 0x45;
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Nanoseconds since the beginning.
    pub time_ns: u64,
    /// What: a number of [`RequestKind`], [`AnswerKind`] or [`kind`].
    pub kind: u8,
    /// As in the record.
    pub detail: u8,
    /// As in the record.
    pub flags: u8,
    /// As in the record.
    pub tag: u64,
    /// As in the record.
    pub address: u64,
    /// As in the record.
    pub value: u64,
    /// As in the record.
    pub data: Vec<u8>,
}

impl Entry {
    /// What a record says, at no time yet.
    fn of<K: Kind>(record: &Record<K>, data: &[u8]) -> Self {
        Self {
            time_ns: 0,
            // All numbers of kinds are that small.
            kind: record.kind.number() as u8,
            detail: record.detail,
            flags: record.flags,
            tag: record.tag,
            address: record.address,
            value: record.value,
            data: data.to_vec(),
        }
    }
}

impl Entry {
    /// As what the port told the model.
    #[must_use]
    pub fn request(&self) -> Option<RequestKind> {
        RequestKind::from_number(self.kind.into())
    }

    /// As what the model told the port.
    #[must_use]
    pub fn answer(&self) -> Option<AnswerKind> {
        AnswerKind::from_number(self.kind.into())
    }

    /// Appends the entry, which came `delta_ns` after the one before.
    fn encode(&self, delta_ns: u64, out: &mut Vec<u8>) {
        let mut body = vec![self.kind, self.detail, self.flags];
        for number in [delta_ns, self.tag, self.address, self.value] {
            put_number(number, &mut body);
        }
        body.extend_from_slice(&self.data);
        put_number(body.len() as u64, out);
        out.extend_from_slice(&body);
    }

    /// Reads the first entry of `bytes`, and takes it away; `None` if it is not all there.
    fn decode(bytes: &mut &[u8], before_ns: u64) -> Option<Self> {
        let mut rest = *bytes;
        let len = usize::try_from(number(&mut rest)?).ok().filter(|len| *len <= MAX_ENTRY)?;
        let (mut body, rest) = rest.split_at_checked(len)?;
        let (head, numbers) = body.split_at_checked(3)?;
        body = numbers;
        let mut next = || number(&mut body);
        let (delta, tag, address, value) = (next()?, next()?, next()?, next()?);
        *bytes = rest;
        Some(Self {
            time_ns: before_ns.saturating_add(delta),
            kind: head[0],
            detail: head[1],
            flags: head[2],
            tag,
            address,
            value,
            data: body.to_vec(),
        })
    }
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    // 64 bits are ten groups of seven.
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Why a file can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It does not begin as one.
    #[error("it is no recording of a port")]
    NotATrace,
    /// It ends before the first entry.
    #[error("no model had come when it ended")]
    Empty,
}

/// A recording.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What the model is.
    pub hello: Hello,
    /// What happened.
    pub entries: Vec<Entry>,
    /// Bytes at the end that make no entry.
    pub torn: usize,
}

impl Trace {
    /// Reads a file's bytes.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TraceError> {
        let bytes = bytes.strip_prefix(MAGIC).ok_or(TraceError::NotATrace)?;
        let (len, bytes) = bytes.split_first_chunk().ok_or(TraceError::Empty)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (message, mut bytes) = bytes.split_at_checked(len).ok_or(TraceError::Empty)?;
        let (head, payload) = message.split_at_checked(HEADER_LEN).ok_or(TraceError::NotATrace)?;
        let header = Cosim::decode_header(head).map_err(|_| TraceError::NotATrace)?;
        let Ok(Message::Hello(hello)) = Message::decode(&header, payload, 0) else {
            return Err(TraceError::NotATrace);
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut time = 0;
        while let Some(entry) = Entry::decode(&mut bytes, time) {
            time = entry.time_ns;
            entries.push(entry);
        }
        Ok(Self { hello: *hello, entries, torn: bytes.len() })
    }
}

/// The beginning of a file.
fn head(hello: &Hello) -> Vec<u8> {
    let mut message = Vec::new();
    Message::Hello(Box::new(hello.clone())).encode(&mut message);
    [MAGIC.as_slice(), &(message.len() as u32).to_le_bytes(), &message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            flags: 0,
            bars: Default::default(),
            intx: true,
            msi: 0,
            msix: None,
            config: vec![1; 256],
            writable: vec![2; 256],
            clearable: vec![3; 256],
            name: "card".into(),
        }
    }

    fn any_entry() -> impl Strategy<Value = (u64, Entry)> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), 0..1u64 << 40);
        let bytes = proptest::collection::vec(any::<u8>(), 0..100);
        (any::<[u8; 3]>(), numbers, bytes).prop_map(|(head, numbers, data)| {
            let [kind, detail, flags] = head;
            let (tag, address, value, delta) = numbers;
            (delta, Entry { time_ns: 0, kind, detail, flags, tag, address, value, data })
        })
    }

    proptest! {
        #[test]
        fn a_file_is_read_as_it_was_written_up_to_where_it_ends(
            entries in proptest::collection::vec(any_entry(), 0..20),
            cut in any::<prop::sample::Index>()
        ) {
            let mut bytes = head(&hello());
            let begin = bytes.len();
            let (mut time, mut ends, mut wanted) = (0, Vec::new(), Vec::new());
            for (delta, mut entry) in entries {
                entry.encode(delta, &mut bytes);
                time += delta;
                entry.time_ns = time;
                ends.push(bytes.len());
                wanted.push(entry);
            }
            let cut = begin + cut.index(bytes.len() - begin + 1);
            let trace = Trace::decode(&bytes[..cut]).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count();
            prop_assert_eq!(&trace.entries[..], &wanted[..whole]);
            prop_assert_eq!(trace.hello, hello());
        }

        #[test]
        fn noise_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(Trace::decode(&bytes).is_err());
            let _ = Trace::decode(&[head(&hello()), bytes].concat()).unwrap();
        }
    }
}
