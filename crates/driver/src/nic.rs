use std::time::Duration;

use virtio::{DeviceType, Features};
use virtqueue::Segment;

use crate::{Access, Buffer, DriverError, GuestMemory, Queue, QueueWish};

/// Bytes of `virtio_net_hdr` with VERSION_1 (VIRTIO 1.4, 5.1.6).
const HEADER_BYTES: usize = 12;

/// Room for a frame: an Ethernet frame of 1514 bytes behind the header.
const BUFFER_BYTES: usize = 2048;

/// A network driver of one queue pair: sends frames, receives frames.
pub struct Nic {
    _access: Box<dyn Access>,
    memory: GuestMemory,
    receive: Queue<usize>,
    transmit: Queue<usize>,
    receive_buffers: Vec<Buffer>,
    transmit_buffers: Vec<Buffer>,
    free: Vec<usize>,
}

impl Nic {
    /// Brings the device up with `depth` buffers in each direction. Of `wish`, the features on
    /// offer are accepted.
    ///
    /// # Errors
    /// It is no network device, or it does not come up.
    pub fn open(
        mut access: Box<dyn Access>,
        mut memory: GuestMemory,
        wish: Features,
        depth: u16,
    ) -> Result<Self, DriverError> {
        if access.device_type() != DeviceType::NET {
            return Err(DriverError::Protocol(format!(
                "a {} device, no network card",
                access.device_type()
            )));
        }
        access.reset()?;
        let features = access.features()? & wish;
        access.accept(features)?;
        let mut start = |index| {
            Queue::start(access.as_mut(), &mut memory, QueueWish { index, size: depth, features })
        };
        let (receive, transmit) = (start(0)?, start(1)?);
        access.go()?;
        let mut buffers =
            || (0..depth).map(|_| memory.allocate(BUFFER_BYTES, 64)).collect::<Result<Vec<_>, _>>();
        let (receive_buffers, transmit_buffers) = (buffers()?, buffers()?);
        let free = (0..usize::from(depth)).collect();
        let mut nic = Self {
            _access: access,
            memory,
            receive,
            transmit,
            receive_buffers,
            transmit_buffers,
            free,
        };
        for index in 0..nic.receive_buffers.len() {
            nic.post(index);
        }
        nic.receive.publish();
        Ok(nic)
    }

    fn post(&mut self, index: usize) {
        let buffer = self.receive_buffers[index];
        let segment = Segment { addr: buffer.address, len: buffer.len as u32 };
        // There are as many buffers as descriptors: each always has room.
        let _ = self.receive.offer(&[], &[segment], index);
    }

    /// Queues a frame of at most 2036 bytes; false if there is no room now. It is on its way after
    /// [`Nic::flush`].
    ///
    /// # Errors
    /// The device broke a ring rule.
    pub fn send(&mut self, frame: &[u8]) -> Result<bool, DriverError> {
        while let Some((index, _)) = self.transmit.take_used()? {
            self.free.push(index);
        }
        let Some(index) = self.free.pop() else { return Ok(false) };
        let buffer = self.transmit_buffers[index];
        let span = self.memory.span(buffer);
        span.copy_from(&[0; HEADER_BYTES]);
        let len = HEADER_BYTES + span.slice(HEADER_BYTES, BUFFER_BYTES).copy_from(frame);
        let segment = Segment { addr: buffer.address, len: len as u32 };
        if let Err(index) = self.transmit.offer(&[segment], &[], index) {
            self.free.push(index);
            return Ok(false);
        }
        Ok(true)
    }

    /// Sends what was queued.
    pub fn flush(&mut self) {
        self.transmit.publish();
    }

    /// Hands each frame that has arrived to `each` and returns how many there were.
    ///
    /// # Errors
    /// The device broke a ring rule or wrote less than a header.
    pub fn receive(&mut self, mut each: impl FnMut(&[u8])) -> Result<usize, DriverError> {
        let mut count = 0;
        let mut frame = [0; BUFFER_BYTES];
        while let Some((index, written)) = self.receive.take_used()? {
            let written = written as usize;
            if written < HEADER_BYTES {
                return Err(DriverError::Protocol(format!("a received frame of {written} bytes")));
            }
            let span = self
                .memory
                .span(self.receive_buffers[index])
                .slice(HEADER_BYTES, written - HEADER_BYTES);
            let len = span.copy_to(&mut frame);
            each(&frame[..len]);
            self.post(index);
            count += 1;
        }
        if count > 0 {
            self.receive.publish();
        }
        Ok(count)
    }

    /// Sleeps until a frame has arrived.
    ///
    /// # Errors
    /// None came within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<(), DriverError> {
        self.receive.wait(limit)
    }

    /// Doorbells rung and interrupts taken so far, both directions.
    #[must_use]
    pub fn notifications(&self) -> (u64, u64) {
        let ((a, b), (c, d)) = (self.receive.notifications(), self.transmit.notifications());
        (a + c, b + d)
    }
}
