//! The least that a vfio-user client can be: one message out, one blocking read for the answer.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use wire::vfio_user::{Capabilities, NO_REPLY, Request, Version};

/// Bytes of a message's header, whose second word is the length of all.
const HEADER: usize = 16;
const LENGTH_AT: usize = 4;

/// Posts writes of one register: messages that are not answered. The least that QEMU's vfio-user
/// can do for a write, which is a call of the kernel.
pub struct Poster {
    socket: UnixStream,
    message: Vec<u8>,
}

impl Poster {
    /// Posts on the connection of `reader`, or on any other. The register is at `offset` of a
    /// region.
    pub fn new(socket: UnixStream, region: u32, offset: u64) -> Self {
        let mut message = Vec::new();
        Request::RegionWrite { offset, region, data: &[1; 4] }.encode(3, NO_REPLY, &mut message);
        Self { socket, message }
    }

    /// How many bytes a post is.
    pub fn len_bytes(&self) -> usize {
        self.message.len()
    }

    /// Posts a write.
    pub fn post(&mut self) -> Result<()> {
        Ok(self.socket.write_all(&self.message)?)
    }
}

/// A connection on which one register is read again and again.
pub struct RegisterReader {
    socket: UnixStream,
    message: Vec<u8>,
    answer: [u8; 4096],
}

impl RegisterReader {
    /// Greets the device at `socket`. The register is of `len` bytes at `offset` of a region.
    pub fn connect(socket: &Path, region: u32, offset: u64, len: u32) -> Result<Self> {
        let socket = UnixStream::connect(socket).context("connect to a vfio-user socket")?;
        let mut reader = Self { socket, message: Vec::new(), answer: [0; 4096] };
        let version = Version { major: 0, minor: 0, capabilities: Capabilities::default() };
        Request::Version(version).encode(1, 0, &mut reader.message);
        reader.exchange()?;
        reader.message.clear();
        Request::RegionRead { offset, region, count: len }.encode(2, 0, &mut reader.message);
        Ok(reader)
    }

    /// Another way to the same connection.
    pub fn socket(&self) -> Result<UnixStream> {
        Ok(self.socket.try_clone()?)
    }

    /// Whether the socket is polled instead of waited for.
    pub fn set_polling(&self, polling: bool) -> Result<()> {
        Ok(self.socket.set_nonblocking(polling)?)
    }

    /// Reads the register once.
    pub fn exchange(&mut self) -> Result<()> {
        self.socket.write_all(&self.message)?;
        let mut have = 0;
        loop {
            match self.socket.read(&mut self.answer[have..]) {
                Ok(0) => anyhow::bail!("the device closed the connection"),
                Ok(n) => have += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            let word = |at: usize| {
                let bytes = [0, 1, 2, 3].map(|byte| self.answer[at + byte]);
                u32::from_le_bytes(bytes)
            };
            if have >= HEADER && have >= word(LENGTH_AT) as usize {
                /// Set in the third word of an answer that is a failure.
                const ERROR: u32 = 1 << 5;
                ensure!(word(8) & ERROR == 0, "the device refused with errno {}", word(12));
                return Ok(());
            }
        }
    }
}
