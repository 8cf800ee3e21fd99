//! A device that writes anything, against our driver side.

use std::collections::VecDeque;

use arbitrary::{Result, Unstructured};
use virtqueue::{Chain, DriverQueue, IndirectArea, RingFormat, Segment};

use super::{descriptor, rig, scribble};
use crate::rig::raw::{AVAIL, USED, WRITE};
use crate::rig::{Rig, area, segment};

/// What was offered: private, so that what the device wrote can't change it.
struct Offered {
    context: u32,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

struct Target {
    rig: Rig,
    queue: DriverQueue<u32>,
    area: Option<IndirectArea>,
    offered: VecDeque<Offered>,
    next_context: u32,
    /// Chains taken back, which is where a sane device would go on writing.
    taken: u16,
}

/// Lets `bytes` play the device, and choose what our side does. No panic; every chain comes back at
/// most once, as it was offered, with no more bytes than it has room for; after a broken rule
/// all that was in flight can be offered again.
pub fn hostile_device(format: RingFormat, bytes: &[u8]) {
    let mut noise = Unstructured::new(bytes);
    let Ok(mut target) = Target::new(format, &mut noise) else { return };
    while !noise.is_empty() && target.step(&mut noise).is_ok() {
        assert_eq!(usize::from(target.queue.in_flight()), target.offered.len());
    }
    target.drain();
}

impl Target {
    fn new(format: RingFormat, noise: &mut Unstructured) -> Result<Self> {
        let rig = rig(format, noise)?;
        let area = match noise.arbitrary()? {
            true => Some(area(noise.int_in_range(1..=4)?, noise.int_in_range(1..=8)?)),
            false => None,
        };
        let queue = rig.driver(area);
        Ok(Self { rig, queue, area, offered: VecDeque::new(), next_context: 0, taken: 0 })
    }

    fn step(&mut self, noise: &mut Unstructured) -> Result<()> {
        match noise.int_in_range(0..=12)? {
            0..=3 => self.offer(noise)?,
            4 => {
                self.queue.publish_available();
                let _kick = self.queue.wants_kick();
            }
            5..=7 => self.write_used(noise)?,
            8 => scribble(&self.rig, noise)?,
            9 | 10 => self.take_used(noise)?,
            11 => match noise.arbitrary()? {
                true => self.queue.disarm_interrupt(),
                false => assert_eq!(self.queue.arm_interrupt(), self.queue.has_used()),
            },
            _ => {
                let raw = descriptor(&self.rig.spec, AVAIL | USED, noise)?;
                let index = noise.int_in_range(0..=self.rig.spec.size - 1)?;
                self.rig.raw_descriptors(index, &[raw]);
            }
        }
        Ok(())
    }

    fn offer(&mut self, noise: &mut Unstructured) -> Result<()> {
        let context = self.next_context;
        let mut piece = || Ok(segment(noise.int_in_range(0..=255)?, noise.int_in_range(1..=20)?));
        let readable: Vec<Segment> = (0..context % 3).map(|_| piece()).collect::<Result<_>>()?;
        let writable: Vec<Segment> =
            (0..1 + context % 4).map(|_| piece()).collect::<Result<_>>()?;
        let room = self.queue.room_for(readable.len() + writable.len());
        assert_eq!(self.queue.offer(&readable, &writable, context).is_ok(), room);
        self.next_context += 1;
        if room {
            self.offered.push_back(Offered { context, readable, writable });
        }
        Ok(())
    }

    /// Says that something was used, where our side looks next.
    fn write_used(&mut self, noise: &mut Unstructured) -> Result<()> {
        let id = match noise.ratio(1, 16)? {
            true => noise.arbitrary()?,
            false => noise.int_in_range(0..=u32::from(self.rig.spec.size))?,
        };
        let len = match noise.ratio(1, 16)? {
            true => noise.arbitrary()?,
            false => noise.int_in_range(0..=20)?,
        };
        match self.rig.spec.format {
            RingFormat::Split => {
                let from = self.queue.position().index();
                let from = from.wrapping_add(noise.int_in_range(0..=1)?);
                self.rig.raw_used(from, &[(id, len)]);
            }
            RingFormat::Packed => {
                let at = self.queue.position().used();
                let bits = if at.wrap { AVAIL | USED } else { 0 };
                let flags = bits | if noise.arbitrary()? { WRITE } else { 0 };
                self.rig.raw_descriptors(at.index, &[(0, len, id as u16, flags)]);
            }
        }
        Ok(())
    }

    fn take_used(&mut self, noise: &mut Unstructured) -> Result<()> {
        let mut taken = Vec::new();
        let result = if noise.ratio(1, 4)? {
            let most = noise.int_in_range(0..=9)?;
            self.queue.take_used_burst(most, |context, written| taken.push((context, written)))
        } else {
            self.queue.take_used().map(|used| used.into_iter().map(|used| taken.push(used)).count())
        };
        assert!(result.as_ref().is_ok_and(|&count| count == taken.len()) || result.is_err());
        for (context, written) in taken {
            let at = self.offered.iter().position(|offered| offered.context == context);
            let at = at.expect("only what was offered, and once");
            assert!(at == 0 || !self.rig.spec.in_order);
            let room = self.offered.remove(at).unwrap().writable.iter().map(|s| s.len).sum();
            assert!(written <= room);
            self.taken = self.taken.wrapping_add(1);
        }
        match result {
            Ok(_) => {}
            Err(_) if noise.arbitrary()? => {
                self.drain();
                self.queue = self.rig.driver(self.area);
            }
            Err(_) => self.restart(),
        }
        Ok(())
    }

    /// Another device, a correct one, gets everything in flight, as it was offered and in order.
    fn restart(&mut self) {
        self.queue.restart(&self.rig.map, &self.rig.spec, self.area).unwrap();
        let (mut device, mut resolver) = (self.rig.device(), self.rig.resolver());
        let mut chain = Chain::with_capacity(self.rig.spec.size.into());
        for offered in &self.offered {
            let id = device.take(&mut resolver, &mut chain).unwrap().expect("offered again");
            assert_eq!(chain.readable(), offered.readable);
            assert_eq!(chain.writable(), offered.writable);
            id.abandon();
        }
        assert!(device.take(&mut resolver, &mut chain).unwrap().is_none());
    }

    fn drain(&mut self) {
        let (mut contexts, offered) = (Vec::new(), self.offered.drain(..));
        self.queue.drain(|context| contexts.push(context));
        assert_eq!(contexts, offered.map(|o| o.context).collect::<Vec<_>>());
    }
}
