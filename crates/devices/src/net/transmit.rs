use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio::Features;

use super::header::{self, HEADER};
use super::pcap::Pcap;
use super::port::{MAX_FRAME, MIN_FRAME, Packet, Sent, Sink, packet};
use crate::queue::{Fault, Outcome, QueueAccess, Reader, Serve};

/// First pause when the way out is full; a peer that reads makes room in this time.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
/// Longest pause, which costs a stuck peer's bridge nothing to speak of.
const LAST_PAUSE: Duration = Duration::from_millis(10);
/// After this long without a frame getting out they are dropped, so that the driver's queue does
/// not stand still for ever.
const PATIENCE: Duration = Duration::from_secs(1);

/// A transmit queue.
pub(super) struct Transmit {
    sink: Sink,
    packet: Box<Packet>,
    header_len: usize,
    features: Features,
    pcap: Option<Arc<Pcap>>,
    pause: Duration,
    retry_at: Option<Instant>,
    stuck_since: Option<Instant>,
}

impl Transmit {
    pub(super) fn new(
        sink: Sink,
        header_len: usize,
        features: Features,
        pcap: Option<Arc<Pcap>>,
    ) -> Self {
        Self {
            sink,
            packet: packet(),
            header_len,
            features,
            pcap,
            pause: FIRST_PAUSE,
            retry_at: None,
            stuck_since: None,
        }
    }

    pub(super) fn into_sink(self) -> Sink {
        self.sink
    }

    fn serve(&mut self, mut reader: Reader<'_>) -> Outcome {
        let Some(len) = self.gather(&mut reader) else { return Outcome::Done(0) };
        if let Some(pcap) = &self.pcap
            && self.stuck_since.is_none()
        {
            pcap.record(&self.packet[HEADER..HEADER + len]);
        }
        if self.sink.send(&mut self.packet, len) != Sent::Later {
            self.stuck_since = None;
            self.pause = FIRST_PAUSE;
            return Outcome::Done(0);
        }
        let now = Instant::now();
        if now - *self.stuck_since.get_or_insert(now) >= PATIENCE {
            return Outcome::Done(0);
        }
        self.retry_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        Outcome::Later
    }

    /// Copies header and frame, once, and checks the copy; returns the frame's length, or `None` if
    /// it is to be dropped.
    fn gather(&mut self, reader: &mut Reader<'_>) -> Option<usize> {
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
        self.retry_at = None;
        queue.each(budget, |buffers| Ok(self.serve(buffers.reader())))
    }

    fn arm(&mut self, available: bool) -> bool {
        if let Some(pcap) = &self.pcap {
            pcap.flush();
        }
        available && self.retry_at.is_none()
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }
}
