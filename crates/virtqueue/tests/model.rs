//! Our driver against our device, step by step beside a model made of plain queues.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod rig;

use std::collections::VecDeque;

use mem::Resolver;
use proptest::prelude::*;
use rig::{Rig, area, plain, segment};
use virtqueue::{
    Burst, Chain, ChainId, DeviceQueue, DriverQueue, PackedPoint, QueuePosition, QueueSpec,
    RingFormat, Segment,
};

#[derive(Clone, Debug)]
enum Step {
    Offer { readable: usize, writable: usize },
    OfferBurst(usize),
    PublishAvailable,
    Take,
    TakeBurst(usize),
    BurstThrough(usize),
    Untake,
    GiveBack { which: usize, written: u32 },
    PublishUsed,
    TakeUsed,
    TakeUsedBurst(usize),
    ArmKick,
    DisarmKick,
    ArmInterrupt,
    DisarmInterrupt,
    Restart,
}

#[derive(Clone, Debug, PartialEq)]
struct Buffers {
    context: u32,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Buffers {
    fn room(&self) -> u32 {
        self.writable.iter().map(|segment| segment.len).sum()
    }
}

/// Whether one side sleeps until it is notified.
#[derive(Clone, Copy, PartialEq)]
enum Wish {
    Unknown,
    Armed,
    Disarmed,
}

struct Pair {
    rig: Rig,
    driver: DriverQueue<u32>,
    device: DeviceQueue,
    resolver: Resolver,
    chain: Chain,
    next_context: u32,
    /// Offered, not visible to the device yet.
    offered: VecDeque<Buffers>,
    available: VecDeque<Buffers>,
    taken: Vec<(ChainId, Buffers)>,
    /// Chains may only be untaken while nothing was done since they were taken.
    untakeable: usize,
    /// With IN_ORDER: the contexts taken, in order, with the length once they are given back.
    order: VecDeque<(u32, Option<u32>)>,
    given: VecDeque<(u32, u32)>,
    used: VecDeque<(u32, u32)>,
    kick: Wish,
    interrupt: Wish,
}

impl Pair {
    fn new(spec: QueueSpec) -> Self {
        let rig = Rig::new(spec);
        let driver = rig.driver(rig.spec.indirect.then(|| area(3, 4)));
        let device = rig.device();
        let (resolver, chain) = (rig.resolver(), Chain::with_capacity(rig.spec.size.into()));
        Self {
            rig,
            driver,
            device,
            resolver,
            chain,
            next_context: 0,
            offered: VecDeque::new(),
            available: VecDeque::new(),
            taken: Vec::new(),
            untakeable: 0,
            order: VecDeque::new(),
            given: VecDeque::new(),
            used: VecDeque::new(),
            kick: Wish::Unknown,
            interrupt: Wish::Unknown,
        }
    }

    fn in_flight(&self) -> usize {
        let before = self.offered.len() + self.available.len() + self.taken.len();
        let waiting = self.order.iter().filter(|entry| entry.1.is_some()).count();
        before + waiting + self.given.len() + self.used.len()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Offer { readable, writable } => self.offer(readable, writable),
            Step::OfferBurst(most) => self.offer_burst(most),
            Step::PublishAvailable => self.publish_available(),
            Step::Take => self.take(),
            Step::TakeBurst(most) => self.take_burst(most),
            Step::BurstThrough(most) => self.burst_through(most),
            Step::Untake => self.untake(),
            Step::GiveBack { which, written } => self.give_back(which, written),
            Step::PublishUsed => self.publish_used(),
            Step::TakeUsed => self.take_used(),
            Step::TakeUsedBurst(most) => self.take_used_burst(most),
            Step::ArmKick => {
                let more = self.device.arm_kick();
                assert_eq!(more, !self.available.is_empty());
                self.kick = if more { Wish::Unknown } else { Wish::Armed };
            }
            Step::DisarmKick => {
                self.device.disarm_kick();
                self.kick = Wish::Disarmed;
            }
            Step::ArmInterrupt => {
                let more = self.driver.arm_interrupt();
                assert_eq!(more, !self.used.is_empty());
                self.interrupt = if more { Wish::Unknown } else { Wish::Armed };
            }
            Step::DisarmInterrupt => {
                self.driver.disarm_interrupt();
                self.interrupt = Wish::Disarmed;
            }
            Step::Restart => self.restart(),
        }
        assert_eq!(usize::from(self.driver.in_flight()), self.in_flight());
        assert_eq!(usize::from(self.device.in_flight()), self.taken.len());
    }

    fn offer(&mut self, readable: usize, writable: usize) {
        let context = self.next_context;
        let piece = |at: usize| segment(u64::from(context) * 8 + at as u64, 1 + context % 7);
        let buffers = Buffers {
            context,
            readable: (0..readable).map(piece).collect(),
            writable: (readable..readable + writable).map(piece).collect(),
        };
        let room = self.driver.room_for(readable + writable);
        let result = self.driver.offer(&buffers.readable, &buffers.writable, context);
        assert_eq!(result.is_ok(), room);
        if room {
            self.next_context += 1;
            self.offered.push_back(buffers);
        } else {
            assert!(self.in_flight() > 0 || readable + writable > self.driver.max_segments());
        }
    }

    /// What is taken from one ring goes into another, as in a bridge.
    fn offer_burst(&mut self, most: usize) {
        let rig = Rig::new(plain(RingFormat::Split, 8));
        let (mut driver, mut device) = (rig.driver(None), rig.device());
        let from = self.offered.len();
        for at in 0..self.driver.room().min(most) as u32 {
            let context = self.next_context + at;
            let (piece, none) = (vec![segment(u64::from(context), 1 + context % 7)], Vec::new());
            let both = if context.is_multiple_of(2) { (piece, none) } else { (none, piece) };
            let buffers = Buffers { context, readable: both.0, writable: both.1 };
            driver.offer(&buffers.readable, &buffers.writable, context).unwrap();
            self.offered.push_back(buffers);
        }
        driver.publish_available();
        let mut burst = Burst::new();
        device.take_burst(8, &mut burst);
        self.driver.offer_burst(&mut burst, |id| {
            id.abandon();
            self.next_context += 1;
            self.next_context - 1
        });
        assert!(burst.is_empty());
        let newest = self.offered.back().map(|buffers| buffers.context + 1);
        assert!(self.offered.len() == from || newest == Some(self.next_context));
    }

    fn publish_available(&mut self) {
        let new = !self.offered.is_empty();
        self.available.append(&mut self.offered);
        self.driver.publish_available();
        let wants = self.driver.wants_kick();
        check_notification(wants, new, &mut self.kick, self.rig.spec.event_idx);
    }

    fn take(&mut self) {
        assert_eq!(self.device.has_available(), !self.available.is_empty());
        let taken = self.device.take(&mut self.resolver, &mut self.chain).unwrap();
        assert_eq!(taken.is_some(), !self.available.is_empty());
        if let Some(id) = taken {
            let buffers = self.available.pop_front().unwrap();
            assert_eq!(self.chain.readable(), buffers.readable);
            assert_eq!(self.chain.writable(), buffers.writable);
            assert_eq!(self.chain.writable_len(), u64::from(buffers.room()));
            self.order.push_back((buffers.context, None));
            self.taken.push((id, buffers));
            self.untakeable += 1;
        }
    }

    /// A burst ends before the first chain that has more than one buffer, or an indirect table.
    fn expect_burst(&mut self, most: usize, burst: &Burst) -> Vec<Buffers> {
        let single = |buffers: &Buffers| buffers.readable.len() + buffers.writable.len() == 1;
        let count = self.available.iter().take(most).take_while(|b| single(b)).count();
        let expected: Vec<Buffers> = self.available.drain(..count).collect();
        let segments = expected.iter().flat_map(|b| b.readable.iter().chain(&b.writable));
        assert!(segments.eq(burst.segments()));
        let writable: Vec<bool> = expected.iter().map(|b| b.readable.is_empty()).collect();
        assert_eq!(writable, burst.writable());
        self.order.extend(expected.iter().map(|buffers| (buffers.context, None)));
        expected
    }

    fn take_burst(&mut self, most: usize) {
        let mut burst = Burst::new();
        // Changes nothing, however much it is asked for.
        self.device.prefetch_burst(most + 1000);
        self.device.take_burst(most, &mut burst);
        let expected = self.expect_burst(most, &burst);
        self.untakeable += expected.len();
        let mut ids = Vec::new();
        while let Some(id) = burst.pop() {
            ids.insert(0, id);
        }
        self.taken.extend(ids.into_iter().zip(expected));
    }

    /// A burst that is given back at once.
    fn burst_through(&mut self, most: usize) {
        let mut burst = Burst::new();
        self.device.take_burst(most, &mut burst);
        let expected = self.expect_burst(most, &burst);
        let room = |buffers: &Buffers| buffers.room() * (buffers.context % 3).min(1);
        let written: Vec<u32> = expected.iter().map(room).collect();
        self.device.give_back_burst(&mut burst, &written);
        if !expected.is_empty() {
            self.untakeable = 0;
        }
        for (buffers, written) in expected.into_iter().zip(written) {
            self.note_given(buffers.context, written);
        }
    }

    fn untake(&mut self) {
        if self.untakeable > 0 {
            let (id, buffers) = self.taken.pop().unwrap();
            self.untakeable -= 1;
            self.order.pop_back();
            self.device.untake(id);
            self.available.push_front(buffers);
        }
    }

    fn give_back(&mut self, which: usize, written: u32) {
        if self.taken.is_empty() {
            return;
        }
        let (id, buffers) = self.taken.remove(which % self.taken.len());
        self.untakeable = 0;
        let written = written.min(buffers.room());
        self.device.give_back(id, written);
        self.note_given(buffers.context, written);
    }

    fn note_given(&mut self, context: u32, written: u32) {
        if self.rig.spec.in_order {
            let entry = self.order.iter_mut().find(|entry| entry.0 == context);
            entry.unwrap().1 = Some(written);
            while let Some(&(context, Some(written))) = self.order.front() {
                self.order.pop_front();
                self.given.push_back((context, written));
            }
        } else {
            self.order.clear();
            self.given.push_back((context, written));
        }
    }

    fn publish_used(&mut self) {
        let new = !self.given.is_empty();
        self.used.append(&mut self.given);
        self.device.publish_used();
        let wants = self.device.wants_interrupt();
        check_notification(wants, new, &mut self.interrupt, self.rig.spec.event_idx);
    }

    fn take_used(&mut self) {
        assert_eq!(self.driver.has_used(), !self.used.is_empty());
        assert_eq!(self.driver.take_used().unwrap(), self.used.pop_front());
    }

    fn take_used_burst(&mut self, most: usize) {
        let mut taken = Vec::new();
        let count = self.driver.take_used_burst(most, |id, len| taken.push((id, len))).unwrap();
        assert_eq!(count, taken.len());
        let expected: Vec<_> = self.used.drain(..self.used.len().min(most)).collect();
        assert_eq!(taken, expected);
    }

    /// The device dies; what is in flight is offered to the next one in the order it was offered
    /// first.
    fn restart(&mut self) {
        let mut all: Vec<Buffers> = Vec::new();
        for (id, buffers) in self.taken.drain(..) {
            id.abandon();
            all.push(buffers);
        }
        // What was given back but not taken yet is lost with the old rings, so only restart without
        // such chains.
        if !self.given.is_empty()
            || !self.used.is_empty()
            || self.order.iter().any(|o| o.1.is_some())
        {
            self.device = self.rig.device();
            self.reset_to_empty();
            return;
        }
        all.extend(self.available.drain(..));
        all.extend(self.offered.drain(..));
        all.sort_by_key(|buffers| buffers.context);
        let area = self.rig.spec.indirect.then(|| area(3, 4));
        self.driver.restart(&self.rig.map, &self.rig.spec, area).unwrap();
        self.device = self.rig.device();
        // A fresh ring asks for notifications, and the chains were published.
        assert_eq!(self.driver.wants_kick(), !all.is_empty());
        self.available = all.into();
        self.after_restart();
    }

    fn reset_to_empty(&mut self) {
        self.driver.drain(drop);
        self.driver = self.rig.driver(self.rig.spec.indirect.then(|| area(3, 4)));
        self.device = self.rig.device();
        self.offered.clear();
        self.available.clear();
        self.given.clear();
        self.used.clear();
        self.after_restart();
    }

    fn after_restart(&mut self) {
        self.untakeable = 0;
        self.order.clear();
        (self.kick, self.interrupt) = (Wish::Unknown, Wish::Unknown);
    }

    /// Everything offered comes back in the end.
    fn finish(&mut self) {
        self.publish_available();
        while !self.available.is_empty() {
            self.take();
        }
        while !self.taken.is_empty() {
            self.give_back(0, 1);
        }
        self.publish_used();
        while !self.used.is_empty() {
            self.take_used();
        }
        assert_eq!(self.in_flight(), 0);
        assert!(self.driver.room_for(usize::from(self.rig.spec.size)));
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.taken.drain(..).for_each(|(id, _)| id.abandon());
    }
}

/// A sleeping side is woken by the first publication; one that polls is not, where it can say so
/// exactly.
fn check_notification(wants: bool, new: bool, wish: &mut Wish, event_idx: bool) {
    assert!(new || !wants, "a notification about nothing");
    if !new {
        return;
    }
    match wish {
        Wish::Armed => assert!(wants, "a lost wake-up"),
        Wish::Disarmed if !event_idx => assert!(!wants, "a needless notification"),
        _ => {}
    }
    if event_idx && *wish == Wish::Armed {
        // The wish was for one entry, which is published now.
        *wish = Wish::Unknown;
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4usize, 0..4usize).prop_filter_map("a segment", |(readable, writable)| {
            (readable + writable > 0).then_some(Step::Offer { readable, writable })
        }),
        1 => (0..6usize).prop_map(Step::OfferBurst),
        4 => Just(Step::PublishAvailable),
        7 => Just(Step::Take),
        2 => (0..6usize).prop_map(Step::TakeBurst),
        3 => (0..6usize).prop_map(Step::BurstThrough),
        3 => any::<bool>().prop_map(|write| Step::Offer {
            readable: usize::from(!write),
            writable: usize::from(write),
        }),
        1 => Just(Step::Untake),
        7 => (any::<usize>(), 0..8u32)
            .prop_map(|(which, written)| Step::GiveBack { which, written }),
        4 => Just(Step::PublishUsed),
        5 => Just(Step::TakeUsed),
        3 => (0..6usize).prop_map(Step::TakeUsedBurst),
        2 => Just(Step::ArmKick),
        1 => Just(Step::DisarmKick),
        2 => Just(Step::ArmInterrupt),
        1 => Just(Step::DisarmInterrupt),
        1 => (1..20u32).prop_map(|n| if n == 1 { Step::Restart } else { Step::Take }),
    ];
    proptest::collection::vec(step, 1..400)
}

fn features() -> impl Strategy<Value = (bool, bool, bool)> {
    any::<(bool, bool, bool)>()
}

fn with_features(mut spec: QueueSpec, features: (bool, bool, bool)) -> QueueSpec {
    (spec.indirect, spec.event_idx, spec.in_order) = features;
    spec
}

fn run(spec: QueueSpec, steps: Vec<Step>) {
    let mut pair = Pair::new(spec);
    for step in steps {
        pair.step(step);
    }
    pair.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn split_queues_behave_like_the_model(
        power in 0..6u32,
        start in prop_oneof![Just(0u16), 65500..=65535u16, 32740..32800u16],
        features in features(),
        steps in steps(),
    ) {
        let mut spec = with_features(plain(RingFormat::Split, 1 << power), features);
        spec.start_at = QueuePosition::split(start);
        run(spec, steps);
    }

    #[test]
    fn packed_queues_behave_like_the_model(
        size in 1..40u16,
        start in any::<(u16, bool)>(),
        features in features(),
        steps in steps(),
    ) {
        let mut spec = with_features(plain(RingFormat::Packed, size), features);
        let point = PackedPoint { index: start.0 % size, wrap: start.1 };
        spec.start_at = QueuePosition::packed(point, point);
        run(spec, steps);
    }

}

proptest! {
    // Each case begins with 32768 descriptors, so fewer of them.
    #![proptest_config(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_largest_packed_queue_wraps_near_its_end(
        start in 32740..32768u16,
        features in features(),
        steps in steps(),
    ) {
        let mut spec = with_features(plain(RingFormat::Packed, 32768), features);
        let point = PackedPoint { index: start, wrap: true };
        spec.start_at = QueuePosition::packed(point, point);
        run(spec, steps);
    }
}
