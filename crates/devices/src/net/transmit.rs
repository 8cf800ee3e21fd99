use std::sync::Arc;
use std::time::Instant;

use virtio::Features;

use super::header::{self, HEADER};
use super::pcap::Pcap;
use super::port::{MAX_FRAME, MIN_FRAME, Packet, Sent, Sink, packet};
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
}

impl Transmit {
    pub(super) fn new(
        sink: Sink,
        header_len: usize,
        features: Features,
        pcap: Option<Arc<Pcap>>,
    ) -> Self {
        let (packet, patience) = (packet(), Patience::new());
        Self { sink, packet, header_len, features, pcap, patience }
    }

    pub(super) fn into_sink(self) -> Sink {
        self.sink
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
