use crate::DecodeError;

/// Words of 8 bytes before a record's data.
pub const HEADER_WORDS: usize = 5;
/// The same in bytes.
pub const HEADER_BYTES: usize = 8 * HEADER_WORDS;
/// Most bytes of data in a record; what is longer is cut. A quarter of the smallest ring, so that
/// there is always room for several.
pub const MAX_DATA: usize = 16 << 10;

/// What the port tells the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RequestKind {
    /// Read `value` bytes at `address` of BAR `detail`; wants a ReadDone with the same tag.
    Read = 0x01,
    /// The data was written at `address` of BAR `detail`.
    Write = 0x02,
    /// Reset of the kind `detail`; wants a ResetDone.
    Reset = 0x03,
    /// The driver wrote the configuration space at `address`; the data is what stands there now.
    Config = 0x04,
    /// The transfer `tag` is done, with the status `detail`; the data is what was read.
    DmaDone = 0x05,
    /// The state word has changed; it is in `value` too.
    State = 0x06,
    /// Memory message `tag` is on the socket and is to be obeyed now; wants a MemoryDone.
    Memory = 0x07,
}

/// What the model tells the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum AnswerKind {
    /// The answer to Read `tag`, with the status `detail`.
    ReadDone = 0x81,
    /// Reset `tag` is done: what comes after this belongs to the time after it.
    ResetDone = 0x82,
    /// Memory message `tag` is obeyed: nothing of what it removed is touched any more.
    MemoryDone = 0x83,
    /// Wants `value` bytes of host memory at `address`, by a DmaDone with the same tag.
    DmaRead = 0x84,
    /// Writes the data to host memory at `address`; wants a DmaDone unless it is posted.
    DmaWrite = 0x85,
    /// Interrupts: kind `detail`, vector `value`.
    Interrupt = 0x86,
    /// The data is what the configuration space has at `address` from now on.
    ConfigPut = 0x87,
    /// The data is a line of text for people; `detail` is 1 for an error, else 0.
    Log = 0x88,
}

/// A record's kind, in the ring it is in.
pub trait Kind: Copy + Eq + core::fmt::Debug + Sized {
    /// The number on the wire.
    fn number(self) -> u16;
    /// The kind with this number.
    fn from_number(number: u16) -> Option<Self>;
}

macro_rules! kinds {
    ($kind:ty: $($name:ident),*) => {
        impl Kind for $kind {
            fn number(self) -> u16 {
                self as u16
            }

            fn from_number(number: u16) -> Option<Self> {
                const ALL: &[$kind] = &[$(<$kind>::$name),*];
                ALL.iter().copied().find(|kind| *kind as u16 == number)
            }
        }
    };
}

kinds!(RequestKind: Read, Write, Reset, Config, DmaDone, State, Memory);
kinds!(
    AnswerKind: ReadDone, ResetDone, MemoryDone, DmaRead, DmaWrite, Interrupt, ConfigPut, Log
);

/// `detail` of a Reset.
pub mod reset {
    /// The machine's, configuration space and all.
    pub const MACHINE: u8 = 0;
    /// Function level reset.
    pub const FUNCTION: u8 = 1;
}

/// `detail` of an Interrupt.
pub mod interrupt {
    /// The INTx line; raised if the flag [`super::flag::RAISED`] is set, else lowered.
    pub const LINE: u8 = 0;
    /// An MSI vector.
    pub const MSI: u8 = 1;
    /// An MSI-X vector.
    pub const MSIX: u8 = 2;
    /// Whatever the host has enabled: an MSI-X vector, else an MSI vector, else the line is raised.
    pub const ANY: u8 = 3;
}

/// `detail` of an answer.
pub mod status {
    /// All is well.
    pub const OK: u8 = 0;
    /// There is no such register: the driver gets all ones. No such memory, or bus mastering is
    /// off: nothing was transferred, or only a part.
    pub const FAILED: u8 = 1;
}

/// Flags of a record.
pub mod flag {
    /// Of a DmaWrite: no DmaDone is wanted.
    pub const POSTED: u8 = 1 << 0;
    /// Of an Interrupt of the line: up, not down.
    pub const RAISED: u8 = 1 << 1;
}

/// The head of a record, as the words in a ring:
///
/// ```text
///   0  bits 0..32 length of the data in bytes, 32..48 kind, 48..56 detail, 56..64 flags
///   1  tag       2  address       3  value       4  time
/// ```
///
/// The data follows, filled up to whole words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<K: Kind> {
    /// What it is.
    pub kind: K,
    /// BAR, kind of reset or interrupt, status: see the kind.
    pub detail: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Pairs an answer with its question.
    pub tag: u64,
    /// Offset in a BAR or the configuration space, or an address in host memory, in bytes.
    pub address: u64,
    /// A length in bytes, a vector: see the kind.
    pub value: u64,
    /// When: nanoseconds of CLOCK_MONOTONIC from the port, cycles from a simulator, 0 if unknown.
    pub time: u64,
    /// Length of the data in bytes.
    pub data_len: u32,
}

impl<K: Kind> Record<K> {
    /// A record with nothing but its kind.
    #[must_use]
    pub fn new(kind: K) -> Self {
        let (detail, flags, tag, address, value, time, data_len) = (0, 0, 0, 0, 0, 0, 0);
        Self { kind, detail, flags, tag, address, value, time, data_len }
    }

    /// The same with a tag.
    #[must_use]
    pub fn tag(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    /// The same with an address.
    #[must_use]
    pub fn at(mut self, address: u64) -> Self {
        self.address = address;
        self
    }

    /// The same with a detail.
    #[must_use]
    pub fn detail(mut self, detail: u8) -> Self {
        self.detail = detail;
        self
    }

    /// The same with a value.
    #[must_use]
    pub fn value(mut self, value: u64) -> Self {
        self.value = value;
        self
    }

    /// The same with flags.
    #[must_use]
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// Words in the ring, the head and the data.
    #[must_use]
    pub fn words(&self) -> usize {
        HEADER_WORDS + (self.data_len as usize).div_ceil(8)
    }

    /// The head.
    #[must_use]
    pub fn encode(&self) -> [u64; HEADER_WORDS] {
        let first = u64::from(self.data_len)
            | u64::from(self.kind.number()) << 32
            | u64::from(self.detail) << 48
            | u64::from(self.flags) << 56;
        [first, self.tag, self.address, self.value, self.time]
    }

    /// Reads a head.
    ///
    /// # Errors
    /// A kind that does not belong into this ring, or more data than [`MAX_DATA`].
    pub fn decode(words: [u64; HEADER_WORDS]) -> Result<Self, DecodeError> {
        let [first, tag, address, value, time] = words;
        let number = (first >> 32) as u16;
        let kind = K::from_number(number)
            .ok_or(DecodeError::Value { field: "record kind", value: number.into() })?;
        let data_len = first as u32;
        if data_len as usize > MAX_DATA {
            return Err(DecodeError::TooLarge { size: data_len.into(), limit: MAX_DATA as u64 });
        }
        let (detail, flags) = ((first >> 48) as u8, (first >> 56) as u8);
        Ok(Self { kind, detail, flags, tag, address, value, time, data_len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_its_fields_where_the_page_says() {
        let mut record = Record::new(AnswerKind::DmaWrite).tag(7).at(0x1000).flags(flag::POSTED);
        record.data_len = 9;
        assert_eq!(record.encode(), [0x0100_0085_0000_0009, 7, 0x1000, 0, 0]);
        assert_eq!(record.words(), HEADER_WORDS + 2);
        assert_eq!(Record::decode(record.encode()), Ok(record));
    }

    #[test]
    fn kinds_of_the_other_ring_and_too_much_data_are_refused() {
        let request = Record::new(RequestKind::Write).encode();
        assert!(Record::<AnswerKind>::decode(request).is_err());
        let mut record = Record::new(RequestKind::Write);
        record.data_len = MAX_DATA as u32 + 1;
        assert!(Record::<RequestKind>::decode(record.encode()).is_err());
    }
}
