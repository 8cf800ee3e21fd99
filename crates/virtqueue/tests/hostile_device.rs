//! A hostile device against our driver side: nothing it writes makes us hand out a chain that it
//! did not have, hand one out twice, or panic. Row numbers as in `hostile_driver.rs`.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod rig;

use proptest::prelude::*;
use rig::raw::{AVAIL, USED, WRITE};
use rig::{Rig, area, plain, segment};
use virtqueue::{Chain, ChainId, DriverQueue, QueueError, QueueSpec, RingFormat};

/// A driver with `chains` chains in flight, each with 10 readable and 20 writable bytes.
fn target(spec: QueueSpec, chains: u32) -> (Rig, DriverQueue<u32>) {
    let rig = Rig::new(spec);
    let mut driver = rig.driver(None);
    for context in 0..chains {
        driver.offer(&[segment(0, 10)], &[segment(64, 20)], context).unwrap();
    }
    driver.publish_available();
    (rig, driver)
}

fn split(chains: u32) -> (Rig, DriverQueue<u32>) {
    target(plain(RingFormat::Split, 8), chains)
}

fn packed(chains: u32) -> (Rig, DriverQueue<u32>) {
    target(plain(RingFormat::Packed, 7), chains)
}

/// Used flags on the first lap.
const FIRST: u16 = AVAIL | USED | WRITE;

#[test]
fn row_94_ids_that_are_not_in_flight() {
    // 3 and 5 are in the middle of chains, 6 is free, the rest does not exist.
    for id in [1, 3, 5, 6, 8, 65535, 65536, u32::MAX] {
        let (rig, mut driver) = split(3);
        rig.raw_used(0, &[(id, 0)]);
        assert!(matches!(driver.take_used(), Err(QueueError::UsedNotInFlight(bad)) if bad == id));
        assert!(driver.take_used().is_err());
        assert_eq!(driver.in_flight(), 3);
        driver.drain(drop);
    }
    for id in [1, 3, 5, 6, 7, 65535] {
        let (rig, mut driver) = packed(3);
        rig.raw_descriptors(0, &[(0, 0, id, FIRST)]);
        let id = u32::from(id);
        assert!(matches!(driver.take_used(), Err(QueueError::UsedNotInFlight(bad)) if bad == id));
        assert_eq!(driver.in_flight(), 3);
        driver.drain(drop);
    }
}

#[test]
fn row_94_the_same_id_twice() {
    let (rig, mut driver) = split(3);
    rig.raw_used(0, &[(2, 20), (2, 20)]);
    assert_eq!(driver.take_used().unwrap(), Some((1, 20)));
    assert!(matches!(driver.take_used(), Err(QueueError::UsedNotInFlight(2))));
    driver.drain(drop);
    let (rig, mut driver) = packed(3);
    rig.raw_descriptors(0, &[(0, 20, 2, FIRST)]);
    rig.raw_descriptors(2, &[(0, 20, 2, FIRST)]);
    assert_eq!(driver.take_used().unwrap(), Some((1, 20)));
    assert!(matches!(driver.take_used(), Err(QueueError::UsedNotInFlight(2))));
    driver.drain(drop);
}

#[test]
fn row_95_more_written_than_there_is_room() {
    for len in [21, u32::MAX] {
        let (rig, mut driver) = split(1);
        rig.raw_used(0, &[(0, len)]);
        let error = driver.take_used().unwrap_err();
        assert!(matches!(error, QueueError::UsedTooLong { writable: 20, .. }));
        driver.drain(drop);
        let (rig, mut driver) = packed(1);
        rig.raw_descriptors(0, &[(0, len, 0, FIRST)]);
        let error = driver.take_used().unwrap_err();
        assert!(matches!(error, QueueError::UsedTooLong { writable: 20, .. }));
        driver.drain(drop);
        // Without WRITE the length is reserved: devices leave there what they like.
        let (rig, mut driver) = packed(1);
        rig.raw_descriptors(0, &[(0, len, 0, AVAIL | USED)]);
        assert_eq!(driver.take_used().unwrap(), Some((0, 0)));
        // And some never set WRITE.
        let (rig, mut driver) = packed(1);
        rig.raw_descriptors(0, &[(0, 20, 0, AVAIL | USED)]);
        assert_eq!(driver.take_used().unwrap(), Some((0, 20)));
    }
}

#[test]
fn row_95_a_length_where_nothing_can_be_written_says_nothing() {
    for in_order in [false, true] {
        for format in [RingFormat::Split, RingFormat::Packed] {
            let mut spec = plain(format, 8);
            spec.in_order = in_order;
            let rig = Rig::new(spec);
            let mut driver = rig.driver(None);
            driver.offer(&[segment(0, 10)], &[], 7).unwrap();
            driver.publish_available();
            match format {
                RingFormat::Split => rig.raw_used(0, &[(0, 10)]),
                RingFormat::Packed => rig.raw_descriptors(0, &[(0, 10, 0, FIRST)]),
            }
            assert_eq!(driver.take_used().unwrap(), Some((7, 0)), "{format}, {in_order}");
        }
    }
}

#[test]
fn row_96_the_used_index_jumps_or_goes_back() {
    for index in [4, 8, 32768, 65535] {
        let (rig, mut driver) = split(3);
        rig.write_u16(rig.spec.addresses.device, 2, index);
        assert!(driver.has_used());
        let error = driver.take_used().unwrap_err();
        assert!(matches!(error, QueueError::UsedIndexJumped { in_flight: 3, .. }), "{error:?}");
        driver.drain(drop);
    }
    // Nothing in flight, something used.
    let (rig, mut driver) = packed(0);
    rig.raw_descriptors(0, &[(0, 0, 0, FIRST)]);
    assert!(matches!(driver.take_used(), Err(QueueError::UsedNotInFlight(0))));
}

#[test]
fn an_in_order_batch_beyond_the_used_index() {
    let mut spec = plain(RingFormat::Split, 8);
    spec.in_order = true;
    let (rig, mut driver) = target(spec, 3);
    rig.raw_used(0, &[(4, 20)]);
    assert!(matches!(driver.take_used(), Err(QueueError::UsedOutOfOrder(4))));
    driver.drain(drop);
}

#[test]
fn a_batch_is_one_element_in_the_place_of_its_first() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let mut spec = plain(format, 16);
        spec.in_order = true;
        let (rig, mut driver) = target(spec, 5);
        let (mut device, mut resolver) = (rig.device(), rig.resolver());
        let mut chain = Chain::with_capacity(16);
        let mut ids = Vec::new();
        while let Some(id) = device.take(&mut resolver, &mut chain).unwrap() {
            ids.push(Some(id));
        }
        // 2 is partly written, so it ends a batch; 4 is given back last.
        for (which, written) in [(1, 20), (3, 20), (2, 7), (0, 20), (4, 3)] {
            device.give_back(ids[which].take().unwrap(), written);
        }
        device.publish_used();
        // The first chain's element is overwritten by that of the batch it belongs to.
        let (id, len) = match format {
            RingFormat::Split => rig.read_used(0),
            RingFormat::Packed => (rig.read_packed(0).1.into(), rig.read_packed(0).0),
        };
        assert_eq!((id, len), (4, 7), "{format}");
        let used: Vec<_> = std::iter::from_fn(|| driver.take_used().unwrap()).collect();
        assert_eq!(used, [(0, 20), (1, 20), (2, 7), (3, 20), (4, 3)]);
    }
}

/// After the device broke a rule, all that was in flight is offered to the next one, from private
/// copies: what the device wrote over the descriptors does not matter.
#[test]
fn a_restart_uses_nothing_the_device_wrote() {
    for (format, indirect) in [
        (RingFormat::Split, false),
        (RingFormat::Split, true),
        (RingFormat::Packed, false),
        (RingFormat::Packed, true),
    ] {
        let mut spec = plain(format, 8);
        spec.indirect = indirect;
        let rig = Rig::new(spec);
        let mut driver = rig.driver(Some(area(2, 4)));
        for context in 0..3 {
            driver.offer(&[segment(context, 10)], &[segment(64 + context, 20)], context).unwrap();
        }
        driver.publish_available();
        let rubbish = vec![0xa5; rig::REGION_BYTES / 2];
        rig.write(mem::DriverAddress(rig::POISON), &rubbish);
        assert!(driver.take_used().is_err());
        let mut smaller = rig.spec.clone();
        smaller.size = 2;
        let error = driver.restart(&rig.map, &smaller, None).unwrap_err();
        assert!(matches!(error, QueueError::RestartTooSmall));
        driver.restart(&rig.map, &rig.spec, Some(area(2, 4))).unwrap();
        let (mut device, mut resolver) = (rig.device(), rig.resolver());
        let mut chain = Chain::with_capacity(8);
        for context in 0..3 {
            let id = device.take(&mut resolver, &mut chain).unwrap().expect("offered again");
            assert_eq!(chain.readable(), [segment(context, 10)]);
            assert_eq!(chain.writable(), [segment(64 + context, 20)]);
            device.give_back(id, context as u32);
        }
        device.publish_used();
        let used: Vec<_> = std::iter::from_fn(|| driver.take_used().unwrap()).collect();
        assert_eq!(used, [(0, 0), (1, 1), (2, 2)]);
    }
}

#[test]
fn drain_hands_back_everything_in_order() {
    let (rig, mut driver) = split(2);
    rig.raw_used(0, &[(0, 0)]);
    assert_eq!(driver.take_used().unwrap(), Some((0, 0)));
    driver.offer(&[segment(0, 1)], &[], 7).unwrap();
    driver.offer(&[segment(0, 1)], &[], 8).unwrap();
    let mut contexts = Vec::new();
    driver.drain(|context| contexts.push(context));
    assert_eq!(contexts, [1, 7, 8]);
    assert_eq!(driver.in_flight(), 0);
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "was dropped without being given back"))]
fn a_forgotten_chain_is_noticed() {
    let (rig, _driver) = split(1);
    let (mut device, mut chain) = (rig.device(), Chain::with_capacity(8));
    let before = virtqueue::lost_chains();
    drop(device.take(&mut rig.resolver(), &mut chain).unwrap());
    assert_eq!(virtqueue::lost_chains(), before + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Row 104: every shared word at random, between any two steps of both sides. No panic; no
    /// context twice; what is taken is bounded.
    #[test]
    fn row_104_every_word_at_random(
        is_packed in any::<bool>(),
        features in any::<(bool, bool, bool)>(),
        scribbles in proptest::collection::vec((0..400usize, any::<[u8; 4]>(), 0..6u8), 1..300),
    ) {
        let format = if is_packed { RingFormat::Packed } else { RingFormat::Split };
        let mut spec = plain(format, 8);
        (spec.indirect, spec.event_idx, spec.in_order) = features;
        let rig = Rig::new(spec);
        let mut driver = rig.driver(Some(area(2, 3)));
        let (mut device, mut resolver) = (rig.device(), rig.resolver());
        let mut chain = Chain::with_capacity(8);
        let mut held: Vec<ChainId> = Vec::new();
        let (mut next, mut back) = (0u32, vec![false; scribbles.len()]);
        for (at, mut bytes, step) in scribbles {
            if bytes[0] & 1 == 0 {
                // Small numbers reach deeper than random ones.
                bytes = [bytes[0] % 10, bytes[1] & 0x80, bytes[2] & 7, bytes[3] & 0x80];
            }
            rig.write(mem::DriverAddress(rig::POISON + at as u64), &bytes);
            match step {
                0 => {
                    let two = [segment(0, 1), segment(1, 1)];
                    next += u32::from(driver.offer(&two, &[], next).is_ok());
                    driver.publish_available();
                    let _kick = driver.wants_kick();
                }
                1 => if let Ok(Some((context, written))) = driver.take_used() {
                    prop_assert_eq!(written, 0);
                    prop_assert!(!std::mem::replace(&mut back[context as usize], true));
                },
                2 => if let Ok(Some(id)) = device.take(&mut resolver, &mut chain) {
                    prop_assert!(held.iter().all(|other| *other != id));
                    prop_assert!(chain.readable().len() + chain.writable().len() <= 8);
                    held.push(id);
                },
                3 => if let Some(id) = held.pop() {
                    device.give_back(id, 0);
                    device.publish_used();
                    let _interrupt = device.wants_interrupt();
                },
                4 => {
                    let _ = (device.arm_kick(), driver.arm_interrupt());
                }
                _ => {
                    device.disarm_kick();
                    driver.disarm_interrupt();
                }
            }
        }
        held.into_iter().for_each(ChainId::abandon);
        driver.drain(drop);
    }
}
