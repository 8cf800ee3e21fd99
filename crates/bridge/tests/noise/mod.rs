//! What must hold for a queue between a driver and a device of which either, or both, may write
//! anything. Shared by the property tests and the fuzz targets: both bring bytes,
//! [`Unstructured`] makes choices of them.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

mod link;
mod parts;

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bridge::{Carrier, CopyMover, MIN_POOL_BYTES, PoolPlace, TranslateMover};
use link::NoisyLink;
use mem::{DriverAddress, Mapping, Resolver};
use parts::Sides;
use sys::EventFd;
use virtio::{DeviceEvent, EventSource};
use virtqueue::{Chain, ChainId, DeviceQueue, DriverQueue, IndirectArea, RingFormat, Segment};

use crate::rig::{DATA, POISON, REGION_BYTES, Rig, area};
use crate::rings::{descriptor, rig_in, scribble};

/// Where the device's side finds the pool, in copy mode.
const POOL: u64 = DATA;
/// Work done per poll at most.
const BUDGET: u32 = 16;

thread_local! {
    static DRIVER: Arc<Mapping> = Mapping::new_memfd("driver", REGION_BYTES).unwrap();
    static DEVICE: Arc<Mapping> = Mapping::new_memfd("device", REGION_BYTES).unwrap();
}

/// Lets `bytes` play both sides of a queue that copies.
pub fn copying(bytes: &[u8]) {
    let make = |sides: Sides, _: &mut Unstructured| {
        let mover = CopyMover::new(pool(sides.device), sides.device.spec.size);
        Ok((sides.bridge(mover), None))
    };
    run(bytes, false, make, is_in_pool);
}

/// Lets `bytes` play both sides of a queue that translates.
pub fn translating(bytes: &[u8]) {
    run(
        bytes,
        false,
        |sides, _| Ok((sides.bridge(TranslateMover::new()), None)),
        |target, segment| {
            let mut bytes = vec![0; segment.len as usize];
            target.driver_rig.map.read(segment.addr, &mut bytes).expect("checked memory only");
        },
    );
}

/// Lets `bytes` play both sides of a queue whose driver's memory is reached by messages, and the
/// answers to these.
pub fn far_away(bytes: &[u8]) {
    let make = |sides: Sides, noise: &mut Unstructured| {
        let pool = pool(sides.device);
        let (queue, link) = sides.far(pool, noise)?;
        Ok((queue, Some(link)))
    };
    run(bytes, true, make, is_in_pool);
}

fn pool(device: &Rig) -> PoolPlace {
    PoolPlace {
        mapping: Arc::clone(&device.mapping),
        offset: (POOL - POISON) as usize,
        bytes: MIN_POOL_BYTES,
        at: DriverAddress(POOL),
    }
}

fn is_in_pool<B: Carrier>(_: &Target<B>, segment: Segment) {
    let pool = POOL..POOL + MIN_POOL_BYTES as u64;
    let end = segment.addr.0 + u64::from(segment.len);
    assert!(pool.contains(&segment.addr.0) && end <= pool.end, "outside the pool");
}

/// Who is hostile, as far as anybody knows: who has broken no rule must never see a fault.
#[derive(Clone, Copy, Debug)]
struct Hostile {
    driver: bool,
    device: bool,
}

struct Target<B: Carrier> {
    bridge: B,
    /// What the driver's memory is behind, if it is.
    link: Option<NoisyLink>,
    kick: Arc<EventFd>,
    events: EventSource,
    hostile: Hostile,
    /// The driver: correct, but for what it scribbles.
    driver_rig: Rig,
    driver: DriverQueue<u32>,
    /// What is under way: bytes that fit.
    offered: BTreeMap<u32, u32>,
    next_context: u32,
    /// The device: correct, but for what it scribbles.
    device_rig: Rig,
    device: DeviceQueue,
    resolver: Resolver,
    chain: Chain,
    held: Vec<(ChainId, u64)>,
    tables: Option<IndirectArea>,
    check: fn(&Self, Segment),
}

fn run<B: Carrier>(
    bytes: &[u8],
    far: bool,
    make: impl Fn(Sides, &mut Unstructured) -> Result<(B, Option<NoisyLink>)>,
    check: fn(&Target<B>, Segment),
) {
    let mut noise = Unstructured::new(bytes);
    let Ok(mut target) = Target::new(&mut noise, far, make, check) else { return };
    while !noise.is_empty() && target.step(&mut noise).is_ok() {
        target.check_events();
    }
    target.finish();
}

fn format(noise: &mut Unstructured) -> Result<RingFormat> {
    noise.choose_iter([RingFormat::Split, RingFormat::Packed])
}

impl<B: Carrier> Target<B> {
    fn new(
        noise: &mut Unstructured,
        far: bool,
        make: impl Fn(Sides, &mut Unstructured) -> Result<(B, Option<NoisyLink>)>,
        check: fn(&Self, Segment),
    ) -> Result<Self> {
        let hostile = Hostile { driver: noise.arbitrary()?, device: noise.arbitrary()? };
        let formats = [if far { RingFormat::Split } else { format(noise)? }, format(noise)?];
        let mut driver_rig = rig_in(DRIVER.with(Arc::clone), formats[0], noise)?;
        let mut device_rig = rig_in(DEVICE.with(Arc::clone), formats[1], noise)?;
        let in_order = driver_rig.spec.in_order && device_rig.spec.in_order;
        driver_rig.spec.in_order = in_order;
        // As a shadow makes them: rings of our own begin at their start, and are large enough.
        let size = driver_rig.spec.size.next_power_of_two();
        let like = device_rig.spec.clone();
        device_rig.spec = crate::rig::plain(formats[1], size.max(like.size));
        device_rig.spec.indirect = like.indirect;
        device_rig.spec.event_idx = like.event_idx;
        device_rig.spec.in_order = in_order;
        let driver = driver_rig.driver(driver_rig.spec.indirect.then(|| area(4, 4)));
        let tables = device_rig.spec.indirect.then(|| area(4, 4));
        let (sink, events) = EventSource::new().unwrap();
        let chain = Chain::with_capacity(device_rig.spec.size.into());
        let kick = Arc::new(EventFd::new().unwrap());
        let (bridge, link) = make(
            Sides {
                driver: &driver_rig,
                device: &device_rig,
                tables,
                kick: Arc::clone(&kick),
                events: sink,
            },
            noise,
        )?;
        Ok(Self {
            bridge,
            link,
            kick,
            events,
            hostile,
            driver,
            driver_rig,
            offered: BTreeMap::new(),
            next_context: 0,
            device: device_rig.device(),
            resolver: device_rig.resolver(),
            chain,
            held: Vec::new(),
            device_rig,
            tables,
            check,
        })
    }

    fn step(&mut self, noise: &mut Unstructured) -> Result<()> {
        match noise.int_in_range(0..=15)? {
            0 | 1 => self.offer(noise)?,
            2 => {
                self.driver.publish_available();
                self.kick.signal();
            }
            3..=6 => {
                if let Some(link) = &self.link {
                    link.step(self.hostile.driver, noise)?;
                }
                let _progress = self.bridge.poll(BUDGET);
            }
            7 | 8 => self.take(),
            9 => self.give_back(noise)?,
            10 => self.device.publish_used(),
            11 | 12 => self.take_used(),
            13 => self.sleep(noise)?,
            14 => match (self.hostile.driver, self.hostile.device) {
                (true, false) => scribble(&self.driver_rig, noise)?,
                (false, true) => scribble(&self.device_rig, noise)?,
                (true, true) => self.any(noise)?,
                _ => self.new_device(noise)?,
            },
            _ => self.any(noise)?,
        }
        Ok(())
    }

    fn offer(&mut self, noise: &mut Unstructured) -> Result<()> {
        let mut piece = || {
            let at = noise.int_in_range(0..=0x4000)?;
            Ok(crate::rig::segment(at, noise.int_in_range(1..=3000)?))
        };
        let context = self.next_context;
        let readable = (0..context % 3).map(|_| piece()).collect::<Result<Vec<_>>>()?;
        let writable = (0..1 + context % 3).map(|_| piece()).collect::<Result<Vec<_>>>()?;
        self.next_context += 1;
        if self.driver.offer(&readable, &writable, context).is_ok() {
            let room = writable.iter().map(|segment| segment.len).sum();
            self.offered.insert(context, room);
        }
        Ok(())
    }

    /// The device takes a chain; it can only break if it has broken its own ring.
    fn take(&mut self) {
        match self.device.take(&mut self.resolver, &mut self.chain) {
            Ok(Some(id)) => {
                let segments = self.chain.readable().iter().chain(self.chain.writable());
                if !self.hostile.device {
                    segments.for_each(|&segment| (self.check)(self, segment));
                }
                self.held.push((id, self.chain.writable_len()));
            }
            Ok(None) => {}
            Err(error) => assert!(self.hostile.device, "the device is shown a fault: {error}"),
        }
    }

    fn give_back(&mut self, noise: &mut Unstructured) -> Result<()> {
        if !self.held.is_empty() {
            let which = noise.int_in_range(0..=self.held.len() - 1)?;
            let (id, room) = self.held.swap_remove(which);
            self.device.give_back(id, noise.int_in_range(0..=room.min(4096) as u32)?);
        }
        Ok(())
    }

    /// The driver takes back a chain; it can only break if it has broken its own ring.
    fn take_used(&mut self) {
        match self.driver.take_used() {
            Ok(Some((context, written))) => {
                let room = self.offered.remove(&context).expect("what was offered, and once");
                assert!(written <= room);
            }
            Ok(None) => {}
            Err(error) => assert!(self.hostile.driver, "the driver is shown a fault: {error}"),
        }
    }

    fn sleep(&mut self, noise: &mut Unstructured) -> Result<()> {
        let _more = self.bridge.arm();
        if noise.arbitrary()? {
            let _ = (self.driver.wants_kick(), self.device.wants_interrupt());
            let _ = (self.driver.arm_interrupt(), self.device.arm_kick());
        }
        self.bridge.disarm();
        Ok(())
    }

    /// A hostile side writes what looks like a descriptor; others do nothing.
    fn any(&mut self, noise: &mut Unstructured) -> Result<()> {
        let is_driver = noise.arbitrary()?;
        let (rig, is_hostile) = match is_driver {
            true => (&self.driver_rig, self.hostile.driver),
            false => (&self.device_rig, self.hostile.device),
        };
        if is_hostile {
            let raw = descriptor(&rig.spec, noise.arbitrary()?, noise)?;
            rig.raw_descriptors(noise.int_in_range(0..=rig.spec.size - 1)?, &[raw]);
            if noise.arbitrary()? {
                scribble(rig, noise)?;
            }
        }
        Ok(())
    }

    /// The device dies and another one is started in its place.
    fn new_device(&mut self, noise: &mut Unstructured) -> Result<()> {
        if noise.arbitrary()? {
            self.held.drain(..).for_each(|(id, _)| id.abandon());
            self.bridge.set_gone(true);
            let _progress = self.bridge.poll(BUDGET);
            assert!(self.bridge.restart(&self.device_rig.spec, self.tables).unwrap());
            self.device = self.device_rig.device();
            self.bridge.set_gone(false);
        }
        Ok(())
    }

    fn check_events(&mut self) {
        for event in self.events.drain() {
            match event {
                DeviceEvent::QueueBroken { reason, .. } => {
                    assert!(self.hostile.driver, "the driver is blamed: {reason}");
                }
                DeviceEvent::NeedsReset(reason) => {
                    assert!(self.hostile.device, "the device is blamed: {reason}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Everything comes back if both sides kept the rules.
    fn finish(mut self) {
        if !self.hostile.driver && !self.hostile.device {
            self.driver.publish_available();
            // Bounded: each round completes something, or all is done.
            for _ in 0..=self.next_context * 2 {
                self.kick.signal();
                self.work();
                self.take();
                self.held.drain(..).for_each(|(id, _)| self.device.give_back(id, 0));
                self.device.publish_used();
                self.work();
                self.take_used();
            }
            self.check_events();
            assert!(self.offered.is_empty(), "{} requests never came back", self.offered.len());
        }
        self.held.drain(..).for_each(|(id, _)| id.abandon());
        if let Some(link) = &self.link {
            link.settle();
        }
        let _position = self.bridge.finish();
        if let Some(link) = &self.link {
            link.settle();
        }
        self.driver.drain(drop);
    }

    /// Lets the queue do all it can do now.
    fn work(&mut self) {
        let Some(link) = self.link.clone() else {
            let _progress = self.bridge.poll(BUDGET);
            return;
        };
        let _more = self.bridge.arm();
        self.bridge.disarm();
        // Index, entries, tables, data, and what the limit of the link made wait.
        for _ in 0..8 {
            link.settle();
            let _progress = self.bridge.poll(BUDGET);
        }
    }
}
