use std::time::Duration;

use virtio::config::BlkConfig;
use virtio::{DeviceType, Features};
use virtqueue::Segment;

use crate::{Access, Buffer, DriverError, GuestMemory, Queue, QueueWish};

/// Bytes of a sector, the unit of every address and length of a block device (VIRTIO 1.4, 5.2.4).
pub const SECTOR_BYTES: usize = 512;

/// What to do with a run of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Device to memory.
    Read,
    /// Memory to device.
    Write,
    /// Make earlier writes last.
    Flush,
}

/// A request that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot it used; its buffer is the caller's again.
    pub slot: usize,
    /// What was asked.
    pub operation: Operation,
}

struct Slot {
    header: Buffer,
    data: Buffer,
    status: Buffer,
    busy: bool,
}

/// A block driver: a fixed number of slots, each a request with a buffer of its own.
pub struct Disk {
    access: Box<dyn Access>,
    memory: GuestMemory,
    queue: Queue<(usize, Operation)>,
    slots: Vec<Slot>,
    config: BlkConfig,
}

/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(10);

impl Disk {
    /// The feature with which a device may answer writes before they are on the medium, until a
    /// flush (VIRTIO 1.4, 5.2.3).
    pub const FLUSH: Features = Features::bit(9);

    /// Brings the device up with `depth` slots of `block_bytes` each. Of `wish`, the features on
    /// offer are accepted.
    ///
    /// # Errors
    /// It is no block device, or it does not come up.
    pub fn open(
        mut access: Box<dyn Access>,
        mut memory: GuestMemory,
        wish: Features,
        depth: usize,
        block_bytes: usize,
    ) -> Result<Self, DriverError> {
        if access.device_type() != DeviceType::BLOCK {
            return Err(DriverError::Protocol(format!(
                "a {} device, not a disk",
                access.device_type()
            )));
        }
        access.reset()?;
        let features = access.features()? & wish;
        access.accept(features)?;
        let mut config = [0; BlkConfig::LEN];
        access.read_config(0, &mut config)?;
        // Three descriptors a request, and a packed or split ring of a power of two.
        let size = (depth * 3).next_power_of_two().clamp(16, 32768) as u16;
        let queue =
            Queue::start(access.as_mut(), &mut memory, QueueWish { index: 0, size, features })?;
        access.go()?;
        let slots = (0..depth)
            .map(|_| {
                Ok(Slot {
                    header: memory.allocate(16, 16)?,
                    data: memory.allocate(block_bytes, 4096)?,
                    status: memory.allocate(1, 1)?,
                    busy: false,
                })
            })
            .collect::<Result<_, DriverError>>()?;
        Ok(Self { access, memory, queue, slots, config: BlkConfig::decode(&config) })
    }

    /// Size of the disk in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.config.capacity
    }

    /// The memory of a slot's buffer: to fill before a write, to look at after a read.
    #[must_use]
    pub fn data(&self, slot: usize) -> mem::Span<'_> {
        self.memory.span(self.slots[slot].data)
    }

    /// A slot that is free.
    #[must_use]
    pub fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(|slot| !slot.busy)
    }

    /// Starts a request with all of `slot`'s buffer at `sector`. It is on its way after
    /// [`Disk::publish`].
    ///
    /// # Errors
    /// The ring is full.
    pub fn start(
        &mut self,
        slot: usize,
        operation: Operation,
        sector: u64,
    ) -> Result<(), DriverError> {
        let Slot { header, data, status, busy } = &mut self.slots[slot];
        let kind: u32 = match operation {
            Operation::Read => 0,
            Operation::Write => 1,
            Operation::Flush => 4,
        };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.span(*header).copy_from(&bytes);
        // A status the device can't answer with, so that a request it did not touch shows.
        self.memory.span(*status).copy_from(&[0xff]);
        let segment = |buffer: &Buffer| Segment { addr: buffer.address, len: buffer.len as u32 };
        let (header, data, status) = (segment(header), segment(data), segment(status));
        let offered = match operation {
            Operation::Read => self.queue.offer(&[header], &[data, status], (slot, operation)),
            Operation::Write => self.queue.offer(&[header, data], &[status], (slot, operation)),
            Operation::Flush => self.queue.offer(&[header], &[status], (slot, operation)),
        };
        offered.map_err(|_| DriverError::Protocol("the ring is full".into()))?;
        *busy = true;
        Ok(())
    }

    /// Sends what was started.
    pub fn publish(&mut self) {
        self.queue.publish();
    }

    /// A request that is done, if there is one.
    ///
    /// # Errors
    /// The device answered with an error status, or broke a ring rule.
    pub fn take_done(&mut self) -> Result<Option<Completion>, DriverError> {
        let Some(((slot, operation), written)) = self.queue.take_used()? else { return Ok(None) };
        self.slots[slot].busy = false;
        let mut status = [0];
        self.memory.span(self.slots[slot].status).copy_to(&mut status);
        let expected = match operation {
            Operation::Read => self.slots[slot].data.len as u32 + 1,
            Operation::Write | Operation::Flush => 1,
        };
        if status != [0] || written != expected {
            let what = format!("{operation:?} ended with status {} and {written} bytes", status[0]);
            return Err(DriverError::Protocol(what));
        }
        Ok(Some(Completion { slot, operation }))
    }

    /// Sleeps until a request is done.
    ///
    /// # Errors
    /// Nothing was done in 10 seconds.
    pub fn wait(&mut self) -> Result<(), DriverError> {
        self.queue.wait(LIMIT)
    }

    /// Requests on their way.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.queue.in_flight()
    }

    /// Doorbells rung and interrupts taken so far.
    #[must_use]
    pub fn notifications(&self) -> (u64, u64) {
        self.queue.notifications()
    }

    /// The control plane.
    pub fn access(&mut self) -> &mut dyn Access {
        self.access.as_mut()
    }
}
