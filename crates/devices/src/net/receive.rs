use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtqueue::ChainId;

use super::filter::Filter;
use super::header::HEADER;
use super::pcap::Pcap;
use super::port::{Packet, Source, packet};
use super::shared::Shared;
use crate::queue::{Fault, QueueAccess, Serve};

/// Most chains a frame is spread over with MRG_RXBUF: 64 KiB in buffers of 1500 bytes take 45.
const MAX_CHAINS: usize = 64;

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;

/// A receive queue.
pub(super) struct Receive {
    source: Source,
    packet: Box<Packet>,
    /// Length of the frame in `packet`, if there is one to deliver.
    pending: Option<usize>,
    /// Bytes of the pending header and frame that are in the driver's buffers.
    delivered: usize,
    /// The chains those are in. They stay taken while the frame waits for more.
    taken: Vec<(ChainId, u32)>,
    header_len: usize,
    mergeable: bool,
    pcap: Option<Arc<Pcap>>,
    /// Which frames are wanted; all if it is not there.
    filter: Option<Wanted>,
}

/// The filter as this queue knows it.
struct Wanted {
    shared: Arc<Shared>,
    generation: u64,
    filter: Filter,
}

impl Wanted {
    #[inline]
    fn wants(&mut self, frame: &[u8]) -> bool {
        if let Some(filter) = self.shared.newer_filter(&mut self.generation) {
            self.filter = filter;
        }
        self.filter.wants(frame)
    }
}

impl Receive {
    pub(super) fn new(
        source: Source,
        header_len: usize,
        mergeable: bool,
        pcap: Option<Arc<Pcap>>,
        shared: Option<Arc<Shared>>,
    ) -> Self {
        let filter = shared.map(|shared| {
            let filter = Filter::new(shared.mac());
            // Not yet the one in force, whatever its number.
            Wanted { shared, generation: u64::MAX, filter }
        });
        let (taken, packet) = (Vec::with_capacity(MAX_CHAINS), packet());
        let (pending, delivered) = (None, 0);
        Self { source, packet, pending, delivered, taken, header_len, mergeable, pcap, filter }
    }

    pub(super) fn into_source(mut self) -> Source {
        std::mem::replace(&mut self.source, Source::Nothing)
    }

    /// Gets the next frame from the source and makes it the pending one if the driver wants it;
    /// returns whether there was one.
    fn fetch(&mut self) -> bool {
        let Some(len) = self.source.receive(&mut self.packet) else { return false };
        let frame = &self.packet[HEADER..HEADER + len];
        if let Some(pcap) = &self.pcap {
            pcap.record(frame);
        }
        if self.filter.as_mut().is_none_or(|filter| filter.wants(frame)) {
            self.prepare(len);
        }
        true
    }

    /// Makes the frame of `len` bytes in the packet, behind a whole header, the pending one.
    fn prepare(&mut self, len: usize) {
        if self.header_len == HEADER {
            self.packet[NUM_BUFFERS..HEADER].copy_from_slice(&1u16.to_le_bytes());
        } else {
            // The short header lies right before the frame.
            self.packet.copy_within(..self.header_len, HEADER - self.header_len);
        }
        self.pending = Some(len);
    }

    /// Takes over the frame of `len` bytes in `packet`, which gets another packet in exchange.
    /// Nothing must be pending.
    pub(super) fn load(&mut self, packet: &mut Box<Packet>, len: usize) {
        std::mem::swap(&mut self.packet, packet);
        self.prepare(len);
    }

    /// Whether a frame waits to be delivered.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Delivers the pending frame, if there is one; returns false if there are too few buffers.
    pub(super) fn deliver_pending(&mut self, queue: &mut QueueAccess) -> Result<bool, Fault> {
        while let Some(len) = self.pending {
            if !self.deliver(queue, len)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets the pending frame and puts its buffers back.
    pub(super) fn settle_now(&mut self, queue: &mut QueueAccess) {
        self.drop_chains(queue);
        self.pending = None;
    }

    /// Writes the pending frame into the driver's buffers; returns false if there are not enough of
    /// them.
    fn deliver(&mut self, queue: &mut QueueAccess, len: usize) -> Result<bool, Fault> {
        let start = HEADER - self.header_len;
        while let Some(id) = queue.take()? {
            let bytes = &self.packet[start..HEADER + len];
            let mut writer = queue.buffers().writer();
            let room = writer.left();
            if self.taken.is_empty() && room < self.header_len as u64 {
                // Of no use to anybody.
                queue.give_back(id, 0);
                return Ok(true);
            }
            if !self.mergeable && room < bytes.len() as u64 {
                // A frame cut short is worse than none.
                queue.untake(id);
                self.pending = None;
                return Ok(true);
            }
            let written = writer.write(&bytes[self.delivered..]);
            self.delivered += written;
            if self.taken.is_empty() {
                queue.keep();
            }
            self.taken.push((id, written as u32));
            if self.delivered == bytes.len() {
                self.finish(queue);
                return Ok(true);
            }
            if self.taken.len() == MAX_CHAINS {
                self.drop_chains(queue);
                self.pending = None;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn finish(&mut self, queue: &mut QueueAccess) {
        if self.taken.len() > 1 {
            let mut writer = queue.kept().writer();
            writer.skip(NUM_BUFFERS as u64);
            writer.write(&(self.taken.len() as u16).to_le_bytes());
        }
        for (id, written) in self.taken.drain(..) {
            queue.give_back(id, written);
        }
        self.delivered = 0;
        self.pending = None;
    }

    fn drop_chains(&mut self, queue: &mut QueueAccess) {
        while let Some((id, _)) = self.taken.pop() {
            queue.untake(id);
        }
        self.delivered = 0;
    }
}

impl Serve for Receive {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        for done in 0..budget {
            if self.pending.is_none() && !self.fetch() {
                return Ok(done > 0);
            }
            let Some(len) = self.pending else { continue };
            if !self.deliver(queue, len)? {
                return Ok(done > 0);
            }
        }
        Ok(true)
    }

    fn settle(&mut self, queue: &mut QueueAccess) {
        self.drop_chains(queue);
    }

    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        self.source.wake_on().into_iter().collect()
    }

    fn refresh(&mut self) {
        self.source.refresh();
    }

    fn arm(&mut self, available: bool) -> bool {
        if let Some(pcap) = &self.pcap {
            pcap.flush();
        }
        match self.pending {
            Some(_) => available,
            None => self.source.arm(),
        }
    }

    fn disarm(&mut self) {
        self.source.disarm();
    }
}

impl Drop for Receive {
    /// Only after a queue whose worker is gone is anything left here.
    fn drop(&mut self) {
        for (id, _) in self.taken.drain(..) {
            id.abandon();
        }
    }
}
