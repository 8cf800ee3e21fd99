//! Interrupts: what a device has, and what is to happen with them.

use super::MAX_FDS;
use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// Interrupt types of a PCI device (`linux/vfio.h`, `VFIO_PCI_*_IRQ_INDEX`).
pub mod irq_index {
    /// The INTx line.
    pub const INTX: u32 = 0;
    /// MSI vectors.
    pub const MSI: u32 = 1;
    /// MSI-X vectors.
    pub const MSIX: u32 = 2;
    /// Errors; QEMU stops the machine when it fires.
    pub const ERR: u32 = 3;
    /// Requests to be unplugged.
    pub const REQ: u32 = 4;
    /// How many types there are.
    pub const COUNT: u32 = 5;
}

/// Flags of [`IrqInfo`].
pub mod irq_flags {
    /// Can be signalled by eventfd.
    pub const EVENTFD: u32 = 1 << 0;
    /// Can be masked and unmasked.
    pub const MASKABLE: u32 = 1 << 1;
    /// Masks itself when it fires.
    pub const AUTOMASKED: u32 = 1 << 2;
    /// Can be set up as a whole only.
    pub const NORESIZE: u32 = 1 << 3;
}

/// Payload of the reply to DEVICE_GET_IRQ_INFO, 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// [`irq_flags`].
    pub flags: u32,
    /// Which type, see [`irq_index`].
    pub index: u32,
    /// How many interrupts of this type there are.
    pub count: u32,
}

impl IrqInfo {
    /// Size in bytes on the wire.
    pub(super) const LEN: u32 = 16;

    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        fields.u32()?;
        Ok(Self { flags: fields.u32()?, index: fields.u32()?, count: fields.u32()? })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        for field in [Self::LEN, self.flags, self.index, self.count] {
            out.put_u32(field);
        }
    }
}

/// What comes with DEVICE_SET_IRQS: bits 0-2 of its flags, exactly one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqData<'a> {
    /// Bit 0: nothing; the action is done for all. With count 0, everything is switched off.
    None,
    /// Bit 1: one byte per interrupt; the action is done where it is not 0.
    Bool(&'a [u8]),
    /// Bit 2: one descriptor per interrupt, to be signalled when the action happens; or none at
    /// all, which takes them away again.
    Eventfd,
}

/// What is to happen: bits 3-5 of the flags, exactly one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Bit 3.
    Mask,
    /// Bit 4.
    Unmask,
    /// Bit 5.
    Trigger,
}

/// Payload of DEVICE_SET_IRQS, 20 bytes and the booleans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetIrqs<'a> {
    /// What comes with it.
    pub data: IrqData<'a>,
    /// What is to happen.
    pub action: IrqAction,
    /// Which type, see [`irq_index`].
    pub index: u32,
    /// First interrupt of that type.
    pub start: u32,
    /// How many; `start + count` fits 32 bits.
    pub count: u32,
}

impl<'a> SetIrqs<'a> {
    /// Size in bytes of the fixed part.
    const LEN: u32 = 20;
    const DATA_NONE: u32 = 1 << 0;
    const DATA_BOOL: u32 = 1 << 1;
    const DATA_EVENTFD: u32 = 1 << 2;
    const DATA_MASK: u32 = 7;
    const ACTION_MASK: u32 = 1 << 3;
    const ACTION_UNMASK: u32 = 1 << 4;
    const ACTION_TRIGGER: u32 = 1 << 5;

    pub(super) fn take(fields: &mut Fields<'a>, fds: usize) -> Result<Self, DecodeError> {
        fields.u32()?;
        let (flags, index, start, count) =
            (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        if start.checked_add(count).is_none() {
            return Err(DecodeError::Value { field: "interrupt range", value: start.into() });
        }
        let wrong = DecodeError::Value { field: "interrupt flags", value: flags.into() };
        let action = match flags & !Self::DATA_MASK {
            Self::ACTION_MASK => IrqAction::Mask,
            Self::ACTION_UNMASK => IrqAction::Unmask,
            Self::ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(wrong),
        };
        let (data, most) = match flags & Self::DATA_MASK {
            Self::DATA_NONE => (IrqData::None, 0),
            Self::DATA_BOOL => (IrqData::Bool(fields.bytes(count as usize)?), 0),
            Self::DATA_EVENTFD => (IrqData::Eventfd, (count as usize).min(MAX_FDS)),
            _ => return Err(wrong),
        };
        if fds != 0 && (fds != most || fds != count as usize) {
            return Err(DecodeError::Fds { found: fds, least: 0, most });
        }
        Ok(Self { data, action, index, start, count })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let (data, bools): (_, &[u8]) = match self.data {
            IrqData::None => (Self::DATA_NONE, &[]),
            IrqData::Bool(bools) => (Self::DATA_BOOL, bools),
            IrqData::Eventfd => (Self::DATA_EVENTFD, &[]),
        };
        let action = match self.action {
            IrqAction::Mask => Self::ACTION_MASK,
            IrqAction::Unmask => Self::ACTION_UNMASK,
            IrqAction::Trigger => Self::ACTION_TRIGGER,
        };
        let argsz = Self::LEN.saturating_add(bools.len() as u32);
        for field in [argsz, data | action, self.index, self.start, self.count] {
            out.put_u32(field);
        }
        out.put(bools);
    }
}
