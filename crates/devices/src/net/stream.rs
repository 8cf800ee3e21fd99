//! Frames over a stream socket in QEMU's framing (`-netdev stream`): 4 bytes of length, big-endian,
//! then the frame.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use sys::Received;

use super::header::HEADER;
use super::port::{MAX_FRAME, Packet, Sent};
use crate::link::{Link, View};

/// Bytes of a frame's length.
const PREFIX: usize = 4;

/// Bytes read at a time: the kernel's default for a socket's buffer.
const READ_BYTES: usize = 212_992;

/// The receiving half.
pub(super) struct StreamSource {
    view: View,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Nobody sends descriptors here; whoever does has them closed.
    strays: Vec<OwnedFd>,
}

impl StreamSource {
    pub(super) fn new(link: Arc<Link>) -> Self {
        let bytes = vec![0; READ_BYTES].into_boxed_slice();
        Self { view: View::new(link), bytes, start: 0, end: 0, strays: Vec::new() }
    }

    pub(super) fn refresh(&mut self) {
        if self.view.refresh() {
            (self.start, self.end) = (0, 0);
        }
    }

    pub(super) fn wake_on(&self) -> Option<BorrowedFd<'_>> {
        self.view.connection().map(|connection| connection.as_fd())
    }

    /// Takes the next frame into `frame`; returns its length.
    pub(super) fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        self.refresh();
        loop {
            let waiting = &self.bytes[self.start..self.end];
            if let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX>() {
                let len = u32::from_be_bytes(*prefix) as usize;
                if len > MAX_FRAME {
                    tracing::warn!("a network peer announced a frame of {len} bytes; closing");
                    self.view.lose();
                    return None;
                }
                if rest.len() >= len {
                    frame[..len].copy_from_slice(&rest[..len]);
                    self.start += PREFIX + len;
                    return Some(len);
                }
            }
            self.fill()?;
        }
    }

    /// Reads more, if there is more.
    fn fill(&mut self) -> Option<()> {
        let connection = self.view.connection()?;
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        // There is room: what waits is less than the longest frame, which is less than the buffer.
        let result = connection.receive(&mut self.bytes[self.end..], &mut self.strays);
        self.strays.clear();
        match result {
            Ok(Received::Bytes(n)) => {
                self.end += n;
                Some(())
            }
            Ok(Received::Nothing) => None,
            Ok(Received::Closed) | Err(_) => {
                self.view.lose();
                None
            }
        }
    }
}

/// The sending half.
pub(super) struct StreamSink {
    view: View,
    /// The rest of a frame that went only in part.
    rest: Vec<u8>,
}

impl StreamSink {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { view: View::new(link), rest: Vec::with_capacity(PREFIX + MAX_FRAME) }
    }

    pub(super) fn send(&mut self, packet: &mut Packet, len: usize) -> Sent {
        if self.view.refresh() {
            self.rest.clear();
        }
        let Some(connection) = self.view.connection().cloned() else { return Sent::Dropped };
        if !self.rest.is_empty() {
            match connection.send(&[IoSlice::new(&self.rest)], &[]) {
                Ok(Some(n)) => drop(self.rest.drain(..n)),
                Ok(None) => {}
                Err(_) => return self.fail(),
            }
            if !self.rest.is_empty() {
                return Sent::Later;
            }
        }
        // The length takes the place of the header's end, which nobody needs here.
        let bytes = &mut packet[HEADER - PREFIX..HEADER + len];
        bytes[..PREFIX].copy_from_slice(&(len as u32).to_be_bytes());
        match connection.send(&[IoSlice::new(bytes)], &[]) {
            Ok(Some(n)) => {
                self.rest.extend_from_slice(&bytes[n..]);
                Sent::Yes
            }
            Ok(None) => Sent::Later,
            Err(_) => self.fail(),
        }
    }

    fn fail(&mut self) -> Sent {
        self.view.lose();
        self.rest.clear();
        Sent::Dropped
    }
}
