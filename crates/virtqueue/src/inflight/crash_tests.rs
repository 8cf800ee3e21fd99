//! The device dies before each store of a scenario in turn, and once more before each store of the
//! recovery; the driver must see every chain used exactly once all the same.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::{Chain, ChainId, DeviceQueue, DriverQueue, InFlightLog, RingFormat};

#[path = "../../tests/rig/mod.rs"]
mod rig;
use rig::{Rig, area, plain, segment};

thread_local! {
    /// Stores left to live.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Carried by the unwinding that stands for SIGKILL.
struct Killed;

pub(super) fn crash_point() {
    LEFT.with(|left| match left.get() {
        0 => resume_unwind(Box::new(Killed)),
        n => left.set(n - 1),
    });
}

/// Runs `life` with so many stores to live; whether it came to its end.
fn survives(stores: usize, life: impl FnOnce()) -> bool {
    LEFT.set(stores);
    let result = catch_unwind(AssertUnwindSafe(life));
    LEFT.set(usize::MAX);
    match result {
        Ok(()) => true,
        Err(cause) if cause.is::<Killed>() => false,
        Err(cause) => resume_unwind(cause),
    }
}

struct Scene {
    rig: Rig,
    driver: DriverQueue<usize>,
    offered: usize,
    done: Vec<usize>,
}

impl Scene {
    fn new(format: RingFormat, indirect: bool, in_order: bool) -> Self {
        let mut spec = plain(format, 8);
        (spec.indirect, spec.in_order) = (indirect, in_order);
        let rig = Rig::new(spec);
        let driver = rig.driver(indirect.then(|| area(2, 4)));
        Self { rig, driver, offered: 0, done: Vec::new() }
    }

    fn device(&self) -> DeviceQueue {
        let mut device = self.rig.device();
        let (format, size) = (self.rig.spec.format, self.rig.spec.size);
        let log = InFlightLog::new(&self.rig.mapping, 0x30_0000, format, size);
        device.attach_log(log.expect("fits")).expect("our own log");
        device
    }

    /// The driver's part: it collects, then fills the ring with chains of one and two buffers.
    fn drive(&mut self, until: usize) {
        while let Some((context, _)) = self.driver.take_used().expect("the rules are kept") {
            self.done.push(context);
        }
        let buffers = [segment(0, 4), segment(8, 4)];
        while self.offered < until {
            let (readable, writable) = buffers.split_at(self.offered % 2);
            if self.driver.offer(readable, writable, self.offered).is_err() {
                break;
            }
            self.offered += 1;
        }
        self.driver.publish_available();
    }

    /// A device's life: it takes several chains, gives them back in another order and in batches,
    /// with a take between two of them and one taken back.
    fn live(&mut self) {
        let mut device = self.device();
        let (mut resolver, mut chain) = (self.rig.resolver(), Chain::with_capacity(8));
        let mut held: Vec<ChainId> = Vec::new();
        for round in 0..6 {
            let before = held.len();
            while let Some(id) = device.take(&mut resolver, &mut chain).expect("legal") {
                held.push(id);
            }
            if held.len() > before {
                device.untake(held.pop().expect("just taken"));
            }
            for _ in 0..2 + round % 2 {
                if !held.is_empty() {
                    device.give_back(held.swap_remove(round % held.len()), 0);
                }
                held.extend(device.take(&mut resolver, &mut chain).expect("legal"));
            }
            device.publish_used();
            self.drive(24);
        }
        // What it holds now is in flight when it ends.
        held.into_iter().for_each(ChainId::abandon);
    }

    /// The last device: one chain at a time, the latest first, each seen by the driver at once.
    fn finish(&mut self, name: &str) {
        let mut device = self.device();
        let (mut resolver, mut chain) = (self.rig.resolver(), Chain::with_capacity(8));
        self.drive(0);
        loop {
            let take = || device.take(&mut resolver, &mut chain).expect("legal");
            let mut held: Vec<ChainId> = std::iter::from_fn(take).collect();
            if held.is_empty() {
                break;
            }
            while let Some(id) = held.pop() {
                device.give_back(id, 0);
                device.publish_used();
                self.drive(0);
            }
        }
        self.done.sort_unstable();
        assert_eq!(self.done, (0..self.offered).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn a_device_may_die_before_any_store() {
    let flags = [(false, false), (true, false), (false, true)];
    for format in [RingFormat::Split, RingFormat::Packed] {
        for (indirect, in_order) in flags {
            for first in 0.. {
                let mut scene = Scene::new(format, indirect, in_order);
                scene.drive(24);
                let survived = survives(first, || scene.live());
                // The next one dies while it recovers, or soon after.
                survives(first * 7 % 40, || drop(scene.device()));
                let name = format!("{format}, {indirect}, {in_order}, store {first}");
                scene.finish(&name);
                if survived {
                    assert!(first > 50, "the scenario has many stores");
                    break;
                }
            }
        }
    }
}
