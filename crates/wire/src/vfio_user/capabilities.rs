//! The VERSION message: a version and, in JSON, what the sender can do.

use super::json::{self, Path, Value, Writer};
use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// Longest JSON text accepted, in bytes. QEMU's has 193, and all capabilities that are known, with
/// the largest numbers, have fewer than 500.
pub const MAX_CAPABILITIES_LEN: usize = 4096;

/// What a side can do ("Capabilities"). The default is what the specification wants to be assumed
/// where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Most descriptors that the sender takes in one message.
    pub max_msg_fds: u64,
    /// Most bytes of data that the sender takes in one message.
    pub max_data_xfer_size: u64,
    /// Most DMA mappings at a time.
    pub max_dma_maps: u64,
    /// Page sizes for DMA mappings, or'ed together.
    pub pgsizes: u64,
    /// A second socket for commands of the device.
    pub twin_socket: TwinSocket,
    /// REGION_WRITE_MULTI is understood.
    pub write_multiple: bool,
    /// QEMU's older migration parameters; not in the specification any more.
    pub migration: Option<Migration>,
}

/// Parameters of the twin socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TwinSocket {
    /// Whether the sender supports it.
    pub supported: bool,
    /// In a reply: which of the descriptors that came along it is.
    pub fd_index: Option<u64>,
}

/// Parameters of dirty page bitmaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// Bytes per bit.
    pub pgsize: u64,
    /// Most bytes in a bitmap.
    pub max_bitmap_size: u64,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: 1 << 20,
            max_dma_maps: 65535,
            pgsizes: 4096,
            twin_socket: TwinSocket::default(),
            write_multiple: false,
            migration: None,
        }
    }
}

impl Capabilities {
    /// Reads the JSON text, without its terminating NUL. Keys that are not known are ignored.
    pub fn read(text: &[u8]) -> Result<Self, DecodeError> {
        if text.len() > MAX_CAPABILITIES_LEN {
            let limit = MAX_CAPABILITIES_LEN as u64;
            return Err(DecodeError::TooLarge { size: text.len() as u64, limit });
        }
        let mut capabilities = Self::default();
        let mut wrong = None;
        json::read(text, &mut |path, value| {
            if let Err(error) = capabilities.set(path, value) {
                wrong = wrong.or(Some(error));
            }
        })?;
        wrong.map_or(Ok(capabilities), Err)
    }

    fn set(&mut self, path: Path<'_>, value: Value) -> Result<(), DecodeError> {
        let [b"capabilities", path @ ..] = path else {
            return Ok(());
        };
        let migration = self.migration.unwrap_or_default();
        match path {
            [b"max_msg_fds"] => self.max_msg_fds = value.whole("max_msg_fds")?,
            [b"max_data_xfer_size"] => {
                self.max_data_xfer_size = value.whole("max_data_xfer_size")?;
            }
            [b"max_dma_maps"] => self.max_dma_maps = value.whole("max_dma_maps")?,
            [b"pgsizes"] => self.pgsizes = value.whole("pgsizes")?,
            [b"write_multiple"] => self.write_multiple = value.bool("write_multiple")?,
            [b"twin_socket", b"supported"] => {
                self.twin_socket.supported = value.bool("twin_socket.supported")?;
            }
            [b"twin_socket", b"fd_index"] => {
                self.twin_socket.fd_index = Some(value.whole("twin_socket.fd_index")?);
            }
            [b"migration", b"pgsize"] => {
                let pgsize = value.whole("migration.pgsize")?;
                self.migration = Some(Migration { pgsize, ..migration });
            }
            [b"migration", b"max_bitmap_size"] => {
                let max_bitmap_size = value.whole("migration.max_bitmap_size")?;
                self.migration = Some(Migration { max_bitmap_size, ..migration });
            }
            _ => {}
        }
        Ok(())
    }

    /// Appends the JSON text: without white space, and without what is at its default.
    fn write(&self, out: &mut Vec<u8>) {
        let default = Self::default();
        Writer::new(out).object("", |out| {
            out.object("capabilities", |out| {
                let mut whole = |key, value, default| {
                    if value != default {
                        out.whole(key, value);
                    }
                };
                whole("max_msg_fds", self.max_msg_fds, default.max_msg_fds);
                whole("max_data_xfer_size", self.max_data_xfer_size, default.max_data_xfer_size);
                whole("max_dma_maps", self.max_dma_maps, default.max_dma_maps);
                whole("pgsizes", self.pgsizes, default.pgsizes);
                if self.write_multiple {
                    out.bool("write_multiple", true);
                }
                if self.twin_socket != TwinSocket::default() {
                    out.object("twin_socket", |out| {
                        out.bool("supported", self.twin_socket.supported);
                        if let Some(index) = self.twin_socket.fd_index {
                            out.whole("fd_index", index);
                        }
                    });
                }
                if let Some(migration) = self.migration {
                    out.object("migration", |out| {
                        out.whole("pgsize", migration.pgsize);
                        out.whole("max_bitmap_size", migration.max_bitmap_size);
                    });
                }
            });
        });
    }
}

impl Value {
    fn whole(self, field: &'static str) -> Result<u64, DecodeError> {
        match self {
            Self::Whole(value) => Ok(value),
            Self::OtherNumber | Self::Bool(_) => Err(DecodeError::Value { field, value: 0 }),
        }
    }

    fn bool(self, field: &'static str) -> Result<bool, DecodeError> {
        match self {
            Self::Bool(value) => Ok(value),
            Self::Whole(value) => Err(DecodeError::Value { field, value }),
            Self::OtherNumber => Err(DecodeError::Value { field, value: 0 }),
        }
    }
}

/// Payload of VERSION and of its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major version; 0 is the only one.
    pub major: u16,
    /// Minor version; a reply names none that is larger than the proposed one.
    pub minor: u16,
    /// What the sender can do.
    pub capabilities: Capabilities,
}

impl Version {
    /// Size in bytes of the two numbers before the text.
    const LEN: usize = 4;

    pub(super) fn take(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(payload);
        let (major, minor) = (fields.u16()?, fields.u16()?);
        let text = fields.rest();
        let capabilities = match text.iter().position(|&byte| byte == 0) {
            Some(end) => Capabilities::read(&text[..end])?,
            None if text.is_empty() => Capabilities::default(),
            None => return Err(DecodeError::Json { at: text.len(), problem: "no final NUL" }),
        };
        Ok(Self { major, minor, capabilities })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u16(self.major);
        out.put_u16(self.minor);
        if self.capabilities != Capabilities::default() {
            self.capabilities.write(out);
            out.put_u8(0);
        }
    }

    /// This version as a reply of at most `limit` bytes of payload. QEMU reads the reply into the
    /// buffer of its request and loses the stream if it is longer, so capabilities are given up,
    /// the least useful first, until it fits. What is not said falls back to the default.
    pub fn fitted_to(mut self, limit: usize) -> Self {
        let default = Capabilities::default();
        let give_up: [fn(&mut Capabilities, &Capabilities); 6] = [
            |c, _| c.migration = None,
            |c, default| c.max_dma_maps = default.max_dma_maps,
            |c, default| c.pgsizes = default.pgsizes,
            |c, default| c.max_data_xfer_size = default.max_data_xfer_size,
            |c, _| c.write_multiple = false,
            // A twin socket that is not named is not used, whatever came along.
            |c, default| *c = *default,
        ];
        let mut scratch = Vec::with_capacity(256);
        for step in give_up {
            scratch.clear();
            self.put(&mut scratch);
            if scratch.len() <= limit.max(Self::LEN) {
                break;
            }
            step(&mut self.capabilities, &default);
        }
        self
    }
}
