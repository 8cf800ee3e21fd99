use std::sync::Arc;
use std::sync::atomic::Ordering;

use sys::TapOffloads;
use virtio::Features;

use super::filter::{Filter, MAX_VLAN};
use super::{
    CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, GUEST_ANNOUNCE,
    MULTI_QUEUE, Shared,
};
use crate::queue::{Buffers, Fault, Outcome, QueueAccess, Reader, Serve};

/// The control queue (VIRTIO 1.4, 5.1.6.5).
pub(super) struct Control {
    shared: Arc<Shared>,
    features: Features,
}

/// VIRTIO_NET_OK and VIRTIO_NET_ERR.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// Most addresses in a table of the MAC filter.
const MAX_MACS: u32 = 1024;

impl Control {
    pub(super) fn new(shared: Arc<Shared>, features: Features) -> Self {
        Self { shared, features }
    }

    fn serve(&self, buffers: &Buffers<'_>) -> Result<Outcome, Fault> {
        let mut writer = buffers.writer();
        if writer.left() == 0 {
            return Err(Fault::Request("a network control command without room for the answer"));
        }
        let mut reader = buffers.reader();
        let done = reader.array().and_then(|command| self.execute(command, reader));
        writer.write(&[if done.is_some() { OK } else { ERROR }]);
        Ok(Outcome::Done(1))
    }

    /// Does one command with its class and number; `None` if it can't be done.
    fn execute(&self, command: [u8; 2], mut data: Reader<'_>) -> Option<()> {
        let needed = match command {
            [0, 0..=1] => CTRL_RX,
            [0, 2..=5] => CTRL_RX_EXTRA,
            [1, 0] => CTRL_RX,
            [1, 1] => CTRL_MAC_ADDR,
            [2, 0..=1] => CTRL_VLAN,
            [3, 0] => GUEST_ANNOUNCE,
            [4, 0] => MULTI_QUEUE,
            [5, 0] => CTRL_GUEST_OFFLOADS,
            _ => return None,
        };
        if !self.features.has(needed) {
            return None;
        }
        let change = self.read(command, &mut data)?;
        if data.left() != 0 {
            return None;
        }
        match change {
            Change::Filter(change) => self.shared.change_filter(change),
            Change::Mac(mac) => self.shared.set_mac(mac),
            Change::Announced => self.shared.want_announcement(false),
            Change::Pairs(pairs) => self.shared.use_pairs(pairs)?,
            Change::Offloads(wanted) => self.shared.set_offloads(wanted)?,
        }
        Some(())
    }

    /// What a command with this class and number asks for.
    fn read(&self, command: [u8; 2], data: &mut Reader<'_>) -> Option<Change> {
        Some(match command {
            [0, mode] => {
                let on = match data.array()? {
                    [0u8] => false,
                    [1] => true,
                    _ => return None,
                };
                Change::Filter(Box::new(move |filter| filter.set_mode(mode, on)))
            }
            [1, 0] => {
                let (unicast, multicast) = (mac_table(data)?, mac_table(data)?);
                Change::Filter(Box::new(|filter| filter.set_stations(unicast, multicast)))
            }
            [1, _] => Change::Mac(data.array()?),
            [2, command] => {
                let vlan = u16::from_le_bytes(data.array()?);
                if vlan > MAX_VLAN {
                    return None;
                }
                Change::Filter(Box::new(move |filter| filter.set_vlan(vlan, command == 0)))
            }
            [3, _] => Change::Announced,
            [4, _] => Change::Pairs(u16::from_le_bytes(data.array()?)),
            _ => {
                let wanted = Features(u64::from_le_bytes(data.array()?));
                (wanted - self.features).is_empty().then_some(Change::Offloads(wanted))?
            }
        })
    }
}

/// What a command asks for.
enum Change {
    Filter(Box<dyn FnOnce(&mut Filter)>),
    Mac([u8; 6]),
    /// The guest has sent word to the network.
    Announced,
    Pairs(u16),
    Offloads(Features),
}

/// A number of addresses, and the addresses.
fn mac_table(data: &mut Reader<'_>) -> Option<Vec<[u8; 6]>> {
    let count = u32::from_le_bytes(data.array()?);
    if count > MAX_MACS || data.left() < u64::from(count) * 6 {
        return None;
    }
    (0..count).map(|_| data.array()).collect()
}

impl Shared {
    /// Spreads incoming frames over the first `pairs` queue pairs; `None` if there are not as many.
    pub(super) fn use_pairs(&self, pairs: u16) -> Option<()> {
        if pairs == 0 || usize::from(pairs) > self.pairs {
            return None;
        }
        (0..self.pairs).for_each(|pair| self.use_pair(pair, pair < usize::from(pairs)));
        Some(())
    }

    /// Whether a queue pair is to get incoming frames. The first one always does.
    pub(super) fn use_pair(&self, pair: usize, wanted: bool) {
        let Some(tap) = self.taps.get(pair).filter(|_| pair > 0) else { return };
        let was = self.attached[pair].swap(wanted, Ordering::Relaxed);
        if was != wanted
            && let Err(error) = tap.attach(wanted)
        {
            tracing::warn!(%error, "a queue of a tap interface can't be switched");
        }
    }

    /// Tells the taps what the driver takes over.
    pub(super) fn set_offloads(&self, features: Features) -> Option<()> {
        let offloads = TapOffloads {
            checksum: features.has(super::GUEST_CSUM),
            tso4: features.has(super::GUEST_TSO4),
            tso6: features.has(super::GUEST_TSO6),
            ecn: features.has(super::GUEST_ECN),
        };
        self.taps.iter().try_for_each(|tap| tap.set_offloads(offloads)).ok()
    }
}

impl Serve for Control {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        queue.each(budget, |buffers| self.serve(buffers))
    }
}
