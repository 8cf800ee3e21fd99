use std::sync::Arc;
use std::time::Duration;

use mem::{AddressSpace, DirtyLog, MemoryMap, Region};
use virtio::{DeviceError, VirtioDevice};

use crate::arena::Arena;
use crate::{Mode, TranslateMover, aliases};

/// How long a queue may take to leave memory that the driver has removed: a batch is over in
/// microseconds.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// The address spaces of a bridge.
///
/// The driver's space changes when the driver says so. Queues don't look at it but at `confirmed`,
/// which follows when the device has agreed: a buffer in a new region is not offered before the
/// device has that region, and a region is not taken away from the device while a queue still hands
/// out addresses in it.
#[derive(Debug)]
pub(crate) struct Spaces {
    driver: Arc<AddressSpace>,
    /// What queues resolve the driver's addresses with.
    pub confirmed: Arc<AddressSpace>,
    /// What the device has: our memory and, in translate mode, the driver's.
    pub device: Arc<AddressSpace>,
    pub arena: Arena,
    mode: Mode,
    /// The device has the driver's memory at other addresses.
    aliased: bool,
}

impl Spaces {
    pub(crate) fn new(
        driver: &Arc<AddressSpace>,
        mode: Mode,
        arena: Arena,
    ) -> Result<Self, DeviceError> {
        let now = driver.current();
        let confirmed = Arc::new(AddressSpace::new(MemoryMap::clone(&now)));
        let asked = Arc::downgrade(driver);
        confirmed.set_miss_handler(move |at, wanted| {
            if let Some(driver) = asked.upgrade() {
                driver.report_miss(at, wanted);
            }
        });
        let aliased = aliases::are_needed(mode, &now);
        let map = match aliased {
            true => aliases::add(&now, &[arena.region()])?,
            false => device_map(mode, &now, &arena)?,
        };
        let device = Arc::new(AddressSpace::new(map));
        let asked = Arc::downgrade(driver);
        device.set_miss_handler(move |at, wanted| {
            if let Some(driver) = asked.upgrade() {
                driver.report_miss(at, wanted);
            }
        });
        Ok(Self { driver: Arc::clone(driver), confirmed, device, arena, mode, aliased })
    }

    /// What hands buffers on in translate mode, for a queue of `size` towards the device.
    pub(crate) fn mover(&self, size: u16) -> TranslateMover {
        match self.aliased {
            true => TranslateMover::aliased(size),
            false => TranslateMover::on(&self.confirmed.current()),
        }
    }

    /// Whether a driver with this memory has it shown to the device as these spaces do.
    pub(crate) fn suit(&self, driver: &MemoryMap) -> bool {
        self.aliased == aliases::are_needed(self.mode, driver)
    }

    /// Follows a change of the driver's memory.
    pub(crate) fn follow(&self, inner: &mut dyn VirtioDevice) -> Result<(), DeviceError> {
        let now = self.driver.current();
        let before = self.confirmed.current();
        let kept: Vec<Region> =
            before.regions().iter().filter(|old| is_in(&now, old)).cloned().collect();
        if kept.len() < before.regions().len() {
            // Whatever is asked for meanwhile may be there again in a moment, from another file: a
            // miss, not a fault.
            let map = MemoryMap::new(kept)?.logged(now.dirty_log().cloned()).translated();
            self.confirmed.replace(map);
            if !self.confirmed.synchronize(LEAVE_LIMIT) {
                return Err(DeviceError::Refused(
                    "a queue does not let go of removed memory".into(),
                ));
            }
        }
        if self.aliased {
            let before = self.device.current();
            let map = aliases::add(&now, before.regions())?;
            // Mostly pages came and went in files that the device has.
            if map.regions().len() != before.regions().len() {
                self.device.replace(map);
                inner.memory_changed()?;
            }
        } else if self.mode == Mode::Translate {
            self.device.replace(device_map(self.mode, &now, &self.arena)?);
            inner.memory_changed()?;
        }
        self.confirmed.replace(MemoryMap::clone(&now));
        // Whoever begins a migration, or takes a log away, relies on the next write.
        if !is_same(before.dirty_log(), now.dirty_log()) && !self.confirmed.synchronize(LEAVE_LIMIT)
        {
            return Err(DeviceError::Refused("a queue does not look at the log of writes".into()));
        }
        Ok(())
    }
}

fn is_same(a: Option<&Arc<DirtyLog>>, b: Option<&Arc<DirtyLog>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// What the device gets to see. Not the log of writes: its mover keeps that, for daemons that
/// can't, and because our ring in its memory is none of the log's pages.
fn device_map(mode: Mode, driver: &MemoryMap, arena: &Arena) -> Result<MemoryMap, DeviceError> {
    let mut regions = vec![arena.region()];
    if mode != Mode::Translate {
        return Ok(MemoryMap::new(regions)?);
    }
    regions.extend_from_slice(driver.regions());
    let map = MemoryMap::new(regions)?;
    Ok(if driver.is_translated() { map.translated() } else { map })
}

/// Whether `map` has the very same region.
fn is_in(map: &MemoryMap, region: &Region) -> bool {
    use mem::Backing::{Mapped, Remote};
    map.region(region.start).is_ok_and(|other| {
        let same_bytes = match (&other.backing, &region.backing) {
            (Mapped { mapping: a, offset: x }, Mapped { mapping: b, offset: y }) => {
                Arc::ptr_eq(a, b) && x == y
            }
            (Remote(a), Remote(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        same_bytes
            && (other.start, other.len, other.access) == (region.start, region.len, region.access)
    })
}
