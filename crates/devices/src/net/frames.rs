use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sys::EventFd;

/// Room for frames on their way from one queue to another, 4 bytes of length in front of each.
const CAPACITY: usize = 1 << 20;

/// Bytes of a frame's length.
const PREFIX: usize = 4;

/// A bounded queue of frames between two tasks, which may run on different workers. Frames that do
/// not fit are dropped, as a network does.
#[derive(Debug)]
pub(super) struct Frames {
    ring: Mutex<Ring>,
    wake: EventFd,
}

#[derive(Debug)]
struct Ring {
    bytes: Box<[u8]>,
    first: usize,
    len: usize,
    /// The taker sleeps and wants to be woken.
    armed: bool,
}

impl Frames {
    pub(super) fn new() -> std::io::Result<Self> {
        let bytes = vec![0; CAPACITY].into_boxed_slice();
        let ring = Ring { bytes, first: 0, len: 0, armed: false };
        Ok(Self { ring: Mutex::new(ring), wake: EventFd::new()? })
    }

    /// Appends a frame; returns false if there is no room for it.
    pub(super) fn push(&self, frame: &[u8]) -> bool {
        let mut ring = self.lock();
        if ring.bytes.len() - ring.len < PREFIX + frame.len() {
            return false;
        }
        ring.put(&(frame.len() as u32).to_le_bytes());
        ring.put(frame);
        if std::mem::take(&mut ring.armed) {
            drop(ring);
            self.wake.signal();
        }
        true
    }

    /// Takes the next frame into `into`, which has room for the longest; returns its length.
    pub(super) fn pop(&self, into: &mut [u8]) -> Option<usize> {
        let mut ring = self.lock();
        if ring.len == 0 {
            return None;
        }
        let mut prefix = [0; PREFIX];
        ring.get(&mut prefix);
        let len = u32::from_le_bytes(prefix) as usize;
        ring.get(&mut into[..len]);
        Some(len)
    }

    /// Asks to be woken by the next frame; returns whether there is one already.
    pub(super) fn arm(&self) -> bool {
        let mut ring = self.lock();
        ring.armed = ring.len == 0;
        !ring.armed
    }

    /// Awake again.
    pub(super) fn disarm(&self) {
        self.lock().armed = false;
        self.wake.drain();
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Frames {
    /// Becomes readable with the next frame after [`Frames::arm`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Ring {
    fn put(&mut self, from: &[u8]) {
        let capacity = self.bytes.len();
        let at = (self.first + self.len) % capacity;
        let (head, tail) = from.split_at(from.len().min(capacity - at));
        self.bytes[at..at + head.len()].copy_from_slice(head);
        self.bytes[..tail.len()].copy_from_slice(tail);
        self.len += from.len();
    }

    fn get(&mut self, into: &mut [u8]) {
        let capacity = self.bytes.len();
        let len = into.len();
        let (head, tail) = into.split_at_mut(len.min(capacity - self.first));
        head.copy_from_slice(&self.bytes[self.first..self.first + head.len()]);
        tail.copy_from_slice(&self.bytes[..tail.len()]);
        self.first = (self.first + len) % capacity;
        self.len -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_round_and_round() {
        let frames = Frames::new().unwrap();
        let mut buffer = vec![0; 65536];
        let (mut pushed, mut popped) = (0usize, 0usize);
        let frame = |n: usize| vec![n as u8; 1 + n * 7919 % 60000];
        while popped < 2000 {
            if pushed < 2000 && frames.push(&frame(pushed)) {
                pushed += 1;
                continue;
            }
            let len = frames.pop(&mut buffer).unwrap();
            assert_eq!(buffer[..len], frame(popped));
            popped += 1;
        }
        assert_eq!(frames.pop(&mut buffer), None);
        assert!(!frames.arm() && frames.push(&[1]) && frames.wake.drain());
        assert!(frames.arm(), "a frame that is there already");
    }
}
