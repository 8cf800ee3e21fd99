use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::gate::{Generation, Slot};
use crate::{Access, DirtyLog, DriverAddress, MemoryError, MemoryMap, Region, Resolver, guard};

type MissHandler = Box<dyn Fn(DriverAddress, Access) + Send + Sync>;

/// A driver's memory as it changes over time. The control thread changes it; queues work on
/// snapshots and look at the generation, one atomic load, to see that there is a newer one.
pub struct AddressSpace {
    current: Mutex<State>,
    generation: Generation,
    on_miss: Mutex<Option<MissHandler>>,
}

struct State {
    map: Arc<MemoryMap>,
    readers: Vec<Arc<Slot>>,
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self::new(MemoryMap::default())
    }
}

impl AddressSpace {
    /// An address space that begins with `map`.
    #[must_use]
    pub fn new(map: MemoryMap) -> Self {
        let map = Arc::new(map.at_generation(1));
        Self {
            current: Mutex::new(State { map, readers: Vec::new() }),
            generation: Generation::new(1),
            on_miss: Mutex::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<MemoryMap> {
        Arc::clone(&self.state().map)
    }

    /// Changes with every change of the regions.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Puts `map` in the place of the current snapshot.
    pub fn replace(&self, map: MemoryMap) {
        let mut state = self.state();
        let generation = state.map.generation() + 1;
        let old = std::mem::replace(&mut state.map, Arc::new(map.at_generation(generation)));
        self.generation.advance(generation);
        // Last: whoever sees this finds the new generation.
        old.supersede();
    }

    /// Replaces the snapshot by what `change` makes of its regions.
    ///
    /// # Errors
    /// What `change` or [`MemoryMap::new`] refuse; nothing is changed then.
    pub fn update(
        &self,
        change: impl FnOnce(&mut Vec<Region>) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let old = self.current();
        let mut regions = old.regions().to_vec();
        change(&mut regions)?;
        let mut map = MemoryMap::new(regions)?.logged(old.dirty_log().cloned());
        if old.is_translated() {
            map = map.translated();
        }
        self.replace(map);
        Ok(())
    }

    /// Adds a region.
    ///
    /// # Errors
    /// As [`MemoryMap::new`].
    pub fn insert(&self, region: Region) -> Result<(), MemoryError> {
        self.update(|regions| {
            regions.push(region);
            Ok(())
        })
    }

    /// Removes every region that lies wholly inside `[start, start + len)` and returns how many
    /// there were.
    pub fn remove(&self, start: DriverAddress, len: u64) -> usize {
        let last = start.0.saturating_add(len);
        let mut removed = 0;
        let result = self.update(|regions| {
            let before = regions.len();
            regions.retain(|region| region.start < start || region.end() > last);
            removed = before - regions.len();
            Ok(())
        });
        debug_assert!(result.is_ok(), "fewer regions can't overlap");
        removed
    }

    /// Starts or ends the recording of written pages.
    pub fn set_dirty_log(&self, log: Option<Arc<DirtyLog>>) {
        let map = MemoryMap::clone(&self.current()).logged(log);
        self.replace(map);
    }

    /// Sets what is called with an address that has no translation yet (an IOTLB miss), and what it
    /// is wanted for.
    pub fn set_miss_handler(
        &self,
        handler: impl Fn(DriverAddress, Access) + Send + Sync + 'static,
    ) {
        *self.on_miss.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(handler));
    }

    /// Asks whoever owns the IOMMU for a translation of `address`; the answer is a new generation.
    /// To ask for more than is wanted is a fault where a page may only be read, or only be written.
    pub fn report_miss(&self, address: DriverAddress, wanted: Access) {
        if let Some(handler) = &*self.on_miss.lock().unwrap_or_else(PoisonError::into_inner) {
            handler(address, wanted);
        }
    }

    /// A queue's view, which [`AddressSpace::synchronize`] knows of.
    #[must_use]
    pub fn reader(self: &Arc<Self>) -> MapReader {
        let slot = Arc::new(Slot::parked());
        let mut state = self.state();
        state.readers.retain(|reader| Arc::strong_count(reader) > 1);
        state.readers.push(Arc::clone(&slot));
        let resolver = Resolver::new(Arc::clone(&state.map));
        drop(state);
        MapReader { space: Arc::clone(self), resolver, slot, hits: 0 }
    }

    /// Waits until no queue works on an older snapshot than the current one: after that nothing of
    /// ours touches memory that was removed before. Returns false if a queue did not come round
    /// within `limit`.
    #[must_use]
    pub fn synchronize(&self, limit: Duration) -> bool {
        let generation = self.generation();
        let deadline = Instant::now() + limit;
        loop {
            let behind = self.state().readers.iter().any(|slot| slot.is_held(generation));
            if !behind {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::yield_now();
        }
    }
}

impl std::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let map = self.current();
        write!(f, "AddressSpace[{} regions, generation {}]", map.regions().len(), map.generation())
    }
}

/// A queue's view of an [`AddressSpace`]: between [`MapReader::enter`] and [`MapReader::leave`] it
/// works on a snapshot that [`AddressSpace::synchronize`] waits for.
#[derive(Debug)]
pub struct MapReader {
    space: Arc<AddressSpace>,
    resolver: Resolver,
    slot: Arc<Slot>,
    /// The faults there had been when the snapshot was last found whole.
    hits: u64,
}

impl MapReader {
    /// Begins a batch of work on the current snapshot; returns whether it is another one than last
    /// time, so that whatever was resolved before must be resolved again.
    #[inline]
    pub fn enter(&mut self) -> bool {
        let mut changed = false;
        loop {
            let generation = self.resolver.map().generation();
            if self.slot.hold(generation, &self.space.generation) {
                return changed;
            }
            changed |= self.resolver.refresh(&self.space);
            // The new regions may have been cut before.
            self.hits = 0;
        }
    }

    /// Ends a batch: nothing resolved from the snapshot is touched until the next
    /// [`MapReader::enter`].
    #[inline]
    pub fn leave(&mut self) {
        self.slot.park();
    }

    /// Whether a file behind the snapshot was cut short and somebody has met that: what was read
    /// since may be zeros that nobody wrote. Costs one load as long as no file is cut.
    #[inline]
    #[must_use]
    pub fn is_cut(&mut self) -> bool {
        let hits = guard::hits();
        hits != self.hits && self.look_for_cuts(hits)
    }

    #[cold]
    fn look_for_cuts(&mut self, hits: u64) -> bool {
        let is_cut = self.resolver.map().is_poisoned();
        if !is_cut {
            self.hits = hits;
        }
        is_cut
    }

    /// The snapshot.
    #[must_use]
    #[inline]
    pub fn map(&self) -> &Arc<MemoryMap> {
        self.resolver.map()
    }

    /// The snapshot, for resolving addresses.
    #[inline]
    pub fn resolver(&mut self) -> &mut Resolver {
        &mut self.resolver
    }

    /// The address space.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }
}

impl Drop for MapReader {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_a_newer_snapshot_may_have_is_a_miss() {
        let space = AddressSpace::default();
        let old = space.current();
        let at = DriverAddress(0x1000);
        assert!(matches!(old.span(at, 8), Err(MemoryError::Unmapped(_))));
        space.replace(MemoryMap::clone(&old));
        assert!(matches!(old.span(at, 8), Err(MemoryError::Miss(_))));
        assert!(matches!(space.current().span(at, 8), Err(MemoryError::Unmapped(_))));
    }
}
