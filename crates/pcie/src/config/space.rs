use super::image::Image;
use super::{
    CONVENTIONAL_LEN, EXPRESS_LEN, PcieCapability, capability_id, command, offset, status,
};
use crate::layout::{BarKind, BarLayout, LayoutError};

/// Who a function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIds {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Revision id.
    pub revision: u8,
}

/// What a write to the configuration space asks for beyond the new bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigEffect {
    /// Function level reset was initiated, or the function came back from D3hot: reset it.
    pub reset: bool,
    /// The command register has changed.
    pub command: bool,
    /// MSI or MSI-X was enabled, disabled or masked.
    pub interrupts: bool,
}

/// Size and masks of a configuration space with its bytes. See the [module](super).
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Image,
    /// Bits that a driver changes.
    writable: Image,
    /// Bits that a driver clears by writing ones.
    clearable: Image,
    /// Bytes as they are after a reset.
    pristine: Image,
    /// Offset of the last capability's link, and the first free byte.
    last_link: usize,
    free: usize,
    extended_link: Option<usize>,
    extended_free: usize,
    express: Option<usize>,
    power: Option<usize>,
    msi: Option<usize>,
    msix: Option<usize>,
}

impl ConfigSpace {
    /// A type 0 header with the registers of `bars`; `express` for 4096 bytes instead of 256.
    #[must_use]
    pub fn new(ids: DeviceIds, bars: &[BarLayout; 6], express: bool) -> Self {
        let len = if express { EXPRESS_LEN } else { CONVENTIONAL_LEN };
        let mut space = Self {
            bytes: Image::zeros(len),
            writable: Image::zeros(len),
            clearable: Image::zeros(len),
            pristine: Image::zeros(len),
            last_link: offset::CAPABILITIES,
            free: offset::FIRST_CAPABILITY,
            extended_link: None,
            extended_free: offset::FIRST_EXTENDED,
            express: None,
            power: None,
            msi: None,
            msix: None,
        };
        space.put(offset::VENDOR, &ids.vendor.to_le_bytes());
        space.put(offset::DEVICE, &ids.device.to_le_bytes());
        space.put(offset::REVISION, &[ids.revision]);
        space.put(offset::CLASS, &ids.class.to_le_bytes()[..3]);
        space.put(offset::SUBSYSTEM_VENDOR, &ids.subsystem_vendor.to_le_bytes());
        space.put(offset::SUBSYSTEM, &ids.subsystem.to_le_bytes());
        let command = command::IO
            | command::MEMORY
            | command::BUS_MASTER
            | command::PARITY
            | command::SERR
            | command::INTX_DISABLE;
        space.allow(offset::COMMAND, &command.to_le_bytes());
        space.clearable.put(offset::STATUS, &status::ERRORS.to_le_bytes());
        space.allow(offset::CACHE_LINE, &[0xff]);
        space.allow(offset::INTERRUPT_LINE, &[0xff]);
        for (index, bar) in bars.iter().enumerate() {
            space.put_bar(index, bar);
        }
        space.settle();
        space
    }

    /// A configuration space from another process: its bytes as after power-on, what a driver may
    /// change and what it clears by writing ones. The capabilities are found by their links.
    ///
    /// # Errors
    /// [`LayoutError::BadConfig`] if the three are not all 256 or all 4096 bytes long.
    pub fn from_parts(
        bytes: Vec<u8>,
        writable: Vec<u8>,
        clearable: Vec<u8>,
    ) -> Result<Self, LayoutError> {
        let len = bytes.len();
        if (len != CONVENTIONAL_LEN && len != EXPRESS_LEN)
            || writable.len() != len
            || clearable.len() != len
        {
            return Err(LayoutError::BadConfig);
        }
        let mut space = Self {
            pristine: Image::of(&bytes),
            bytes: Image::of(&bytes),
            writable: Image::of(&writable),
            clearable: Image::of(&clearable),
            last_link: offset::CAPABILITIES,
            free: CONVENTIONAL_LEN,
            extended_link: None,
            extended_free: len,
            express: None,
            power: None,
            msi: None,
            msix: None,
        };
        let mut at = usize::from(space.bytes[offset::CAPABILITIES] & !3);
        // Bounded: no more capabilities than fit, whatever the links say.
        for _ in 0..CONVENTIONAL_LEN / 4 {
            // The shortest of those that matter here are 8 bytes long.
            if at < offset::FIRST_CAPABILITY || at + 12 > CONVENTIONAL_LEN {
                break;
            }
            space.note(space.bytes[at], at);
            at = usize::from(space.bytes[at + 1] & !3);
        }
        Ok(space)
    }

    /// Remembers where a capability is that matters here.
    fn note(&mut self, id: u8, at: usize) {
        match id {
            capability_id::PCI_EXPRESS => self.express = Some(at),
            capability_id::POWER_MANAGEMENT => self.power = Some(at),
            capability_id::MSI => self.msi = Some(at),
            capability_id::MSIX => self.msix = Some(at),
            _ => {}
        }
    }

    /// The bytes as they are now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// The bytes as a reset makes them.
    #[must_use]
    pub fn pristine(&self) -> Vec<u8> {
        self.pristine.to_vec()
    }

    /// The bits that a driver changes, as long as [`ConfigSpace::bytes`].
    #[must_use]
    pub fn writable(&self) -> Vec<u8> {
        self.writable.to_vec()
    }

    /// The bits that a driver clears by writing ones, as long as [`ConfigSpace::bytes`].
    #[must_use]
    pub fn clearable(&self) -> Vec<u8> {
        self.clearable.to_vec()
    }

    fn put_bar(&mut self, index: usize, bar: &BarLayout) {
        let at = offset::BAR0 + 4 * index;
        let (flags, is_wide) = match bar.kind {
            BarKind::None => return,
            BarKind::Io => (1, false),
            BarKind::Memory32 { prefetchable } => (u32::from(prefetchable) << 3, false),
            BarKind::Memory64 { prefetchable } => (0b100 | u32::from(prefetchable) << 3, true),
        };
        // Writing ones and reading back gives the size: the bits below it can't be set.
        let mask = !bar.size.saturating_sub(1);
        let low = if bar.kind == BarKind::Io { mask & 0xffff_fffc } else { mask & 0xffff_fff0 };
        self.put(at, &flags.to_le_bytes());
        self.allow(at, &(low as u32).to_le_bytes());
        if is_wide && index < 5 {
            self.allow(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
    }

    /// Appends a capability: `id`, the link, then `body`; the driver may write the bits of
    /// `writable`, which begins where `body` does. Returns its offset.
    ///
    /// # Errors
    /// [`LayoutError::ConfigFull`].
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<usize, LayoutError> {
        let at = self.free.next_multiple_of(4);
        let end = at + 2 + body.len().max(writable.len());
        if end > CONVENTIONAL_LEN {
            return Err(LayoutError::ConfigFull);
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(self.last_link, &[at as u8]);
        self.last_link = at + 1;
        self.free = end;
        self.set_bits(offset::STATUS, status::CAPABILITIES as u8, true);
        self.note(id, at);
        self.settle();
        Ok(at)
    }

    /// Appends an extended capability of 4 + `body.len()` bytes. Returns its offset.
    ///
    /// # Errors
    /// [`LayoutError::ConfigFull`], also in a conventional space.
    pub fn add_extended_capability(
        &mut self,
        id: u16,
        version: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<usize, LayoutError> {
        let at = self.extended_free.next_multiple_of(4);
        let end = at + 4 + body.len().max(writable.len());
        if end > self.bytes.len() {
            return Err(LayoutError::ConfigFull);
        }
        let header = u32::from(id) | u32::from(version & 0xf) << 16;
        self.put(at, &header.to_le_bytes());
        self.put(at + 4, body);
        self.allow(at + 4, writable);
        if let Some(link) = self.extended_link {
            let header = self.u32_at(link) & 0xf_ffff | (at as u32) << 20;
            self.put(link, &header.to_le_bytes());
        }
        self.extended_link = Some(at);
        self.extended_free = end;
        self.settle();
        Ok(at)
    }

    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes; never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == 0
    }

    /// A driver reads from byte `at` on.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        for (n, byte) in into.iter_mut().enumerate() {
            let place = usize::try_from(at.saturating_add(n as u64)).unwrap_or(usize::MAX);
            *byte = self.bytes.get(place).unwrap_or(0xff);
        }
    }

    /// A driver writes from byte `at` on.
    pub fn write(&mut self, at: u64, from: &[u8]) -> ConfigEffect {
        let command = self.command();
        let interrupts = (self.msi_control(), self.msix_control());
        let was_off = self.power_state() != 0;
        let mut effect = ConfigEffect::default();
        for (n, &byte) in from.iter().enumerate() {
            let place = usize::try_from(at.saturating_add(n as u64)).unwrap_or(usize::MAX);
            let Some(old) = self.bytes.get(place) else { break };
            let mask = self.writable[place];
            let new = (old & !mask | byte & mask) & !(byte & self.clearable[place]);
            self.bytes.put(place, &[new]);
            // Initiate Function Level Reset reads as 0 whatever is written (PCIe 7.5.3.4).
            if self.express.is_some_and(|cap| place == cap + PcieCapability::FLR_BYTE) {
                effect.reset |= byte & PcieCapability::FLR_BIT != 0;
            }
        }
        effect.reset |= was_off && self.power_state() == 0;
        effect.command = command != self.command();
        effect.interrupts = interrupts != (self.msi_control(), self.msix_control());
        effect
    }

    /// The function sets bytes itself, whatever a driver may write.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.put(at, bytes);
    }

    /// The function sets or clears bits of the byte at `at`.
    pub fn set_bits(&mut self, at: usize, bits: u8, on: bool) {
        if let Some(byte) = self.bytes.get(at) {
            self.bytes.put(at, &[if on { byte | bits } else { byte & !bits }]);
        }
    }

    /// Lets a driver write the bits of `mask`, beginning at `at`.
    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable.put(at, mask);
    }

    /// Lets a driver clear the bits of `mask`, beginning at `at`, by writing ones.
    pub fn allow_clearing(&mut self, at: usize, mask: &[u8]) {
        self.clearable.put(at, mask);
    }

    /// Takes the bytes as they are now for what a reset brings back.
    pub fn settle(&mut self) {
        self.pristine.clone_from(&self.bytes);
    }

    /// Everything as at the last [`ConfigSpace::settle`].
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.pristine);
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.u16_at(offset::COMMAND)
    }

    /// Whether MSI-X is enabled, as far as its control register says. A virtual machine monitor
    /// that keeps that register to itself never writes it here.
    #[must_use]
    pub fn is_msix_enabled(&self) -> bool {
        self.msix_control() & 1 << 15 != 0
    }

    /// Whether MSI is enabled, as far as its control register says.
    #[must_use]
    pub fn is_msi_enabled(&self) -> bool {
        self.msi_control() & 1 != 0
    }

    /// Where the capability `id` is, if it is one of power management, MSI, MSI-X and PCI Express.
    #[must_use]
    pub fn capability(&self, id: u8) -> Option<usize> {
        match id {
            capability_id::PCI_EXPRESS => self.express,
            capability_id::POWER_MANAGEMENT => self.power,
            capability_id::MSI => self.msi,
            capability_id::MSIX => self.msix,
            _ => None,
        }
    }

    /// The power state, 0 (D0) to 3 (D3hot).
    #[must_use]
    pub fn power_state(&self) -> u8 {
        self.power.map_or(0, |at| self.bytes[at + 4] & 3)
    }

    fn msi_control(&self) -> u16 {
        self.msi.map_or(0, |at| self.u16_at(at + 2))
    }

    fn msix_control(&self) -> u16 {
        self.msix.map_or(0, |at| self.u16_at(at + 2))
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from(self.u16_at(at)) | u32::from(self.u16_at(at + 2)) << 16
    }
}
