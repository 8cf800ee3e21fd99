use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;

use sys::Tap;

use super::echo;
use super::frames::Frames;
use super::header::HEADER;
use super::stream::{StreamSink, StreamSource};

/// Longest frame, with what segmentation offload puts into one: 64 KiB of IP packet and the headers
/// around it.
pub(super) const MAX_FRAME: usize = 65536 + 64;

/// Shortest frame: an Ethernet header.
pub(super) const MIN_FRAME: usize = 14;

/// A frame behind its header, in private memory.
pub(super) type Packet = [u8; HEADER + MAX_FRAME];

/// Room for a frame, with a header of zeros.
pub(super) fn packet() -> Box<Packet> {
    let bytes = vec![0; HEADER + MAX_FRAME].into_boxed_slice();
    bytes.try_into().expect("the length is that of the array")
}

/// Where the frames for the driver come from.
pub(super) enum Source {
    /// The kernel's network.
    Tap(Arc<Tap>),
    /// A stream socket.
    Stream(Box<StreamSource>),
    /// A datagram socket.
    Datagram(Arc<UnixDatagram>),
    /// Another queue.
    Frames(Arc<Frames>),
    /// Nowhere.
    Nothing,
}

/// Where the driver's frames go.
pub(super) enum Sink {
    /// The kernel's network.
    Tap(Arc<Tap>),
    /// A stream socket.
    Stream(Box<StreamSink>),
    /// A datagram socket, to the one with this path.
    Datagram(Arc<UnixDatagram>, PathBuf),
    /// Back to the driver, as an answer.
    Echo(Arc<Frames>),
    /// Nowhere.
    Nothing,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is on its way.
    Yes,
    /// Nobody wants it.
    Dropped,
    /// There is no room for it now.
    Later,
}

impl Source {
    /// Takes the next frame into `packet`, behind a header of `HEADER` bytes; returns the frame's
    /// length, or `None` if there is none now.
    pub(super) fn receive(&mut self, packet: &mut Packet) -> Option<usize> {
        if !matches!(self, Self::Tap(_)) {
            packet[..HEADER].fill(0);
        }
        let frame = &mut packet[HEADER..];
        match self {
            Self::Tap(tap) => {
                let len = tap.read(packet).ok().flatten()?;
                packet[HEADER - 2..HEADER].fill(0);
                len.checked_sub(HEADER)
            }
            Self::Stream(source) => source.receive(frame),
            Self::Datagram(socket) => socket.recv(frame).ok(),
            Self::Frames(frames) => frames.pop(frame),
            Self::Nothing => None,
        }
    }

    /// What becomes readable with the next frame.
    pub(super) fn wake_on(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tap(tap) => Some(tap.as_fd()),
            Self::Stream(source) => source.wake_on(),
            Self::Datagram(socket) => Some(socket.as_fd()),
            Self::Frames(frames) => Some(frames.as_fd()),
            Self::Nothing => None,
        }
    }

    /// About to sleep after there was no frame; returns whether there is one now. Descriptors tell
    /// by themselves.
    pub(super) fn arm(&self) -> bool {
        matches!(self, Self::Frames(frames) if frames.arm())
    }

    /// Awake again.
    pub(super) fn disarm(&self) {
        if let Self::Frames(frames) = self {
            frames.disarm();
        }
    }

    /// The control side has connected or disconnected something.
    pub(super) fn refresh(&mut self) {
        if let Self::Stream(source) = self {
            source.refresh();
        }
    }
}

impl Sink {
    /// Sends the frame of `len` bytes in `packet`. The packet's contents are used up.
    pub(super) fn send(&mut self, packet: &mut Packet, len: usize) -> Sent {
        let result = match self {
            Self::Tap(tap) => tap.write(&packet[..HEADER + len]),
            Self::Stream(sink) => return sink.send(packet, len),
            Self::Datagram(socket, peer) => {
                socket.send_to(&packet[HEADER..HEADER + len], peer).map(|_| ())
            }
            Self::Echo(frames) => {
                let frame = &mut packet[HEADER..HEADER + len];
                return match echo::answer(frame) {
                    true if frames.push(frame) => Sent::Yes,
                    true => Sent::Later,
                    false => Sent::Dropped,
                };
            }
            Self::Nothing => Ok(()),
        };
        match result {
            Ok(()) => Sent::Yes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Later,
            // A header the kernel does not like, an interface that is down, a peer that is not
            // there.
            Err(_) => Sent::Dropped,
        }
    }
}
