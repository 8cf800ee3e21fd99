//! Every hand-off between the two sides, in all interleavings that the memory model allows; and
//! without each of its barriers, to show that the model would notice.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use mem::{DriverAddress, MemoryMap, Resolver};
use virtqueue::model::{self, Barrier};
use virtqueue::{
    Burst, Chain, DeviceQueue, DriverQueue, QueueAddresses, QueuePosition, QueueSpec, RingFormat,
    Segment,
};

type Driver = DriverQueue<u64>;

const SEGMENT: Segment = Segment { addr: DriverAddress(0x7000), len: 24 };

struct Device {
    queue: DeviceQueue,
    resolver: Resolver,
    chain: Chain,
}

impl Device {
    /// Takes a chain, if there is one, and gives it back.
    fn serve(&mut self) -> bool {
        let Some(id) = self.queue.take(&mut self.resolver, &mut self.chain).expect("legal") else {
            return false;
        };
        assert_eq!(self.chain.writable(), [SEGMENT], "half a chain");
        self.queue.give_back(id, 9);
        self.queue.publish_used();
        true
    }
}

/// A ring on which one chain went round, so that the first wishes lie behind; both sides poll.
fn pair(format: RingFormat, event_idx: bool) -> (Driver, Device) {
    let spec = QueueSpec {
        size: 2,
        format,
        indirect: false,
        event_idx,
        in_order: false,
        addresses: QueueAddresses::default(),
        start_at: QueuePosition::start(format),
    };
    let (mut driver, queue) = model::pair::<u64>(&spec);
    let resolver = Resolver::new(Arc::new(MemoryMap::default()));
    let mut device = Device { queue, resolver, chain: Chain::with_capacity(2) };
    device.queue.disarm_kick();
    driver.disarm_interrupt();
    offer(&mut driver, 1);
    let _kick = driver.wants_kick();
    assert!(device.serve());
    let _interrupt = device.queue.wants_interrupt();
    assert_eq!(driver.take_used().unwrap(), Some((1, 9)));
    (driver, device)
}

/// Takes what there is in a burst, and gives it back; returns how many there were.
fn serve_burst(device: &mut Device) -> usize {
    let mut burst = Burst::new();
    device.queue.take_burst(2, &mut burst);
    let count = burst.len();
    assert!(burst.segments().iter().all(|segment| *segment == SEGMENT), "half a chain");
    device.queue.give_back_burst(&mut burst, &[9, 9][..count]);
    device.queue.publish_used();
    count
}

/// Offers two chains, which are published as one.
fn offer_two(driver: &mut Driver) {
    driver.offer(&[], &[SEGMENT], 2).unwrap();
    driver.offer(&[], &[SEGMENT], 3).unwrap();
    driver.publish_available();
}

/// Takes back what is used in a burst; returns how many there were.
fn take_used_burst(driver: &mut Driver) -> usize {
    let mut used = Vec::new();
    driver.take_used_burst(2, |context, len| used.push((context, len))).expect("legal");
    assert!(used.is_empty() || used == [(2, 9), (3, 9)], "a part of a publication");
    used.len()
}

fn offer(driver: &mut Driver, context: u64) {
    driver.offer(&[], &[SEGMENT], context).unwrap();
    driver.publish_available();
}

/// What the device takes is what the driver offered, with the data that belongs to it.
fn chains_arrive_whole(format: RingFormat, event_idx: bool) {
    loom::model(move || {
        let (mut driver, mut device) = pair(format, event_idx);
        let data = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&data);
        let other = thread::spawn(move || {
            if device.serve() {
                assert_eq!(seen.load(Ordering::Relaxed), 77, "the data came late");
            }
            device
        });
        data.store(77, Ordering::Relaxed);
        offer(&mut driver, 2);
        let mut device = other.join().unwrap();
        device.serve();
        assert_eq!(driver.take_used().unwrap(), Some((2, 9)));
    });
}

/// What the driver takes back is what the device gave back, with the data that belongs to it.
fn used_chains_arrive_whole(format: RingFormat, event_idx: bool) {
    loom::model(move || {
        let (mut driver, mut device) = pair(format, event_idx);
        offer(&mut driver, 2);
        let data = Arc::new(AtomicU64::new(0));
        let written = Arc::clone(&data);
        // Orders nothing. Loom only tries the orders of accesses to one atomic that it sees
        // collide, and the device's own look at a packed descriptor hides the driver's; here both
        // collide.
        let turn = Arc::new(AtomicU64::new(0));
        let done = Arc::clone(&turn);
        let other = thread::spawn(move || {
            written.store(77, Ordering::Relaxed);
            assert!(device.serve());
            done.store(1, Ordering::Relaxed);
        });
        turn.load(Ordering::Relaxed);
        let mut take = || match driver.take_used().expect("legal") {
            Some(used) => {
                assert_eq!(used, (2, 9), "half an element");
                assert_eq!(data.load(Ordering::Relaxed), 77, "the data came late");
                true
            }
            None => false,
        };
        let early = take();
        other.join().unwrap();
        assert!(early || take());
    });
}

/// As [`chains_arrive_whole`], for a burst.
fn bursts_arrive_whole(format: RingFormat, event_idx: bool) {
    loom::model(move || {
        let (mut driver, mut device) = pair(format, event_idx);
        let data = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&data);
        let other = thread::spawn(move || {
            let count = serve_burst(&mut device);
            if count > 0 {
                assert_eq!(count, 2, "a part of a publication");
                assert_eq!(seen.load(Ordering::Relaxed), 77, "the data came late");
            }
            device
        });
        data.store(77, Ordering::Relaxed);
        offer_two(&mut driver);
        let mut device = other.join().unwrap();
        serve_burst(&mut device);
        assert_eq!(take_used_burst(&mut driver), 2);
    });
}

/// As [`used_chains_arrive_whole`], for a burst.
fn used_bursts_arrive_whole(format: RingFormat, event_idx: bool) {
    loom::model(move || {
        let (mut driver, mut device) = pair(format, event_idx);
        offer_two(&mut driver);
        let data = Arc::new(AtomicU64::new(0));
        let written = Arc::clone(&data);
        // As there.
        let turn = Arc::new(AtomicU64::new(0));
        let done = Arc::clone(&turn);
        let other = thread::spawn(move || {
            written.store(77, Ordering::Relaxed);
            assert_eq!(serve_burst(&mut device), 2);
            done.store(1, Ordering::Relaxed);
        });
        turn.load(Ordering::Relaxed);
        let early = take_used_burst(&mut driver);
        if early > 0 {
            assert_eq!(data.load(Ordering::Relaxed), 77, "the data came late");
        }
        other.join().unwrap();
        assert!(early > 0 || take_used_burst(&mut driver) == 2);
    });
}

/// A driver publishes while the device goes to sleep: the device stays awake or is kicked.
fn no_kick_is_lost(format: RingFormat, event_idx: bool) {
    loom::model(move || {
        let (mut driver, mut device) = pair(format, event_idx);
        let other = thread::spawn(move || device.queue.arm_kick());
        offer(&mut driver, 2);
        let kicked = driver.wants_kick();
        let awake = other.join().unwrap();
        assert!(kicked || awake, "a lost wake-up");
        driver.drain(|_| ());
    });
}

/// A device publishes while the driver goes to sleep: the driver stays awake or is interrupted.
fn no_interrupt_is_lost(format: RingFormat, event_idx: bool) {
    loom::model(move || {
        let (mut driver, mut device) = pair(format, event_idx);
        offer(&mut driver, 2);
        let other = thread::spawn(move || {
            assert!(device.serve());
            device.queue.wants_interrupt()
        });
        let awake = driver.arm_interrupt();
        let interrupted = other.join().unwrap();
        assert!(interrupted || awake, "a lost wake-up");
        assert!(driver.take_used().unwrap().is_some());
    });
}

/// For both formats, with and without event index: the hand-off works, and does not without any
/// one of its barriers.
macro_rules! hand_off {
    ($name:ident, $($barrier:ident, $broken:ident: $message:literal),*) => {
        mod $name {
            use super::*;

            #[test]
            fn works() {
                for format in [RingFormat::Split, RingFormat::Packed] {
                    super::$name(format, false);
                    super::$name(format, true);
                }
            }

            $(
                mod $broken {
                    use super::*;

                    #[test]
                    #[should_panic(expected = $message)]
                    fn split() {
                        model::remove(Barrier::$barrier);
                        super::super::$name(RingFormat::Split, false);
                    }

                    #[test]
                    #[should_panic(expected = $message)]
                    fn split_with_event_index() {
                        model::remove(Barrier::$barrier);
                        super::super::$name(RingFormat::Split, true);
                    }

                    #[test]
                    #[should_panic(expected = $message)]
                    fn packed() {
                        model::remove(Barrier::$barrier);
                        super::super::$name(RingFormat::Packed, false);
                    }

                    #[test]
                    #[should_panic(expected = $message)]
                    fn packed_with_event_index() {
                        model::remove(Barrier::$barrier);
                        super::super::$name(RingFormat::Packed, true);
                    }
                }
            )*
        }
    };
}

hand_off!(chains_arrive_whole,
    PublishAvailable, without_release: "",
    SeeAvailable, without_acquire: "");
hand_off!(used_chains_arrive_whole,
    PublishUsed, without_release: "",
    SeeUsed, without_acquire: "");
hand_off!(bursts_arrive_whole,
    PublishAvailable, without_release: "",
    SeeAvailable, without_acquire: "");
hand_off!(used_bursts_arrive_whole,
    PublishUsed, without_release: "",
    SeeUsed, without_acquire: "");
hand_off!(no_kick_is_lost,
    CheckKick, without_the_drivers_fence: "a lost wake-up",
    AskForKicks, without_the_devices_fence: "a lost wake-up");
hand_off!(no_interrupt_is_lost,
    CheckInterrupt, without_the_devices_fence: "a lost wake-up",
    AskForInterrupts, without_the_drivers_fence: "a lost wake-up");
