//! A client that says anything, against the vfio-user service.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use pcie::vfio_user::{Service, Source};
use sys::{Connection, EventFd};
use wire::vfio_user::{Capabilities, Request, Version, command};

use super::{MEMORY, MEMORY_BYTES, POISON, function, number};

/// Messages of one connection: as many as the service reads before it sends anything.
const MAX_MESSAGES: usize = 200;

thread_local! {
    static STOP: EventFd = EventFd::new().unwrap();
}

/// Lets `bytes` play a client, which sends everything and is gone. No panic; the session ends; the
/// device behind it is called in order and stands at the end.
pub fn session(bytes: &[u8]) {
    let mut noise = Unstructured::new(bytes);
    let Ok((function, facts)) = function(&mut noise) else { return };
    let (ours, theirs) = Connection::pair().unwrap();
    let mut client = Client { connection: theirs, next_id: 0 };
    client.greet();
    for _ in 0..MAX_MESSAGES {
        if noise.is_empty() || client.send(&mut noise).is_err() {
            break;
        }
    }
    drop(client);
    let mut service = Service::new(Box::new(function), Source::Connection(ours)).unwrap();
    STOP.with(|stop| service.run(stop.as_fd())).expect("nothing a client does is an error");
    assert!(!facts.state().running.contains(&true), "a queue runs without a client");
}

struct Client {
    connection: Connection,
    next_id: u16,
}

impl Client {
    fn greet(&mut self) {
        let capabilities = Capabilities { max_msg_fds: 16, ..Capabilities::default() };
        let mut bytes = Vec::new();
        Request::Version(Version { major: 0, minor: 0, capabilities }).encode(0, 0, &mut bytes);
        self.put(&bytes, &[]);
    }

    /// Sends what fits; the rest is as if the client had been cut off.
    fn put(&mut self, bytes: &[u8], fds: &[Arc<OwnedFd>]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let _ = self.connection.send(&[IoSlice::new(bytes)], &fds);
    }

    fn send(&mut self, noise: &mut Unstructured) -> Result<()> {
        let number = match noise.ratio(1, 12)? {
            true => noise.arbitrary()?,
            false => noise.int_in_range(1..=command::REGION_WRITE_MULTI)?,
        };
        let payload = match noise.ratio(1, 8)? {
            true => noise.bytes(noise.len().min(40))?.to_vec(),
            false => payload(number, noise)?,
        };
        let fds = descriptors(number, noise)?;
        let size = match noise.ratio(1, 16)? {
            true => super::number(noise, 40)? as u32,
            false => 16 + payload.len() as u32,
        };
        let flags = match noise.ratio(1, 8)? {
            true => noise.arbitrary()?,
            false => noise.choose_iter([0u32, 0x10])?,
        };
        self.next_id += 1;
        let mut bytes = Vec::new();
        bytes.extend(self.next_id.to_ne_bytes());
        bytes.extend(number.to_ne_bytes());
        for word in [size, flags, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(payload);
        self.put(&bytes, &fds);
        Ok(())
    }
}

/// Descriptors as they should be, or others.
fn descriptors(number: u16, noise: &mut Unstructured) -> Result<Vec<Arc<OwnedFd>>> {
    let usual = match number {
        command::DMA_MAP => 1,
        command::DEVICE_SET_IRQS => noise.int_in_range(0..=3)?,
        _ => 0,
    };
    let count = if noise.ratio(1, 8)? { noise.int_in_range(0..=10)? } else { usual };
    (0..count).map(|_| descriptor(number, noise)).collect()
}

fn descriptor(number: u16, noise: &mut Unstructured) -> Result<Arc<OwnedFd>> {
    let is_memory = (number == command::DMA_MAP) != noise.ratio(1, 8)?;
    let fd = match is_memory {
        true => MEMORY.with(|m| m.file().unwrap().0.try_clone_to_owned()),
        false => EventFd::new().unwrap().as_fd().try_clone_to_owned(),
    };
    Ok(Arc::new(fd.unwrap()))
}

/// The fields of a command, each mostly plausible.
fn payload(command: u16, noise: &mut Unstructured) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    match command {
        command::DMA_MAP | command::DMA_UNMAP => {
            let is_map = command == command::DMA_MAP;
            word(&mut out, number(noise, 40)?);
            word(&mut out, number(noise, 3)?);
            if is_map {
                long(&mut out, if noise.ratio(3, 4)? { 0 } else { number(noise, 0x2000)? });
            }
            let address = POISON + 0x1000 * noise.int_in_range(0..=3)?;
            long(&mut out, if noise.ratio(1, 8)? { number(noise, 0x1000)? } else { address });
            let size = match noise.ratio(3, 4)? {
                true => MEMORY_BYTES as u64,
                false => number(noise, 0x2000)?,
            };
            long(&mut out, size);
        }
        command::REGION_READ | command::REGION_WRITE => access(&mut out, command, noise)?,
        command::REGION_WRITE_MULTI => {
            let count = noise.int_in_range(0..=4)?;
            long(&mut out, if noise.ratio(1, 8)? { number(noise, 5)? } else { count });
            for _ in 0..count {
                access(&mut out, command, noise)?;
            }
        }
        command::DEVICE_SET_IRQS => {
            word(&mut out, number(noise, 40)?);
            let data = noise.choose_iter([1u32, 2, 4, 7])?;
            word(&mut out, u64::from(data | noise.choose_iter([8u32, 16, 32, 56])?));
            for small in [4, 3, 4] {
                word(&mut out, number(noise, small)?);
            }
            let len = noise.int_in_range(0..=8)?;
            out.extend(noise.bytes(noise.len().min(len))?);
        }
        _ => {
            word(&mut out, number(noise, 64)?);
            for _ in 0..noise.int_in_range(0..=6)? {
                word(&mut out, number(noise, 9)?);
            }
        }
    }
    Ok(out)
}

/// An access to the registers that lets a driver get somewhere, mostly.
fn access(out: &mut Vec<u8>, command: u16, noise: &mut Unstructured) -> Result<()> {
    let region = noise.choose_iter([4u64, 4, 4, 7, 0, 1])?;
    let len = noise.choose_iter([1u64, 2, 4, 8])?;
    long(out, number(noise, 0x40)?);
    word(out, if noise.ratio(1, 16)? { number(noise, 12)? } else { region });
    word(out, if noise.ratio(1, 16)? { number(noise, 0x2000)? } else { len });
    if command != command::REGION_READ {
        let value = number(noise, 16)?.to_le_bytes();
        let room = if command == command::REGION_WRITE { len as usize } else { 8 };
        out.extend(&value[..room]);
    }
    Ok(())
}

fn word(out: &mut Vec<u8>, value: u64) {
    out.extend((value as u32).to_ne_bytes());
}

fn long(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_ne_bytes());
}
