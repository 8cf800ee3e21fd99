use crate::config::{ConfigSpace, DeviceIds, Msi, Msix, PcieCapability, PcieKind, offset};
use crate::layout::{BarLayout, FunctionLayout, InterruptLayout, LayoutError};

/// Extended capability "Device Serial Number" (PCIe 7.9.3).
const SERIAL_NUMBER: u16 = 3;

/// What a function is, as its author says it; [`Description::build`] makes the BARs and the
/// configuration space of it.
///
/// Every function has power management; on PCI Express also the capability of that name, with
/// function level reset.
///
/// ```
/// use pcie::{BarLayout, Description};
/// let built = Description::new(0x1234, 0x11e8)
///     .class(0x00ff_00_00)
///     .bar(0, BarLayout::memory32(0x1000))
///     .intx()
///     .msi(1)
///     .build()
///     .expect("a sound description");
/// assert_eq!(built.config.bytes()[..2], [0x34, 0x12]);
/// ```
#[derive(Clone, Debug)]
pub struct Description {
    ids: DeviceIds,
    layout: FunctionLayout,
    express: bool,
    serial: Option<u64>,
    capabilities: Vec<(u8, Vec<u8>, Vec<u8>)>,
    extended: Vec<(u16, u8, Vec<u8>, Vec<u8>)>,
}

/// A function's BARs, interrupts and configuration space.
#[derive(Clone, Debug)]
pub struct Built {
    /// BARs and interrupts.
    pub layout: FunctionLayout,
    /// The configuration space.
    pub config: ConfigSpace,
}

impl Description {
    /// A PCI Express endpoint without BARs and interrupts. The subsystem has the same ids.
    #[must_use]
    pub fn new(vendor: u16, device: u16) -> Self {
        let ids = DeviceIds {
            vendor,
            device,
            subsystem_vendor: vendor,
            subsystem: device,
            // "Unassigned class": belongs to no defined class (PCI Code and ID Assignment, 1.1).
            class: 0xff_0000,
            revision: 0,
        };
        Self {
            ids,
            layout: FunctionLayout::default(),
            express: true,
            serial: None,
            capabilities: Vec::new(),
            extended: Vec::new(),
        }
    }

    /// Class, subclass and programming interface, 24 bits.
    #[must_use]
    pub fn class(mut self, class: u32) -> Self {
        self.ids.class = class;
        self
    }

    /// The revision.
    #[must_use]
    pub fn revision(mut self, revision: u8) -> Self {
        self.ids.revision = revision;
        self
    }

    /// Other ids for the subsystem.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        (self.ids.subsystem_vendor, self.ids.subsystem) = (vendor, device);
        self
    }

    /// A conventional PCI device: 256 bytes of configuration space and no PCI Express capability.
    #[must_use]
    pub fn conventional(mut self) -> Self {
        self.express = false;
        self
    }

    /// BAR `index`, 0 to 5; a 64-bit one takes the next as well.
    #[must_use]
    pub fn bar(mut self, index: usize, bar: BarLayout) -> Self {
        if let Some(place) = self.layout.bars.get_mut(index) {
            *place = bar;
        }
        self
    }

    /// What BAR `index` is, if there can be one.
    #[must_use]
    pub fn bar_layout(&self, index: usize) -> Option<&BarLayout> {
        self.layout.bars.get(index)
    }

    /// An INTx pin.
    #[must_use]
    pub fn intx(mut self) -> Self {
        self.layout.interrupts.intx = true;
        self
    }

    /// MSI with 1, 2, 4, 8, 16 or 32 vectors.
    #[must_use]
    pub fn msi(mut self, vectors: u8) -> Self {
        self.layout.interrupts.msi = vectors;
        self
    }

    /// MSI-X.
    #[must_use]
    pub fn msix(mut self, msix: Msix) -> Self {
        self.layout.interrupts.msix = Some(msix);
        self
    }

    /// The serial number of the card, in an extended capability.
    #[must_use]
    pub fn serial(mut self, serial: u64) -> Self {
        self.serial = Some(serial);
        self
    }

    /// One more capability: what follows its id and link, and the bits of that which a driver may
    /// change.
    #[must_use]
    pub fn capability(mut self, id: u8, body: &[u8], writable: &[u8]) -> Self {
        self.capabilities.push((id, body.to_vec(), writable.to_vec()));
        self
    }

    /// One more extended capability: what follows its header, and the bits of that which a driver
    /// may change.
    #[must_use]
    pub fn extended(mut self, id: u16, version: u8, body: &[u8], writable: &[u8]) -> Self {
        self.extended.push((id, version, body.to_vec(), writable.to_vec()));
        self
    }

    /// The BARs and the configuration space.
    ///
    /// # Errors
    /// What the description asks for is impossible.
    pub fn build(&self) -> Result<Built, LayoutError> {
        self.layout.check()?;
        let mut config = ConfigSpace::new(self.ids, &self.layout.bars, self.express);
        let InterruptLayout { intx, msi, msix } = self.layout.interrupts;
        // INTA, the only pin that a single function may have.
        config.put(offset::INTERRUPT_PIN, &[intx.into()]);
        config.add_power_management()?;
        if self.express {
            PcieCapability { kind: PcieKind::Endpoint, flr: true }.add_to(&mut config)?;
        }
        if msi > 0 {
            Msi { vectors: msi }.add_to(&mut config)?;
        }
        if let Some(msix) = msix {
            msix.add_to(&mut config)?;
        }
        for (id, body, writable) in &self.capabilities {
            config.add_capability(*id, body, writable)?;
        }
        if let Some(serial) = self.serial {
            config.add_extended_capability(SERIAL_NUMBER, 1, &serial.to_le_bytes(), &[])?;
        }
        for (id, version, body, writable) in &self.extended {
            config.add_extended_capability(*id, *version, body, writable)?;
        }
        config.settle();
        Ok(Built { layout: self.layout.clone(), config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command;

    fn description() -> Description {
        Description::new(0x1234, 0x5678)
            .bar(0, BarLayout::memory32(0x1000))
            .bar(2, BarLayout::memory64(1 << 20))
            .intx()
            .msi(4)
            .msix(Msix { vectors: 2, bar: 0, table: 0x800, pending: 0xc00 })
            .serial(77)
    }

    #[test]
    fn a_space_taken_apart_and_put_together_is_the_same() {
        let mut first = description().build().unwrap().config;
        let (bytes, writable) = (first.bytes(), first.writable());
        let mut again = ConfigSpace::from_parts(bytes, writable, first.clearable()).unwrap();
        // Enabling MSI, FLR, D3hot and back: all these need the capabilities to be found.
        for at in (0x40u64..0x100).step_by(2) {
            let (a, b) = (first.write(at, &[0xff, 0xff]), again.write(at, &[0xff, 0xff]));
            assert_eq!((a, first.bytes()), (b, again.bytes()), "at {at:#x}");
        }
        assert!(again.is_msix_enabled() && again.power_state() == 3);
        again.reset();
        assert_eq!(again.bytes(), first.pristine());
    }

    #[test]
    fn what_can_not_be_is_refused() {
        assert!(description().msi(3).build().is_err());
        assert!(description().bar(1, BarLayout::memory32(100)).build().is_err());
        assert!(description().conventional().build().is_err(), "a serial number needs PCIe");
        let wrong = ConfigSpace::from_parts(vec![0; 256], vec![0; 256], vec![0; 255]);
        assert_eq!(wrong.err(), Some(LayoutError::BadConfig));
        let loops =
            ConfigSpace::from_parts([[0x40, 0x40]; 128].concat(), vec![0; 256], vec![0; 256]);
        assert_eq!(loops.unwrap().command() & command::BUS_MASTER, 0);
    }
}
