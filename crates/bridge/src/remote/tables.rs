use std::sync::Arc;

use mem::{Access, DriverAddress, Mapping, MemoryMap, Region, Resolver};
use virtqueue::{QueueError, RingFormat, Segment};

/// Bytes of a descriptor.
const ENTRY_BYTES: usize = 16;

/// Largest queue whose driver may use indirect descriptors. Every descriptor has room for a table
/// here of as many entries as a chain may have: 16 MiB of addresses, of which an entry of a table
/// that was never brought costs no memory. QEMU's queues are no longer either.
pub(crate) const MAX_INDIRECT_SIZE: u16 = 1024;

/// Room for the indirect tables of a mirrored queue: what transfers bring, the queue reads here.
#[derive(Debug)]
pub(super) struct Tables {
    /// None if the driver did not agree on indirect descriptors.
    mapping: Option<Arc<Mapping>>,
    /// Where the queue finds the tables.
    resolver: Resolver,
    size: usize,
}

impl Tables {
    /// Room for the tables of a queue of `size`, if it may have any.
    pub(super) fn new(size: u16, indirect: bool) -> Result<Self, QueueError> {
        let mut regions = Vec::new();
        let mapping = match indirect {
            true if size > MAX_INDIRECT_SIZE => {
                return Err(QueueError::BadSize { size, format: RingFormat::Split });
            }
            true => {
                let bytes = usize::from(size) * usize::from(size) * ENTRY_BYTES;
                let mapping = Mapping::new_memfd("viaduct-tables", bytes)?;
                let (at, len) = (DriverAddress(0), mapping.len() as u64);
                regions.push(Region::mapped(at, len, Access::ReadWrite, Arc::clone(&mapping), 0)?);
                Some(mapping)
            }
            false => None,
        };
        let resolver = Resolver::new(Arc::new(MemoryMap::new(regions)?));
        Ok(Self { mapping, resolver, size: size.into() })
    }

    /// Whether there may be any.
    pub(super) fn are_allowed(&self) -> bool {
        self.mapping.is_some()
    }

    /// Where the queue looks for them.
    pub(super) fn resolver(&mut self) -> &mut Resolver {
        &mut self.resolver
    }

    /// The place for the table that descriptor `index` stands for, and how much of it is needed:
    /// no chain has more entries than the queue (VIRTIO 1.4, 2.7.5.3.1). None for a length that no
    /// table has, which the queue refuses by itself.
    pub(super) fn place(&self, index: u16, len: u32) -> Option<Place> {
        let mapping = self.mapping.as_ref()?;
        let most = self.size * ENTRY_BYTES;
        let is_table = len > 0 && (len as usize).is_multiple_of(ENTRY_BYTES);
        let offset = usize::from(index) * most;
        let segment =
            Segment { addr: DriverAddress(offset as u64), len: (len as usize).min(most) as u32 };
        is_table.then(|| Place { here: (Arc::clone(mapping), offset), segment })
    }
}

/// Where a table is brought to.
pub(super) struct Place {
    pub here: (Arc<Mapping>, usize),
    /// The same, as the queue finds it.
    pub segment: Segment,
}
