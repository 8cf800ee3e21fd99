//! Requests that were in flight when the device's process was killed are done by the next one.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::Arc;

use mem::{Mapping, Resolver};
use rig::Rig;
use virtio::{Features, InFlightArea};
use virtqueue::{Chain, DeviceQueue, DriverQueue, InFlightLog, RingFormat};

const SIZE: u16 = 16;

#[test]
fn a_disk_goes_on_where_its_predecessor_was_killed() {
    for features in [Features::VERSION_1, Features::VERSION_1 | Features::RING_PACKED] {
        let mut rig = Rig::open("blk", &[("ram", "8192")], features);
        let mapping = Mapping::new_memfd("inflight", 65536).unwrap();
        let area = InFlightArea { mapping: Arc::clone(&mapping), queues: 1, queue_size: SIZE };
        rig.in_flight = Some(Arc::new(area));
        let spec = rig.spec(SIZE);
        let ring = DriverQueue::new(&rig.space.current(), &spec, None).unwrap();
        let mut queue = rig::Queue::new(ring, spec.clone());
        for sector in 0..4u64 {
            let mut request = 1u32.to_le_bytes().to_vec();
            request.extend([0; 4]);
            request.extend(sector.to_le_bytes());
            request.extend([sector as u8 + 1; 512]);
            let readable = rig.scatter(&request, 600);
            let writable = rig.scatter(&[0xee], 1);
            queue.offer(&readable, &writable, sector);
        }
        queue.publish();
        // The predecessor takes two of the four and answers neither.
        let mut resolver = Resolver::new(rig.space.current());
        let mut dead = DeviceQueue::new(&rig.space.current(), &spec).unwrap();
        let log = InFlightLog::new(&mapping, 0, spec.format, SIZE).unwrap();
        dead.attach_log(log).unwrap();
        let mut chain = Chain::with_capacity(usize::from(SIZE));
        for _ in 0..2 {
            dead.take(&mut resolver, &mut chain).unwrap().unwrap().abandon();
        }
        drop(dead);
        rig.start(0, &queue);
        let mut done: Vec<u64> = (0..4).map(|_| queue.wait().0).collect();
        done.sort_unstable();
        assert_eq!(done, [0, 1, 2, 3]);
        for sector in 0..4u64 {
            let mut request = vec![0; 8];
            request.extend(sector.to_le_bytes());
            let (answer, _) = rig.ask(&mut queue, &request, 513, 513);
            assert_eq!(answer[..512], [sector as u8 + 1; 512]);
        }
        assert_eq!(spec.format == RingFormat::Packed, features.has(Features::RING_PACKED));
    }
}
