//! What a function is made of, before anything has touched it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::config::Msix;

/// Largest BAR: what 64-bit firmware places without trouble.
pub const MAX_BAR_BYTES: u64 = 1 << 36;

/// Largest BAR with memory behind it: all of it is mapped into this process.
pub const MAX_MAPPED_BYTES: u64 = 1 << 30;

/// What memory is mapped in.
const PAGE: u64 = 4096;

/// Most parts of one BAR that can be mapped: what one region info message holds.
pub const MAX_MAPPABLE: usize = wire::vfio_user::MAX_SPARSE_AREAS;

/// What kind of BAR it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BarKind {
    /// There is none, or it is the upper half of the one before.
    #[default]
    None,
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes the next BAR as well.
    Memory64 {
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
}

/// One BAR.
#[derive(Clone, Debug, Default)]
pub struct BarLayout {
    /// Its kind.
    pub kind: BarKind,
    /// Size in bytes, a power of two; 0 if there is none.
    pub size: u64,
    /// Memory behind it that a virtual machine may map, so that accesses never reach
    /// [`Function::read`] and
    /// [`Function::write`]. QEMU then stops posting writes for the whole device.
    ///
    /// [`Function::read`]: crate::Function::read
    /// [`Function::write`]: crate::Function::write
    pub mappable: Option<Mappable>,
}

/// Memory behind a BAR.
#[derive(Clone, Debug)]
pub struct Mappable {
    /// The memory; byte 0 of the BAR is at `offset`.
    pub file: Arc<OwnedFd>,
    /// Offset in bytes in the file.
    pub offset: u64,
    /// Offset and size in bytes of the parts that may be mapped; empty for the whole BAR.
    pub areas: Vec<(u64, u64)>,
}

impl Mappable {
    /// The parts `areas` of `memory`, whose first byte is the BAR's.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new(memory: &mem::Mapping, areas: Vec<(u64, u64)>) -> Result<Self, mem::MemoryError> {
        let (file, offset) = memory.file().ok_or(mem::MemoryError::Overflow)?;
        let file = file.try_clone_to_owned().map_err(|_| mem::MemoryError::TooManyMappings)?;
        Ok(Self { file: Arc::new(file), offset, areas })
    }
}

/// How a function can interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptLayout {
    /// Whether it has an INTx pin.
    pub intx: bool,
    /// MSI vectors.
    pub msi: u8,
    /// MSI-X, with the place of its table.
    pub msix: Option<Msix>,
}

/// BARs and interrupts of a function. Its configuration space is a
/// [`ConfigSpace`](crate::config::ConfigSpace).
#[derive(Clone, Debug, Default)]
pub struct FunctionLayout {
    /// The BARs.
    pub bars: [BarLayout; 6],
    /// The interrupts.
    pub interrupts: InterruptLayout,
}

/// Why a layout is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The configuration space has no room for another capability.
    #[error("no room in the configuration space for another capability")]
    ConfigFull,
    /// That many vectors can't be.
    #[error("{0} interrupt vectors are not possible")]
    BadVectors(u32),
    /// A BAR has an impossible size, or a 64-bit BAR has no partner.
    #[error("bar {0} has an impossible size or place")]
    BadBar(u8),
    /// A configuration space of an impossible size.
    #[error("a configuration space has 256 or 4096 bytes")]
    BadConfig,
    /// The MSI-X table is outside its BAR.
    #[error("the msi-x table does not fit its bar")]
    BadMsix,
}

impl BarLayout {
    /// I/O ports.
    #[must_use]
    pub fn io(size: u64) -> Self {
        Self { kind: BarKind::Io, size, mappable: None }
    }

    /// Registers below 4 GiB.
    #[must_use]
    pub fn memory32(size: u64) -> Self {
        Self { kind: BarKind::Memory32 { prefetchable: false }, size, mappable: None }
    }

    /// The same with `len` bytes of memory from `at` on, whole pages, that a virtual machine maps.
    /// The function finds them by [`HostPort::bar`](crate::HostPort::bar): where it is a model
    /// behind a port, the port's, which are still there when the model comes back.
    ///
    /// # Errors
    /// The system has no memory, or the part is none of the BAR.
    pub fn mapped(mut self, at: u64, len: u64) -> Result<Self, mem::MemoryError> {
        let end = at.checked_add(len).filter(|end| *end <= self.size);
        let whole = at.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        if end.is_none() || !whole || self.size > MAX_MAPPED_BYTES {
            return Err(mem::MemoryError::BadTable { offset: at });
        }
        let memory = mem::Mapping::new_memfd("viaduct-bar", self.size as usize)?;
        // All of it needs no list of parts.
        let areas = if len == self.size { Vec::new() } else { vec![(at, len)] };
        self.mappable = Some(Mappable::new(&memory, areas)?);
        Ok(self)
    }

    /// Prefetchable memory anywhere.
    #[must_use]
    pub fn memory64(size: u64) -> Self {
        Self { kind: BarKind::Memory64 { prefetchable: true }, size, mappable: None }
    }
}

impl FunctionLayout {
    /// Whether such a function can be.
    ///
    /// # Errors
    /// [`LayoutError::BadBar`], [`LayoutError::BadMsix`], [`LayoutError::BadVectors`].
    pub fn check(&self) -> Result<(), LayoutError> {
        for (index, bar) in self.bars.iter().enumerate() {
            let smallest = match bar.kind {
                BarKind::None => continue,
                BarKind::Io => 4,
                BarKind::Memory32 { .. } | BarKind::Memory64 { .. } => 16,
            };
            let largest = match bar.kind {
                BarKind::Io => 256,
                BarKind::Memory64 { .. } => MAX_BAR_BYTES,
                _ => 1 << 31,
            };
            let fits = bar.size.is_power_of_two() && (smallest..=largest).contains(&bar.size);
            let partner = match bar.kind {
                BarKind::Memory64 { .. } => {
                    self.bars.get(index + 1).is_some_and(|next| next.kind == BarKind::None)
                }
                _ => true,
            };
            let areas = bar.mappable.as_ref().is_none_or(|m| {
                m.areas.len() <= MAX_MAPPABLE
                    && m.areas
                        .iter()
                        .all(|(at, len)| at.checked_add(*len).is_some_and(|end| end <= bar.size))
            });
            if !fits || !partner || !areas {
                return Err(LayoutError::BadBar(index as u8));
            }
        }
        let Some(msix) = self.interrupts.msix else { return Ok(()) };
        if !(1..=2048).contains(&msix.vectors) {
            return Err(LayoutError::BadVectors(msix.vectors.into()));
        }
        let vectors = u64::from(msix.vectors);
        let size = self.bars.get(usize::from(msix.bar)).map_or(0, |bar| bar.size);
        let table = u64::from(msix.table) + vectors * u64::from(Msix::ENTRY);
        let pending = u64::from(msix.pending) + vectors.div_ceil(64) * 8;
        if table > size || pending > size { Err(LayoutError::BadMsix) } else { Ok(()) }
    }
}
