//! A driver that writes anything, against our device side.

use arbitrary::{Result, Unstructured};
use mem::{DriverAddress, Resolver};
use virtqueue::{Chain, ChainId, DeviceQueue, QueueError, QueuePosition, RingFormat, Segment};

use super::{descriptor, overlapping, position, rig, scribble};
use crate::rig::raw::{AVAIL, INDIRECT, NEXT, Raw, USED, WRITE};
use crate::rig::{Rig, TABLES};

struct Target {
    rig: Rig,
    queue: DeviceQueue,
    resolver: Resolver,
    chain: Chain,
    held: Vec<Held>,
    /// How many of `held` were taken since anything else happened, so that they can be untaken.
    untakeable: usize,
}

/// A chain that was taken.
struct Held {
    id: ChainId,
    /// Bytes it has room for.
    room: u64,
    /// Descriptors of a packed ring that it takes up.
    slots: u16,
}

/// Lets `bytes` play the driver, and choose what our side does. No panic; a chain taken is exactly
/// the one in memory, breaks no rule, and is held once; an error stays and takes nothing.
pub fn hostile_driver(format: RingFormat, bytes: &[u8]) {
    let mut noise = Unstructured::new(bytes);
    let Ok(mut target) = Target::new(format, &mut noise) else { return };
    while !noise.is_empty() && target.step(&mut noise).is_ok() {
        assert_eq!(usize::from(target.queue.in_flight()), target.held.len());
    }
    target.forget();
}

impl Target {
    fn new(format: RingFormat, noise: &mut Unstructured) -> Result<Self> {
        let mut rig = rig(format, noise)?;
        if noise.ratio(1, 8)? {
            overlapping(&mut rig.spec, noise)?;
        }
        let (queue, resolver) = (rig.device(), rig.resolver());
        let chain = Chain::with_capacity(rig.spec.size.into());
        Ok(Self { rig, queue, resolver, chain, held: Vec::new(), untakeable: 0 })
    }

    fn step(&mut self, noise: &mut Unstructured) -> Result<()> {
        match noise.int_in_range(0..=15)? {
            0..=2 => self.write_descriptor(noise)?,
            3 => {
                let raw = descriptor(&self.rig.spec, 0, noise)?;
                let at = TABLES + 16 * noise.int_in_range(0..=40)?;
                self.rig.raw_table(at, &[raw]);
            }
            4..=6 => self.make_available(noise)?,
            7 => scribble(&self.rig, noise)?,
            8 | 9 => {
                self.take(noise)?;
            }
            10 => {
                // No more can be in flight than there are descriptors, whatever is in memory.
                let mut takes = 0;
                while self.take(noise)? {
                    takes += 1;
                    assert!(takes <= self.rig.spec.size);
                }
            }
            11 | 12 => self.give_back(noise)?,
            13 => {
                self.queue.publish_used();
                let _wanted = self.queue.wants_interrupt();
            }
            14 => match noise.arbitrary()? {
                true => self.queue.disarm_kick(),
                false => assert_eq!(self.queue.arm_kick(), self.queue.has_available()),
            },
            _ => self.rare(noise)?,
        }
        Ok(())
    }

    fn rare(&mut self, noise: &mut Unstructured) -> Result<()> {
        match noise.int_in_range(0..=2)? {
            0 => self.queue.rebind(&self.rig.map).unwrap(),
            1 => self.restart(noise)?,
            _ if self.untakeable > 0 => {
                self.untakeable -= 1;
                self.queue.untake(self.held.pop().unwrap().id);
            }
            _ => {}
        }
        Ok(())
    }

    /// The AVAIL and USED bits that make a descriptor available where the queue is.
    fn available_bits(&self) -> u16 {
        match self.rig.spec.format {
            RingFormat::Split => 0,
            RingFormat::Packed if self.queue.position().available().wrap => AVAIL,
            RingFormat::Packed => USED,
        }
    }

    fn write_descriptor(&mut self, noise: &mut Unstructured) -> Result<()> {
        let raw = descriptor(&self.rig.spec, self.available_bits(), noise)?;
        let index = noise.int_in_range(0..=self.rig.spec.size - 1)?;
        self.rig.raw_descriptors(index, &[raw]);
        Ok(())
    }

    fn make_available(&mut self, noise: &mut Unstructured) -> Result<()> {
        let spec = &self.rig.spec;
        if spec.format == RingFormat::Packed {
            let raw = descriptor(spec, self.available_bits(), noise)?;
            self.rig.raw_descriptors(self.queue.position().available().index, &[raw]);
            return Ok(());
        }
        let count = noise.int_in_range(1..=3)?;
        let mut heads = [0; 3];
        for head in &mut heads[..count] {
            *head = noise.int_in_range(0..=spec.size)?;
        }
        let from = self.queue.position().index().wrapping_add(noise.int_in_range(0..=2)?);
        self.rig.raw_available(from, &heads[..count]);
        if noise.ratio(1, 16)? {
            self.rig.raw_available_index(noise.arbitrary()?);
        }
        Ok(())
    }

    /// Takes one chain and checks it; whether there was one.
    fn take(&mut self, noise: &mut Unstructured) -> Result<bool> {
        let (before, size) = (self.queue.position(), self.rig.spec.size);
        match self.queue.take(&mut self.resolver, &mut self.chain) {
            Ok(Some(id)) => {
                self.check_chain(before, &id);
                assert!(id.index() < size && self.held.iter().all(|held| held.id != id));
                let slots = self.slots(before);
                self.held.push(Held { id, room: self.chain.writable_len(), slots });
                let slots: u32 = self.held.iter().map(|held| u32::from(held.slots)).sum();
                assert!(slots <= size.into(), "chains that run into each other");
                self.untakeable += 1;
                return Ok(true);
            }
            Ok(None) => assert_eq!(self.queue.position(), before),
            Err(error) => self.check_error(&error, noise)?,
        }
        Ok(false)
    }

    /// Descriptors of a packed ring between `before` and here: at least one, at most all.
    fn slots(&self, before: QueuePosition) -> u16 {
        let (size, now) = (self.rig.spec.size, self.queue.position());
        match self.rig.spec.format {
            RingFormat::Split => 1,
            RingFormat::Packed => before.available().distance_to(now.available(), size),
        }
    }

    fn check_error(&mut self, error: &QueueError, noise: &mut Unstructured) -> Result<()> {
        let before = self.queue.position();
        let again = self.queue.take(&mut self.resolver, &mut self.chain).unwrap_err();
        assert_eq!(error.to_string(), again.to_string());
        assert_eq!(self.queue.position(), before);
        // Nobody should go on with such a queue; if somebody does, nothing worse happens.
        match noise.ratio(3, 4)? {
            true => self.restart(noise),
            false => Ok(()),
        }
    }

    fn check_chain(&self, before: QueuePosition, id: &ChainId) {
        let (expected, name) = self.walk(before);
        let readable = self.chain.readable().iter().map(|&segment| (segment, false));
        let writable = self.chain.writable().iter().map(|&segment| (segment, true));
        let found: Vec<_> = readable.chain(writable).collect();
        assert_eq!((found.as_slice(), id.index()), (expected.as_slice(), name));
        assert!((1..=usize::from(self.rig.spec.size)).contains(&found.len()));
        assert!(found.iter().all(|(segment, _)| segment.len > 0));
        let bytes = |part: &[Segment]| part.iter().map(|s| u64::from(s.len)).sum::<u64>();
        assert_eq!(self.chain.readable_len(), bytes(self.chain.readable()));
        assert_eq!(self.chain.writable_len(), bytes(self.chain.writable()));
        assert!(self.chain.readable_len() + self.chain.writable_len() <= 1 << 32);
    }

    /// The chain that memory holds at `position`, followed without checks other than assertions:
    /// it is only asked for chains that were accepted.
    fn walk(&self, position: QueuePosition) -> (Vec<(Segment, bool)>, u16) {
        let (spec, mut found) = (&self.rig.spec, Vec::new());
        let ring = spec.addresses.descriptor.0;
        let (mut index, mut name) = match spec.format {
            RingFormat::Packed => (position.available().index, 0),
            RingFormat::Split => {
                let slot = position.index() & (spec.size - 1);
                let head = self.rig.read_u16(spec.addresses.driver, 4 + 2 * u64::from(slot));
                (head, head)
            }
        };
        for _ in 0..spec.size {
            assert!(index < spec.size);
            let (segment, flags, other) = self.descriptor(ring, index);
            let is_packed = spec.format == RingFormat::Packed;
            if is_packed {
                name = other;
            }
            if flags & INDIRECT != 0 {
                assert!(spec.indirect && flags & NEXT == 0);
                found.extend(self.walk_table(segment));
                return (found, name);
            }
            found.push((segment, flags & WRITE != 0));
            if flags & NEXT == 0 {
                return (found, name);
            }
            index = if is_packed { (index + 1) % spec.size } else { other };
        }
        panic!("a chain longer than the queue was accepted");
    }

    fn walk_table(&self, table: Segment) -> Vec<(Segment, bool)> {
        assert!(table.len > 0 && table.len.is_multiple_of(16));
        let (entries, mut found, mut index) = (table.len / 16, Vec::new(), 0);
        let is_packed = self.rig.spec.format == RingFormat::Packed;
        for _ in 0..self.rig.spec.size {
            assert!(u32::from(index) < entries);
            let (segment, flags, next) = self.descriptor(table.addr.0, index);
            assert_eq!(flags & INDIRECT, 0);
            found.push((segment, flags & WRITE != 0));
            index = if is_packed { index + 1 } else { next };
            let is_last = if is_packed { u32::from(index) == entries } else { flags & NEXT == 0 };
            if is_last {
                return found;
            }
        }
        panic!("a table longer than the queue was accepted");
    }

    /// A descriptor's buffer, its flags, and its next index or its id.
    fn descriptor(&self, table: u64, index: u16) -> (Segment, u16, u16) {
        let (addr, len, low, high): Raw = self.rig.read_raw(table + 16 * u64::from(index));
        let segment = Segment { addr: DriverAddress(addr), len };
        match self.rig.spec.format {
            RingFormat::Split => (segment, low, high),
            RingFormat::Packed => (segment, high, low),
        }
    }

    fn give_back(&mut self, noise: &mut Unstructured) -> Result<()> {
        if !self.held.is_empty() {
            let which = noise.int_in_range(0..=self.held.len() - 1)?;
            let Held { id, room, .. } = self.held.swap_remove(which);
            self.untakeable = 0;
            self.queue.give_back(id, u64::min(room, 64) as u32);
        }
        Ok(())
    }

    /// The queue is stopped and started somewhere else, on the memory as it is.
    fn restart(&mut self, noise: &mut Unstructured) -> Result<()> {
        self.forget();
        self.rig.spec.start_at = match noise.arbitrary()? {
            true => self.queue.position(),
            false => position(&self.rig.spec, noise)?,
        };
        if let Ok(queue) = DeviceQueue::new(&self.rig.map, &self.rig.spec) {
            self.queue = queue;
        } else {
            self.rig.spec.start_at = position(&self.rig.spec, noise)?;
            self.queue = self.rig.device();
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.held.drain(..).for_each(|held| held.id.abandon());
        self.untakeable = 0;
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.forget();
    }
}
