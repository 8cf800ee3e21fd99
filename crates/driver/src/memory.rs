use std::fs::File;
use std::sync::Arc;

use mem::{Access, AddressSpace, DriverAddress, Mapping, MemoryMap, Region, Span};

use crate::DriverError;

/// What a guest's RAM is: one shared mapping that appears at `base` in the driver's address space.
///
/// The base is far from zero and from any address of this process, so that a forgotten translation
/// can't work by luck.
#[derive(Debug)]
pub struct GuestMemory {
    mapping: Arc<Mapping>,
    base: u64,
    free: usize,
}

/// Where [`GuestMemory::new`] puts the memory, if not told otherwise: 28 TiB.
const BASE: u64 = 0x1c00_0000_0000;

/// A piece of [`GuestMemory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    offset: usize,
    /// Length in bytes.
    pub len: usize,
    /// Address in the driver's address space.
    pub address: DriverAddress,
}

impl GuestMemory {
    /// Fresh zeroed memory of `len` bytes.
    ///
    /// # Errors
    /// The system is out of memory.
    pub fn new(len: usize) -> Result<Self, DriverError> {
        Ok(Self { mapping: Mapping::new_memfd("guest-memory", len)?, base: BASE, free: 0 })
    }

    /// All of `file`, which others may have too.
    ///
    /// # Errors
    /// The file is empty or can't be mapped.
    pub fn of_file(file: File) -> Result<Self, DriverError> {
        let len = file.metadata().map_err(DriverError::system("looking at a memory file"))?.len();
        let len = usize::try_from(len).map_err(|_| DriverError::OutOfMemory)?;
        Ok(Self { mapping: Mapping::of_file(file.into(), 0, len)?, base: BASE, free: 0 })
    }

    /// Sets aside `len` bytes at a multiple of `align` (a power of two). Never given back: a driver
    /// allocates once.
    ///
    /// # Errors
    /// The memory is used up.
    pub fn allocate(&mut self, len: usize, align: usize) -> Result<Buffer, DriverError> {
        let offset = self.free.next_multiple_of(align);
        let end = offset.checked_add(len).filter(|&end| end <= self.mapping.len());
        self.free = end.ok_or(DriverError::OutOfMemory)?;
        Ok(Buffer { offset, len, address: DriverAddress(self.base + offset as u64) })
    }

    /// The bytes of a buffer.
    ///
    /// # Panics
    /// If the buffer is of another memory.
    #[must_use]
    pub fn span(&self, buffer: Buffer) -> Span<'_> {
        Span::of_mapping(&self.mapping, buffer.offset, buffer.len).expect("a buffer of this memory")
    }

    /// The mapping behind it all.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Address of the first byte.
    #[must_use]
    pub fn base(&self) -> DriverAddress {
        DriverAddress(self.base)
    }

    /// The memory as an address space of one region.
    ///
    /// # Errors
    /// None in practice.
    pub fn map(&self) -> Result<MemoryMap, DriverError> {
        let mapping = Arc::clone(&self.mapping);
        let len = mapping.len() as u64;
        Ok(MemoryMap::new(vec![Region::mapped(self.base(), len, Access::ReadWrite, mapping, 0)?])?)
    }

    /// The same, to be handed to a device.
    ///
    /// # Errors
    /// None in practice.
    pub fn address_space(&self) -> Result<Arc<AddressSpace>, DriverError> {
        Ok(Arc::new(AddressSpace::new(self.map()?)))
    }
}
