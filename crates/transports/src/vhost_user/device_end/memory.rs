//! Which memory regions a daemon is told about.
//!
//! A daemon knows a region by an address of ours (`userspace_addr`), in which it is also told where
//! rings are. We need not have mapped anything there, so it is the driver's own address plus a bias
//! that no region had before: DPDK takes a table whose addresses are those of the one before for
//! the same memory, although the files behind it are another guest's.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mem::{Access, Backing, DriverAddress, Mapping, MemoryError, MemoryMap};
use virtio::DeviceError;
use wire::vhost_user::features as protocol;
use wire::vhost_user::{MemoryRegion, MemoryTable, Request};

use super::link::Link;

/// A region as the daemon has it.
#[derive(Clone, Debug)]
pub(super) struct SharedRegion {
    start: u64,
    len: u64,
    mapping: Arc<Mapping>,
    /// Of the first byte, in the mapping.
    offset: u64,
    /// From the driver's address to the daemon's idea of ours.
    bias: u64,
}

impl SharedRegion {
    fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Whether `other` begins where `self` ends, in the address space and in the file.
    fn meets(&self, other: &Self) -> bool {
        self.end() == other.start
            && Arc::ptr_eq(&self.mapping, &other.mapping)
            && self.offset + self.len == other.offset
    }

    fn holds(&self, other: &Self) -> bool {
        self.start <= other.start
            && other.end() <= self.end()
            && Arc::ptr_eq(&self.mapping, &other.mapping)
            && other.start - self.start == other.offset.wrapping_sub(self.offset)
    }

    fn message(&self) -> Result<MemoryRegion, DeviceError> {
        let (_, base) = self.mapping.file().ok_or_else(|| not_shareable(self.start))?;
        Ok(MemoryRegion {
            guest_address: self.start,
            size: self.len,
            user_address: self.start.wrapping_add(self.bias),
            mmap_offset: base + self.offset,
        })
    }
}

/// The regions of `map` that a daemon can map: those in files and writable. Neighbours in the same
/// file are one.
///
/// Memory that only messages reach, and read-only memory, a daemon does without; a driver that puts
/// its buffers there must be served by copying.
pub(super) fn plan(map: &MemoryMap) -> Vec<SharedRegion> {
    merged(pieces(map))
}

fn pieces(map: &MemoryMap) -> impl Iterator<Item = SharedRegion> {
    map.regions().iter().filter(|region| region.access == Access::ReadWrite).filter_map(|region| {
        let Backing::Mapped { mapping, offset } = &region.backing else { return None };
        let (mapping, offset) = (Arc::clone(mapping), *offset as u64);
        let (start, len, bias) = (region.start.0, region.len, 0);
        Some(SharedRegion { start, len, mapping, offset, bias })
    })
}

fn merged(pieces: impl Iterator<Item = SharedRegion>) -> Vec<SharedRegion> {
    let mut all: Vec<SharedRegion> = Vec::new();
    for piece in pieces {
        match all.last_mut() {
            Some(last) if last.meets(&piece) => last.len += piece.len,
            _ => all.push(piece),
        }
    }
    all
}

/// Tells the daemon about `map`, given that it knows `sent`.
pub(super) fn share(
    link: &mut Link,
    sent: &mut Vec<SharedRegion>,
    map: &MemoryMap,
) -> Result<(), DeviceError> {
    if link.has(protocol::CONFIGURE_MEM_SLOTS) {
        return change(link, sent, map);
    }
    let mut wanted = plan(map);
    if same(sent, &wanted) || wanted.is_empty() {
        return Ok(());
    }
    let bias = fresh_bias(&wanted);
    for region in &mut wanted {
        // A region that stays keeps its addresses: rings may be in it.
        region.bias = sent.iter().find(|old| old.holds(region)).map_or(bias, |old| old.bias);
    }
    let regions = wanted.iter().map(SharedRegion::message).collect::<Result<Vec<_>, _>>()?;
    let table = MemoryTable::new(&regions).ok_or_else(|| too_many(wanted.len(), link))?;
    let fds: Vec<_> =
        wanted.iter().filter_map(|region| region.mapping.file().map(|(fd, _)| fd)).collect();
    link.tell(Request::SetMemTable(table), &fds)?;
    *sent = wanted;
    Ok(())
}

/// Adds and removes single regions. A region that is still there is left alone, even if it could be
/// merged with a new neighbour: the daemon may be working in it.
fn change(
    link: &mut Link,
    sent: &mut Vec<SharedRegion>,
    map: &MemoryMap,
) -> Result<(), DeviceError> {
    let whole = plan(map);
    let (kept, gone): (Vec<_>, Vec<_>) =
        sent.drain(..).partition(|old| whole.iter().any(|region| region.holds(old)));
    *sent = kept;
    for old in gone {
        link.tell(Request::RemMemReg(old.message()?), &[])?;
    }
    let fresh = merged(pieces(map).filter(|piece| !sent.iter().any(|old| old.holds(piece))));
    if sent.len() + fresh.len() > link.offer.memory_slots {
        return Err(too_many(sent.len() + fresh.len(), link));
    }
    let bias = fresh_bias(&fresh);
    for mut region in fresh {
        region.bias = bias;
        let Some((fd, _)) = region.mapping.file() else { return Err(not_shareable(region.start)) };
        link.tell(Request::AddMemReg(region.message()?), &[fd.as_fd()])?;
        sent.push(region);
    }
    Ok(())
}

/// A bias that was not used before in this process, and under which no region wraps around.
fn fresh_bias(regions: &[SharedRegion]) -> u64 {
    /// Beyond what guests have of memory, so that regions with different biases stay apart.
    const STEP: u64 = 1 << 44;
    /// Then it begins anew.
    const STEPS: u64 = 1 << 14;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let bias = (NEXT.fetch_add(1, Ordering::Relaxed) % STEPS + 1) * STEP;
    let fits = regions.iter().all(|region| region.end().checked_add(bias).is_some());
    // Addresses that high are an IOMMU's; the same ones twice for different memory are unlikely.
    if fits { bias } else { 0 }
}

/// What the daemon calls the driver's address `at`.
pub(super) fn user_address(sent: &[SharedRegion], at: DriverAddress) -> Result<u64, DeviceError> {
    let region = sent.iter().find(|region| (region.start..region.end()).contains(&at.0));
    let region = region.ok_or(MemoryError::Unmapped(at))?;
    Ok(at.0.wrapping_add(region.bias))
}

/// Takes back every region, where the daemon allows that.
pub(super) fn forget(link: &mut Link, sent: &[SharedRegion]) -> Result<(), DeviceError> {
    if link.has(protocol::CONFIGURE_MEM_SLOTS) {
        for region in sent {
            link.tell(Request::RemMemReg(region.message()?), &[])?;
        }
    }
    Ok(())
}

fn same(a: &[SharedRegion], b: &[SharedRegion]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len == b.len && a.holds(b))
}

fn too_many(regions: usize, link: &Link) -> DeviceError {
    DeviceError::Refused(format!(
        "the driver's memory has {regions} regions and the daemon takes {}: use mode=copy",
        link.offer.memory_slots
    ))
}

fn not_shareable(start: u64) -> DeviceError {
    DeviceError::Refused(format!("the memory at {start:#x} has no file that a daemon could map"))
}
