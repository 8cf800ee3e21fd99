use std::sync::Arc;

use crate::sync::{AtomicU8, Ordering};
use crate::{DriverAddress, Mapping, MemoryError, Table};

/// Bytes that one bit of the log stands for (`VHOST_LOG_PAGE`).
const PAGE_BYTES: u64 = 4096;

/// The bitmap of written pages that a VMM reads during live migration (vhost-user, "Migration").
#[derive(Debug)]
pub struct DirtyLog {
    bits: Table<AtomicU8>,
    mapping: Arc<Mapping>,
}

impl DirtyLog {
    /// A log over the whole of `mapping`, bit n of byte m for page 8m + n.
    ///
    /// # Errors
    /// [`MemoryError::BadTable`] if the mapping can't be written.
    pub fn new(mapping: &Arc<Mapping>) -> Result<Arc<Self>, MemoryError> {
        let bits = mapping.table(0, mapping.len())?;
        Ok(Arc::new(Self { bits, mapping: Arc::clone(mapping) }))
    }

    /// The memory of the bitmap, to be handed to whoever writes in our place.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Marks the pages of `[at, at + len)`; pages beyond the bitmap are ignored.
    pub fn mark(&self, at: DriverAddress, len: u64) {
        if len == 0 {
            return;
        }
        let last = at.0.saturating_add(len - 1) / PAGE_BYTES;
        let pages = self.bits.len() as u64 * 8;
        for page in (at.0 / PAGE_BYTES)..=last.min(pages.saturating_sub(1)) {
            // Release: the data written before must be visible to whoever sees the bit and then
            // copies the page.
            self.bits[(page / 8) as usize].fetch_or(1 << (page % 8), Ordering::Release);
        }
    }
}
