//! A queue between two rigs, without threads.

use std::sync::Arc;

use bridge::{BridgeParts, Counters, Ends, Mover, RateLimits};
use mem::{AddressSpace, MemoryMap};
use sys::EventFd;
use virtio::{EventSink, Notifier};
use virtqueue::IndirectArea;

use crate::rig::Rig;

pub fn parts<M: Mover>(
    driver: &Rig,
    device: &Rig,
    tables: Option<IndirectArea>,
    mover: M,
    events: EventSink,
) -> BridgeParts<M> {
    let event = || Arc::new(EventFd::new().unwrap());
    let map = MemoryMap::clone(&driver.map);
    let space = Arc::new(AddressSpace::new(map));
    BridgeParts {
        ends: Ends {
            index: 0,
            name: "noise".into(),
            kick: Some(event()),
            call: Notifier::new(event()),
            device_kick: event(),
            device_call: event(),
            observer: None,
            counters: Arc::new(Counters::default()),
            events,
        },
        driver: driver.device(),
        memory: space.reader(),
        device: device.driver(tables),
        device_memory: Arc::clone(&device.map),
        mover,
        limits: RateLimits::default(),
    }
}
