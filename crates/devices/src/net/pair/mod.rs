//! Two network cards joined by a cable: what the driver of one transmits lies in the receive
//! buffers of the other's after one copy.
//!
//! ```text
//!   card A                                         card B
//!     transmit queue -- Lane: one copy -->  receive queue
//!     receive queue  <-- one copy: Lane --  transmit queue
//! ```
//!
//! Both cards are in one process, and a cable's name joins them: `net:pair=NAME` twice. A [`Lane`]
//! is a worker's task that owns a transmit queue of one card and the receive queue of the other, so
//! there is no packet in between, no list and no lock. A card whose other end is not there, or
//! whose driver takes nothing for a second, drops frames.
//!
//! What it deliberately lacks: offloads, which one driver would have to accept before the other has
//! chosen its features; a control queue; more than one queue pair.

mod fast;
mod lane;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mem::AddressSpace;
use virtio::config::{NetConfig, read_bytes};
use virtio::{
    DeviceError, DeviceEvent, DeviceType, EventSink, EventSource, Features, Identity, Parameters,
    QueueSetup, Reach, VirtioDevice,
};
use virtqueue::QueuePosition;
use worker::{TaskHandle, Workers};

use super::header::{HEADER, SHORT_HEADER};
use super::{MAC, MRG_RXBUF, MTU, STATUS, settings};
use crate::OpenError;
use crate::queue::{QueueAccess, RINGS};
use lane::{Half, Lane};

/// Queues of a card.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Both lanes of a cable, each called after the card that transmits there.
struct Cable {
    lanes: [TaskHandle<Lane>; 2],
    /// Which ends have a card.
    plugged: Mutex<[bool; 2]>,
}

/// The cables there are, by name.
static CABLES: Mutex<Option<HashMap<String, Weak<Cable>>>> = Mutex::new(None);

impl Cable {
    /// A free end of the cable called `name`, which is made if there is none.
    fn plug(name: &str) -> Result<(Arc<Self>, usize), DeviceError> {
        let mut cables = CABLES.lock().unwrap_or_else(PoisonError::into_inner);
        let cables = cables.get_or_insert_default();
        cables.retain(|_, cable| cable.strong_count() > 0);
        let cable = match cables.get(name).and_then(Weak::upgrade) {
            Some(cable) => cable,
            None => {
                let failed = DeviceError::system("starting the workers of a device");
                let workers = Workers::shared().map_err(failed)?;
                let lanes = [workers.spawn(Lane::new()), workers.spawn(Lane::new())];
                let cable = Arc::new(Self { lanes, plugged: Mutex::default() });
                cables.insert(name.to_owned(), Arc::downgrade(&cable));
                cable
            }
        };
        let side = {
            let mut plugged = cable.plugged.lock().unwrap_or_else(PoisonError::into_inner);
            let side = plugged.iter().position(|plugged| !plugged).ok_or_else(|| {
                DeviceError::Refused(format!("the cable pair={name} has two cards already"))
            })?;
            plugged[side] = true;
            side
        };
        Ok((cable, side))
    }
}

/// One of two network cards at a cable.
pub(super) struct Card {
    identity: Identity,
    config: NetConfig,
    cable: Arc<Cable>,
    side: usize,
    features: Features,
    sink: EventSink,
    source: EventSource,
}

/// Makes the card at a free end of the cable called `name`.
pub(super) fn open(name: &str, mut parameters: Parameters) -> Result<Card, OpenError> {
    let mac = parameters.text("mac");
    let mtu = parameters.number("mtu", 68..=65535)?;
    let queue_size = settings::queue_size(&mut parameters)?;
    parameters.finish()?;
    let mac = mac.map(settings::parse_mac).transpose()?;
    let failed = DeviceError::system("making a network card");
    let (sink, source) = EventSource::new().map_err(failed)?;
    let (cable, side) = Cable::plug(name)?;
    let mac = mac.unwrap_or_else(|| settings::mac_of(format!("{name} {side}").as_bytes()));
    let mtu_bit = if mtu.is_some() { MTU } else { Features::NONE };
    let identity = Identity {
        device: DeviceType::NET,
        features: RINGS | Features::IN_ORDER | MAC | STATUS | MRG_RXBUF | mtu_bit,
        queue_sizes: vec![queue_size; 2],
        config_len: NetConfig::LEN as u32,
    };
    let config = NetConfig {
        mac,
        status: 1,
        max_virtqueue_pairs: 1,
        mtu: mtu.unwrap_or(0) as u16,
        ..NetConfig::default()
    };
    Ok(Card { identity, config, cable, side, features: Features::NONE, sink, source })
}

impl Card {
    /// The lane that a queue of this card is at, and whether it is where frames come in.
    fn lane(&self, index: u16) -> Result<(&TaskHandle<Lane>, bool), DeviceError> {
        match index {
            TRANSMIT => Ok((&self.cable.lanes[self.side], true)),
            RECEIVE => Ok((&self.cable.lanes[1 - self.side], false)),
            _ => Err(DeviceError::NoSuchQueue(index)),
        }
    }

    fn take_half(&self, index: u16) -> Result<Half, DeviceError> {
        let (lane, is_from) = self.lane(index)?;
        let half = lane.call(move |lane| lane.take_half(is_from)).flatten();
        half.ok_or(DeviceError::NoSuchQueue(index))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        for index in [RECEIVE, TRANSMIT] {
            // Most often there is none left.
            drop(self.take_half(index));
        }
        self.cable.plugged.lock().unwrap_or_else(PoisonError::into_inner)[self.side] = false;
    }
}

impl VirtioDevice for Card {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reach(&self) -> Reach {
        Reach::LOCAL
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        read_bytes(&self.config.encode(), offset, into);
    }

    fn write_config(&mut self, offset: u32, _bytes: &[u8]) -> Result<(), DeviceError> {
        Err(DeviceError::BadConfigWrite(offset))
    }

    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        // Each queue brings its own in its setup.
        let _ = memory;
        Ok(())
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        // Between two polls a lane holds on to no address, and the next one sees the new memory.
        for lane in &self.cable.lanes {
            lane.call(|_| ());
        }
        Ok(())
    }

    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError> {
        let unknown = features - self.identity.features;
        let packed = features.has(Features::RING_PACKED) && !features.has(Features::VERSION_1);
        if !unknown.is_empty() || packed {
            return Err(DeviceError::BadFeatures(if packed { features } else { unknown }));
        }
        self.features = features;
        Ok(())
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let index = setup.index;
        let (lane, is_from) = self.lane(index)?;
        let most = self.identity.queue_sizes[usize::from(index)];
        if setup.spec.size > most {
            let asked = setup.spec.size;
            return Err(DeviceError::Refused(format!(
                "queue {index} of {asked} descriptors: at most {most} are offered"
            )));
        }
        let access = QueueAccess::new(&setup)?;
        let mergeable = self.features.has(MRG_RXBUF);
        let long = self.features.has(Features::VERSION_1) || mergeable;
        let half = Half {
            access,
            index,
            kick: setup.kick,
            call: setup.call,
            header_len: if long { HEADER } else { SHORT_HEADER },
            mergeable,
            features: self.features,
            events: self.sink.clone(),
        };
        let refused = lane.call(move |lane| lane.put_half(is_from, half));
        match refused {
            Some(true) => Ok(()),
            _ => Err(DeviceError::NoSuchQueue(index)),
        }
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        Ok(self.take_half(index)?.access.finish())
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        let (lane, is_from) = self.lane(index)?;
        let found = lane.call(move |lane| lane.enable(is_from, enabled));
        if found == Some(true) { Ok(()) } else { Err(DeviceError::NoSuchQueue(index)) }
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        for index in [RECEIVE, TRANSMIT] {
            drop(self.take_half(index));
        }
        self.features = Features::NONE;
        Ok(())
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.source.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        self.source.drain()
    }
}
