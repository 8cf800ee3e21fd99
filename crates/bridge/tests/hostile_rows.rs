//! Odd but legal requests through the shadow. The row numbers are those of `docs/adversarial.md`.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bridge::Mode;
use mem::DriverAddress;
use rig::guest::{DATA, DATA_BYTES, Guest};
use rig::{Bench, Case, pattern};
use virtio::{DeviceEvent, Features, VirtioDevice};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Where two regions touch for the driver, and not for us.
const BORDER: u64 = DATA + DATA_BYTES / 2;
const SEED: u32 = 77;
/// Bytes of the header, which says how many bytes are wanted and which pattern follows.
const HEADER: usize = 8;
const LEN: usize = 200;

/// One request: `LEN` bytes at `readable`, as many wanted at `writable`.
fn request(mode: Mode, readable: u64, writable: u64) {
    let mut case = Case::new(mode);
    case.size = 8;
    case.driver = Features::NONE;
    let mut bench = Bench::new(&case);
    let map = Arc::clone(&bench.guest.own);
    let mut bytes = (LEN as u32).to_le_bytes().to_vec();
    bytes.extend(SEED.to_le_bytes());
    bytes.extend((0..LEN - HEADER).map(|at| pattern(SEED, at)));
    map.write(DriverAddress(readable), &bytes).unwrap();
    let mut table = Vec::new();
    for (addr, flags) in [(readable, NEXT), (writable, WRITE)] {
        table.extend(addr.to_le_bytes());
        table.extend((LEN as u32).to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend(1u16.to_le_bytes());
    }
    let at = bench.driver.spec.addresses;
    map.write(at.descriptor, &table).unwrap();
    map.write(DriverAddress(at.driver.0 + 2), &1u16.to_le_bytes()).unwrap();
    bench.driver.kick.signal();
    bench.driver.wait(rig::LIMIT);
    let mut used = [0; 12];
    map.read(DriverAddress(at.device.0 + 2), &mut used[..10]).unwrap();
    assert_eq!((used[0], used[6]), (1, LEN as u8), "{mode}: the index, and the length used");
    // The device has compared what it read.
    assert_eq!(bench.device.shared.requests.load(Ordering::SeqCst), 1);
    let mut answer = [0; LEN];
    map.read(DriverAddress(writable), &mut answer).unwrap();
    assert!((0..LEN).all(|at| answer[at] == pattern(!SEED, at)), "{mode}: {answer:x?}");
}

#[test]
fn row_12_buffers_across_two_regions() {
    for mode in [Mode::Translate, Mode::Copy] {
        for before in [1, 100, LEN as u64 - 1] {
            request(mode, BORDER - before, DATA);
            request(mode, DATA, BORDER - before);
        }
    }
}

#[test]
fn row_21_odd_addresses() {
    for mode in [Mode::Translate, Mode::Copy] {
        for odd in [1, 2, 3, 5, 7] {
            request(mode, DATA + odd, DATA + 4096 - odd);
        }
    }
}

/// Cuts one of the files that the driver's memory is while requests wait to be seen, and expects
/// the queue to be broken for that reason, and the device to have seen nothing.
fn cut(case: &Case, which: usize) {
    let (guest, files) = Guest::on_files();
    let mut bench = Bench::with_guest(case, guest);
    bench.driver.forget_slots_from(DATA + DATA_BYTES / 2);
    bench.driver.run(200, |_| ());
    let seen = bench.device.shared.requests.load(Ordering::SeqCst);
    let mode = bench.shadow.mode();
    for _ in 0..4 {
        assert!(bench.driver.offer());
    }
    bench.driver.queue.publish_available();
    files[which].set_len(0).unwrap();
    bench.driver.kick.signal();
    let events = bench.events();
    let [DeviceEvent::QueueBroken { index: 0, reason }] = &events[..] else { panic!("{events:?}") };
    assert!(reason.contains("was cut short"), "{mode}: {reason}");
    assert_eq!(bench.device.shared.requests.load(Ordering::SeqCst), seen, "{mode}: file {which}");
    // The same memory is no better after a reset.
    bench.shadow.reset().unwrap();
    bench.shadow.set_memory(&bench.guest.space).unwrap();
    bench.shadow.accept_features(bench.features).unwrap();
    bench.driver.kick.signal();
    bench.start();
    let events = bench.events();
    assert!(
        matches!(&events[..], [DeviceEvent::QueueBroken { reason, .. }]
        if reason.contains("was cut short")),
        "{events:?}"
    );
    // And other memory is as good as ever.
    bench.guest = Guest::new(false);
    bench.begin_again(case);
    bench.driver.run(200, |_| ());
}

#[test]
fn row_92_memory_cut_while_it_is_used() {
    for packed in [Features::NONE, Features::RING_PACKED] {
        for (mode, which) in [(Mode::Translate, 0), (Mode::Copy, 0), (Mode::Copy, 1)] {
            let mut case = Case::new(mode);
            case.driver = packed;
            cut(&case, which);
        }
    }
}
