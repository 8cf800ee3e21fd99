//! Ids, BARs and capabilities of a virtio function (VIRTIO 1.4, 4.1.2 to 4.1.4).

use virtio::{Identity, MAX_QUEUES};

use crate::config::{
    ConfigSpace, DeviceIds, Msix, PcieCapability, PcieKind, capability_id, offset,
};
use crate::{BarLayout, FunctionLayout, InterruptLayout, LayoutError};

/// BAR of the legacy register file.
pub const LEGACY_BAR: u8 = 0;
/// BAR of the MSI-X table.
pub const MSIX_BAR: u8 = 1;
/// BAR of the modern registers; takes BAR 5 too.
pub const MODERN_BAR: u8 = 4;

/// Size in bytes of each part of the modern BAR: a page, so that a hypervisor can treat each by
/// itself.
pub const PART: u64 = 0x1000;
/// Bytes between the doorbells of two queues (`notify_off_multiplier`).
pub const DOORBELL: u64 = 4;
/// Size in bytes of the common config up to `admin_queue_num`.
pub const COMMON_LEN: usize = 64;

/// Number of each part of the modern BAR, in units of [`PART`].
pub mod part {
    pub const COMMON: u64 = 0;
    pub const ISR: u64 = 1;
    pub const DEVICE: u64 = 2;
    pub const NOTIFY: u64 = 3;
    /// How many there are.
    pub const COUNT: u64 = 4;
}

/// `cfg_type` of the vendor capabilities (VIRTIO 1.4, 4.1.4).
mod cfg_type {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}

/// Most bytes of a device's config.
const MAX_CONFIG: u32 = PART as u32;
/// Red Hat, Inc., to which all virtio ids belong (VIRTIO 1.4, 4.1.2).
const VENDOR: u16 = 0x1af4;
/// Subsystem id of modern devices: 0x40 or more (VIRTIO 1.4, 4.1.2.1); this is QEMU's.
const SUBSYSTEM: u16 = 0x1100;
/// Extended capability "Device Serial Number" (PCIe 7.9.3).
const SERIAL_NUMBER: u16 = 3;
/// Size in bytes of the legacy registers with the two vectors; the device's config follows.
pub const LEGACY_HEADER: u64 = 24;

/// Whether there is a legacy register file, for drivers from before VIRTIO 1.0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Legacy {
    /// No: a modern device.
    #[default]
    Off,
    /// In I/O ports, as the specification has it.
    Io,
    /// In memory, for machines without I/O ports.
    Memory,
}

/// How a virtio device is to look on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioPciOptions {
    /// The legacy register file. Devices whose type never had one stay modern.
    pub legacy: Legacy,
    /// PCI Express with 4 KiB of configuration space, or conventional with 256 bytes.
    pub express: bool,
    /// Most MSI-X vectors; 0 for none. By default one per queue and one for the config.
    pub vectors: Option<u16>,
    /// Subsystem vendor id, if not the usual one.
    pub subsystem_vendor: Option<u16>,
    /// Subsystem id, if not the usual one. Transitional devices need theirs for the type.
    pub subsystem: Option<u16>,
    /// Serial number of the card, in a capability that only PCI Express has room for.
    pub serial: Option<u64>,
}

impl Default for VirtioPciOptions {
    fn default() -> Self {
        Self {
            legacy: Legacy::Off,
            express: true,
            vectors: None,
            subsystem_vendor: None,
            subsystem: None,
            serial: None,
        }
    }
}

/// What [`build`] makes.
pub struct Parts {
    pub layout: FunctionLayout,
    pub config: ConfigSpace,
    /// Offset of the PCI_CFG capability.
    pub window: usize,
}

/// The function for a device like `identity`.
pub fn build(identity: &Identity, options: VirtioPciOptions) -> Result<Parts, LayoutError> {
    let queues = identity.queue_sizes.len() as u32;
    if queues > MAX_QUEUES.into() || identity.config_len > MAX_CONFIG {
        return Err(LayoutError::BadBar(MODERN_BAR));
    }
    let transitional =
        identity.device.transitional_pci_id().filter(|_| options.legacy != Legacy::Off);
    let mut layout = FunctionLayout::default();
    if transitional.is_some() {
        let size = (LEGACY_HEADER + u64::from(identity.config_len)).next_power_of_two();
        layout.bars[usize::from(LEGACY_BAR)] = match options.legacy {
            Legacy::Io => BarLayout::io(size),
            _ => BarLayout::memory32(size.max(PART)),
        };
    }
    let wanted = options.vectors.map_or(queues + 1, u32::from).min(queues + 1) as u16;
    let msix = (wanted > 0).then(|| {
        let table = u64::from(wanted) * u64::from(Msix::ENTRY);
        let pending = table.next_multiple_of(PART / 2);
        let size = (pending + u64::from(wanted).div_ceil(64) * 8).next_power_of_two().max(PART);
        layout.bars[usize::from(MSIX_BAR)] = BarLayout::memory32(size);
        Msix { vectors: wanted, bar: MSIX_BAR, table: 0, pending: pending as u32 }
    });
    layout.bars[usize::from(MODERN_BAR)] = BarLayout::memory64(part::COUNT * PART);
    layout.interrupts = InterruptLayout { intx: true, msi: 0, msix };
    layout.check()?;

    let ids = DeviceIds {
        vendor: VENDOR,
        device: transitional.unwrap_or_else(|| identity.device.modern_pci_id()),
        subsystem_vendor: options.subsystem_vendor.unwrap_or(VENDOR),
        subsystem: options.subsystem.unwrap_or(match transitional {
            Some(_) => identity.device.0,
            None => SUBSYSTEM,
        }),
        class: identity.device.pci_class(),
        // Transitional devices must have 0, modern ones 1 or more (VIRTIO 1.4, 4.1.2.1 and
        // 4.1.2.3).
        revision: u8::from(transitional.is_none()),
    };
    let mut config = ConfigSpace::new(ids, &layout.bars, options.express);
    config.put(offset::INTERRUPT_PIN, &[1]);
    if options.express {
        let is_io = layout.bars[usize::from(LEGACY_BAR)].kind == crate::BarKind::Io;
        let kind = if is_io { PcieKind::LegacyEndpoint } else { PcieKind::Endpoint };
        PcieCapability { kind, flr: true }.add_to(&mut config)?;
        config.add_power_management()?;
        if let Some(serial) = options.serial {
            config.add_extended_capability(SERIAL_NUMBER, 1, &serial.to_le_bytes(), &[])?;
        }
    }
    if let Some(msix) = msix {
        msix.add_to(&mut config)?;
    }
    let window = add_virtio_capabilities(&mut config, identity, queues)?;
    config.settle();
    Ok(Parts { layout, config, window })
}

fn add_virtio_capabilities(
    config: &mut ConfigSpace,
    identity: &Identity,
    queues: u32,
) -> Result<usize, LayoutError> {
    let mut add = |kind: u8, place: u64, len: u32, more: &[u8], mask: &[u8]| {
        let mut body = [0; 18];
        body[0] = (16 + more.len()) as u8;
        body[1] = kind;
        body[2] = if kind == cfg_type::PCI { 0 } else { MODERN_BAR };
        body[6..10].copy_from_slice(&((place * PART) as u32).to_le_bytes());
        body[10..14].copy_from_slice(&len.to_le_bytes());
        body[14..14 + more.len()].copy_from_slice(more);
        config.add_capability(capability_id::VENDOR, &body[..14 + more.len()], mask)
    };
    add(cfg_type::COMMON, part::COMMON, COMMON_LEN as u32, &[], &[])?;
    add(cfg_type::ISR, part::ISR, 1, &[], &[])?;
    if identity.config_len > 0 {
        add(cfg_type::DEVICE, part::DEVICE, identity.config_len, &[], &[])?;
    }
    let doorbells = queues.max(1) * DOORBELL as u32;
    let multiplier = (DOORBELL as u32).to_le_bytes();
    add(cfg_type::NOTIFY, part::NOTIFY, doorbells, &multiplier, &[])?;
    // The driver chooses bar, offset and length, and reads or writes the four bytes of data.
    let mut mask = [0; 18];
    mask[2] = 0xff;
    mask[6..].fill(0xff);
    add(cfg_type::PCI, 0, 0, &[0; 4], &mask)
}
