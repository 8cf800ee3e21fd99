//! What must hold for any requests of a driver, on rings that are in order: rings that are not are
//! `virtqueue`'s. Shared by the property tests and the fuzz targets: both bring bytes,
//! [`Unstructured`] makes choices of them.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use mem::DriverAddress;
use virtio::{DeviceEvent, Features};
use virtqueue::Segment;

use crate::rig::{POISON, Queue, REGION, Rig};

/// Descriptors of each queue.
const SIZE: u16 = 16;
/// Requests on their way at once, in all queues.
const SLOTS: u64 = 16;
/// Memory for one, half for what the device reads.
const SLOT_BYTES: u64 = 16 << 10;
/// What the device has not written.
const CANARY: u8 = 0xee;
/// Longer than an answer takes.
const LIMIT: Duration = Duration::from_secs(10);

/// A disk of 64 KiB in memory.
pub fn disk(bytes: &[u8]) {
    play(&["blk", "ram=65536"], &[0], true, disk_request, bytes);
}

/// A network card whose cable ends at itself, with its control queue.
pub fn net(bytes: &[u8]) {
    play(&["net", "echo=on"], &[0, 1, 2], false, frame, bytes);
}

/// A console that nobody reads.
pub fn console(bytes: &[u8]) {
    play(&["console", "null=on"], &[0, 1], false, anything, bytes);
}

/// Random numbers.
pub fn entropy(bytes: &[u8]) {
    play(&["rng"], &[0], true, anything, bytes);
}

/// Makes what a request begins with.
type Shape = fn(&mut Unstructured) -> Result<Vec<u8>>;

/// A request under way.
struct Request {
    slot: u64,
    writable: Vec<Segment>,
}

struct Lane {
    index: u16,
    queue: Queue,
    under: BTreeMap<u64, Request>,
    broken: bool,
}

struct Target {
    rig: Rig,
    lanes: Vec<Lane>,
    shape: Shape,
    free: Vec<u64>,
    base: u64,
    next: u64,
    /// A buffer lay anywhere: the device has done to the rings what it was asked for.
    wild: bool,
}

/// Lets `bytes` play the driver. No panic; each request comes back at most once, with no more bytes
/// than it has room for and nothing written behind them; where every request is answered, it is.
/// Afterwards the device is reset and takes up its work.
fn play(device: &[&str], queues: &[u16], answers: bool, shape: Shape, bytes: &[u8]) {
    let mut noise = Unstructured::new(bytes);
    let Ok(features) = features(&mut noise) else { return };
    let settings: Vec<_> =
        device[1..].iter().map(|setting| setting.split_once('=').unwrap()).collect();
    let mut rig = Rig::open(device[0], &settings, features);
    let lanes = queues.iter().map(|&index| {
        let queue = rig.queue(index, SIZE);
        Lane { index, queue, under: BTreeMap::new(), broken: false }
    });
    let lanes = lanes.collect();
    let base = rig.room((SLOTS * SLOT_BYTES) as usize, 4096).0;
    let free = (0..SLOTS).collect();
    let mut target = Target { rig, lanes, shape, free, base, next: 0, wild: false };
    while !noise.is_empty() && target.step(&mut noise).is_ok() {}
    if answers {
        target.settle();
    }
    target.end();
}

fn features(noise: &mut Unstructured) -> Result<Features> {
    let bit = |wanted: bool, feature| if wanted { feature } else { Features::NONE };
    let [packed, events, tables]: [bool; 3] = noise.arbitrary()?;
    let ring = bit(packed, Features::RING_PACKED) | bit(events, Features::EVENT_IDX);
    Ok(Features::VERSION_1 | ring | bit(tables, Features::INDIRECT_DESC))
}

impl Target {
    fn step(&mut self, noise: &mut Unstructured) -> Result<()> {
        let which = noise.int_in_range(0..=self.lanes.len() - 1)?;
        match noise.int_in_range(0..=9)? {
            0..=5 => self.offer(which, noise)?,
            6 | 7 => self.lanes[which].queue.publish(),
            8 => self.collect(which),
            _ => {
                let enabled = noise.arbitrary()?;
                let index = self.lanes[which].index;
                let _ = self.rig.device.enable_queue(index, enabled);
                let _ = self.rig.device.write_config(noise.int_in_range(0..=70)?, &[1, 2]);
                let _ = self.rig.device.enable_queue(index, true);
            }
        }
        self.hear();
        Ok(())
    }

    fn offer(&mut self, which: usize, noise: &mut Unstructured) -> Result<()> {
        let Some(slot) = self.free.pop() else {
            self.collect(which);
            return Ok(());
        };
        let mut bytes = (self.shape)(noise)?;
        let tail = noise.int_in_range(0..=2000)?;
        bytes.extend((0..tail).map(|at| (at * 7) as u8));
        let start = self.base + slot * SLOT_BYTES;
        self.rig.put(DriverAddress(start), &bytes);
        let room = noise.int_in_range(0..=3000)?;
        let middle = start + SLOT_BYTES / 2;
        self.rig.put(DriverAddress(middle), &[CANARY; (SLOT_BYTES / 2) as usize]);
        let mut readable = pieces(start, bytes.len() as u64, noise)?;
        let mut writable = pieces(middle, room, noise)?;
        if noise.ratio(1, 12)? {
            let part = if noise.arbitrary()? { &mut readable } else { &mut writable };
            self.wild |= !part.is_empty();
            if let Some(segment) = part.last_mut() {
                *segment = wild(noise)?;
            }
        }
        let lane = &mut self.lanes[which];
        if readable.is_empty() && writable.is_empty()
            || lane.queue.ring.offer(&readable, &writable, self.next).is_err()
        {
            self.free.push(slot);
            return Ok(());
        }
        lane.under.insert(self.next, Request { slot, writable });
        self.next += 1;
        Ok(())
    }

    fn collect(&mut self, which: usize) {
        let lane = &mut self.lanes[which];
        loop {
            match lane.queue.ring.take_used() {
                Ok(Some((token, written))) => {
                    let request = lane.under.remove(&token).expect("what was offered, and once");
                    let room: u64 = request.writable.iter().map(|part| u64::from(part.len)).sum();
                    assert!(u64::from(written) <= room);
                    if !self.wild {
                        let bytes = self.rig.gather(&request.writable);
                        let behind = bytes[written as usize..].iter().all(|&byte| byte == CANARY);
                        assert!(behind, "more is written than is said");
                    }
                    self.free.push(request.slot);
                }
                Ok(None) => return,
                Err(error) => {
                    assert!(self.wild, "the device breaks the ring: {error}");
                    lane.broken = true;
                    return;
                }
            }
        }
    }

    fn hear(&mut self) {
        for event in self.rig.device.control_ready() {
            match event {
                DeviceEvent::QueueBroken { index, .. } => {
                    let lane = self.lanes.iter_mut().find(|lane| lane.index == index);
                    lane.expect("a queue that runs").broken = true;
                }
                DeviceEvent::ConfigChanged => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until every request has its answer.
    fn settle(&mut self) {
        let deadline = Instant::now() + LIMIT;
        for which in 0..self.lanes.len() {
            self.lanes[which].queue.publish();
            loop {
                self.collect(which);
                self.hear();
                let lane = &mut self.lanes[which];
                // Where a buffer lay on the rings, nobody knows what was asked for.
                if lane.under.is_empty() || lane.broken || self.wild {
                    break;
                }
                assert!(Instant::now() < deadline, "{} answers are missing", lane.under.len());
                lane.queue.pause(Duration::from_millis(5));
            }
        }
    }

    /// The queues stop; what was taken was answered. Then the device is as new.
    fn end(mut self) {
        for which in 0..self.lanes.len() {
            let stopped = self.rig.device.stop_queue(self.lanes[which].index);
            assert!(stopped.is_ok() || self.lanes[which].broken || self.wild, "{stopped:?}");
            self.collect(which);
            self.lanes[which].queue.ring.drain(drop);
        }
        self.rig.device.reset().unwrap();
        self.rig.device.set_memory(&self.rig.space).unwrap();
        self.rig.device.accept_features(self.rig.features).unwrap();
        let _queue = self.rig.queue(self.lanes[0].index, SIZE);
        self.rig.device.reset().unwrap();
    }
}

/// Cuts `len` bytes from `start` on into a few buffers.
fn pieces(start: u64, len: u64, noise: &mut Unstructured) -> Result<Vec<Segment>> {
    let (mut parts, mut at) = (Vec::new(), 0);
    while at < len {
        let all = parts.len() == 4 || noise.ratio(1, 3)?;
        let part = if all { len - at } else { noise.int_in_range(1..=len - at)? };
        parts.push(Segment { addr: DriverAddress(start + at), len: part as u32 });
        at += part;
    }
    Ok(parts)
}

/// A buffer anywhere: at the edge of memory, across its middle, on the rings, in no memory.
fn wild(noise: &mut Unstructured) -> Result<Segment> {
    let addr = match noise.int_in_range(0..=4)? {
        0 => POISON + 2 * REGION - noise.int_in_range(1..=600)?,
        1 => POISON + REGION - noise.int_in_range(1..=600)?,
        2 => POISON + noise.int_in_range(0..=4096)?,
        3 => u64::MAX - noise.int_in_range(0..=600)?,
        _ => noise.arbitrary()?,
    };
    let len = match noise.ratio(1, 3)? {
        true => noise.arbitrary()?,
        false => noise.int_in_range(1..=600)?,
    };
    Ok(Segment { addr: DriverAddress(addr), len })
}

fn anything(noise: &mut Unstructured) -> Result<Vec<u8>> {
    let len = noise.int_in_range(0..=24)?;
    Ok(noise.bytes(noise.len().min(len))?.to_vec())
}

/// A number as it is likely to be wrong: small, at a border, or anything.
fn number(noise: &mut Unstructured, small: u64) -> Result<u64> {
    Ok(match noise.int_in_range(0..=9)? {
        0..=6 => noise.int_in_range(0..=small)?,
        7 => noise.choose_iter([small + 1, 0xffff, 0xffff_ffff, u64::MAX >> 9, u64::MAX])?,
        _ => noise.arbitrary()?,
    })
}

/// A header, and for what works on ranges a range.
fn disk_request(noise: &mut Unstructured) -> Result<Vec<u8>> {
    let kind = noise.choose_iter([0u32, 1, 1, 4, 8, 11, 13, 14, 2, 0x8000_0001])?;
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(number(noise, 128)?.to_le_bytes());
    if kind > 8 {
        bytes.extend(number(noise, 128)?.to_le_bytes());
        bytes.extend((number(noise, 16)? as u32).to_le_bytes());
        bytes.extend((number(noise, 1)? as u32).to_le_bytes());
    }
    if noise.ratio(1, 12)? {
        bytes.truncate(noise.int_in_range(0..=bytes.len())?);
    }
    Ok(bytes)
}

/// A network header with its offsets, or a command.
fn frame(noise: &mut Unstructured) -> Result<Vec<u8>> {
    if noise.ratio(1, 3)? {
        let mut bytes = vec![noise.int_in_range(0..=6)?, noise.int_in_range(0..=3)?];
        for _ in 0..noise.int_in_range(0..=8)? {
            bytes.extend((number(noise, 4)? as u16).to_le_bytes());
        }
        return Ok(bytes);
    }
    let mut bytes = vec![noise.int_in_range(0..=4)?, number(noise, 5)? as u8];
    for _ in 0..5 {
        bytes.extend((number(noise, 64)? as u16).to_le_bytes());
    }
    Ok(bytes)
}
