//! Rings that change while we look at them, or lie on top of each other. Row numbers as in
//! `hostile_driver.rs`.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rig::raw::{AVAIL, INDIRECT, NEXT, USED, WRITE};
use rig::{DATA, Rig, TABLES, plain};
use virtqueue::{Chain, ChainId, QueuePosition, RingFormat, Segment};

/// Row 30: the device writes used elements over the descriptors it reads. Nothing breaks but the
/// driver's own ring.
#[test]
fn row_30_rings_that_overlap() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let mut spec = plain(format, 8);
        spec.addresses.device = spec.addresses.descriptor;
        spec.addresses.driver = spec.addresses.descriptor;
        let rig = Rig::new(spec);
        let (mut device, mut resolver) = (rig.device(), rig.resolver());
        let mut chain = Chain::with_capacity(8);
        for round in 0..1000u16 {
            rig.raw_descriptors(round % 8, &[(DATA, 1, round % 8, AVAIL | USED >> (round % 9))]);
            rig.raw_available_index(round);
            if let Ok(Some(id)) = device.take(&mut resolver, &mut chain) {
                device.give_back(id, 0);
            }
            device.publish_used();
            let _wanted = device.wants_interrupt();
        }
    }
}

/// Row 31: another thread rewrites the rings all the time. Whatever a take returns must hold
/// together: bounded, in order, no id twice, lengths that add up.
#[test]
fn row_31_everything_changes_while_it_is_read() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let mut spec = plain(format, 8);
        spec.indirect = true;
        let rig = Rig::new(spec);
        let (mut device, mut resolver) = (rig.device(), rig.resolver());
        let mut chain = Chain::with_capacity(8);
        let position = AtomicU32::new(device.position().0);
        let (stop, flips) = (AtomicBool::new(false), AtomicU32::new(0));
        let (map, spec) = (rig.map.clone(), rig.spec.clone());
        let mut taken = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| flip(&Rig { map, ..Rig::new(spec) }, &position, &flips, &stop));
            let mut held: Vec<ChainId> = Vec::new();
            while taken < 500 || flips.load(Ordering::Relaxed) < 20_000 {
                if let Ok(Some(id)) = device.take(&mut resolver, &mut chain) {
                    check_whole(&chain);
                    assert!(held.iter().all(|other| *other != id));
                    held.push(id);
                    taken += 1;
                }
                if held.len() > 6 {
                    device.give_back(held.swap_remove(taken % held.len()), 0);
                    device.publish_used();
                }
                position.store(device.position().0, Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
            held.into_iter().for_each(ChainId::abandon);
        });
    }
}

fn check_whole(chain: &Chain) {
    let (readable, writable) = (chain.readable(), chain.writable());
    assert!((1..=8).contains(&(readable.len() + writable.len())));
    let sum = |part: &[Segment]| part.iter().map(|s| u64::from(s.len)).sum::<u64>();
    assert_eq!(sum(readable), chain.readable_len());
    assert_eq!(sum(writable), chain.writable_len());
}

/// Writes plausible nonsense around the device's position until told to stop.
fn flip(rig: &Rig, position: &AtomicU32, flips: &AtomicU32, stop: &AtomicBool) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    while !stop.load(Ordering::Relaxed) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let here = QueuePosition(position.load(Ordering::Relaxed));
        let flags = (seed >> 24) as u16 & (NEXT | WRITE | INDIRECT | AVAIL | USED);
        let index = (seed >> 40) as u16 % 9;
        let addr = if flags & INDIRECT != 0 { TABLES } else { DATA };
        let raw = match rig.spec.format {
            RingFormat::Split => (addr, 16, flags, index),
            RingFormat::Packed => (addr, 16, index, flags),
        };
        rig.raw_table(TABLES, &[raw]);
        match rig.spec.format {
            RingFormat::Split => {
                rig.raw_descriptors((seed >> 50) as u16 % 8, &[raw]);
                rig.raw_available(here.index().wrapping_add((seed >> 60) as u16), &[index]);
            }
            RingFormat::Packed => rig.raw_descriptors(here.available().index, &[raw]),
        }
        flips.fetch_add(1, Ordering::Relaxed);
    }
}

/// Row 42: whatever the event words say, the queue works; a wrong wish costs a notification.
#[test]
fn row_42_event_words_at_random() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let mut spec = plain(format, 8);
        spec.event_idx = true;
        let rig = Rig::new(spec);
        let (mut driver, mut device) = (rig.driver::<u16>(None), rig.device());
        let (mut resolver, mut chain) = (rig.resolver(), Chain::with_capacity(8));
        let addresses = rig.spec.addresses;
        for n in 0..2000u16 {
            let lie = n.wrapping_mul(40503) ^ n << 7;
            let (used_event, avail_event) = match format {
                RingFormat::Split => (4 + 2 * 8, 4 + 8 * 8),
                RingFormat::Packed => (0, 0),
            };
            rig.write_u16(addresses.driver, used_event, lie);
            rig.write_u16(addresses.device, avail_event, lie);
            if format == RingFormat::Packed {
                rig.write_u16(addresses.driver, 2, lie >> 3);
                rig.write_u16(addresses.device, 2, lie >> 5);
            }
            driver.offer(&[rig::segment(0, 1)], &[], n).unwrap();
            driver.publish_available();
            let _kick = driver.wants_kick();
            let id = device.take(&mut resolver, &mut chain).unwrap().unwrap();
            device.give_back(id, 0);
            device.publish_used();
            let _interrupt = device.wants_interrupt();
            assert_eq!(driver.take_used().unwrap(), Some((n, 0)));
        }
    }
}
