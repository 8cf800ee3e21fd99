use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mem::OwnedSpan;
use sys::{Completed, Transfer, Uring};
use virtqueue::ChainId;

use super::Disk;
use super::request::{HEADER_BYTES, Request, Status};
use crate::queue::{Buffers, Cursor, Fault, QueueAccess, Serve, Writer};

/// Data bytes that count like one request in a batch's budget, so that a queue of large requests
/// leaves others their turn.
const BYTES_PER_TURN: u64 = 64 * 1024;

/// Requests that are done on the spot before the driver is shown them. Many drivers have 32 under
/// way: such a one has half of them back while we are at the other half. It is woken, takes them
/// and asks for more, instead of each waiting for the other all the time. Parts of 1 or 4 cost up
/// to three times the interrupts where a request takes a microsecond.
const PART: u32 = 16;

/// A request queue of a disk.
pub(super) struct BlockQueue {
    disk: Arc<Disk>,
    /// Where the kernel does the work beside us; `None` to do each request on the spot.
    uring: Option<Uring>,
    /// By slot of the `uring`.
    in_flight: Box<[Option<(ChainId, Pending)>]>,
    /// Requests' worth of work of the last poll.
    spent: u64,
}

/// What became of a request for now.
enum Begun {
    /// It is done, with so many bytes written.
    Done(u32),
    /// It is in this slot.
    InFlight(u16, Pending),
}

/// What to do once the kernel has finished a request.
struct Pending {
    /// The byte for the status.
    status: OwnedSpan,
    /// What to report as written.
    written: u32,
    /// Whether the transfer's memory must be cleared if it fails.
    reads: bool,
    /// Bytes of the transfer.
    len: u64,
}

impl BlockQueue {
    pub(super) fn new(disk: Arc<Disk>, uring: Option<Uring>, depth: u16) -> Self {
        let slots = if uring.is_some() { depth } else { 0 };
        Self { disk, uring, in_flight: (0..slots).map(|_| None).collect(), spent: 0 }
    }

    /// Does a request, or starts it.
    fn begin(&mut self, buffers: &Buffers<'_>) -> Result<Begun, Fault> {
        let request = match Request::parse(buffers, &self.disk.limits())? {
            Ok(request) => request,
            Err(status) => return Ok(Begun::Done(answer(buffers, 0, status))),
        };
        if let Some(begun) = self.start(buffers, request) {
            return Ok(begun);
        }
        let (filled, status) = self.disk.execute(buffers, request);
        Ok(Begun::Done(answer(buffers, filled, status)))
    }

    /// Hands a request to the kernel; `None` if it is not of that kind, or can't be.
    fn start(&mut self, buffers: &Buffers<'_>, request: Request) -> Option<Begun> {
        let uring = self.uring.as_mut()?;
        let (slot, reads, len) = match request {
            Request::Read { offset, len } if len > 0 => {
                let mut into = buffers.writer().cursor();
                into.limit(len);
                (uring.transfer(Transfer::Read, offset, spans(into))?, true, len)
            }
            Request::Write { offset, len } if len > 0 => {
                let durable = self.disk.write_through.load(Ordering::Relaxed);
                let transfer = if durable { Transfer::DurableWrite } else { Transfer::Write };
                (uring.transfer(transfer, offset, spans(data(buffers)))?, false, len)
            }
            Request::Flush => (uring.sync_data()?, false, 0),
            _ => return None,
        };
        let (room, status) = status_of(buffers);
        if !reads {
            let mut rest = buffers.writer();
            rest.limit(room);
            rest.zero();
        }
        let status = status.cursor().next_span().map(|span| span.to_owned());
        let status = status.expect("the request was parsed, so it has a status byte");
        Some(Begun::InFlight(slot, Pending { status, written: room as u32 + 1, reads, len }))
    }

    /// Gives back what the kernel has finished; returns whether there was anything.
    fn reap(&mut self, queue: &mut QueueAccess) -> bool {
        let Some(uring) = &mut self.uring else { return false };
        let in_flight = &mut self.in_flight;
        let done = uring.complete(|completed| {
            if let Some((id, pending)) = in_flight[usize::from(completed.slot)].take() {
                queue.give_back(id, pending.finish(&completed));
            }
        });
        done > 0
    }
}

impl Pending {
    /// Writes the status; returns the bytes to report as written.
    fn finish(self, completed: &Completed<'_>) -> u32 {
        let good = completed.result.as_ref().is_ok_and(|&n| n == self.len);
        if !good {
            tracing::debug!(result = ?completed.result, "a request of {} bytes failed", self.len);
            if self.reads {
                clear(completed.spans);
            }
        }
        let status = if good { Status::Ok } else { Status::IoError };
        self.status.get().copy_from(&[status as u8]);
        self.status.mark_dirty(1);
        self.written
    }
}

impl Serve for BlockQueue {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        let mut worked = self.reap(queue);
        self.spent = 0;
        while self.spent < u64::from(budget) && !self.uring.as_ref().is_some_and(Uring::is_full) {
            let Some(id) = queue.take()? else { break };
            let buffers = queue.buffers();
            let bytes = buffers.readable_len().max(buffers.writable_len());
            match self.begin(&buffers) {
                Ok(Begun::Done(written)) => queue.give_back(id, written),
                Ok(Begun::InFlight(slot, pending)) => {
                    self.in_flight[usize::from(slot)] = Some((id, pending));
                }
                Err(fault) => {
                    id.abandon();
                    return Err(fault);
                }
            }
            self.spent += 1 + bytes / BYTES_PER_TURN;
            worked = true;
        }
        if let Some(uring) = &mut self.uring {
            // What the kernel has no memory for now is tried again with the next poll.
            let _ = uring.submit();
            worked |= self.reap(queue);
        }
        Ok(worked)
    }

    fn part(&self) -> u32 {
        // The kernel gets all there is in one call.
        if self.uring.is_some() { u32::MAX } else { PART }
    }

    fn spent(&self) -> u32 {
        u32::try_from(self.spent).unwrap_or(u32::MAX)
    }

    fn settle(&mut self, queue: &mut QueueAccess) {
        while let Some(uring) = self.uring.as_mut().filter(|uring| uring.in_flight() > 0) {
            if uring.wait().is_err() {
                std::thread::yield_now();
            }
            self.reap(queue);
        }
    }

    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        self.uring.iter().map(|uring| uring.as_fd()).collect()
    }

    fn is_pending(&self) -> bool {
        self.uring.as_ref().is_some_and(|uring| uring.in_flight() > 0)
    }

    fn arm(&mut self, available: bool) -> bool {
        match &mut self.uring {
            Some(uring) => {
                let room = available && !uring.is_full();
                room || uring.has_completed() || uring.has_unsubmitted()
            }
            None => available,
        }
    }
}

impl Drop for BlockQueue {
    /// Only after a queue whose worker is gone is anything left here.
    fn drop(&mut self) {
        for (id, _) in self.in_flight.iter_mut().filter_map(Option::take) {
            id.abandon();
        }
    }
}

impl Disk {
    /// Does a request on the spot; returns the bytes filled from the start of the writable part,
    /// and the status.
    fn execute(&self, buffers: &Buffers<'_>, request: Request) -> (u64, Status) {
        let status = |result: std::io::Result<()>| match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                tracing::debug!(%error, "{request:?} failed");
                Status::IoError
            }
        };
        match request {
            Request::Read { offset, len } => {
                let mut into = buffers.writer().cursor();
                into.limit(len);
                match status(self.store.read(into, offset)) {
                    Status::Ok => (len, Status::Ok),
                    // Whatever was read of it is cleared with the rest.
                    bad => (0, bad),
                }
            }
            Request::Write { offset, .. } => {
                let durable = self.write_through.load(Ordering::Relaxed);
                let written = self.store.write(data(buffers), offset);
                let lasts = || if durable { self.store.flush() } else { Ok(()) };
                (0, status(written.and_then(|()| lasts())))
            }
            Request::Flush => (0, status(self.store.flush())),
            Request::Identify => {
                let mut writer = buffers.writer();
                writer.limit(buffers.writable_len() - 1);
                (writer.write(&self.serial) as u64, Status::Ok)
            }
            Request::Discard | Request::WriteZeros => {
                let zero = request == Request::WriteZeros;
                let done = self.limits().ranges(buffers, zero, |range| {
                    let result = match zero {
                        true => self.store.write_zeros(range.offset, range.len, range.unmap),
                        false => self.store.discard(range.offset, range.len),
                    };
                    match status(result) {
                        Status::Ok => Ok(()),
                        bad => Err(bad),
                    }
                });
                (0, done.err().unwrap_or(Status::Ok))
            }
        }
    }
}

/// Writes the status into the last writable byte and zeros between it and the first `filled` bytes,
/// so that the length we report holds nothing but what we wrote. Returns that length.
///
/// A shorter length, up to the data alone, would be allowed too, but whoever copies no more than
/// the reported bytes to a driver elsewhere would lose the status.
fn answer(buffers: &Buffers<'_>, filled: u64, status: Status) -> u32 {
    let (room, mut writer) = status_of(buffers);
    let mut rest = buffers.writer();
    rest.limit(room);
    rest.skip(filled);
    rest.zero();
    writer.write(&[status as u8]);
    room as u32 + 1
}

/// The bytes before the status, and where the status goes. The request was parsed, so the lengths
/// are small.
fn status_of<'a>(buffers: &Buffers<'a>) -> (u64, Writer<'a>) {
    let room = buffers.writable_len().saturating_sub(1);
    let mut writer = buffers.writer();
    writer.skip(room);
    (room, writer)
}

/// The readable part behind the header.
fn data<'a>(buffers: &Buffers<'a>) -> Cursor<'a> {
    let mut data = buffers.reader().cursor();
    data.skip(HEADER_BYTES as u64);
    data
}

fn spans<'a>(mut cursor: Cursor<'a>) -> impl Iterator<Item = mem::Span<'a>> {
    std::iter::from_fn(move || cursor.next_span())
}

fn clear(spans: &[OwnedSpan]) {
    for span in spans {
        span.get().zero();
        span.mark_dirty(span.get().len());
    }
}
