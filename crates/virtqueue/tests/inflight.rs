//! The log of chains in flight: a device process is killed, another one goes on, and the driver
//! sees every chain used exactly once.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod rig;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::{Access, DriverAddress, Mapping, MemoryMap, Region};
use proptest::prelude::*;
use rig::raw::{AVAIL, USED};
use rig::{POISON, REGION_BYTES, Rig, TABLES, area, plain, segment};
use virtqueue::{
    Chain, ChainId, DeviceQueue, DriverQueue, InFlightLog, QueueError, QueueSpec, RingFormat,
};

/// Where the log lies in the rig's memory: behind the data.
const LOG_AT: usize = 0x30_0000;
const SIZE: u16 = 16;

fn spec(format: RingFormat, indirect: bool) -> QueueSpec {
    let mut spec = plain(format, SIZE);
    spec.indirect = indirect;
    spec
}

fn log(rig: &Rig) -> InFlightLog {
    InFlightLog::new(&rig.mapping, LOG_AT, rig.spec.format, rig.spec.size).unwrap()
}

fn logged_device(rig: &Rig) -> DeviceQueue {
    let mut device = rig.device();
    device.attach_log(log(rig)).unwrap();
    device
}

const ALL: [(RingFormat, bool); 4] = [
    (RingFormat::Split, false),
    (RingFormat::Split, true),
    (RingFormat::Packed, false),
    (RingFormat::Packed, true),
];

#[test]
fn the_next_device_takes_what_was_in_flight_first_and_in_order() {
    for (format, indirect) in ALL {
        let rig = Rig::new(spec(format, indirect));
        let mut driver = rig.driver(indirect.then(|| area(4, 4)));
        let mut resolver = rig.resolver();
        let mut chain = Chain::with_capacity(SIZE.into());
        for context in 0..6 {
            driver.offer(&[segment(context, 1)], &[segment(context, 8)], context).unwrap();
        }
        driver.publish_available();
        let mut device = logged_device(&rig);
        let mut ids: Vec<_> =
            std::iter::from_fn(|| device.take(&mut resolver, &mut chain).unwrap())
                .take(5)
                .collect();
        // 3 and 0 are published; 1 is given back, but the driver never learns of it.
        device.give_back(ids.remove(3), 3);
        device.give_back(ids.remove(0), 4);
        device.publish_used();
        device.give_back(ids.remove(0), 5);
        ids.into_iter().for_each(ChainId::abandon);
        drop(device);

        let mut device = logged_device(&rig);
        assert_eq!(device.to_take_again(), 3, "{format}");
        assert!(device.has_available());
        let mut take = |device: &mut DeviceQueue| {
            let id = device.take(&mut resolver, &mut chain).unwrap().expect("a chain");
            (id, chain.readable()[0].addr.0 - segment(0, 1).addr.0)
        };
        // Undone and taken again, across the border to new chains.
        let first: Vec<_> = (0..4).map(|_| take(&mut device)).collect();
        assert_eq!(first.iter().map(|(_, context)| *context).collect::<Vec<_>>(), [1, 2, 4, 5]);
        first.into_iter().rev().for_each(|(id, _)| device.untake(id));
        for expected in [1, 2, 4, 5] {
            let (id, context) = take(&mut device);
            assert_eq!(context, expected);
            device.give_back(id, 6);
        }
        device.publish_used();
        let used: Vec<_> = std::iter::from_fn(|| driver.take_used().unwrap()).collect();
        assert_eq!(used, [(3, 3), (0, 4), (1, 6), (2, 6), (4, 6), (5, 6)]);
        drop(device);
        assert_eq!(logged_device(&rig).to_take_again(), 0);
    }
}

#[test]
fn a_log_of_another_queue_is_refused() {
    let rig = Rig::new(spec(RingFormat::Split, false));
    let other = InFlightLog::new(&rig.mapping, LOG_AT, RingFormat::Split, 32).unwrap();
    let error = rig.device().attach_log(other).unwrap_err();
    assert!(matches!(error, QueueError::BadInFlightLog(_)));
    let misaligned = InFlightLog::new(&rig.mapping, LOG_AT + 4, RingFormat::Split, 32);
    assert!(matches!(misaligned, Err(QueueError::Memory(_))));
    assert_eq!(InFlightLog::bytes(RingFormat::Split, 3), 64);
    assert_eq!(InFlightLog::bytes(RingFormat::Packed, 256), 32 + 32 * 256 + 32);
}

/// A driver that makes descriptors available again which it has not seen used.
#[test]
fn descriptors_the_driver_does_not_know_to_be_free_are_refused() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let mut rig = Rig::new(spec(format, false));
        rig.spec = plain(format, 2);
        let (mut device, mut resolver) = (rig.device(), rig.resolver());
        device.attach_log(log(&rig)).unwrap();
        let mut chain = Chain::with_capacity(2);
        let mut taken = 0;
        // Bounded: without the rule this would go on, and the log be full.
        let refused = (0..4_u16).any(|round| {
            let at = segment(0, 8).addr.0;
            for index in 0..2 {
                let bits = if round % 2 == 0 { AVAIL } else { USED };
                let (low, high) = if format == RingFormat::Split { (0, 0) } else { (index, bits) };
                rig.raw_descriptors(index, &[(at, 8, low, high)]);
            }
            if format == RingFormat::Split {
                rig.raw_available(round * 2, &[0, 1]);
            }
            loop {
                match device.take(&mut resolver, &mut chain) {
                    Ok(Some(id)) => {
                        device.give_back(id, 0);
                        taken += 1;
                    }
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            }
        });
        assert!(refused && taken == 2, "{format:?}: {taken} taken");
    }
}

/// What the descriptors say is spoilt, by whoever else may write there: the chains in the record
/// and those behind go back to the driver all the same, and it is told once of each.
#[test]
fn chains_that_can_not_be_read_are_given_back_unread() {
    let rig = Rig::new(spec(RingFormat::Split, true));
    let mut driver = rig.driver(Some(area(4, 4)));
    let (mut resolver, mut chain) = (rig.resolver(), Chain::with_capacity(SIZE.into()));
    for context in 0..3 {
        driver.offer(&[segment(context, 1)], &[segment(context, 8)], context).unwrap();
    }
    driver.publish_available();
    let mut device = logged_device(&rig);
    device.take(&mut resolver, &mut chain).unwrap().expect("a chain").abandon();
    drop(device);
    rig.write(DriverAddress(TABLES), &[0xff; 4 * 4 * 16]);

    let mut device = logged_device(&rig);
    assert_eq!(device.to_take_again(), 1);
    for _ in 0..3 {
        device.take(&mut resolver, &mut chain).unwrap_err();
        let id = device.take_unread().unwrap().expect("a chain");
        device.give_back(id, 0);
    }
    assert!(device.take_unread().unwrap().is_none());
    device.publish_used();
    let mut used = Vec::new();
    while let Some(context) = driver.take_used().unwrap() {
        used.push(context);
    }
    assert_eq!(used, [(0, 0), (1, 0), (2, 0)]);
    drop(device);
    assert_eq!(logged_device(&rig).to_take_again(), 0);
}

/// A record in which two chains have the same id.
#[test]
fn one_id_for_two_chains_is_refused() {
    let rig = Rig::new(spec(RingFormat::Packed, false));
    let mut driver = rig.driver(None);
    for context in 0..2 {
        driver.offer(&[segment(context, 1)], &[], context).unwrap();
    }
    driver.publish_available();
    let (mut device, mut resolver) = (logged_device(&rig), rig.resolver());
    let mut chain = Chain::with_capacity(SIZE.into());
    for _ in 0..2 {
        device.take(&mut resolver, &mut chain).unwrap().expect("a chain").abandon();
    }
    // The ids of the first two entries (vhost-user, "Inflight I/O tracking").
    for entry in 0..2 {
        rig.write_u16(DriverAddress(POISON + LOG_AT as u64), 32 + 32 * entry + 16, 1);
    }
    let error = rig.device().attach_log(log(&rig)).unwrap_err();
    assert!(matches!(error, QueueError::BadInFlightLog(_)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the log says, attaching it is an error or leads to at most a ring of chains.
    #[test]
    fn a_log_of_nonsense_is_survived(
        is_packed in any::<bool>(),
        words in
            proptest::collection::vec((0..140usize, prop_oneof![0..20u16, any::<u16>()]), 0..80),
    ) {
        let format = if is_packed { RingFormat::Packed } else { RingFormat::Split };
        let rig = Rig::new(spec(format, true));
        let at = DriverAddress(POISON + LOG_AT as u64);
        for (offset, word) in words {
            rig.write_u16(at, 2 * offset as u64, word);
        }
        rig.write_u16(at, 8, 1);
        rig.write_u16(at, 10, SIZE);
        let mut device = rig.device();
        if device.attach_log(log(&rig)).is_ok() {
            prop_assert!(device.to_take_again() <= SIZE.into());
            let (mut resolver, mut chain) = (rig.resolver(), Chain::with_capacity(SIZE.into()));
            while let Ok(Some(id)) = device.take(&mut resolver, &mut chain) {
                device.give_back(id, 0);
                device.publish_used();
            }
        }
    }
}

/// Set for the device process: a path to the memory, the format, whether tables are used.
const CHILD: &str = "VIADUCT_TEST_DEVICE";

/// The device is killed at arbitrary moments, many times, and no chain is lost or used twice.
#[test]
fn killed_devices_lose_nothing() {
    if let Ok(arguments) = std::env::var(CHILD) {
        run_device(&arguments);
    }
    for (format, indirect) in ALL {
        let rig = Rig::new(spec(format, indirect));
        let mut driver = rig.driver(indirect.then(|| area(4, 4)));
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let (mut offered, mut done) = (0u64, Vec::new());
        for _ in 0..10 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut child = start_device(&rig);
            let goal = done.len() + 1 + (seed >> 20) as usize % 200;
            drive(&mut driver, &mut offered, &mut done, |done| done >= goal);
            // A moment that depends on nothing the device does.
            let moment = Instant::now() + Duration::from_nanos(seed % 20_000);
            drive(&mut driver, &mut offered, &mut done, |_| Instant::now() >= moment);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let mut child = start_device(&rig);
        let goal = offered as usize;
        while done.len() < goal {
            collect(&mut driver, &mut done);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(goal > 10);
        done.sort_unstable();
        assert_eq!(done, (0..offered).collect::<Vec<_>>(), "{format}, indirect {indirect}");
    }
}

/// Offers and collects until `enough`.
fn drive(
    driver: &mut DriverQueue<u64>,
    offered: &mut u64,
    done: &mut Vec<u64>,
    enough: impl Fn(usize) -> bool,
) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !enough(done.len()) {
        assert!(Instant::now() < deadline, "a chain was lost");
        let room = [segment(0, 8), segment(8, 8)];
        let writable = &room[..1 + (*offered % 2) as usize];
        while driver.offer(&[segment(*offered % 64, 1)], writable, *offered).is_ok() {
            *offered += 1;
        }
        driver.publish_available();
        collect(driver, done);
    }
}

fn collect(driver: &mut DriverQueue<u64>, done: &mut Vec<u64>) {
    while let Some((context, written)) = driver.take_used().expect("a device that keeps the rules")
    {
        assert_eq!(written, 5);
        done.push(context);
    }
    std::thread::yield_now();
}

fn start_device(rig: &Rig) -> Child {
    let fd = rig.mapping.file().unwrap().0.as_raw_fd();
    let indirect = if rig.spec.indirect { "indirect" } else { "direct" };
    let arguments = format!("/proc/{}/fd/{fd} {} {indirect}", std::process::id(), rig.spec.format);
    Command::new(std::env::current_exe().unwrap())
        .args(["killed_devices_lose_nothing", "--exact", "--nocapture"])
        .env(CHILD, arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A device that uses chains in an order of its own, several at a time, until it is killed.
fn run_device(arguments: &str) -> ! {
    let mut arguments = arguments.split(' ');
    let path = arguments.next().unwrap();
    let format = match arguments.next() {
        Some("packed") => RingFormat::Packed,
        _ => RingFormat::Split,
    };
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mapping = Mapping::of_file(file.into(), 0, REGION_BYTES).unwrap();
    let whole = Region::mapped(
        DriverAddress(POISON),
        REGION_BYTES as u64,
        Access::ReadWrite,
        Arc::clone(&mapping),
        0,
    );
    let map = Arc::new(MemoryMap::new(vec![whole.unwrap()]).unwrap());
    let rig = Rig { mapping, map, spec: spec(format, arguments.next() == Some("indirect")) };
    let mut device = logged_device(&rig);
    let (mut resolver, mut chain) = (rig.resolver(), Chain::with_capacity(SIZE.into()));
    let mut held: Vec<ChainId> = Vec::new();
    let mut round = std::process::id() as usize;
    let parent = std::os::unix::process::parent_id();
    // Ends with its parent, should that be killed first.
    while std::os::unix::process::parent_id() == parent {
        for _ in 0..1 + round % 4 {
            if let Some(id) = device.take(&mut resolver, &mut chain).unwrap() {
                held.push(id);
            }
        }
        for _ in 0..round % 3 {
            if !held.is_empty() {
                device.give_back(held.swap_remove(round % held.len()), 5);
            }
        }
        device.publish_used();
        round = round.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f) >> 7;
    }
    std::process::exit(0);
}

/// The tables of the tests' drivers lie in front of the log.
const _: () = assert!((TABLES - POISON) < LOG_AT as u64);
