//! Network device (VIRTIO 1.4, 5.1) on a tap interface, a UNIX socket, another card, an echo, or
//! nothing.
//!
//! ```text
//!   receive queue  <-- Source --  tap, stream, datagram, frames of the echo
//!   transmit queue --- Sink  -->  tap, stream, datagram, echo
//!   control queue  --- Shared     hardware address, filters, queue pairs, offloads
//! ```
//!
//! A frame is copied once each way, between the driver's buffers and a packet in private memory,
//! where its header is checked. What it deliberately lacks: hashing of flows, and offloads where
//! the other end is not the kernel.

mod control;
mod echo;
mod filter;
mod frames;
mod header;
mod pair;
mod pcap;
mod port;
mod receive;
mod settings;
mod shared;
mod stream;
mod transmit;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use virtio::config::{NetConfig, read_bytes};
use virtio::{DeviceError, DeviceEvent, EventSink, Features, Identity, Parameters, VirtioDevice};

use crate::link::Peering;
use crate::queue::{BuiltIn, Fault, Model, QueueAccess, Serve};
use crate::{DeviceKind, OpenError};
use control::Control;
use header::{HEADER, SHORT_HEADER};
use pcap::Pcap;
use port::{Sink, Source};
use receive::Receive;
use shared::Shared;
use transmit::Transmit;

pub(crate) static DEVICE: DeviceKind = DeviceKind {
    scheme: "net",
    help: "network card on a tap interface, a socket, or an echo",
    settings: &[
        "tap=NAME  the kernel's network, by this interface",
        "stream=PATH  listen for a peer, as QEMU's -netdev stream",
        "connect=PATH  connect to such a peer, again and again",
        "dgram=PATH  datagrams, as QEMU's -netdev dgram; needs peer=PATH",
        "pair=NAME  joined to the card of the same name in this process, by one copy of each frame",
        "echo=on  every address answers ARP and ping, other frames come back (the default)",
        "null=on  frames are forgotten",
        "pcap=FILE  record all frames",
        "mac=XX:XX:XX:XX:XX:XX  hardware address",
        "mtu=N  largest packet to announce",
        "queues=N  queue pairs (1)",
        "queue-size=N  descriptors in a queue, a power of two (256)",
    ],
    open,
};

const CSUM: Features = Features::bit(0);
const GUEST_CSUM: Features = Features::bit(1);
const CTRL_GUEST_OFFLOADS: Features = Features::bit(2);
const MTU: Features = Features::bit(3);
const MAC: Features = Features::bit(5);
const GUEST_TSO4: Features = Features::bit(7);
const GUEST_TSO6: Features = Features::bit(8);
const GUEST_ECN: Features = Features::bit(9);
const HOST_TSO4: Features = Features::bit(11);
const HOST_TSO6: Features = Features::bit(12);
const HOST_ECN: Features = Features::bit(13);
const MRG_RXBUF: Features = Features::bit(15);
const STATUS: Features = Features::bit(16);
const CTRL_VQ: Features = Features::bit(17);
const CTRL_RX: Features = Features::bit(18);
const CTRL_VLAN: Features = Features::bit(19);
const CTRL_RX_EXTRA: Features = Features::bit(20);
const GUEST_ANNOUNCE: Features = Features::bit(21);
const MULTI_QUEUE: Features = Features::bit(22);
const CTRL_MAC_ADDR: Features = Features::bit(23);

fn open(mut parameters: Parameters) -> Result<Box<dyn VirtioDevice>, OpenError> {
    if let Some(name) = parameters.text("pair") {
        return Ok(Box::new(pair::open(&name, parameters)?));
    }
    Ok(Box::new(BuiltIn::new(settings::net(parameters)?)?))
}

/// The two ways of a queue pair; a running queue has its half.
struct Port {
    source: Option<Source>,
    sink: Option<Sink>,
}

/// The control side of a network card.
struct Net {
    identity: Identity,
    mtu: u16,
    mac: [u8; 6],
    shared: Arc<Shared>,
    ports: Vec<Port>,
    peering: Option<Peering>,
    pcap: Option<Arc<Pcap>>,
    /// What the driver has accepted.
    features: Features,
}

/// What a queue is for.
#[derive(Clone, Copy)]
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
}

impl Net {
    /// VIRTIO 1.4, 5.1.2: the control queue comes behind the pairs in use.
    fn role(&self, index: u16) -> Role {
        let pairs = if self.features.has(MULTI_QUEUE) { self.ports.len() } else { 1 };
        let pair = usize::from(index / 2);
        match index % 2 {
            _ if pair >= pairs => Role::Control,
            0 => Role::Receive(pair),
            _ => Role::Transmit(pair),
        }
    }
}

impl Model for Net {
    type Queue = NetQueue;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        let up = self.peering.as_ref().is_none_or(|peering| peering.link().is_up());
        let config = NetConfig {
            mac: self.shared.mac(),
            status: u16::from(up) | u16::from(self.shared.wants_announcement()) << 1,
            max_virtqueue_pairs: self.ports.len() as u16,
            mtu: self.mtu,
            ..NetConfig::default()
        };
        read_bytes(&config.encode(), offset, into);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        // Only drivers from before VERSION_1 write the address, byte by byte or at once (VIRTIO
        // 1.4, 5.1.4.3).
        let mut mac = self.shared.mac();
        let modern = self.features.has(Features::VERSION_1);
        let part = mac.get_mut(offset as usize..).filter(|part| part.len() >= bytes.len());
        let part = part.filter(|_| !modern).ok_or(DeviceError::BadConfigWrite(offset))?;
        part[..bytes.len()].copy_from_slice(bytes);
        self.shared.set_mac(mac);
        Ok(())
    }

    fn accept(&mut self, features: Features) -> Result<(), DeviceError> {
        self.features = features;
        self.shared.change_filter(|filter| filter.use_vlans(features.has(CTRL_VLAN)));
        let failed = || DeviceError::Refused("the tap interface can't do these offloads".into());
        self.shared.set_offloads(features).ok_or_else(failed)
    }

    fn make_queue(&mut self, index: u16) -> Result<NetQueue, DeviceError> {
        let long = self.features.has(Features::VERSION_1) || self.features.has(MRG_RXBUF);
        let header_len = if long { HEADER } else { SHORT_HEADER };
        let (features, pcap) = (self.features, self.pcap.clone());
        let gone = DeviceError::NoSuchQueue(index);
        Ok(match self.role(index) {
            Role::Receive(pair) => {
                let source = self.ports[pair].source.take().ok_or(gone)?;
                let mergeable = features.has(MRG_RXBUF);
                let shared = Some(Arc::clone(&self.shared));
                NetQueue::Receive(Receive::new(source, header_len, mergeable, pcap, shared))
            }
            Role::Transmit(pair) => {
                let sink = self.ports[pair].sink.take().ok_or(gone)?;
                // One pair speaks for all.
                let shared = (pair == 0).then(|| Arc::clone(&self.shared));
                NetQueue::Transmit(Transmit::new(sink, header_len, features, pcap, shared))
            }
            Role::Control => NetQueue::Control(Control::new(Arc::clone(&self.shared), features)),
        })
    }

    fn retire_queue(&mut self, index: u16, queue: NetQueue) {
        match (queue, self.role(index)) {
            (NetQueue::Receive(receive), Role::Receive(pair)) => {
                self.ports[pair].source = Some(receive.into_source());
            }
            (NetQueue::Transmit(transmit), Role::Transmit(pair)) => {
                self.ports[pair].sink = Some(transmit.into_sink());
            }
            _ => {}
        }
    }

    fn queue_enabled(&mut self, index: u16, enabled: bool) {
        if let Role::Receive(pair) = self.role(index) {
            self.shared.use_pair(pair, enabled);
        }
    }

    fn reset(&mut self) {
        self.shared.use_pairs(1);
        self.shared.forget_the_driver(self.mac);
        self.features = Features::NONE;
    }

    fn is_network(&self) -> bool {
        true
    }

    fn announce(&mut self, mac: [u8; 6]) {
        self.shared.announce(mac);
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    fn control_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.peering.as_ref().map(Peering::control_fds).unwrap_or_default()
    }

    fn control_ready(&mut self, events: &EventSink) -> bool {
        let changed = self.peering.as_mut().is_some_and(Peering::ready);
        if changed {
            // Whoever is there now has not seen the driver's station yet.
            let up = self.peering.as_ref().is_some_and(|peering| peering.link().is_up());
            self.shared.want_announcement(up && self.features.has(GUEST_ANNOUNCE));
            events.send(DeviceEvent::ConfigChanged);
        }
        changed
    }
}

/// The queues of a network card.
enum NetQueue {
    Receive(Receive),
    Transmit(Transmit),
    Control(Control),
}

macro_rules! each {
    ($self:expr, $queue:ident => $body:expr) => {
        match $self {
            NetQueue::Receive($queue) => $body,
            NetQueue::Transmit($queue) => $body,
            NetQueue::Control($queue) => $body,
        }
    };
}

impl Serve for NetQueue {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        each!(self, serve => serve.poll(queue, budget))
    }

    fn settle(&mut self, queue: &mut QueueAccess) {
        each!(self, serve => serve.settle(queue));
    }

    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        each!(self, serve => serve.wake_on())
    }

    fn refresh(&mut self) {
        each!(self, serve => serve.refresh());
    }

    fn arm(&mut self, available: bool) -> bool {
        each!(self, serve => serve.arm(available))
    }

    fn disarm(&mut self) {
        each!(self, serve => serve.disarm());
    }

    fn deadline(&self) -> Option<Instant> {
        each!(self, serve => serve.deadline())
    }
}

const _: () = assert!(HEADER == sys::TAP_HEADER_BYTES);
