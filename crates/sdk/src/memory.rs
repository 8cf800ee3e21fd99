//! Host memory for C: transfers that wait, and transfers that call back.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::time::Duration;

use mem::DriverAddress;
use pcie::DmaError;
use pcie::config::command;

use crate::core::Core;

/// Longest wait of a transfer that waits: the port gives up messages itself after 10 s.
const LIMIT: Duration = Duration::from_secs(15);

/// Called when a transfer is done.
pub type Done = extern "C" fn(*mut c_void, c_int);

/// The transfers on their way.
#[derive(Default)]
pub struct Transfers {
    next: u64,
    started: HashMap<u64, Started>,
    /// Ends of transfers that somebody waits for.
    ended: HashMap<u64, Result<Vec<u8>, DmaError>>,
}

struct Started {
    /// Where the bytes of a read go, and how many; null for a write.
    into: (*mut u8, usize),
    done: Done,
    arg: *mut c_void,
}

/// What a transfer is to do.
pub enum Way<'a> {
    Read(usize),
    Write(&'a [u8]),
}

fn errno(error: &DmaError) -> c_int {
    match error {
        DmaError::TooLong(_) => libc::EINVAL,
        DmaError::NoMemory(_) => libc::EFAULT,
        DmaError::Remote(_) => libc::EFAULT,
    }
}

impl Core {
    /// Whether the driver lets the device reach memory.
    fn is_master(&self) -> bool {
        let link = self.link.borrow();
        link.as_ref().is_some_and(|link| {
            let state = link.outbound.state();
            state.command & command::BUS_MASTER != 0 && state.present
        })
    }

    fn begin(&self, address: u64, way: &Way<'_>) -> Result<u64, c_int> {
        if !self.is_master() {
            return Err(self.fail(libc::EFAULT, "bus mastering is off, or no host is there"));
        }
        let mut dma = self.dma.borrow_mut();
        let Some(dma) = &mut *dma else {
            return Err(self.fail(libc::ENOTCONN, "not connected to a port"));
        };
        let mut transfers = self.transfers.borrow_mut();
        let tag = transfers.next;
        transfers.next += 1;
        match way {
            Way::Read(len) => dma.read(tag, DriverAddress(address), *len),
            Way::Write(bytes) => dma.write(tag, DriverAddress(address), bytes),
        }
        Ok(tag)
    }

    /// What needs no message: done at once, and true.
    pub fn read_now(&self, address: u64, into: &mut [u8]) -> bool {
        let mut dma = self.dma.borrow_mut();
        let dma = dma.as_mut().filter(|_| self.is_master());
        dma.is_some_and(|dma| dma.read_now(DriverAddress(address), into))
    }

    /// The same for a write.
    pub fn write_now(&self, address: u64, bytes: &[u8]) -> bool {
        let mut dma = self.dma.borrow_mut();
        let dma = dma.as_mut().filter(|_| self.is_master());
        dma.is_some_and(|dma| dma.write_now(DriverAddress(address), bytes))
    }

    /// A transfer that is waited for.
    pub fn transfer(&self, address: u64, way: &Way<'_>) -> Result<Vec<u8>, c_int> {
        let tag = self.begin(address, way)?;
        let mut end = None;
        let mut look = || {
            self.collect();
            end = self.transfers.borrow_mut().ended.remove(&tag);
            end.is_some()
        };
        if !look() {
            let wait = self.link.borrow().as_ref().map(|link| link.wait.clone());
            let _ = wait.is_some_and(|wait| wait.until(LIMIT, look));
        }
        self.call_back();
        match end {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => Err(self.fail(errno(&error), error)),
            None => Err(self.fail(libc::ETIMEDOUT, "the transfer was not answered")),
        }
    }

    /// A transfer that calls back.
    pub fn start_transfer(
        &self,
        address: u64,
        way: &Way<'_>,
        into: *mut u8,
        done: Done,
        arg: *mut c_void,
    ) -> c_int {
        let len = if let Way::Read(len) = way { *len } else { 0 };
        match self.begin(address, way) {
            Ok(tag) => {
                let started = Started { into: (into, len), done, arg };
                self.transfers.borrow_mut().started.insert(tag, started);
                self.collect();
                self.call_back();
                0
            }
            Err(errno) => errno,
        }
    }

    /// Takes ends of transfers in.
    fn collect(&self) {
        if let Some(dma) = &mut *self.dma.borrow_mut() {
            let ended = &mut self.transfers.borrow_mut().ended;
            dma.poll(|tag, result| {
                ended.insert(tag, result.map(<[u8]>::to_vec));
            });
        }
    }

    /// Calls back whoever has started a transfer that is done.
    pub fn call_back(&self) {
        self.collect();
        loop {
            let next = {
                let Transfers { started, ended, .. } = &mut *self.transfers.borrow_mut();
                let tag = started.keys().find(|tag| ended.contains_key(tag)).copied();
                tag.and_then(|tag| started.remove(&tag).zip(ended.remove(&tag)))
            };
            let Some((Started { into: (place, len), done, arg }, result)) = next else { return };
            let status = match &result {
                Ok(bytes) if !place.is_null() => {
                    let len = bytes.len().min(len);
                    // SAFETY: the caller of viaduct_host_read_start lent `len` bytes at `place`
                    // until `done` is called.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, len) };
                    0
                }
                Ok(_) => 0,
                Err(error) => self.fail(errno(error), error),
            };
            done(arg, status);
        }
    }

    /// Nothing that was begun is reported any more.
    pub fn forget_transfers(&self) {
        if let Some(dma) = &mut *self.dma.borrow_mut() {
            dma.forget();
        }
        let mut transfers = self.transfers.borrow_mut();
        transfers.started.clear();
        transfers.ended.clear();
    }
}
