use crate::fields::{Fields, PutFields};
use crate::{DecodeError, Framing};

/// Size in bytes of a message's header.
pub const HEADER_LEN: usize = 8;
/// The version of the protocol that this codec speaks.
pub const VERSION: u32 = 1;
/// The first eight bytes of a Hello.
pub const HELLO_MAGIC: u64 = u64::from_le_bytes(*b"VDmodel\x01");
/// Most descriptors with one message.
pub const MAX_FDS: usize = 16;
/// Largest configuration space.
pub const MAX_CONFIG: usize = 4096;
/// Longest name in bytes.
pub const MAX_NAME: usize = 256;
/// Most regions that one Memory message adds, and most that it removes.
pub const MAX_REGIONS_PER_MESSAGE: usize = 512;
/// Largest payload: a Memory message with all it may hold, which is longer than any Hello.
pub const MAX_PAYLOAD: usize = 32 + MAX_REGIONS_PER_MESSAGE * (16 + 32) + 4 * MAX_FDS;
/// The file of a region that can only be reached by DmaRead and DmaWrite.
pub const REMOTE_FILE: u32 = u32::MAX;

/// The protocol, for a [`Framer`](crate::Framer).
#[derive(Clone, Copy, Debug)]
pub struct Cosim;

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum MessageKind {
    /// Model to port: who it is.
    Hello = 1,
    /// Port to model: come in; with the area's descriptor and two eventfds.
    Welcome = 2,
    /// Port to model: no; the payload is the reason.
    Refused = 3,
    /// Port to model: a change of host memory.
    Memory = 4,
}

/// The header of a message: length of the payload in bytes, kind, number of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the payload in bytes.
    pub len: u32,
    /// The kind.
    pub kind: u16,
    /// How many descriptors come with the message.
    pub fds: u16,
}

impl Framing for Cosim {
    const HEADER_LEN: usize = HEADER_LEN;
    type Header = Header;

    fn decode_header(bytes: &[u8]) -> Result<Header, DecodeError> {
        let mut fields = Fields::new(bytes);
        Ok(Header { len: fields.u32()?, kind: fields.u16()?, fds: fields.u16()? })
    }

    fn payload_len(header: &Header) -> usize {
        header.len as usize
    }
}

/// Kinds of BARs.
#[allow(missing_docs)]
pub mod bar_kind {
    pub const NONE: u8 = 0;
    pub const IO: u8 = 1;
    pub const MEMORY32: u8 = 2;
    pub const MEMORY64: u8 = 3;
}

/// Flags of a Hello.
pub mod hello_flags {
    /// The model wants descriptors of host memory; without, all memory is reached by messages.
    pub const DIRECT_MEMORY: u32 = 1 << 0;
}

/// One BAR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BarShape {
    /// One of [`bar_kind`].
    pub kind: u8,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// Size in bytes.
    pub size: u64,
    /// The part of it that is memory a machine maps: the first page of 4096 bytes, and how many
    /// pages; 0 if there is none.
    pub mapped: (u16, u32),
}

/// Where MSI-X has its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixShape {
    /// Vectors, not 0.
    pub vectors: u16,
    /// BAR of table and pending bits.
    pub bar: u8,
    /// Offset in bytes of the table.
    pub table: u32,
    /// Offset in bytes of the pending bits.
    pub pending: u32,
}

/// What a model is: everything the port needs to stand for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Bits of [`hello_flags`].
    pub flags: u32,
    /// The BARs.
    pub bars: [BarShape; 6],
    /// Whether there is an INTx pin.
    pub intx: bool,
    /// MSI vectors.
    pub msi: u8,
    /// MSI-X, if there is any.
    pub msix: Option<MsixShape>,
    /// The configuration space as after power-on: 256 or 4096 bytes.
    pub config: Vec<u8>,
    /// Bits of it that a driver changes; as long as `config`.
    pub writable: Vec<u8>,
    /// Bits of it that a driver clears by writing ones; as long as `config`.
    pub clearable: Vec<u8>,
    /// What people call it.
    pub name: String,
}

/// What the port answers to a Hello; the descriptors are the area, the event by which the model is
/// woken, and the one by which it wakes the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Size in bytes of the area.
    pub area_len: u32,
    /// The state word.
    pub state: u64,
    /// For which BARs a descriptor of their memory comes, a bit each, in their order behind the
    /// other three.
    pub mapped: u8,
}

/// A region of host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionShape {
    /// First address on the bus.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether it may be written.
    pub writable: bool,
    /// Number of the file it is in, or [`REMOTE_FILE`].
    pub file: u32,
    /// Offset in bytes in the file.
    pub offset: u64,
}

/// A change of host memory: first what goes, then what comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryChange {
    /// Paired with the tag of a Memory record.
    pub number: u64,
    /// Start and length in bytes of regions that came earlier and go now.
    pub removed: Vec<(u64, u64)>,
    /// Regions that come.
    pub added: Vec<RegionShape>,
    /// Numbers of the files whose descriptors come with this message, in their order. A number that
    /// was used before means another file from now on.
    pub files: Vec<u32>,
}

/// A message on the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// See [`Hello`].
    Hello(Box<Hello>),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// Why the port does not take the model.
    Refused(String),
    /// See [`MemoryChange`].
    Memory(MemoryChange),
}

impl Message {
    /// How many descriptors come with it.
    #[must_use]
    pub fn fds(&self) -> usize {
        match self {
            Self::Welcome(welcome) => 3 + welcome.mapped.count_ones() as usize,
            Self::Memory(change) => change.files.len(),
            Self::Hello(_) | Self::Refused(_) => 0,
        }
    }

    /// Appends the message, header and all.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let kind = match self {
            Self::Hello(_) => MessageKind::Hello,
            Self::Welcome(_) => MessageKind::Welcome,
            Self::Refused(_) => MessageKind::Refused,
            Self::Memory(_) => MessageKind::Memory,
        };
        out.put_u32(0);
        out.put_u16(kind as u16);
        out.put_u16(self.fds() as u16);
        match self {
            Self::Hello(hello) => hello.encode(out),
            Self::Welcome(welcome) => {
                out.put_u32(VERSION);
                out.put_u32(welcome.area_len);
                out.put_u64(welcome.state);
                // Left out where there is none: what a model of before this expects.
                if welcome.mapped != 0 {
                    out.put_u32(welcome.mapped.into());
                }
            }
            Self::Refused(reason) => out.put(reason.as_bytes()),
            Self::Memory(change) => change.encode(out),
        }
        let len = (out.len() - start - HEADER_LEN) as u32;
        out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// Anything that is not a message of this protocol and version; each ends the connection.
    pub fn decode(header: &Header, payload: &[u8], fds: usize) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(payload);
        let message = match header.kind {
            kind if kind == MessageKind::Hello as u16 => {
                Self::Hello(Box::new(Hello::decode(&mut fields)?))
            }
            kind if kind == MessageKind::Welcome as u16 => {
                expect_version(fields.u32()?)?;
                let (area_len, state) = (fields.u32()?, fields.u64()?);
                let mapped = match fields.rest().is_empty() {
                    true => 0,
                    false => mapped_bars(fields.u32()?)?,
                };
                Self::Welcome(Welcome { area_len, state, mapped })
            }
            kind if kind == MessageKind::Refused as u16 => {
                Self::Refused(printable(&payload[..payload.len().min(MAX_NAME)]))
            }
            kind if kind == MessageKind::Memory as u16 => {
                Self::Memory(MemoryChange::decode(&mut fields)?)
            }
            kind => return Err(DecodeError::Value { field: "message kind", value: kind.into() }),
        };
        let wanted = message.fds();
        if fds != wanted || usize::from(header.fds) != wanted {
            return Err(DecodeError::Fds { found: fds, least: wanted, most: wanted });
        }
        Ok(message)
    }
}

fn expect_version(found: u32) -> Result<(), DecodeError> {
    let expected = VERSION;
    if found == expected { Ok(()) } else { Err(DecodeError::Version { found, expected }) }
}

/// A bit for each of the six BARs, at least one.
fn mapped_bars(bits: u32) -> Result<u8, DecodeError> {
    match u8::try_from(bits) {
        Ok(some @ 1..0x40) => Ok(some),
        _ => Err(DecodeError::Value { field: "mapped bars", value: bits.into() }),
    }
}

fn expect_flag(field: &'static str, value: u8) -> Result<bool, DecodeError> {
    if value > 1 { Err(DecodeError::Value { field, value: value.into() }) } else { Ok(value == 1) }
}

/// Text of the other side as it may be shown: ASCII, a question mark for all else.
fn printable(text: &[u8]) -> String {
    let is_fine = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    text.iter().map(|&byte| if is_fine(byte) { char::from(byte) } else { '?' }).collect()
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(HELLO_MAGIC);
        out.put_u32(VERSION);
        out.put_u32(self.flags);
        for bar in &self.bars {
            out.put_u8(bar.kind);
            out.put_u8(bar.prefetchable.into());
            out.put_u16(bar.mapped.0);
            out.put_u32(bar.mapped.1);
            out.put_u64(bar.size);
        }
        let none = MsixShape { vectors: 0, bar: 0, table: 0, pending: 0 };
        let msix = self.msix.unwrap_or(none);
        out.put_u8(self.intx.into());
        out.put_u8(self.msi);
        out.put_u16(msix.vectors);
        out.put_u32(msix.bar.into());
        out.put_u32(msix.table);
        out.put_u32(msix.pending);
        out.put_u32(self.config.len() as u32);
        out.put_u32(self.name.len() as u32);
        out.put(&self.config);
        out.put(&self.writable);
        out.put(&self.clearable);
        out.put(self.name.as_bytes());
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let magic = fields.u64()?;
        if magic != HELLO_MAGIC {
            return Err(DecodeError::Value { field: "hello magic", value: magic });
        }
        expect_version(fields.u32()?)?;
        let flags = fields.u32()?;
        let mut bars = [BarShape::default(); 6];
        for bar in &mut bars {
            let (kind, prefetchable) = (fields.u8()?, fields.u8()?);
            let mapped = (fields.u16()?, fields.u32()?);
            if kind > bar_kind::MEMORY64 {
                return Err(DecodeError::Value { field: "bar kind", value: kind.into() });
            }
            let prefetchable = expect_flag("prefetchable", prefetchable)?;
            *bar = BarShape { kind, prefetchable, size: fields.u64()?, mapped };
        }
        let intx = expect_flag("intx", fields.u8()?)?;
        let msi = fields.u8()?;
        let vectors = fields.u16()?;
        let bar = fields.u32()?;
        let bar = u8::try_from(bar)
            .map_err(|_| DecodeError::Value { field: "msi-x bar", value: bar.into() })?;
        let shape = MsixShape { vectors, bar, table: fields.u32()?, pending: fields.u32()? };
        let msix = (vectors > 0).then_some(shape);
        let (config_len, name_len) = (fields.u32()?, fields.u32()?);
        if config_len != 256 && config_len as usize != MAX_CONFIG {
            let field = "size of the configuration space";
            return Err(DecodeError::Value { field, value: config_len.into() });
        }
        if name_len as usize > MAX_NAME {
            return Err(DecodeError::Value { field: "length of the name", value: name_len.into() });
        }
        let len = config_len as usize;
        let config = fields.bytes(len)?.to_vec();
        let writable = fields.bytes(len)?.to_vec();
        let clearable = fields.bytes(len)?.to_vec();
        let name = printable(fields.bytes(name_len as usize)?);
        Ok(Self { flags, bars, intx, msi, msix, config, writable, clearable, name })
    }
}

impl MemoryChange {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.number);
        out.put_u32(self.removed.len() as u32);
        out.put_u32(self.added.len() as u32);
        for (start, len) in &self.removed {
            out.put_u64(*start);
            out.put_u64(*len);
        }
        for region in &self.added {
            out.put_u64(region.start);
            out.put_u64(region.len);
            out.put_u32(region.writable.into());
            out.put_u32(region.file);
            out.put_u64(region.offset);
        }
        self.files.iter().for_each(|file| out.put_u32(*file));
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let number = fields.u64()?;
        let (removed, added) = (fields.u32()?, fields.u32()?);
        if removed.max(added) as usize > MAX_REGIONS_PER_MESSAGE {
            let value = removed.max(added).into();
            return Err(DecodeError::Value { field: "number of regions", value });
        }
        let mut change = Self { number, ..Self::default() };
        for _ in 0..removed {
            change.removed.push((fields.u64()?, fields.u64()?));
        }
        for _ in 0..added {
            let (start, len) = (fields.u64()?, fields.u64()?);
            let writable = fields.u32()?;
            let writable = expect_flag("writable", writable.min(2) as u8)?;
            let (file, offset) = (fields.u32()?, fields.u64()?);
            change.added.push(RegionShape { start, len, writable, file, offset });
        }
        let rest = fields.rest();
        if !rest.len().is_multiple_of(4) || rest.len() / 4 > MAX_FDS {
            return Err(DecodeError::Value { field: "number of files", value: rest.len() as u64 });
        }
        while !fields.rest().is_empty() {
            change.files.push(fields.u32()?);
        }
        Ok(change)
    }
}
