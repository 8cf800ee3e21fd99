//! The queues of a device: how the driver set them up, and its interrupts.

use std::io;
use std::sync::{Arc, Weak};

use mem::{AddressSpace, DriverAddress, MemoryMap};
use sys::{Epoll, EventFd, Interest, VduseDevice, VduseQueueInfo};
use virtio::{DeviceError, Features, InFlightArea, Interrupt, Notifier, QueueSetup, VirtioDevice};
use virtqueue::{PackedPoint, QueueAddresses, QueuePosition, QueueSpec, RingFormat};

/// A queue that the device has, or will have when it is back.
#[derive(Debug)]
struct Queue {
    setup: QueueSetup,
    call: Arc<EventFd>,
    /// The device has it.
    running: bool,
    /// The driver is to be interrupted, and the kernel did not take it yet.
    due: bool,
}

/// The interrupt as whoever in this process works on the queue makes it: at once, and not by way of
/// the control thread. Weak, since a queue that is forgotten must not keep the node open.
#[derive(Debug)]
struct Direct {
    node: Weak<VduseDevice>,
    index: u32,
}

impl Interrupt for Direct {
    fn interrupt(&self) -> bool {
        // What the kernel did not take is the control thread's: it tries again, or gives up.
        self.node.upgrade().is_some_and(|node| node.interrupt(self.index).is_ok())
    }
}

/// What all queues of a driver have in common.
pub(super) struct Shared {
    /// The features in force.
    pub features: Features,
    pub memory: Arc<AddressSpace>,
    /// Where requests in flight are recorded.
    pub in_flight: Option<Arc<InFlightArea>>,
    /// Another process has worked on the queues.
    pub resumed: bool,
}

/// The queues in use, by number.
#[derive(Debug)]
pub(super) struct Queues {
    queues: Vec<Option<Queue>>,
    first_key: u64,
}

impl Queues {
    /// For `count` queues, none in use; their interrupts carry keys from `first_key` on.
    pub(super) fn new(count: u16, first_key: u64) -> Self {
        Self { queues: (0..count).map(|_| None).collect(), first_key }
    }

    /// How many the device has.
    pub(super) fn count(&self) -> usize {
        self.queues.len()
    }

    /// Learns what the driver has set up.
    pub(super) fn learn(
        &mut self,
        node: &Arc<VduseDevice>,
        epoll: &Epoll,
        shared: &Shared,
    ) -> Result<(), DeviceError> {
        for (index, slot) in self.queues.iter_mut().enumerate() {
            let attempt = || DeviceError::system(format!("setting up queue {index}"));
            let info = node.queue_info(index as u32).map_err(attempt())?;
            if !info.ready {
                continue;
            }
            let call = Arc::new(EventFd::new().map_err(attempt())?);
            // Never read, which would be one more system call for each interrupt.
            let key = self.first_key + index as u64;
            epoll.add(&*call, key, Interest::ReadEdge).map_err(attempt())?;
            let direct = Direct { node: Arc::downgrade(node), index: index as u32 };
            let mut setup = QueueSetup {
                index: index as u16,
                spec: spec(&info, shared.features),
                features: shared.features,
                memory: Arc::clone(&shared.memory),
                kick: Some(Arc::new(EventFd::new().map_err(attempt())?)),
                call: Notifier::with_shortcut(Arc::clone(&call), Box::new(direct)),
                in_flight: shared.in_flight.clone(),
            };
            if shared.resumed {
                setup.spec.start_at = left_behind(&setup.memory.current(), &setup.spec)?;
                // What was completed last, the driver may not have been told.
                call.signal();
            }
            *slot = Some(Queue { setup, call, running: false, due: false });
        }
        Ok(())
    }

    /// Has the driver's notifications about any queue signal `first`, or nothing.
    pub(super) fn listen(&self, node: &VduseDevice, first: Option<&EventFd>) -> io::Result<()> {
        (0..self.queues.len()).try_for_each(|index| node.set_kick(index as u32, first))
    }

    /// Starts the queues that do not run. A device that is away gets them later.
    pub(super) fn start(
        &mut self,
        node: &VduseDevice,
        device: &mut dyn VirtioDevice,
    ) -> Result<(), DeviceError> {
        for queue in self.queues.iter_mut().flatten().filter(|queue| !queue.running) {
            match device.start_queue(queue.setup.clone()) {
                Ok(()) => {}
                Err(DeviceError::Gone(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
            queue.running = true;
            let Some(kick) = &queue.setup.kick else { continue };
            let attempt = format!("taking the notifications of queue {}", queue.setup.index);
            node.set_kick(queue.setup.index.into(), Some(kick))
                .map_err(DeviceError::system(attempt))?;
            // What the driver had to say before is in the ring.
            kick.signal();
        }
        Ok(())
    }

    /// Stops all and forgets them.
    pub(super) fn stop(
        &mut self,
        node: &VduseDevice,
        epoll: &Epoll,
        device: &mut dyn VirtioDevice,
    ) {
        for queue in self.queues.iter_mut().filter_map(Option::take) {
            let index = queue.setup.index;
            epoll.remove(&*queue.call);
            // A device that is broken in the kernel's eyes notifies nobody anyhow.
            let _ = node.set_kick(index.into(), None);
            if !queue.running {
                continue;
            }
            if let Err(error) = device.stop_queue(index) {
                tracing::debug!("stopping queue {index}: {error}");
            }
        }
    }

    /// Where a queue is, in the kernel's words.
    pub(super) fn state(
        &mut self,
        node: &VduseDevice,
        device: &mut dyn VirtioDevice,
        index: u32,
    ) -> Option<[u16; 4]> {
        let slot = self.queues.get_mut(index as usize)?;
        let Some(queue) = slot.as_mut().filter(|queue| queue.running) else {
            return Some(node.queue_info(index).ok()?.state);
        };
        // The only way to know is to stop it.
        queue.running = false;
        let position = device.stop_queue(index as u16).ok()?;
        queue.setup.spec.start_at = position;
        let state = state_of(queue.setup.spec.format, position);
        if let Err(error) = self.start(node, device) {
            tracing::warn!("queue {index} does not go on: {error}");
        }
        Some(state)
    }

    /// Passes on the interrupt of the queue whose event has this key.
    pub(super) fn interrupt(&mut self, node: &VduseDevice, key: u64) -> io::Result<()> {
        let index = usize::try_from(key.wrapping_sub(self.first_key)).unwrap_or(usize::MAX);
        if let Some(Some(queue)) = self.queues.get_mut(index) {
            queue.due = true;
            queue.pass_on(node)?;
        }
        Ok(())
    }

    /// Tries again what the kernel did not take; whether something is left.
    pub(super) fn interrupt_again(&mut self, node: &VduseDevice) -> io::Result<()> {
        for queue in self.queues.iter_mut().flatten().filter(|queue| queue.due) {
            queue.pass_on(node)?;
        }
        Ok(())
    }

    /// Whether an interrupt waits to be taken.
    pub(super) fn is_due(&self) -> bool {
        self.queues.iter().flatten().any(|queue| queue.due)
    }
}

impl Queue {
    fn pass_on(&mut self, node: &VduseDevice) -> io::Result<()> {
        self.due = !taken(node.interrupt(self.setup.index.into()))?;
        Ok(())
    }
}

/// Whether the kernel took an interrupt. It refuses them until it has noted DRIVER_OK, which is
/// after we have answered that we know.
pub(super) fn taken(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

/// Where a queue goes on whose last process was killed: with what the driver has not seen used. A
/// record of what was in flight says more, and whoever reads it corrects this. Only split rings are
/// offered.
pub(super) fn left_behind(
    memory: &MemoryMap,
    spec: &QueueSpec,
) -> Result<QueuePosition, DeviceError> {
    /// Offset of the index in the used ring (VIRTIO 1.4, 2.7.8).
    const USED_INDEX: u64 = 2;
    let mut index = [0; 2];
    let at = DriverAddress(spec.addresses.device.0.saturating_add(USED_INDEX));
    memory.read(at, &mut index)?;
    Ok(QueuePosition::split(u16::from_le_bytes(index)))
}

/// The ring that the kernel describes.
pub(super) fn spec(info: &VduseQueueInfo, features: Features) -> QueueSpec {
    let packed = features.has(Features::RING_PACKED);
    let format = if packed { RingFormat::Packed } else { RingFormat::Split };
    QueueSpec {
        // A size that no queue has is refused where the queue starts.
        size: u16::try_from(info.size).unwrap_or(0),
        format,
        indirect: features.has(Features::INDIRECT_DESC),
        event_idx: features.has(Features::EVENT_IDX),
        in_order: features.has(Features::IN_ORDER),
        addresses: QueueAddresses {
            descriptor: DriverAddress(info.descriptor),
            driver: DriverAddress(info.driver),
            device: DriverAddress(info.device),
        },
        start_at: position(format, info.state),
    }
}

fn position(format: RingFormat, state: [u16; 4]) -> QueuePosition {
    let point = |counter: u16, index| PackedPoint { index, wrap: counter != 0 };
    match format {
        RingFormat::Split => QueuePosition::split(state[0]),
        RingFormat::Packed => {
            QueuePosition::packed(point(state[0], state[1]), point(state[2], state[3]))
        }
    }
}

fn state_of(format: RingFormat, position: QueuePosition) -> [u16; 4] {
    match format {
        RingFormat::Split => [position.index(), 0, 0, 0],
        RingFormat::Packed => {
            let (available, used) = (position.available(), position.used());
            [available.wrap.into(), available.index, used.wrap.into(), used.index]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_both_ways() {
        for state in [[0, 0, 0, 0], [65530, 0, 0, 0]] {
            let there = position(RingFormat::Split, state);
            assert_eq!(state_of(RingFormat::Split, there), state);
        }
        for state in [[1, 0, 1, 0], [0, 3, 1, 120]] {
            let there = position(RingFormat::Packed, state);
            assert_eq!(state_of(RingFormat::Packed, there), state);
        }
        let fresh = position(RingFormat::Packed, [1, 0, 1, 0]);
        assert_eq!(fresh, QueuePosition::start(RingFormat::Packed));
    }

    #[test]
    fn a_ring_is_as_the_kernel_says() {
        let info = VduseQueueInfo {
            size: 128,
            descriptor: 0x1000,
            driver: 0x2000,
            device: 0x3000,
            state: [7, 0, 0, 0],
            ready: true,
        };
        let spec = spec(&info, Features::VERSION_1 | Features::EVENT_IDX);
        assert!(spec.check().is_ok());
        assert_eq!((spec.size, spec.event_idx, spec.indirect), (128, true, false));
        assert_eq!(spec.start_at, QueuePosition::split(7));
        let odd = VduseQueueInfo { size: 1 << 20, ..info };
        assert!(super::spec(&odd, Features::VERSION_1).check().is_err());
    }

    #[test]
    fn only_a_driver_that_is_not_ready_is_tried_again() {
        let error = |number| Err(io::Error::from_raw_os_error(number));
        assert!(taken(Ok(())).unwrap());
        assert!(!taken(error(22)).unwrap(), "EINVAL");
        assert!(taken(error(1)).is_err(), "EPERM: the device is broken");
    }
}
