//! Requests of all shapes through every mode, every pair of ring formats, with and without ring
//! features on either side.
#![allow(clippy::unwrap_used)]

mod rig;

use bridge::Mode;
use rig::{Bench, Case};
use virtio::Features;
use virtqueue::RingFormat;

/// Ring features of one side, by the bits of `which`.
fn features(which: u32) -> Features {
    let all = [Features::RING_PACKED, Features::EVENT_IDX, Features::INDIRECT_DESC];
    let chosen = all.iter().enumerate().filter(|(bit, _)| which >> bit & 1 == 1);
    chosen.fold(Features::NONE, |sum, (_, &feature)| sum | feature)
}

fn all_pairs(mode: Mode) {
    for driver in 0..8 {
        for device in 0..8 {
            let mut case = Case::new(mode);
            case.driver = features(driver);
            case.device = features(device);
            case.begin = 65530;
            let mut bench = Bench::new(&case);
            assert_eq!(bench.shadow.mode(), mode);
            bench.driver.run(400, |_| ());
            let counters = bench.shadow.counters()[0].snapshot();
            assert_eq!((counters.chains, counters.completions, counters.errors), (400, 400, 0));
            assert_eq!(counters.copied_bytes > 0, mode != Mode::Translate);
        }
    }
}

#[test]
fn translate_joins_all_rings() {
    all_pairs(Mode::Translate);
}

#[test]
fn copy_joins_all_rings() {
    all_pairs(Mode::Copy);
}

#[test]
fn either_format_is_shown_to_the_device_on_request() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let mut case = Case::new(Mode::Auto);
        case.device = features(7);
        case.driver = features(6);
        case.options.device_format = Some(format);
        let mut bench = Bench::new(&case);
        assert_eq!(bench.shadow.mode(), Mode::Translate);
        assert_eq!(bench.device.setup().spec.format, format);
        bench.driver.run(200, |_| ());
    }
}

#[test]
fn queues_of_all_sizes_work() {
    for (size, packed) in [(1, 0), (2, 0), (1024, 0), (1, 1), (3, 1), (100, 1), (1000, 1)] {
        for mode in [Mode::Translate, Mode::Copy] {
            let mut case = Case::new(mode);
            case.size = size;
            case.driver = features(packed);
            case.device = features(1);
            let mut bench = Bench::new(&case);
            bench.driver.max_segments = if size < 4 { 1 } else { 4 };
            if size == 1 {
                // One descriptor: readable only.
                bench.driver.max_bytes = 1;
            }
            bench.driver.run(300, |_| ());
        }
    }
}

#[test]
fn the_index_wraps() {
    let mut case = Case::new(Mode::Copy);
    case.size = 256;
    case.driver = features(2);
    let mut bench = Bench::new(&case);
    bench.driver.max_bytes = 64;
    bench.driver.run(70_000, |_| ());
    assert_eq!(bench.shadow.counters()[0].snapshot().completions, 70_000);
}

#[test]
fn order_is_kept_if_the_device_keeps_it() {
    for mode in [Mode::Translate, Mode::Copy] {
        for packed in [0, 1] {
            let mut case = Case::new(mode);
            case.device = features(packed) | Features::IN_ORDER;
            case.driver = features(1 - packed) | Features::IN_ORDER;
            let mut bench = Bench::new(&case);
            bench.driver.run(1000, |_| ());
        }
    }
}
