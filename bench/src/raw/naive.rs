//! A disk that reaches the driver's memory by vfio-user messages one field at a time, and waits for
//! each: what a server does that was not written for that. It reads zeros and trusts the driver.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use driver::{Access, Bell, Client, Counts, DriverError, GuestMemory};
use sys::{Connection, Epoll, EventFd, Interest, Received};
use virtio::config::BlkConfig;
use virtio::{DeviceType, Features, Status};
use virtqueue::QueueSpec;
use wire::Framer;
use wire::vfio_user::{Header, MAX_PAYLOAD, Reply, Request, VfioUser};

use super::flag;

/// Bytes moved by one message: a page.
const PAGE: u64 = 4096;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Both ends of it: the client, whose memory it reaches, and the disk.
pub struct NaiveDisk {
    client: Client,
    link: Option<Link>,
    stop: Arc<EventFd>,
    server: Option<JoinHandle<Result<()>>>,
    sectors: u64,
}

impl NaiveDisk {
    /// A disk of `sectors` that reaches `memory` by messages.
    pub fn new(memory: &GuestMemory, sectors: u64) -> Result<Self> {
        let (ours, theirs) = Connection::pair()?;
        // The client greets and maps its memory while it is made.
        let greeting = std::thread::spawn(move || -> Result<Link> {
            let mut link = Link { socket: theirs, framer: Framer::new(MAX_PAYLOAD), next: 0 };
            link.greet()?;
            Ok(link)
        });
        let client = Client::new(ours, memory, false)?;
        let link = greeting.join().map_err(|_| anyhow::anyhow!("the greeting panicked"))??;
        let stop = Arc::new(EventFd::new()?);
        Ok(Self { client, link: Some(link), stop, server: None, sectors })
    }

    /// What has crossed the socket.
    pub fn counts(&self) -> Arc<Counts> {
        self.client.counts()
    }
}

impl Drop for NaiveDisk {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Access for NaiveDisk {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn reset(&mut self) -> Result<(), DriverError> {
        Ok(())
    }

    fn features(&mut self) -> Result<Features, DriverError> {
        Ok(Features::VERSION_1)
    }

    fn accept(&mut self, _features: Features) -> Result<(), DriverError> {
        Ok(())
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) -> Result<(), DriverError> {
        let config = BlkConfig { capacity: self.sectors, ..BlkConfig::decode(&[]) }.encode();
        into.copy_from_slice(&config[offset as usize..][..into.len()]);
        Ok(())
    }

    fn max_queue_size(&mut self, _index: u16) -> Result<u16, DriverError> {
        Ok(256)
    }

    fn start_queue(&mut self, _index: u16, spec: &QueueSpec) -> Result<Bell, DriverError> {
        let failed = |source| DriverError::System { attempt: "making an eventfd", source };
        let event = || EventFd::new().map(Arc::new).map_err(failed);
        let (kick, interrupt) = (event()?, event()?);
        let (bell, call, stop) = (Arc::clone(&kick), Arc::clone(&interrupt), self.stop.clone());
        let link = self.link.take().expect("one queue is started, once");
        let mut disk = Disk { link, spec: spec.clone(), seen: 0, call };
        self.server = Some(std::thread::spawn(move || disk.run(&bell, &stop)));
        Ok(Bell { ring: Box::new(move || kick.signal()), interrupt })
    }

    fn go(&mut self) -> Result<(), DriverError> {
        Ok(())
    }

    fn status(&mut self) -> Result<Status, DriverError> {
        Ok(Status::DRIVER_OK)
    }
}

/// The disk's side of the socket.
struct Link {
    socket: Connection,
    framer: Framer<VfioUser>,
    next: u16,
}

impl Link {
    /// Agrees with what the client says first: its version and its memory.
    fn greet(&mut self) -> Result<()> {
        for _ in 0..2 {
            let answer = self.receive(|header, payload, fds| {
                let reply = match Request::decode(header, payload, fds)? {
                    Request::Version(version) => Reply::Version(version),
                    Request::DmaMap(_) => Reply::Done,
                    other => bail!("an unexpected request: {other:?}"),
                };
                let mut out = Vec::new();
                reply.encode(header.message_id, header.command, &mut out);
                Ok(out)
            })?;
            self.socket.send_all(&answer, &[], LIMIT)?;
        }
        Ok(())
    }

    fn receive<R>(&mut self, then: impl FnOnce(&Header, &[u8], usize) -> Result<R>) -> Result<R> {
        let mut fds = Vec::new();
        while self.framer.wanted() > 0 {
            match self.socket.receive(self.framer.space(), &mut fds)? {
                Received::Bytes(n) => self.framer.commit(n)?,
                Received::Nothing => self.socket.wait_readable(LIMIT)?,
                Received::Closed => bail!("the client closed the connection"),
            }
        }
        let (header, payload) = self.framer.message().context("a whole message")?;
        let result = then(&header, payload, fds.len());
        self.framer.next_message();
        result
    }

    fn read<const N: usize>(&mut self, address: u64) -> Result<[u8; N]> {
        self.ask(&Request::DmaRead { address, count: N as u64 })?;
        self.receive(|header, payload, fds| match Reply::decode(header, payload, fds)? {
            Reply::DmaRead { data, .. } => Ok(data.try_into()?),
            other => bail!("an unexpected answer: {other:?}"),
        })
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<()> {
        self.ask(&Request::DmaWrite { address, data })?;
        self.receive(|header, _, _| {
            ensure!(header.is_reply() && !header.is_error(), "a refused DMA write");
            Ok(())
        })
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<()> {
        self.next = self.next.wrapping_add(1);
        let mut out = Vec::new();
        request.encode(self.next, 0, &mut out);
        Ok(self.socket.send_all(&out, &[], LIMIT)?)
    }
}

/// One request queue.
struct Disk {
    link: Link,
    spec: QueueSpec,
    seen: u16,
    call: Arc<EventFd>,
}

impl Disk {
    fn run(&mut self, kick: &EventFd, stop: &EventFd) -> Result<()> {
        let epoll = Epoll::new()?;
        epoll.add(kick.as_fd(), 0, Interest::Read)?;
        epoll.add(stop.as_fd(), 1, Interest::Read)?;
        let mut ready = Vec::new();
        loop {
            epoll.wait(&mut ready, None)?;
            if ready.iter().any(|event| event.key == 1) {
                return Ok(());
            }
            kick.drain();
            let available = self.spec.addresses.driver.0 + 2;
            while u16::from_le_bytes(self.link.read(available)?) != self.seen {
                self.serve()?;
            }
        }
    }

    /// One request: read, answered with zeros.
    fn serve(&mut self) -> Result<()> {
        let at = self.spec.addresses;
        let slot = u64::from(self.seen % self.spec.size);
        let head = u16::from_le_bytes(self.link.read(at.driver.0 + 4 + 2 * slot)?);
        let (mut next, mut written, mut is_first) = (head, 0u32, true);
        loop {
            let bytes: [u8; 16] = self.link.read(at.descriptor.0 + 16 * u64::from(next))?;
            let half = |from: usize| u16::from_le_bytes([bytes[from], bytes[from + 1]]);
            let (addr, rest) = bytes.split_first_chunk().context("16 bytes")?;
            let (addr, (len, _)) =
                (u64::from_le_bytes(*addr), rest.split_first_chunk().context("8 bytes")?);
            let (len, flags) = (u32::from_le_bytes(*len), half(12));
            if is_first {
                let _header: [u8; 16] = self.link.read(addr)?;
            }
            if flags & flag::WRITE != 0 {
                self.fill(addr, len.into())?;
                written += len;
            }
            is_first = false;
            if flags & flag::NEXT == 0 {
                break;
            }
            next = half(14);
        }
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        self.link.write(at.device.0 + 4 + 8 * slot, &element)?;
        self.seen = self.seen.wrapping_add(1);
        self.link.write(at.device.0 + 2, &self.seen.to_le_bytes())?;
        let flags = u16::from_le_bytes(self.link.read(at.driver.0)?);
        if flags & 1 == 0 {
            self.call.signal();
        }
        Ok(())
    }

    fn fill(&mut self, address: u64, len: u64) -> Result<()> {
        static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        for from in (0..len).step_by(PAGE as usize) {
            let piece = (len - from).min(PAGE) as usize;
            self.link.write(address + from, &ZEROS[..piece])?;
        }
        Ok(())
    }
}
