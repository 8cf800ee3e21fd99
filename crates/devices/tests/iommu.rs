//! Addresses that have no translation yet are asked for, and requests wait for the answer.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::mpsc::{Receiver, channel};

use mem::{DriverAddress, MemoryMap, Region};
use rig::{LIMIT, POISON, REGION, Rig};
use virtio::Features;
use virtqueue::{DriverQueue, Segment};

/// A disk whose driver has an IOMMU with nothing mapped; the regions to map, and the misses.
fn bare(features: Features) -> (Rig, Vec<Region>, Receiver<u64>) {
    let rig = Rig::open("blk", &[("ram", "8192")], features);
    let regions = rig.space.current().regions().to_vec();
    let (send, misses) = channel();
    rig.space.set_miss_handler(move |at, _| {
        let _ = send.send(at.0);
    });
    (rig, regions, misses)
}

fn map(rig: &mut Rig, regions: &[Region]) {
    rig.space.replace(MemoryMap::new(regions.to_vec()).unwrap().translated());
    rig.device.memory_changed().unwrap();
}

#[test]
fn rings_and_buffers_are_translated_when_they_are_needed() {
    for features in [Features::VERSION_1, Features::VERSION_1 | Features::RING_PACKED] {
        let (mut rig, regions, misses) = bare(features);
        let spec = rig.spec(16);
        let ring = DriverQueue::new(&rig.space.current(), &spec, None).unwrap();
        let mut queue = rig::Queue::new(ring, spec.clone());
        let header = rig.scatter(&[0; 16], 16);
        let data = Segment { addr: DriverAddress(POISON + REGION + 5), len: 513 };
        map(&mut rig, &[]);
        rig.start(0, &queue);
        let missed = misses.recv_timeout(LIMIT).unwrap();
        let areas = [spec.addresses.descriptor, spec.addresses.driver, spec.addresses.device];
        assert!(areas.contains(&DriverAddress(missed)), "{missed:#x}");
        map(&mut rig, &regions[..1]);
        queue.offer(&header, &[data], 1);
        queue.publish();
        assert_eq!(misses.recv_timeout(LIMIT).unwrap(), data.addr.0);
        assert!(!queue.ring.has_used());
        map(&mut rig, &regions);
        assert_eq!(queue.wait(), (1, 513));
        assert_eq!(rig.get(data.addr, 513), [0; 513]);
        // Unmapped again: the queue waits once more, and goes on where it was.
        map(&mut rig, &regions[..1]);
        queue.offer(&header, &[data], 2);
        queue.publish();
        assert_eq!(misses.recv_timeout(LIMIT).unwrap(), data.addr.0);
        map(&mut rig, &regions);
        assert_eq!(queue.wait(), (2, 513));
        assert!(misses.try_recv().is_err(), "each miss is reported once");
    }
}
