//! A session's bytes through TLS.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use port::far::Carrier;
use sys::{Connection, Received};

/// Most packets of TLS without a byte for us that are taken in one call: whoever sends such does
/// not keep us from everything else.
const MAX_EMPTY: usize = 16;

/// A socket with TLS on top of it. What waits for room in the socket is bounded: by what `rustls`
/// buffers, 64 KiB and a packet.
#[derive(Debug)]
pub struct Tls {
    socket: Connection,
    tls: rustls::Connection,
}

impl Tls {
    pub fn new(socket: Connection, tls: rustls::Connection) -> Self {
        Self { socket, tls }
    }

    /// Waits until TLS is up.
    ///
    /// # Errors
    /// It can't be, or is not at `end`. An error of TLS is inside of the one returned.
    pub fn greet(&mut self, end: Instant) -> io::Result<()> {
        loop {
            while !self.send_packets()? {
                sys::wait_for_room(self.socket.as_fd(), left(end)?)?;
            }
            if !self.tls.is_handshaking() {
                return Ok(());
            }
            match self.take_packets() {
                Ok(true) => {}
                Ok(false) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.socket.wait_readable(left(end)?)?;
                }
                Err(error) => {
                    // It says what is wrong, if there is room.
                    let _ = self.send_packets();
                    return Err(error);
                }
            }
        }
    }

    /// A secret of this session, for `label`.
    pub fn binding(&self, label: &[u8]) -> Result<[u8; 32], rustls::Error> {
        self.tls.export_keying_material([0; 32], label, None)
    }

    /// Sends what TLS has to say; whether that is all gone.
    fn send_packets(&mut self) -> io::Result<bool> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Takes what is in the socket; false if it has ended.
    fn take_packets(&mut self) -> io::Result<bool> {
        let taken = self.tls.read_tls(&mut Socket(&self.socket))?;
        self.tls.process_new_packets().map_err(io::Error::other)?;
        Ok(taken > 0)
    }
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

impl Carrier for Tls {
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<Received> {
        for turn in 0.. {
            match self.tls.reader().read(bytes) {
                Ok(0) => return Ok(Received::Closed),
                Ok(len) => return Ok(Received::Bytes(len)),
                // It ended without saying so: a wire that was cut.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                // What is left is in the socket, which wakes us up again.
                Err(_) if turn == MAX_EMPTY => return Ok(Received::Nothing),
                Err(_) => {}
            }
            match self.take_packets() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Received::Nothing);
                }
                Err(error) => {
                    let _ = self.send_packets();
                    return Err(explained(error));
                }
            }
        }
        Ok(Received::Closed)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if !self.send_packets()? {
            return Ok(None);
        }
        let taken = self.tls.writer().write(bytes)?;
        self.send_packets()?;
        Ok((taken > 0).then_some(taken))
    }

    fn has_output(&self) -> bool {
        self.tls.wants_write()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_packets().map(drop)
    }

    fn shutdown(&mut self) {
        self.tls.send_close_notify();
        let _ = self.send_packets();
        self.socket.shutdown();
    }
}

fn explained(error: io::Error) -> io::Error {
    match error.downcast::<rustls::Error>() {
        Ok(error) => io::Error::other(super::Explained(&error).to_string()),
        Err(error) => error,
    }
}

impl AsFd for Tls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The socket as TLS uses it.
struct Socket<'a>(&'a Connection);

impl Read for Socket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.0.receive(bytes, &mut Vec::new())? {
            Received::Bytes(len) => Ok(len),
            Received::Closed => Ok(0),
            Received::Nothing => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bytes, &[])?.ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
