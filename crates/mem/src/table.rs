use std::ops::Deref;
use std::sync::Arc;

#[cfg(not(loom))]
use crate::Mapping;
use crate::Shared;

/// A checked, aligned array of atomics in shared memory. Keeps its mapping alive.
#[cfg(not(loom))]
pub struct Table<T: Shared> {
    first: std::ptr::NonNull<T>,
    len: usize,
    _mapping: Arc<Mapping>,
}

#[cfg(not(loom))]
impl<T: Shared> Table<T> {
    /// A table of `len` entries at `offset` bytes into `mapping`; `None` if it does not fit, is
    /// misaligned, or the mapping is read-only.
    pub(crate) fn new(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let end = offset.checked_add(bytes)?;
        if end > mapping.len() || !mapping.is_writable() {
            return None;
        }
        // SAFETY: offset <= len of the mapping, checked above, so the pointer stays within (or one
        // past) it.
        let first = unsafe { mapping.base().add(offset) }.cast::<T>();
        if !first.as_ptr().is_aligned() {
            return None;
        }
        Some(Self { first, len, _mapping: Arc::clone(mapping) })
    }
}

#[cfg(not(loom))]
impl<T: Shared> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: in bounds and aligned (checked in `new`), alive as long as `_mapping`, and `T:
        // Shared` makes shared references to peer-writable memory sound.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

// SAFETY: a table is a shared slice of `Sync` values plus an `Arc<Mapping>`, both of which may
// cross threads.
#[cfg(not(loom))]
unsafe impl<T: Shared> Send for Table<T> {}
// SAFETY: as above; all access is through atomics.
#[cfg(not(loom))]
unsafe impl<T: Shared> Sync for Table<T> {}

#[cfg(not(loom))]
impl<T: Shared> Table<T> {
    /// Begins to fetch the line of entry `index`, if there is one, into the cache, to be read or,
    /// if `write`, to be written soon.
    #[inline]
    pub fn prefetch(&self, index: usize, write: bool) {
        if let Some(entry) = self.get(index) {
            crate::span::prefetch_line(std::ptr::from_ref(entry).cast(), write);
        }
    }
}

/// Under loom a table is an ordinary array of loom's atomics.
#[cfg(loom)]
pub struct Table<T: Shared> {
    entries: Arc<[T]>,
}

#[cfg(loom)]
impl<T: Shared> Table<T> {
    /// A table over entries that both sides of a model share.
    pub fn from_entries(entries: Arc<[T]>) -> Self {
        Self { entries }
    }

    /// Nothing: a model has no caches.
    pub fn prefetch(&self, _index: usize, _write: bool) {}
}

#[cfg(loom)]
impl<T: Shared> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.entries
    }
}

impl<T: Shared> std::fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table[{}]", self.deref().len())
    }
}
