//! What the port and a model process say to each other: a few messages on a socket, then records in
//! two rings of shared memory.
//!
//! ```text
//!   model                         socket                          port
//!     | -- Hello: the function's layout ------------------------> |
//!     | <- Welcome: area, eventfds ------------------------------ |
//!     | <- Memory: regions, descriptors of files ---------------- |  any time
//!                                 rings
//!     | <- Read, Write, Config, Reset, Memory, State, DmaDone --- |  requests
//!     | -- ReadDone, ResetDone, MemoryDone, ConfigPut, ---------> |  answers
//!     |    DmaRead, DmaWrite, Interrupt, Log                      |
//! ```
//!
//! `docs/transports/model.md` has the tables, for those who write another side. All numbers are in
//! the host's byte order: both processes run on one machine.

mod area;
mod record;
mod socket;

pub use area::{AREA_MAGIC, Area, OFFSETS, Offsets, RingOffsets, State};
pub use record::{
    AnswerKind, HEADER_BYTES, HEADER_WORDS, Kind, MAX_DATA, Record, RequestKind, flag, interrupt,
    reset, status,
};
pub use socket::{
    BarShape, Cosim, HEADER_LEN, HELLO_MAGIC, Header, Hello, MAX_CONFIG, MAX_FDS, MAX_NAME,
    MAX_PAYLOAD, MAX_REGIONS_PER_MESSAGE, MemoryChange, Message, MessageKind, MsixShape,
    REMOTE_FILE, RegionShape, VERSION, Welcome, bar_kind, hello_flags,
};
