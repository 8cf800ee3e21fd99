//! The driver's memory as its side tells us: regions, and translations where there is an IOMMU.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mem::{
    Access, AddressSpace, DirtyLog, DriverAddress, FileCache, Mapping, MemoryError, MemoryMap,
    Region,
};
use wire::vhost_user::{Iotlb, IotlbKind, LogBase, MemoryRegion, MemoryTable};

/// Most regions we take with ADD_MEM_REG: what libvhost-user takes, and QEMU never has more.
pub(super) const MAX_SLOTS: usize = 509;
/// Most translations kept; when there are more, all are forgotten and asked for again.
const MAX_TRANSLATIONS: usize = 16_384;
/// Regions begin at a page of their file, as `mmap` wants it.
const PAGE: u64 = 4096;
/// How long queues may go on with memory that is being removed; they look round after every batch.
const REMOVAL_LIMIT: Duration = Duration::from_secs(1);

/// Why a message about memory is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("{0}")]
    Rule(&'static str),
}

#[derive(Clone, Debug)]
struct Slot {
    told: MemoryRegion,
    mapping: Arc<Mapping>,
}

impl Slot {
    fn region(&self) -> Result<Region, MemoryError> {
        let start = DriverAddress(self.told.guest_address);
        let mapping = Arc::clone(&self.mapping);
        Region::mapped(start, self.told.size, Access::ReadWrite, mapping, self.told.mmap_offset)
    }

    /// Bytes from `user` to the end of the slot, if it is in there.
    fn rest(&self, user: u64) -> Option<u64> {
        let skip = user.checked_sub(self.told.user_address)?;
        self.told.size.checked_sub(skip).filter(|&rest| rest > 0)
    }
}

/// A translation: so many bytes at the key's address are at this address of the other process.
#[derive(Clone, Copy, Debug)]
struct Translation {
    size: u64,
    user: u64,
    access: Access,
}

/// The memory of one session.
#[derive(Debug)]
pub(super) struct Memory {
    slots: Vec<Slot>,
    files: FileCache,
    space: Arc<AddressSpace>,
    /// By I/O virtual address; `None` without an IOMMU.
    translations: Option<BTreeMap<u64, Translation>>,
    log: Option<Arc<DirtyLog>>,
}

impl Memory {
    pub(super) fn new() -> Self {
        let space = Arc::new(AddressSpace::default());
        let files = FileCache::default();
        Self { slots: Vec::new(), files, space, translations: None, log: None }
    }

    pub(super) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a region's file was cut under us.
    pub(super) fn is_poisoned(&self) -> bool {
        self.slots.iter().any(|slot| slot.mapping.is_poisoned())
    }

    /// SET_MEM_TABLE: these regions and no others. Nothing is changed if one of them is refused.
    pub(super) fn set_table(
        &mut self,
        table: &MemoryTable,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        if table.regions().is_empty() {
            return Err(Refusal::Rule("a memory table without regions"));
        }
        let mut slots = Vec::new();
        for (told, fd) in table.regions().iter().zip(fds) {
            slots.push(self.slot(*told, fd)?);
        }
        self.adopt(slots)
    }

    /// ADD_MEM_REG.
    pub(super) fn add(&mut self, told: MemoryRegion, fd: OwnedFd) -> Result<(), Refusal> {
        if self.slots.len() >= MAX_SLOTS {
            return Err(Refusal::Rule("more memory regions than there are slots"));
        }
        let mut slots = self.slots.clone();
        slots.push(self.slot(told, fd)?);
        self.adopt(slots)
    }

    /// REM_MEM_REG: a region is known by its addresses and size, not by its offset ("REM_MEM_REG").
    pub(super) fn remove(&mut self, told: MemoryRegion) -> Result<(), Refusal> {
        let mut slots = self.slots.clone();
        slots.retain(|slot| {
            slot.told.guest_address != told.guest_address
                || slot.told.size != told.size
                || slot.told.user_address != told.user_address
        });
        if slots.len() == self.slots.len() {
            return Err(Refusal::Rule("there is no such memory region"));
        }
        self.adopt(slots)
    }

    fn slot(&mut self, told: MemoryRegion, fd: OwnedFd) -> Result<Slot, Refusal> {
        if told.size == 0 || !told.mmap_offset.is_multiple_of(PAGE) {
            return Err(Refusal::Rule("a memory region that is empty or not aligned"));
        }
        told.user_address.checked_add(told.size).ok_or(MemoryError::Overflow)?;
        told.guest_address.checked_add(told.size).ok_or(MemoryError::Overflow)?;
        let end = told.mmap_offset.checked_add(told.size).ok_or(MemoryError::Overflow)?;
        Ok(Slot { told, mapping: self.files.map(fd, end)? })
    }

    /// Takes up `slots` if they make a memory map.
    fn adopt(&mut self, slots: Vec<Slot>) -> Result<(), Refusal> {
        let regions = slots.iter().map(Slot::region).collect::<Result<Vec<_>, _>>()?;
        let map = MemoryMap::new(regions)?;
        self.slots = slots;
        match self.translations {
            None => self.space.replace(map.logged(self.log.clone())),
            Some(_) => self.rebuild(),
        }
        Ok(())
    }

    /// Begins or ends translating: the driver accepted ACCESS_PLATFORM, or another one did not.
    ///
    /// What was translated before is forgotten: while the device is stopped QEMU does not say what
    /// becomes invalid, and a driver that comes back has other pages at the same addresses.
    pub(super) fn set_translated(&mut self, translated: bool) {
        if self.translations.as_ref().is_none_or(BTreeMap::is_empty)
            && self.translations.is_some() == translated
        {
            return;
        }
        self.translations = translated.then(BTreeMap::new);
        self.rebuild();
    }

    pub(super) fn is_translated(&self) -> bool {
        self.translations.is_some()
    }

    /// Waits until no queue works in memory that was taken away.
    pub(super) fn settle(&self) {
        if !self.space.synchronize(REMOVAL_LIMIT) {
            tracing::warn!("a queue still works in memory that the driver's side has removed");
        }
    }

    /// IOTLB_MSG from the driver's side. True if something was taken away.
    pub(super) fn translate(&mut self, message: &Iotlb) -> Result<bool, Refusal> {
        let last = message.iova.checked_add(message.size.saturating_sub(1));
        let last = last.filter(|_| message.size > 0).ok_or(MemoryError::Overflow)?;
        let update = match message.kind {
            IotlbKind::Update => Some(self.checked(message)?),
            IotlbKind::Invalidate => None,
            _ => return Err(Refusal::Rule("this IOTLB message only goes the other way")),
        };
        let Some(translations) = &mut self.translations else {
            return Err(Refusal::Rule("a translation, though ACCESS_PLATFORM was not accepted"));
        };
        if translations.len() >= MAX_TRANSLATIONS {
            translations.clear();
        }
        let before = translations.len();
        translations.retain(|&iova, entry| iova > last || iova + (entry.size - 1) < message.iova);
        let removed = translations.len() != before;
        if let Some(entry) = update {
            translations.insert(message.iova, entry);
        }
        self.rebuild();
        Ok(removed)
    }

    fn checked(&self, message: &Iotlb) -> Result<Translation, Refusal> {
        if !self.slots.iter().any(|slot| slot.rest(message.user_address).is_some()) {
            return Err(Refusal::Rule("a translation to memory that was not given to us"));
        }
        message.user_address.checked_add(message.size).ok_or(MemoryError::Overflow)?;
        let write = message.permissions & Iotlb::WRITE != 0;
        let access = if write { Access::ReadWrite } else { Access::Read };
        Ok(Translation { size: message.size, user: message.user_address, access })
    }

    /// Makes the memory map anew from slots and translations.
    fn rebuild(&mut self) {
        let regions = match &self.translations {
            None => self.slots.iter().map(Slot::region).collect::<Result<Vec<_>, _>>(),
            Some(translations) => Ok(self.translated_regions(translations)),
        };
        match regions.and_then(MemoryMap::new) {
            Ok(map) => {
                let map = if self.translations.is_some() { map.translated() } else { map };
                self.space.replace(map.logged(self.log.clone()));
            }
            // Slots were checked when they came and translations don't overlap: only their number
            // can be wrong.
            Err(error) => tracing::error!("the driver's memory: {error}"),
        }
    }

    /// Each translation as one region per slot that it runs through; what no slot holds is left
    /// out.
    fn translated_regions(&self, translations: &BTreeMap<u64, Translation>) -> Vec<Region> {
        let mut regions = Vec::new();
        for (&iova, entry) in translations {
            let mut done = 0;
            // Each round reaches the end of a slot, so there are no more rounds than slots.
            for _ in 0..self.slots.len() {
                let user = entry.user + done;
                let found = self.slots.iter().find_map(|slot| Some((slot, slot.rest(user)?)));
                let Some((slot, rest)) = found else { break };
                let len = rest.min(entry.size - done);
                let offset = slot.told.mmap_offset + (user - slot.told.user_address);
                let start = DriverAddress(iova + done);
                let mapping = Arc::clone(&slot.mapping);
                regions.extend(Region::mapped(start, len, entry.access, mapping, offset).ok());
                done += len;
                if done == entry.size {
                    break;
                }
            }
        }
        regions
    }

    /// The driver's address of what the other process has at `user`.
    pub(super) fn driver_address(&self, user: u64) -> Option<DriverAddress> {
        let slot = self.slots.iter().find(|slot| slot.rest(user).is_some())?;
        Some(DriverAddress(slot.told.guest_address + (user - slot.told.user_address)))
    }

    /// SET_LOG_BASE: where writes are to be recorded, once the driver's side switches that on.
    pub(super) fn log_from(base: &LogBase, fd: OwnedFd) -> Result<Arc<DirtyLog>, Refusal> {
        let LogBase::Shared { size, offset } = *base else {
            return Err(Refusal::Rule("a log without a file"));
        };
        let len = usize::try_from(size).map_err(|_| MemoryError::Overflow)?;
        Ok(DirtyLog::new(&Mapping::of_file(fd, offset, len)?)?)
    }

    /// Begins or ends recording.
    pub(super) fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log.clone();
        self.space.set_dirty_log(log);
    }
}
