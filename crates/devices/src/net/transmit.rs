use std::sync::Arc;
use std::time::Instant;

use virtio::Features;

use super::header::{self, HEADER};
use super::pcap::Pcap;
use super::port::{MAX_FRAME, MIN_FRAME, Packet, Sent, Sink, packet};
use super::shared::Shared;
use crate::patience::Patience;
use crate::queue::{Fault, Outcome, QueueAccess, Reader, Serve};

/// A transmit queue.
pub(super) struct Transmit {
    sink: Sink,
    packet: Box<Packet>,
    header_len: usize,
    features: Features,
    pcap: Option<Arc<Pcap>>,
    patience: Patience,
    /// Where announcements come from, if it is for this queue to send them.
    shared: Option<Arc<Shared>>,
}

impl Transmit {
    pub(super) fn new(
        sink: Sink,
        header_len: usize,
        features: Features,
        pcap: Option<Arc<Pcap>>,
        shared: Option<Arc<Shared>>,
    ) -> Self {
        let (packet, patience) = (packet(), Patience::new());
        Self { sink, packet, header_len, features, pcap, patience, shared }
    }

    pub(super) fn into_sink(self) -> Sink {
        self.sink
    }

    /// Tells the network that the station `mac` is here: a reverse ARP request, as whoever moves a
    /// guest sends it (RFC 903).
    fn announce(&mut self, mac: [u8; 6]) {
        /// Ethernet's shortest frame.
        const BYTES: usize = 60;
        /// Reverse ARP; hardware and protocol addresses of Ethernet and IPv4; request.
        const KIND: [u8; 10] = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
        let frame = [&[0xff; 6][..], &mac, &KIND, &mac, &[0; 4], &mac].concat();
        self.packet[..HEADER + BYTES].fill(0);
        self.packet[HEADER..][..frame.len()].copy_from_slice(&frame);
        if self.sink.send(&mut self.packet, BYTES) != Sent::Yes {
            tracing::warn!("the network could not be told where the driver's station is");
        }
    }

    fn serve(&mut self, mut reader: Reader<'_>) -> Outcome {
        let Some(len) = self.gather(&mut reader) else { return Outcome::Done(0) };
        if let Some(pcap) = &self.pcap
            && !self.patience.is_stuck()
        {
            pcap.record(&self.packet[HEADER..HEADER + len]);
        }
        if self.sink.send(&mut self.packet, len) != Sent::Later {
            self.patience.went();
            return Outcome::Done(0);
        }
        if self.patience.blocked() { Outcome::Later } else { Outcome::Done(0) }
    }

    /// Where [`Transmit::gather`] puts frames.
    pub(super) fn packet(&mut self) -> &mut Box<Packet> {
        &mut self.packet
    }

    /// Copies header and frame, once, and checks the copy; returns the frame's length, or `None` if
    /// it is to be dropped.
    pub(super) fn gather(&mut self, reader: &mut Reader<'_>) -> Option<usize> {
        let mut header = [0; HEADER];
        let whole = reader.read(&mut header[..self.header_len]) == self.header_len;
        let len = usize::try_from(reader.left()).ok()?;
        if !whole || !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return None;
        }
        if !header::check(&mut header, len, self.features) {
            return None;
        }
        self.packet[..HEADER].copy_from_slice(&header);
        reader.read(&mut self.packet[HEADER..HEADER + len]);
        Some(len)
    }
}

impl Serve for Transmit {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        self.patience.begin();
        queue.each(budget, |buffers| Ok(self.serve(buffers.reader())))
    }

    fn refresh(&mut self) {
        if let Some(mac) = self.shared.as_ref().and_then(|shared| shared.take_announced()) {
            self.announce(mac);
        }
    }

    fn arm(&mut self, available: bool) -> bool {
        if let Some(pcap) = &self.pcap {
            pcap.flush();
        }
        available && self.patience.retry_at().is_none()
    }

    fn deadline(&self) -> Option<Instant> {
        self.patience.retry_at()
    }
}
