//! What must hold for any messages over vhost-user, of a driver's side here and of a daemon in
//! `daemon`. Shared by the property tests and the fuzz targets: both bring bytes, [`Unstructured`]
//! makes choices of them.
#![allow(dead_code, unused_imports, missing_docs, clippy::unwrap_used)]

mod daemon;
#[path = "../../../pcie/tests/noise/strict.rs"]
mod strict;

pub use daemon::daemon;

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use mem::Mapping;
use sys::{Connection, EventFd};
use transports::{TRANSPORTS, Transport};
use virtio::{Features, Parameters, Stop, Value};
use wire::vhost_user::{MemoryRegion, MemoryTable, NEED_REPLY, Request, VringAddr, features, id};

use strict::{Facts, Strict};

/// Where memory begins for the driver and for the process that sends the messages.
const POISON: u64 = 0x7_0000_0000;
const USER: u64 = 0x7f00_0000_0000;
const MEMORY_BYTES: u64 = 0x1_0000;
/// Messages of one connection: their answers fit its socket, since nobody reads them meanwhile.
const MAX_MESSAGES: usize = 60;
/// Longest wait for the other side to hang up.
const LIMIT: Duration = Duration::from_secs(5);

thread_local! {
    /// Made once: nothing here writes it.
    static MEMORY: Arc<Mapping> = Mapping::new_memfd("noise", MEMORY_BYTES as usize).unwrap();
    static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
}

/// Lets `bytes` play a driver's side, which sends everything and then no more. No panic; the end is
/// noticed; the device is called in order, and is reset at the end.
pub fn session(bytes: &[u8]) {
    let path = FOLDER.with(|folder| folder.path().join("socket"));
    let text = path.display().to_string();
    let end = end_of("vhost-user").driver_end.unwrap()(settings(&[("path", &text)])).unwrap();
    let (facts, stop) = (Facts::with(true), Stop::new().unwrap());
    let device = Box::new(Strict::new(Arc::clone(&facts)));
    let asked = stop.clone();
    let thread = std::thread::spawn(move || end.serve(device, asked));
    play(&path, bytes);
    stop.ask();
    let ended = thread.join().expect("the driver end panicked");
    ended.expect("nothing a peer does is an error");
    let state = facts.state();
    assert!(!state.running.contains(&true), "a queue runs and nobody is there");
    assert!(state.accepted.is_none() && !state.has_memory, "the device was not reset");
}

fn end_of(scheme: &str) -> &'static Transport {
    TRANSPORTS.iter().find(|transport| transport.scheme == scheme).unwrap()
}

fn settings(all: &[(&str, &str)]) -> Parameters {
    let value = |text: &str| {
        let flag = [("on", true), ("off", false)].iter().find(|(word, _)| *word == text);
        let (text, number) = (text.to_owned(), text.parse().ok());
        Value { text, number, flag: flag.map(|(_, flag)| *flag) }
    };
    let values = all.iter().map(|(key, text)| ((*key).to_owned(), value(text)));
    Parameters::new(values.collect::<BTreeMap<_, _>>())
}

/// Sends what the bytes say and reads all answers, until the other side hangs up.
fn play(path: &Path, bytes: &[u8]) {
    let mut stream = UnixStream::connect(path).unwrap();
    let client = Client(Connection::new(stream.try_clone().unwrap()).unwrap());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut noise = Unstructured::new(bytes);
    let _ = client.begin(&mut noise);
    for _ in 0..MAX_MESSAGES {
        if noise.is_empty() || client.send(&mut noise).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    match stream.read_to_end(&mut answers) {
        Ok(_) => {}
        // What we sent and it did not read any more.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the end was not noticed: {error}"),
    }
}

fn region() -> MemoryRegion {
    MemoryRegion { guest_address: POISON, size: MEMORY_BYTES, user_address: USER, mmap_offset: 0 }
}

/// A number as it is likely to be wrong: small, at a border, or anything.
fn number(noise: &mut Unstructured, small: u64) -> Result<u64> {
    Ok(match noise.int_in_range(0..=9)? {
        0..=7 => noise.int_in_range(0..=small)?,
        8 => noise.choose_iter([small + 1, 0x100, 0xffff_ffff, 1 << 32, 1 << 63, u64::MAX])?,
        _ => noise.arbitrary()?,
    })
}

struct Client(Connection);

impl Client {
    fn put(&self, bytes: &[u8], fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let _ = self.0.send(&[IoSlice::new(bytes)], &fds);
    }

    fn request(&self, request: &Request<'_>, fds: &[OwnedFd]) {
        let mut bytes = Vec::new();
        request.encode(0, &mut bytes);
        self.put(&bytes, fds);
    }

    /// What a correct peer says first, mostly.
    fn begin(&self, noise: &mut Unstructured) -> Result<()> {
        if noise.ratio(1, 8)? {
            return Ok(());
        }
        let ring = noise.choose_iter([Features::NONE, Features::RING_PACKED])?;
        let features = Features::VERSION_1 | Features::PROTOCOL_FEATURES | ring;
        self.request(&Request::SetFeatures(features.0), &[]);
        let all = features::MQ | features::REPLY_ACK | features::CONFIG | features::STATUS;
        let more = features::CONFIGURE_MEM_SLOTS | features::RESET_DEVICE | features::BACKEND_REQ;
        let chosen: u64 = noise.arbitrary()?;
        self.request(&Request::SetProtocolFeatures(all | more & chosen), &[]);
        let table = MemoryTable::new(&[region()]).unwrap();
        self.request(&Request::SetMemTable(table), &[memory()]);
        Ok(())
    }

    fn send(&self, noise: &mut Unstructured) -> Result<()> {
        if noise.ratio(1, 3)? {
            return self.start_queue(noise);
        }
        let number = match noise.ratio(1, 16)? {
            true => noise.arbitrary()?,
            false => noise.int_in_range(0..=48u32)?,
        };
        let payload = payload(number, noise)?;
        let size = match noise.ratio(1, 32)? {
            true => self::number(noise, 40)? as u32,
            false => payload.len() as u32,
        };
        let flags = match noise.ratio(1, 16)? {
            true => noise.arbitrary()?,
            false => 1 | if noise.arbitrary()? { NEED_REPLY } else { 0 },
        };
        let mut bytes: Vec<u8> =
            [number, flags, size].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend(payload);
        self.put(&bytes, &descriptors(number, noise)?);
        Ok(())
    }

    /// The messages that make a queue run, with one thing wrong at times.
    fn start_queue(&self, noise: &mut Unstructured) -> Result<()> {
        let index = number(noise, 2)? as u32;
        let state = |num| wire::vhost_user::VringState { index, num };
        let size = noise.choose_iter([1u32, 4, 16, 64, 3, 0])?;
        self.request(&Request::SetVringNum(state(size)), &[]);
        if noise.arbitrary()? {
            self.request(&Request::SetVringBase(state(number(noise, 8)? as u32)), &[]);
        }
        let place = |noise: &mut Unstructured| Ok(USER.wrapping_add(number(noise, 0x9000)? & !15));
        let addresses = VringAddr {
            index,
            flags: 0,
            descriptor: place(noise)?,
            used: place(noise)?,
            available: place(noise)?,
            log: 0,
        };
        self.request(&Request::SetVringAddr(addresses), &[]);
        let vring = wire::vhost_user::VringFd { index: index as u8, has_fd: true };
        self.request(&Request::SetVringKick(vring), &[event()]);
        self.request(&Request::SetVringCall(vring), &[event()]);
        self.request(&Request::SetVringEnable(state(1)), &[]);
        Ok(())
    }
}

fn event() -> OwnedFd {
    EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap()
}

fn memory() -> OwnedFd {
    MEMORY.with(|memory| memory.file().unwrap().0.try_clone_to_owned()).unwrap()
}

/// Descriptors as they should be, or others.
fn descriptors(request: u32, noise: &mut Unstructured) -> Result<Vec<OwnedFd>> {
    let is_memory = matches!(request, id::SET_MEM_TABLE | id::ADD_MEM_REG | id::SET_LOG_BASE);
    let is_event = matches!(request, id::SET_VRING_KICK | id::SET_VRING_CALL | id::SET_VRING_ERR);
    let usual = u32::from(is_memory || is_event || noise.ratio(1, 16)?);
    let count = if noise.ratio(1, 16)? { noise.int_in_range(0..=9)? } else { usual };
    let swap = noise.ratio(1, 16)?;
    Ok((0..count).map(|_| if is_memory != swap { memory() } else { event() }).collect())
}

/// Words as the request has them, each mostly plausible.
fn payload(request: u32, noise: &mut Unstructured) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let word = |out: &mut Vec<u8>, value: u64| out.extend((value as u32).to_ne_bytes());
    match request {
        id::SET_MEM_TABLE | id::ADD_MEM_REG | id::REM_MEM_REG => {
            let count = noise.int_in_range(0..=2u64)?;
            word(&mut out, if request == id::SET_MEM_TABLE { count } else { 0 });
            word(&mut out, 0);
            let count = if request == id::SET_MEM_TABLE { count } else { 1 };
            for number in 0..count {
                let at = number * MEMORY_BYTES;
                let usual = [POISON + at, MEMORY_BYTES, USER + at, 0];
                for value in usual {
                    let value =
                        if noise.ratio(1, 12)? { self::number(noise, 4096)? } else { value };
                    out.extend(value.to_ne_bytes());
                }
            }
        }
        id::SET_FEATURES | id::SET_PROTOCOL_FEATURES | id::SET_STATUS => {
            let bits = number(noise, 15)?;
            let base = Features::VERSION_1 | Features::PROTOCOL_FEATURES;
            let is_features = request == id::SET_FEATURES;
            out.extend(if is_features { base.0 | bits << 28 } else { bits }.to_ne_bytes());
        }
        id::GET_CONFIG | id::SET_CONFIG => {
            let size = noise.int_in_range(0..=32)?;
            word(&mut out, number(noise, 20)?);
            word(&mut out, if noise.ratio(1, 8)? { number(noise, 256)? } else { size });
            word(&mut out, 0);
            out.extend((0..size).map(|at| at as u8));
        }
        _ => {
            for _ in 0..noise.choose_iter([0, 2, 2, 2, 2, 10, 3])? {
                word(&mut out, number(noise, 3)?);
            }
        }
    }
    Ok(out)
}
