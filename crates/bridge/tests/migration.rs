//! What the device writes into a driver's memory during a migration is in the dirty log.
#![allow(clippy::unwrap_used)]

mod rig;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bridge::{Mode, Observer};
use mem::{DirtyLog, Mapping};
use rig::guest::{DATA, DATA_BYTES, POISON};
use rig::{Bench, Case};
use virtio::{Features, VirtioDevice};
use virtqueue::{RingFormat, Segment};

const PAGE: u64 = 4096;

/// Pages that the device may write, as translate mode shows them to it.
#[derive(Default)]
struct Writable(Mutex<BTreeSet<u64>>);

impl Observer for Writable {
    fn outbound(&self, _: u16, _: u16, _: &[Segment], writable: &[Segment]) {
        let mut pages = self.0.lock().unwrap();
        for segment in writable.iter().filter(|segment| segment.len > 0) {
            let last = segment.addr.0 + u64::from(segment.len) - 1;
            pages.extend(segment.addr.0 / PAGE..=last / PAGE);
        }
    }
}

/// A log for all of a guest's memory.
fn log() -> (Arc<Mapping>, Arc<DirtyLog>) {
    let pages = (DATA + DATA_BYTES) / PAGE;
    let mapping = Mapping::new_memfd("log", pages.div_ceil(8) as usize).unwrap();
    let log = DirtyLog::new(&mapping).unwrap();
    (mapping, log)
}

fn marked(log: &Arc<Mapping>) -> BTreeSet<u64> {
    let mut bytes = vec![0; log.len()];
    mem::Span::of_mapping(log, 0, log.len()).unwrap().copy_to(&mut bytes);
    let pages = (0..bytes.len() as u64 * 8).filter(|page| {
        let byte = bytes[(page / 8) as usize];
        byte & 1 << (page % 8) != 0
    });
    pages.collect()
}

/// What a driver end does when the log comes or goes while a queue runs.
fn switch(bench: &mut Bench, log: Option<Arc<DirtyLog>>) {
    bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
    bench.guest.space.set_dirty_log(log);
    bench.shadow.memory_changed().unwrap();
    bench.start();
}

fn ring_pages(bench: &Bench) -> BTreeSet<u64> {
    let spec = &bench.driver.spec;
    let layout = virtqueue::ring_layout(spec.format, spec.size);
    let mut areas = vec![(spec.addresses.device.0, layout.device_bytes)];
    if spec.format == RingFormat::Packed {
        areas.push((spec.addresses.descriptor.0, layout.descriptor_bytes));
    }
    let pages = areas.iter().flat_map(|(at, len)| at / PAGE..=(at + *len as u64 - 1) / PAGE);
    pages.collect()
}

#[test]
fn every_page_that_is_written_is_marked_and_no_other() {
    for driver in [Features::NONE, Features::RING_PACKED | Features::INDIRECT_DESC] {
        let writable = Arc::new(Writable::default());
        let mut case = Case::new(Mode::Translate);
        case.driver = driver;
        case.options.observer = Some(Arc::clone(&writable) as Arc<dyn Observer>);
        let mut bench = Bench::new(&case);
        bench.driver.run(50, |_| ());
        let (mapping, log) = log();
        switch(&mut bench, Some(log));
        writable.0.lock().unwrap().clear();
        bench.driver.run(50, |_| ());
        let rings = ring_pages(&bench);
        // Ends the queue, so that nothing is marked while it is looked at.
        switch(&mut bench, None);
        let expected: BTreeSet<u64> = writable.0.lock().unwrap().union(&rings).copied().collect();
        let marked = marked(&mapping);
        assert!(marked.iter().any(|&page| page >= DATA / PAGE));
        assert_eq!(marked, expected);
        bench.driver.run(50, |_| ());
        assert_eq!(self::marked(&mapping), expected, "a log that was taken away");
    }
}

#[test]
fn what_reaches_the_driver_is_marked_when_nobody_watches() {
    let modes = [Mode::Copy, Mode::Translate];
    for (mode, driver) in
        modes.into_iter().flat_map(|mode| [(mode, Features::NONE), (mode, Features::RING_PACKED)])
    {
        let mut case = Case::new(mode);
        case.driver = driver;
        let mut bench = Bench::new(&case);
        bench.driver.run(50, |_| ());
        let before = bench.shadow.counters()[0].snapshot().bytes_in;
        let (mapping, log) = log();
        switch(&mut bench, Some(log));
        bench.driver.run(50, |_| ());
        let bytes = bench.shadow.counters()[0].snapshot().bytes_in - before;
        let rings = ring_pages(&bench);
        switch(&mut bench, None);
        let marked = marked(&mapping);
        assert!(marked.is_superset(&rings));
        let data = marked.iter().filter(|&&page| page >= DATA / PAGE).count() as u64;
        // A page holds 4096 bytes, and buffers begin and end within pages.
        assert!(data * PAGE >= bytes / 2 && data > 10, "{data} pages for {bytes} bytes");
        assert!(marked.iter().all(|&page| page >= POISON / PAGE));
    }
}
