//! Stands between a vfio-user client and a device, hands every message on, and counts accesses to
//! registers.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use sys::{Connection, EventFd, Listener, Received};
use wire::Framer;
use wire::vfio_user::{
    Header, MAX_PAYLOAD, RegionInfo, RegionIoFds, Reply, Request, VfioUser, region_flags,
};

/// Longest wait for one side to take what the other has sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// A register, and whether it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access {
    /// Number of the region.
    pub region: u32,
    /// Offset in bytes.
    pub offset: u64,
    /// Written, or else read.
    pub is_write: bool,
}

/// How often each register was accessed.
pub type Counts = BTreeMap<Access, u64>;

/// What a client is told about ways around messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// What the device offers.
    Everything,
    /// That no part of a region can be mapped and no write can signal an event.
    Nothing,
}

/// A thread between one client and a device. Ends with either, or when dropped.
pub struct AccessCounter {
    counts: Arc<Mutex<Counts>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl AccessCounter {
    /// Listens at `path` for a client of the device at `device`.
    pub fn start(path: &Path, device: PathBuf, offer: Offer) -> Result<Self> {
        let listener = sys::listen_unix(path).context("listen for a vfio-user client")?;
        let counts = Arc::new(Mutex::new(Counts::new()));
        let stop = Arc::new(EventFd::new()?);
        let (shared, stopped) = (Arc::clone(&counts), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let Some(client) = accept(&listener, &stopped)? else { return Ok(()) };
            let device = sys::connect_unix(&device).context("connect to a vfio-user device")?;
            between(&client, &device, &stopped, offer, &shared)
        });
        Ok(Self { counts, stop, thread: Some(thread) })
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for AccessCounter {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("between a vfio-user client and its device: {error:#}");
        }
    }
}

fn accept(listener: &Listener, stop: &EventFd) -> Result<Option<Connection>> {
    loop {
        let ready = sys::wait_for_any(&[stop.as_fd(), listener.as_fd()], Duration::from_secs(60))?;
        if ready[0] {
            return Ok(None);
        }
        if let Some(client) = listener.accept()? {
            return Ok(Some(client));
        }
    }
}

/// Hands messages on until one side is gone.
fn between(
    client: &Connection,
    device: &Connection,
    stop: &EventFd,
    offer: Offer,
    counts: &Mutex<Counts>,
) -> Result<()> {
    let (mut asked, mut answered) = (Way::new(), Way::new());
    loop {
        let fds = [stop.as_fd(), client.as_fd(), device.as_fd()];
        let ready = sys::wait_for_any(&fds, Duration::from_secs(60))?;
        let count = |header: &Header, payload: &[u8], fds: usize| {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            note(&mut counts, header, payload, fds);
            None
        };
        let hide = |header: &Header, payload: &[u8], fds: usize| match offer {
            Offer::Everything => None,
            Offer::Nothing => without_ways_around(header, payload, fds),
        };
        let goes_on = !ready[0]
            && (!ready[1] || asked.pass(client, device, count)?)
            && (!ready[2] || answered.pass(device, client, hide)?);
        if !goes_on {
            // Each side shall find that the other has gone.
            client.shutdown();
            device.shutdown();
            return Ok(());
        }
    }
}

/// One direction.
struct Way {
    framer: Framer<VfioUser>,
    /// What has come of a message, as it came.
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Way {
    fn new() -> Self {
        Self { framer: Framer::new(MAX_PAYLOAD), bytes: Vec::new(), fds: Vec::new() }
    }

    /// Takes what has come, and sends a message that is complete to the other side: as it is, or
    /// what `instead` makes of it, without descriptors. Returns whether there was something.
    fn pass(
        &mut self,
        from: &Connection,
        to: &Connection,
        instead: impl Fn(&Header, &[u8], usize) -> Option<Vec<u8>>,
    ) -> Result<bool> {
        let space = self.framer.space();
        match from.receive(space, &mut self.fds)? {
            Received::Bytes(count) => {
                self.bytes.extend_from_slice(&space[..count]);
                self.framer.commit(count)?;
            }
            Received::Nothing => return Ok(true),
            Received::Closed => return Ok(false),
        }
        let Some((header, payload)) = self.framer.message() else { return Ok(true) };
        match instead(&header, payload, self.fds.len()) {
            Some(bytes) => to.send_all(&bytes, &[], PATIENCE)?,
            None => {
                let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
                to.send_all(&self.bytes, &fds, PATIENCE)?;
            }
        }
        self.fds.clear();
        self.bytes.clear();
        self.framer.next_message();
        Ok(true)
    }
}

/// Counts the accesses of a message, if it has any.
fn note(counts: &mut Counts, header: &Header, payload: &[u8], fds: usize) {
    let mut count = |region, offset, is_write| {
        *counts.entry(Access { region, offset, is_write }).or_default() += 1;
    };
    match Request::decode(header, payload, fds) {
        Ok(Request::RegionRead { offset, region, .. }) => count(region, offset, false),
        Ok(Request::RegionWrite { offset, region, .. }) => count(region, offset, true),
        Ok(Request::RegionWriteMulti(writes)) => {
            writes.iter().for_each(|write| count(write.region, write.offset, true));
        }
        _ => {}
    }
}

/// An answer about a region, without any way to reach it but messages; `None` for other answers.
fn without_ways_around(header: &Header, payload: &[u8], fds: usize) -> Option<Vec<u8>> {
    let reply = match Reply::decode(header, payload, fds).ok()? {
        Reply::RegionInfo(info) => {
            let flags = info.flags & !region_flags::MMAP;
            Reply::RegionInfo(RegionInfo::new(flags, info.index, info.size, 0, Vec::new()))
        }
        Reply::RegionIoFds(io) => Reply::RegionIoFds(RegionIoFds::new(io.index, Vec::new())),
        _ => return None,
    };
    let mut bytes = Vec::new();
    reply.encode(header.message_id, header.command, &mut bytes);
    Some(bytes)
}
