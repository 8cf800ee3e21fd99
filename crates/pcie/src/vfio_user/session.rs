use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use sys::{Connection, Received};
use wire::Framer;
use wire::vfio_user::{
    Capabilities, DeviceInfo, Header, MAX_FDS, MAX_PAYLOAD, Reply, Request, Version, VfioUser,
    command, device_flags, irq_index, region_index,
};

use super::dma::DmaMaps;
use super::irqs;
use super::limits::{
    DMA_TICK, LEAST_PAYLOAD, MAX_MESSAGES_PER_TURN, MAX_WAITING_BYTES, POSTED_BYTES, UNMAP_LIMIT,
};
use super::messages::{MessageMemory, Messages};
use super::outbox::Outbox;
use super::regions::follow_command;
use super::self_test::SelfTest;
use super::service::Plug;
use crate::{InterruptKind, ResetKind, Ticket};

/// How a turn of reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The client is still there.
    Goes,
    /// It is, but had nothing to say.
    Silent,
    /// It has gone, or can't be followed any more.
    Over,
}

/// One client's connection.
pub struct Session {
    socket: Arc<Connection>,
    framer: Framer<VfioUser>,
    /// Descriptors that have come with the current message, and with the next.
    fds: Vec<OwnedFd>,
    /// How many of them with the last message of which there is something.
    later_fds: usize,
    /// The last message was a post, behind which there may be more.
    is_posting: bool,
    /// Reading is over, answering may go on.
    at_end: bool,
    pub(super) peer: Peer,
}

/// A session without its receive buffer, which messages borrow from.
pub struct Peer {
    pub(super) outbox: Arc<Outbox>,
    messages: Arc<Messages>,
    pub(super) dma: DmaMaps,
    pub(super) self_test: SelfTest,
    pub(super) reads: Vec<WaitingRead>,
    is_greeted: bool,
    next_tick: Option<Instant>,
}

/// A region read whose answer the function owes.
pub(super) struct WaitingRead {
    pub ticket: Ticket,
    pub message_id: u16,
    pub region: u32,
    pub offset: u64,
    pub len: usize,
    pub deadline: Instant,
}

/// Why a message is not obeyed.
pub(super) enum Refusal {
    /// Answered with this errno.
    Errno(u32),
    /// The connection ends.
    Hang,
}

pub(super) const EINVAL: Refusal = Refusal::Errno(22);
const ENOTSUP: Refusal = Refusal::Errno(95);

impl Session {
    pub fn new(client: Connection) -> io::Result<Self> {
        let socket = Arc::new(client);
        let outbox = Arc::new(Outbox::new(Arc::clone(&socket))?);
        let messages = Messages::new(Arc::clone(&outbox));
        let memory = MessageMemory(Arc::clone(&messages));
        Ok(Self {
            socket,
            framer: Framer::new(MAX_PAYLOAD),
            fds: Vec::new(),
            later_fds: 0,
            is_posting: false,
            at_end: false,
            peer: Peer {
                outbox,
                dma: DmaMaps::new(Arc::new(memory.clone())),
                self_test: SelfTest::new(memory),
                messages,
                reads: Vec::new(),
                is_greeted: false,
                next_tick: None,
            },
        })
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn outbox(&self) -> &Outbox {
        &self.peer.outbox
    }

    /// The client can send nothing more; what it has sent is still read.
    pub fn refuse_more(&self) {
        let _ = self.socket.stop_receiving();
    }

    pub fn has_waiting_reads(&self) -> bool {
        !self.peer.reads.is_empty()
    }

    /// The client does not take its answers: nothing more is read from it until it does.
    pub fn is_deaf(&self) -> bool {
        self.peer.outbox.waiting() > MAX_WAITING_BYTES
    }

    /// Handles the messages that have arrived.
    pub fn receive(&mut self, plug: &mut Plug) -> Turn {
        let mut count = 0;
        // A message that is here already is handled whatever the bound: nothing else would tell
        // that it waits. There are few.
        while count < MAX_MESSAGES_PER_TURN || self.framer.message().is_some() {
            if self.framer.message().is_none() {
                match self.read() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(why) => return self.hang(&why),
                }
            }
            count += 1;
            let Some((header, payload)) = self.framer.message() else { continue };
            if !self.framer.has_more() {
                self.later_fds = 0;
            }
            let fds = match self.later_fds {
                // Nearly always, and nothing to allocate.
                0 => std::mem::take(&mut self.fds),
                later => {
                    let later = self.fds.split_off(self.fds.len() - later);
                    std::mem::replace(&mut self.fds, later)
                }
            };
            self.is_posting = !header.wants_reply();
            if self.peer.handle(plug, &header, payload, fds) == Turn::Over {
                return Turn::Over;
            }
            if let Err(error) = self.framer.next_eagerly() {
                return self.hang(&error);
            }
            // Whoever reads a register waits for it, and so asks nothing else; all other messages
            // are answered with the turn.
            if header.command == command::REGION_READ {
                self.peer.outbox.flush();
                if self.framer.is_empty() {
                    break;
                }
            }
        }
        // Changes of memory are answered already but not sent: first they must be true.
        self.peer.apply_memory(plug);
        self.peer.outbox.flush();
        match (self.at_end, count) {
            (true, _) => Turn::Over,
            (false, 0) => Turn::Silent,
            (false, _) => Turn::Goes,
        }
    }

    /// Takes bytes from the socket; whether there were any.
    ///
    /// One call brings a header with the least that a request has behind it. Only if nothing is
    /// behind it (a reset, or an answer that is an error) this takes bytes of the next message.
    /// Behind a post there may be many more, which come with one call. The kernel ends a call with
    /// bytes that have descriptors, so those are the last one's of which something came.
    fn read(&mut self) -> io::Result<bool> {
        if self.at_end || self.is_deaf() {
            return Ok(false);
        }
        let before = self.fds.len();
        let more = if self.is_posting { POSTED_BYTES } else { LEAST_PAYLOAD };
        match self.socket.receive(self.framer.eager_space(more), &mut self.fds)? {
            Received::Bytes(n) => self.framer.commit(n).map_err(io::Error::other)?,
            Received::Nothing => return Ok(false),
            Received::Closed => {
                if !self.framer.is_empty() {
                    tracing::warn!("the client has gone in the middle of a message");
                }
                self.at_end = true;
                return Ok(false);
            }
        }
        if self.fds.len() > MAX_FDS {
            return Err(io::Error::other("too many file descriptors"));
        }
        if self.framer.has_more() {
            self.later_fds = self.fds.len() - before;
        }
        Ok(true)
    }

    fn hang(&mut self, why: &dyn std::fmt::Display) -> Turn {
        tracing::warn!("closing a client's connection: {why}");
        self.at_end = true;
        Turn::Over
    }

    /// Sends the answers that the function has given.
    pub fn collect(&mut self, plug: &Plug) {
        self.peer.collect(plug);
    }

    /// When [`Session::tick`] is due next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let read = self.peer.reads.iter().map(|read| read.deadline).min();
        [read, self.peer.self_test.deadline(), self.peer.next_tick].into_iter().flatten().min()
    }

    /// Does what time demands.
    pub fn tick(&mut self, plug: &mut Plug) {
        self.peer.tick(plug);
    }

    /// The client has gone: its memory and its interrupts go with it.
    pub fn end(mut self, plug: &mut Plug) {
        self.peer.outbox.close();
        // Queues may hold the connection for a while yet; the client must not wait for them.
        self.socket.shutdown();
        plug.function.host_present(false);
        self.peer.messages.close();
        plug.host.memory.replace(mem::MemoryMap::default());
        plug.host.set_settled(true);
        plug.function.memory_changed();
        if !plug.host.memory.synchronize(UNMAP_LIMIT) {
            tracing::error!("a queue still uses memory of a client that has gone");
        }
        for kind in [InterruptKind::Intx, InterruptKind::Msi, InterruptKind::Msix] {
            plug.host.interrupts.disconnect(kind);
        }
        plug.function.interrupts_changed();
        self.peer.reads.clear();
    }
}

impl Peer {
    fn handle(
        &mut self,
        plug: &mut Plug,
        header: &Header,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Turn {
        if header.is_reply() {
            self.messages.reply(header, payload, fds.len());
            return Turn::Goes;
        }
        let result = match Request::decode(header, payload, fds.len()) {
            Ok(request) => self.obey(plug, header, request, payload.len(), fds),
            Err(error) => {
                tracing::warn!(command = header.command, %error, "a client's message is wrong");
                Err(if error.is_fatal() { Refusal::Hang } else { EINVAL })
            }
        };
        match result {
            Ok(None) => Turn::Goes,
            Ok(Some(reply)) => {
                self.reply(header, &reply, Vec::new());
                Turn::Goes
            }
            Err(Refusal::Errno(errno)) => {
                self.reply(header, &Reply::Failed(errno), Vec::new());
                Turn::Goes
            }
            Err(Refusal::Hang) => {
                self.reply(header, &Reply::Failed(22), Vec::new());
                self.outbox.flush();
                Turn::Over
            }
        }
    }

    /// Queues a reply, if the client wants one.
    pub(super) fn reply(&self, header: &Header, reply: &Reply<'_>, fds: Vec<Arc<OwnedFd>>) {
        if header.wants_reply() {
            let (id, command) = (header.message_id, header.command);
            self.outbox.queue(|out| reply.encode(id, command, out), fds);
        }
    }

    /// Does what a request asks; `None` if it is answered already, or later.
    fn obey<'a>(
        &mut self,
        plug: &mut Plug,
        header: &Header,
        request: Request<'a>,
        len: usize,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply<'a>>, Refusal> {
        if self.is_greeted == matches!(request, Request::Version(_)) {
            return Err(if self.is_greeted { EINVAL } else { Refusal::Hang });
        }
        match request {
            Request::DmaMap(map) => {
                return self
                    .dma
                    .map(&map, fds.pop())
                    .map(|()| Some(Reply::Done))
                    .map_err(Refusal::Errno);
            }
            Request::DmaUnmap(unmap) => {
                self.dma.unmap(&unmap).map_err(Refusal::Errno)?;
                return Ok(Some(Reply::DmaUnmap(unmap)));
            }
            // Whatever else comes may already rely on the new memory.
            _ => self.apply_memory(plug),
        }
        match request {
            Request::Version(version) => self.greet(&version, len).map(Some),
            Request::DeviceGetInfo { .. } => Ok(Some(Reply::DeviceInfo(DeviceInfo {
                flags: device_flags::RESET | device_flags::PCI,
                regions: region_index::COUNT,
                irqs: irq_index::COUNT,
            }))),
            Request::DeviceGetRegionInfo { argsz, index } => {
                self.region_info(plug, header, argsz, index)
            }
            Request::DeviceGetRegionIoFds { argsz, index } => {
                self.region_io_fds(plug, header, argsz, index)
            }
            Request::DeviceGetIrqInfo { index, .. } => irqs::info(plug, index).map(Some),
            Request::DeviceSetIrqs(request) => {
                irqs::set(plug, &request, fds)?;
                Ok(Some(Reply::Done))
            }
            Request::RegionRead { offset, region, count } => {
                self.region_read(plug, header, region, offset, count)
            }
            Request::RegionWrite { offset, region, data } => {
                self.region_write(plug, region, offset, data)?;
                let count = data.len() as u32;
                Ok(Some(Reply::RegionWrite { offset, region, count }))
            }
            Request::RegionWriteMulti(writes) => {
                for write in writes.iter() {
                    self.region_write(plug, write.region, write.offset, write.data)?;
                }
                Ok(Some(Reply::RegionWriteMulti(writes.len() as u64)))
            }
            Request::DeviceReset => {
                plug.function.reset(ResetKind::Machine);
                follow_command(plug);
                Ok(Some(Reply::Done))
            }
            // Migration is not offered, and the rest goes the other way.
            _ => Err(ENOTSUP),
        }
    }

    fn greet(&mut self, version: &Version, len: usize) -> Result<Reply<'static>, Refusal> {
        if version.major != 0 {
            tracing::warn!(major = version.major, "a client of another protocol version");
            return Err(Refusal::Hang);
        }
        self.is_greeted = true;
        self.messages.set_max_transfer(version.capabilities.max_data_xfer_size);
        // The client of Cloud Hypervisor, which takes any message for the answer it waits for, does
        // not say this.
        self.self_test.allow(version.capabilities.write_multiple);
        let capabilities = Capabilities {
            max_msg_fds: MAX_FDS as u64,
            write_multiple: true,
            ..Capabilities::default()
        };
        // Minor 0 is all that is needed, and QEMU refuses more than it proposed. Its buffer is as
        // long as its request.
        Ok(Reply::Version(Version { major: 0, minor: 0, capabilities }.fitted_to(len)))
    }

    /// Makes the changes of memory known; when this returns, nothing uses what was taken away.
    pub(super) fn apply_memory(&mut self, plug: &mut Plug) {
        if !self.dma.is_changed() {
            return;
        }
        let (map, removed) = self.dma.take_changes();
        plug.function.memory_changing(&map);
        plug.host.memory.replace(map);
        plug.function.memory_changed();
        if removed && !plug.host.memory.synchronize(UNMAP_LIMIT) {
            tracing::error!("a queue did not let go of memory that the client has unmapped");
        }
    }

    pub(super) fn collect(&mut self, plug: &Plug) {
        let Self { reads, outbox, .. } = self;
        plug.completions.collect(|ticket, data| {
            let Some(at) = reads.iter().position(|read| read.ticket == ticket) else {
                return;
            };
            answer(outbox, &reads.swap_remove(at), data);
        });
    }

    fn tick(&mut self, plug: &mut Plug) {
        let now = Instant::now();
        while let Some(at) = self.reads.iter().position(|read| read.deadline <= now) {
            let read = self.reads.swap_remove(at);
            tracing::error!(
                region = read.region,
                offset = read.offset,
                "the function did not answer a read within {:?}; the driver gets ones",
                plug.function.read_limit()
            );
            answer(&self.outbox, &read, &vec![0xff; read.len]);
        }
        if self.messages.is_used() && self.next_tick.is_none_or(|at| at <= now) {
            self.messages.expire(now);
            self.next_tick = Some(now + DMA_TICK);
        }
        self.self_test_tick(plug, now);
    }
}

fn answer(outbox: &Outbox, read: &WaitingRead, data: &[u8]) {
    let reply = Reply::RegionRead { offset: read.offset, region: read.region, data };
    let command = command::REGION_READ;
    outbox.queue(|out| reply.encode(read.message_id, command, out), Vec::new());
}
