use std::sync::{Arc, OnceLock};

use crate::sync::{AtomicU8, Ordering};
use crate::{DriverAddress, Mapping, MemoryError, Table};

/// Bytes that one bit of the log stands for (`VHOST_LOG_PAGE`).
const PAGE_BYTES: u64 = 4096;

/// The bitmap of written pages that a VMM reads during live migration (vhost-user, "Migration").
pub struct DirtyLog {
    bits: Table<AtomicU8>,
    mapping: Arc<Mapping>,
    watcher: OnceLock<Watcher>,
}

/// Is told that a log has new bits.
type Watcher = Box<dyn Fn() + Send + Sync>;

impl DirtyLog {
    /// A log over the whole of `mapping`, bit n of byte m for page 8m + n.
    ///
    /// # Errors
    /// [`MemoryError::BadTable`] if the mapping can't be written.
    pub fn new(mapping: &Arc<Mapping>) -> Result<Arc<Self>, MemoryError> {
        let bits = mapping.table(0, mapping.len())?;
        Ok(Arc::new(Self { bits, mapping: Arc::clone(mapping), watcher: OnceLock::new() }))
    }

    /// The memory of the bitmap, to be handed to whoever writes in our place.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Has `watcher` told whenever pages were marked that were not before, on the thread that
    /// wrote; there is one at most, and a second one is told nothing.
    pub fn watch(&self, watcher: impl Fn() + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// Marks the pages of `[at, at + len)`; pages beyond the bitmap are ignored.
    pub fn mark(&self, at: DriverAddress, len: u64) {
        if len == 0 {
            return;
        }
        let last = at.0.saturating_add(len - 1) / PAGE_BYTES;
        let pages = self.bits.len() as u64 * 8;
        let mut is_news = false;
        for page in (at.0 / PAGE_BYTES)..=last.min(pages.saturating_sub(1)) {
            // Release: the data written before must be visible to whoever sees the bit and then
            // copies the page.
            let bit = 1 << (page % 8);
            is_news |= self.bits[(page / 8) as usize].fetch_or(bit, Ordering::Release) & bit == 0;
        }
        if let Some(watcher) = self.watcher.get().filter(|_| is_news) {
            watcher();
        }
    }
}

impl std::fmt::Debug for DirtyLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DirtyLog[{} bytes]", self.bits.len())
    }
}
