//! Structures about the device as a whole.

use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// Most bytes of configuration space in one message: QEMU's and SPDK's
/// `VHOST_USER_MAX_CONFIG_SIZE`. DPDK takes more, but nobody is known to ask for it.
pub const MAX_CONFIG_LEN: usize = 256;

/// "Virtio device config space": a window of the configuration and its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config<'a> {
    /// Offset in bytes of the window.
    pub offset: u32,
    /// Size in bytes of the window, at most [`MAX_CONFIG_LEN`].
    pub size: u32,
    /// 0, or 1 for a write during live migration.
    pub flags: u32,
    /// The content, `size` bytes. In GET_CONFIG, whatever is there means nothing and is dropped.
    pub data: &'a [u8],
}

impl<'a> Config<'a> {
    pub(in crate::vhost_user) fn take(
        fields: &mut Fields<'a>,
        data: bool,
    ) -> Result<Self, DecodeError> {
        let (offset, size, flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if size as usize > MAX_CONFIG_LEN {
            return Err(DecodeError::Value { field: "config size", value: size.into() });
        }
        if offset.checked_add(size).is_none() {
            return Err(DecodeError::Value { field: "config offset", value: offset.into() });
        }
        let data = if data { fields.bytes(size as usize)? } else { &[] };
        Ok(Self { offset, size, flags, data })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.offset);
        out.put_u32(self.size);
        out.put_u32(self.flags);
        out.put(self.data);
        // QEMU's reader of GET_CONFIG wants the window's bytes to be there, whatever they hold.
        let missing = (self.size as usize).min(MAX_CONFIG_LEN).saturating_sub(self.data.len());
        out.put(&[0; MAX_CONFIG_LEN][..missing]);
    }
}

/// "Device state transfer parameters".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Which way the state goes.
    pub direction: DeviceStateDirection,
    /// The migration phase; only 0, stopped, is defined.
    pub phase: u32,
}

/// Which way a device's state goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStateDirection {
    /// 0: out of the device.
    Save,
    /// 1: into it.
    Load,
}

impl DeviceState {
    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let direction = match fields.u32()? {
            0 => DeviceStateDirection::Save,
            1 => DeviceStateDirection::Load,
            other => {
                let value = other.into();
                return Err(DecodeError::Value { field: "state transfer direction", value });
            }
        };
        Ok(Self { direction, phase: fields.u32()? })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(match self.direction {
            DeviceStateDirection::Save => 0,
            DeviceStateDirection::Load => 1,
        });
        out.put_u32(self.phase);
    }
}
