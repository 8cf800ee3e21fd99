//! The least that a vfio-user client can be: one message out, one blocking read for the answer.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use wire::vfio_user::{Capabilities, Request, Version};

/// Bytes of a message's header, whose second word is the length of all.
const HEADER: usize = 16;
const LENGTH_AT: usize = 4;

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
