//! A queue between two rigs, without threads.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bridge::{
    BridgeParts, Counters, Ends, Mover, PoolPlace, QueueBridge, RateLimits, RemoteParts,
    RemoteQueue,
};
use mem::{AddressSpace, MemoryMap};
use sys::EventFd;
use virtio::{EventSink, Notifier};
use virtqueue::IndirectArea;

use super::link::NoisyLink;
use crate::rig::Rig;

/// What a queue is put between.
pub struct Sides<'a> {
    pub driver: &'a Rig,
    pub device: &'a Rig,
    pub tables: Option<IndirectArea>,
    pub kick: Arc<EventFd>,
    pub events: EventSink,
}

impl Sides<'_> {
    pub fn bridge<M: Mover>(self, mover: M) -> QueueBridge<M> {
        let space = Arc::new(AddressSpace::new(MemoryMap::clone(&self.driver.map)));
        QueueBridge::new(BridgeParts {
            driver: self.driver.device(),
            memory: space.reader(),
            device: self.device.driver(self.tables),
            device_memory: Arc::clone(&self.device.map),
            mover,
            limits: RateLimits::default(),
            ends: self.ends(),
        })
    }

    /// A queue whose driver is behind a link.
    pub fn far(
        self,
        pool: PoolPlace,
        noise: &mut Unstructured,
    ) -> Result<(RemoteQueue, NoisyLink)> {
        let link = NoisyLink::new(&self.driver.map, noise.int_in_range(1..=70)?);
        let space = Arc::new(AddressSpace::new(link.shown(noise.arbitrary()?)));
        let queue = RemoteQueue::new(RemoteParts {
            spec: self.driver.spec.clone(),
            memory: space.reader(),
            device: self.device.driver(self.tables),
            device_memory: Arc::clone(&self.device.map),
            pool,
            limits: RateLimits::default(),
            ends: self.ends(),
        });
        Ok((queue.expect("rings that keep the rules"), link))
    }

    fn ends(self) -> Ends {
        let event = || Arc::new(EventFd::new().unwrap());
        Ends {
            index: 0,
            name: "noise".into(),
            kick: Some(self.kick),
            call: Notifier::new(event()),
            device_kick: event(),
            device_call: event(),
            observer: None,
            counters: Arc::new(Counters::default()),
            events: self.events,
        }
    }
}
