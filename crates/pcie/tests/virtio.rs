//! A virtio device behind the service, driven by a driver of our own over the socket.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use driver::{Access, GuestMemory, PciDevice, Queue, QueueWish};
use pcie::virtio_pci::VirtioPciOptions;
use support::pattern::pattern;
use support::{Pattern, Served};
use virtio::Features;
use virtqueue::Segment;

const LIMIT: Duration = Duration::from_secs(5);

fn fill_buffers(packed: bool) {
    let device = Pattern::new();
    let seen = device.seen();
    let served = Served::virtio(device, VirtioPciOptions::default());
    let mut memory = GuestMemory::new(1 << 20).unwrap();
    let connection = sys::connect_unix(&served.path).unwrap();
    let mut pci = PciDevice::new(connection, &memory, true).unwrap();
    pci.reset().unwrap();
    let offered = pci.features().unwrap();
    assert!(offered.has(Features::RING_RESET | Features::ACCESS_PLATFORM));
    let format = if packed { Features::RING_PACKED } else { Features::NONE };
    let features = Features::VERSION_1 | Features::EVENT_IDX | Features::ACCESS_PLATFORM | format;
    pci.accept(features).unwrap();
    assert_eq!(*seen.features.lock().unwrap(), features - Features::ACCESS_PLATFORM);
    let wish = QueueWish { index: 0, size: 16, features };
    let mut queue: Queue<u32> = Queue::start(&mut pci, &mut memory, wish).unwrap();
    pci.go().unwrap();
    assert_eq!(seen.started.load(Ordering::SeqCst), 1);
    for round in 0..100 {
        let buffer = memory.allocate(100, 64).unwrap();
        let segment = Segment { addr: buffer.address, len: 100 };
        queue.offer(&[], &[segment], round).unwrap();
        queue.publish();
        queue.wait(LIMIT).unwrap();
        assert_eq!(queue.take_used().unwrap(), Some((round, 100)));
        let mut bytes = [0; 100];
        memory.span(buffer).copy_to(&mut bytes);
        assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == pattern(n)));
    }
    pci.reset().unwrap();
    assert_eq!(seen.stopped.load(Ordering::SeqCst), 1);
}

#[test]
fn a_driver_uses_a_split_queue() {
    fill_buffers(false);
}

#[test]
fn a_driver_uses_a_packed_queue() {
    fill_buffers(true);
}
