use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::{DriverAddress, MemoryMap};
use sys::{Epoll, EventFd, Interest};
use virtio::Features;
use virtqueue::{
    DriverQueue, IndirectArea, PackedPoint, QueueAddresses, QueuePosition, QueueSpec, RingFormat,
    Segment, ring_layout,
};

use super::guest::{DATA, DATA_BYTES, Guest, POISON, RINGS_BYTES};
use super::{Case, Dice, LIMIT, event, pattern};

/// Data memory per request.
pub const SLOT_BYTES: u64 = 128 << 10;
/// Requests at once.
pub const SLOTS: u64 = DATA_BYTES / SLOT_BYTES;
/// What the driver's buffers hold before the device writes.
pub const CANARY: u8 = 0xee;

/// A request under way.
#[derive(Debug)]
pub struct Expected {
    seed: u32,
    writable: Vec<Segment>,
    written: u32,
    slot: u64,
}

/// A driver that makes requests of random shape and checks the answers.
pub struct TestDriver {
    pub queue: DriverQueue<Expected>,
    pub spec: QueueSpec,
    pub kick: Arc<EventFd>,
    pub call: Arc<EventFd>,
    pub map: Arc<MemoryMap>,
    pub dice: Dice,
    pub done: u64,
    /// Most bytes of a request, each way.
    pub max_bytes: u64,
    /// Most buffers of a request, each way.
    pub max_segments: u64,
    epoll: Epoll,
    seed: u32,
    free: Vec<u64>,
}

impl TestDriver {
    pub fn new(guest: &Guest, case: &Case, features: Features) -> Self {
        let format = case.driver_format();
        let layout = ring_layout(format, case.size);
        let begin = match format {
            RingFormat::Split => QueuePosition::split(case.begin),
            RingFormat::Packed => {
                let point = PackedPoint { index: case.begin % case.size, wrap: true };
                QueuePosition::packed(point, point)
            }
        };
        let spec = QueueSpec {
            size: case.size,
            format,
            indirect: features.has(Features::INDIRECT_DESC),
            event_idx: features.has(Features::EVENT_IDX),
            in_order: features.has(Features::IN_ORDER),
            addresses: QueueAddresses {
                descriptor: DriverAddress(POISON),
                driver: DriverAddress(POISON + layout.driver_offset() as u64),
                device: DriverAddress(POISON + layout.device_offset() as u64),
            },
            start_at: begin,
        };
        let at = DriverAddress(POISON + RINGS_BYTES / 2);
        let area = IndirectArea { at, tables: 32, entries: case.size.min(32) };
        let call = event();
        let epoll = Epoll::new().unwrap();
        epoll.add(&*call, 0, Interest::Read).unwrap();
        Self {
            queue: DriverQueue::new(&guest.own, &spec, Some(area)).unwrap(),
            spec,
            kick: event(),
            call,
            map: Arc::clone(&guest.own),
            dice: Dice(0x1234_5678_9abc_def1),
            done: 0,
            max_bytes: 9000,
            max_segments: 4,
            epoll,
            seed: 0,
            free: (0..SLOTS).collect(),
        }
    }

    /// Makes `requests` requests and waits for the answers; `between` is called again and again.
    pub fn run(&mut self, requests: u64, mut between: impl FnMut(u64)) {
        let end = self.done + requests;
        let mut begun = self.done;
        let mut deadline = Instant::now() + LIMIT;
        while self.done < end {
            let before = self.done;
            let batch = 1 + self.dice.below(16);
            for _ in 0..batch {
                if begun == end || !self.offer() {
                    break;
                }
                begun += 1;
            }
            self.publish();
            self.collect();
            if self.done == before {
                self.wait(Duration::from_millis(20));
                self.collect();
            }
            if self.done > before {
                deadline = Instant::now() + LIMIT;
            }
            let left = self.queue.in_flight();
            assert!(Instant::now() < deadline, "stuck after {} with {left} left", self.done);
            between(self.done);
        }
    }

    /// Makes no requests with data from this address on.
    pub fn forget_slots_from(&mut self, at: u64) {
        self.free.retain(|slot| DATA + (slot + 1) * SLOT_BYTES <= at);
    }

    pub fn publish(&mut self) {
        self.queue.publish_available();
        if self.queue.wants_kick() {
            self.kick.signal();
        }
    }

    /// Offers one request of random shape; false if there is no room.
    pub fn offer(&mut self) -> bool {
        let Some(slot) = self.free.pop() else { return false };
        self.seed = self.seed.wrapping_add(1);
        let seed = self.seed;
        let writable_bytes = self.dice.below(self.max_bytes);
        let written =
            if writable_bytes > 0 { self.dice.below(writable_bytes + 1) as u32 } else { 0 };
        let payload = self.dice.below(self.max_bytes) as usize;
        let mut out = Vec::with_capacity(8 + payload);
        out.extend_from_slice(&written.to_le_bytes());
        out.extend_from_slice(&seed.to_le_bytes());
        out.extend((0..payload).map(|at| pattern(seed, at)));
        let start = DATA + slot * SLOT_BYTES;
        let readable = self.cut(start, out.len() as u64);
        let writable = self.cut(start + SLOT_BYTES / 2, writable_bytes);
        if !self.queue.room_for(readable.len() + writable.len()) {
            self.free.push(slot);
            return false;
        }
        let mut rest = &out[..];
        for segment in &readable {
            let (now, later) = rest.split_at(segment.len as usize);
            self.map.write(segment.addr, now).unwrap();
            rest = later;
        }
        for segment in &writable {
            self.map.write(segment.addr, &vec![CANARY; segment.len as usize]).unwrap();
        }
        let expected = Expected { seed, writable: writable.clone(), written, slot };
        self.queue.offer(&readable, &writable, expected).unwrap();
        true
    }

    /// Cuts `len` bytes from `start` on into a few buffers with gaps between them.
    fn cut(&mut self, start: u64, len: u64) -> Vec<Segment> {
        let mut segments = Vec::new();
        let (mut at, mut left) = (start + self.dice.below(64), len);
        let most = 1 + self.dice.below(self.max_segments);
        while left > 0 {
            let last = segments.len() as u64 + 1 >= most;
            let len = if last { left } else { 1 + self.dice.below(left) };
            segments.push(Segment { addr: DriverAddress(at), len: len as u32 });
            at += len + self.dice.below(100);
            left -= len;
        }
        segments
    }

    /// Takes what has come back and checks it.
    pub fn collect(&mut self) {
        while let Some((expected, written)) = self.queue.take_used().unwrap() {
            self.check(&expected, written);
            self.free.push(expected.slot);
            self.done += 1;
        }
    }

    fn check(&self, expected: &Expected, written: u32) {
        assert_eq!(written, expected.written, "used length of {}", expected.seed);
        let mut at = 0;
        for segment in &expected.writable {
            let mut bytes = vec![0; segment.len as usize];
            self.map.read(segment.addr, &mut bytes).unwrap();
            for byte in bytes {
                let want = match at < written as usize {
                    true => pattern(!expected.seed, at),
                    false => CANARY,
                };
                assert_eq!(byte, want, "byte {at} of {} in request {}", written, expected.seed);
                at += 1;
            }
        }
    }

    /// Sleeps until the device interrupts, or for `limit`.
    pub fn wait(&mut self, limit: Duration) {
        if !self.queue.arm_interrupt() {
            self.epoll.wait(&mut Vec::new(), Some(limit)).unwrap();
        }
        self.queue.disarm_interrupt();
        self.call.drain();
    }
}
