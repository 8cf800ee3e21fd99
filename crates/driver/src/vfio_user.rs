use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mem::{DriverAddress, MemoryMap};
use sys::{Connection, EventFd, Received};
use wire::Framer;
use wire::vfio_user::{
    Capabilities, DmaMap, Header, IrqAction, IrqData, MAX_PAYLOAD, NO_REPLY, Reply, Request,
    SetIrqs, Version, VfioUser, dma_flags,
};

use crate::{DriverError, GuestMemory};

/// How long the device may take to answer: what QEMU allows.
const LIMIT: Duration = Duration::from_secs(5);

/// `EFAULT`: the answer to a transfer outside the memory.
const EFAULT: u32 = 14;

/// A message as it came: header, payload, descriptors.
type Message = (Header, Vec<u8>, Vec<OwnedFd>);

/// The VMM's side of a vfio-user connection.
///
/// With shared memory the caller reads its answers itself. Without, a thread reads the socket,
/// serves the device's DMA_READ and DMA_WRITE from the memory, and hands answers over.
pub struct Client {
    connection: Arc<Connection>,
    /// Held while a message is written.
    sending: Arc<Mutex<()>>,
    framer: Framer<VfioUser>,
    answers: Option<Receiver<Message>>,
    next_id: u16,
    buffer: Vec<u8>,
    counts: Arc<Counts>,
}

/// What has crossed the socket.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages sent to the device, doorbells among them, answers not.
    pub sent: AtomicU64,
    /// DMA_READs of the device that were answered.
    pub dma_reads: AtomicU64,
    /// DMA_WRITEs of the device that were answered.
    pub dma_writes: AtomicU64,
    /// How often there was nothing left to answer before the next DMA message came: round trips, if
    /// the device sends at once what does not depend on an answer.
    pub rounds: AtomicU64,
}

impl Counts {
    /// All DMA messages of the device.
    #[must_use]
    pub fn dma(&self) -> u64 {
        self.dma_reads.load(Ordering::Relaxed) + self.dma_writes.load(Ordering::Relaxed)
    }
}

impl Client {
    /// Negotiates the version, and maps all of `memory`: by descriptor if `shared`, else to be
    /// reached by messages.
    ///
    /// # Errors
    /// The device does not speak vfio-user 0.0, or refuses the memory.
    pub fn new(
        connection: Connection,
        memory: &GuestMemory,
        shared: bool,
    ) -> Result<Self, DriverError> {
        let mut client = Self {
            connection: Arc::new(connection),
            sending: Arc::default(),
            framer: Framer::new(MAX_PAYLOAD),
            answers: None,
            next_id: 0,
            buffer: Vec::with_capacity(4096),
            counts: Arc::default(),
        };
        if !shared {
            client.answers = Some(client.serve_memory(memory.map()?)?);
        }
        let capabilities = Capabilities { max_msg_fds: 16, ..Capabilities::default() };
        let version = Version { major: 0, minor: 0, capabilities };
        client.ask(&Request::Version(version), &[], |_, _| Ok(()))?;
        let map = DmaMap {
            flags: dma_flags::READ | dma_flags::WRITE,
            offset: 0,
            address: memory.base().0,
            size: memory.mapping().len() as u64,
        };
        let fd = memory.mapping().file().filter(|_| shared).map(|(fd, _)| fd);
        client.ask(&Request::DmaMap(map), fd.as_slice(), |_, _| Ok(()))?;
        Ok(client)
    }

    /// What has crossed the socket so far.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Reads `into.len()` bytes at `offset` of a region.
    ///
    /// # Errors
    /// The device refuses, or does not answer.
    pub fn read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), DriverError> {
        let request = Request::RegionRead { offset, region, count: into.len() as u32 };
        self.ask(&request, &[], |reply, _| match reply {
            Reply::RegionRead { data, .. } if data.len() == into.len() => {
                into.copy_from_slice(data);
                Ok(())
            }
            other => Err(unexpected(&other)),
        })
    }

    /// Writes `data` at `offset` of a region and waits until it has arrived.
    ///
    /// # Errors
    /// The device refuses, or does not answer.
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), DriverError> {
        self.ask(&Request::RegionWrite { offset, region, data }, &[], |_, _| Ok(()))
    }

    /// Something that writes `data` at `offset` of a region without waiting, as a guest's store is
    /// sent: a doorbell.
    #[must_use]
    pub fn poster(&self, region: u32, offset: u64, data: Vec<u8>) -> Box<dyn FnMut() + Send> {
        let (connection, sending) = (Arc::clone(&self.connection), Arc::clone(&self.sending));
        let counts = self.counts();
        let mut message = Vec::new();
        Request::RegionWrite { offset, region, data: &data }.encode(0, NO_REPLY, &mut message);
        Box::new(move || {
            let _guard = sending.lock().unwrap_or_else(PoisonError::into_inner);
            counts.sent.fetch_add(1, Ordering::Relaxed);
            // A device that is gone shows when the request does not complete.
            let _ = connection.send_all(&message, &[], LIMIT);
        })
    }

    /// Has interrupts `start..` of type `index` signal these events.
    ///
    /// # Errors
    /// The device refuses.
    pub fn set_interrupts(
        &mut self,
        index: u32,
        start: u32,
        events: &[Arc<EventFd>],
    ) -> Result<(), DriverError> {
        let fds: Vec<BorrowedFd<'_>> = events.iter().map(|event| event.as_fd()).collect();
        let count = fds.len() as u32;
        let data = IrqData::Eventfd;
        let irqs = SetIrqs { data, action: IrqAction::Trigger, index, start, count };
        self.ask(&Request::DeviceSetIrqs(irqs), &fds, |_, _| Ok(()))
    }

    /// Resets the device.
    ///
    /// # Errors
    /// The device refuses.
    pub fn reset(&mut self) -> Result<(), DriverError> {
        self.ask(&Request::DeviceReset, &[], |_, _| Ok(()))
    }

    /// Sends a request and hands the answer to `then`.
    ///
    /// # Errors
    /// The request failed, or there was no answer.
    pub fn ask<R>(
        &mut self,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
        then: impl FnOnce(Reply<'_>, Vec<OwnedFd>) -> Result<R, DriverError>,
    ) -> Result<R, DriverError> {
        self.next_id = self.next_id.wrapping_add(1);
        self.buffer.clear();
        request.encode(self.next_id, 0, &mut self.buffer);
        self.counts.sent.fetch_add(1, Ordering::Relaxed);
        {
            let _guard = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            let sent = self.connection.send_all(&self.buffer, fds, LIMIT);
            sent.map_err(DriverError::system("writing to the device's socket"))?;
        }
        let through_thread;
        let mut fds = Vec::new();
        let (header, payload) = match &self.answers {
            Some(answers) => {
                through_thread = answers.recv_timeout(LIMIT).map_err(|_| {
                    DriverError::TimedOut("waiting for an answer on the vfio-user socket")
                })?;
                fds = through_thread.2;
                (through_thread.0, &through_thread.1[..])
            }
            None => receive(&self.connection, &mut self.framer, &mut fds, Some(LIMIT), &mut false)?,
        };
        if header.message_id != self.next_id {
            return Err(DriverError::Protocol("an answer to another request".into()));
        }
        let reply = Reply::decode(&header, payload, fds.len());
        let reply =
            reply.map_err(|error| DriverError::Protocol(format!("a bad answer: {error}")))?;
        let result = match reply {
            Reply::Failed(errno) => {
                let what = format!("the device refused {:?} (errno {errno})", request.command());
                Err(DriverError::Protocol(what))
            }
            reply => then(reply, fds),
        };
        self.framer.next_message();
        result
    }

    /// Starts the thread that owns the reading side.
    fn serve_memory(&self, memory: MemoryMap) -> Result<Receiver<Message>, DriverError> {
        let (send, answers) = channel();
        let (connection, sending) = (Arc::clone(&self.connection), Arc::clone(&self.sending));
        let counts = self.counts();
        std::thread::Builder::new()
            .name("guest-memory".into())
            .spawn(move || serve_memory(&connection, &sending, &memory, (&send, &counts)))
            .map_err(DriverError::system("starting a thread"))?;
        Ok(answers)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the memory thread, which otherwise keeps the socket open.
        self.connection.shutdown();
    }
}

fn unexpected(reply: &Reply<'_>) -> DriverError {
    DriverError::Protocol(format!("an unexpected answer: {reply:?}"))
}

/// Reads one message; waits for ever if there is no limit. Says whether it had to wait.
fn receive<'f>(
    connection: &Connection,
    framer: &'f mut Framer<VfioUser>,
    fds: &mut Vec<OwnedFd>,
    limit: Option<Duration>,
    waited: &mut bool,
) -> Result<(Header, &'f [u8]), DriverError> {
    while framer.wanted() > 0 {
        let received = connection.receive(framer.space(), fds);
        match received.map_err(DriverError::system("reading the device's socket"))? {
            Received::Bytes(n) => {
                let accepted = framer.commit(n);
                accepted
                    .map_err(|error| DriverError::Protocol(format!("a bad message: {error}")))?;
            }
            Received::Nothing => {
                *waited = true;
                let ready = connection.wait_readable(limit.unwrap_or(Duration::MAX));
                ready.map_err(DriverError::system("waiting for the device"))?;
            }
            Received::Closed => {
                return Err(DriverError::Protocol("the device closed the connection".into()));
            }
        }
    }
    framer.message().ok_or(DriverError::TimedOut("reading a message"))
}

/// Answers the device's transfers until the connection ends.
fn serve_memory(
    connection: &Connection,
    sending: &Mutex<()>,
    map: &MemoryMap,
    (answers, counts): (&Sender<Message>, &Counts),
) {
    let mut framer = Framer::new(MAX_PAYLOAD);
    let mut out = Vec::new();
    let mut data = vec![0; wire::vfio_user::MAX_DATA_XFER as usize];
    loop {
        let mut fds = Vec::new();
        let mut waited = false;
        let received = receive(connection, &mut framer, &mut fds, None, &mut waited);
        let Ok((header, payload)) = received else { return };
        if waited && !header.is_reply() {
            counts.rounds.fetch_add(1, Ordering::Relaxed);
        }
        if header.is_reply() {
            if answers.send((header, payload.to_vec(), fds)).is_err() {
                return;
            }
            framer.next_message();
            continue;
        }
        let reply = match Request::decode(&header, payload, fds.len()) {
            Ok(Request::DmaRead { address, count }) => {
                counts.dma_reads.fetch_add(1, Ordering::Relaxed);
                let bytes = &mut data[..count as usize];
                match map.read(DriverAddress(address), bytes) {
                    Ok(()) => Reply::DmaRead { address, data: bytes },
                    Err(_) => Reply::Failed(EFAULT),
                }
            }
            Ok(Request::DmaWrite { address, data }) => {
                counts.dma_writes.fetch_add(1, Ordering::Relaxed);
                match map.write(DriverAddress(address), data) {
                    Ok(()) => Reply::DmaWrite { address, count: data.len() as u64 },
                    Err(_) => Reply::Failed(EFAULT),
                }
            }
            _ => Reply::Failed(EFAULT),
        };
        out.clear();
        reply.encode(header.message_id, header.command, &mut out);
        framer.next_message();
        let _guard = sending.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.send_all(&out, &[], LIMIT).is_err() {
            return;
        }
    }
}
