//! Device config layouts (VIRTIO 1.4, 5.x.4 of each device): structs of native integers, packed
//! bytes on the wire.
//!
//! Each layout knows the name and offset of every field, so that a config read from an unknown
//! device can be shown by name.

mod layouts;

pub use layouts::{
    BalloonConfig, BlkConfig, ConsoleConfig, FsConfig, GpuConfig, NetConfig, ScsiConfig,
    VsockConfig,
};

use crate::DeviceType;

/// A value as it lies in a config, little-endian.
pub(crate) trait Field: Sized {
    const BYTES: usize;
    fn get(bytes: &[u8]) -> Self;
    fn put(&self, bytes: &mut [u8]);
    fn show(&self) -> String;
}

macro_rules! integer_field {
    ($($int:ty),*) => {
        $(impl Field for $int {
            const BYTES: usize = size_of::<$int>();

            fn get(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$int>()];
                array.copy_from_slice(bytes);
                <$int>::from_le_bytes(array)
            }

            fn put(&self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }

            fn show(&self) -> String {
                self.to_string()
            }
        })*
    };
}

integer_field!(u8, u16, u32, u64);

/// Bytes: a MAC address (6) or a name.
impl<const N: usize> Field for [u8; N] {
    const BYTES: usize = N;

    fn get(bytes: &[u8]) -> Self {
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        array
    }

    fn put(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(self);
    }

    fn show(&self) -> String {
        if N == 6 {
            return self.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
        }
        let text = self.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

/// A field's name and value, for people.
pub type ShownField = (&'static str, String);

macro_rules! config_layout {
    ($(#[$doc:meta])* $name:ident, $len:literal {
        $($(#[$fdoc:meta])* $field:ident: $type:ty = $offset:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $type,)*
        }

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Reads the layout from `bytes`; fields beyond their end are 0.
            #[must_use]
            pub fn decode(bytes: &[u8]) -> Self {
                let mut whole = [0; Self::LEN];
                let len = bytes.len().min(Self::LEN);
                whole[..len].copy_from_slice(&bytes[..len]);
                Self {
                    $($field: $crate::config::Field::get(
                        &whole[$offset..$offset + <$type as $crate::config::Field>::BYTES],
                    ),)*
                }
            }

            /// The bytes of the layout.
            #[must_use]
            pub fn encode(&self) -> [u8; $len] {
                let mut whole = [0; $len];
                $($crate::config::Field::put(
                    &self.$field,
                    &mut whole[$offset..$offset + <$type as $crate::config::Field>::BYTES],
                );)*
                whole
            }

            /// Each field's name and value.
            #[must_use]
            pub fn fields(&self) -> Vec<$crate::config::ShownField> {
                vec![$((stringify!($field), $crate::config::Field::show(&self.$field)),)*]
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::decode(&[])
            }
        }
    };
}
pub(crate) use config_layout;

/// The fields of a device's config by name; `None` for a type without a known layout. Fields beyond
/// the end of `bytes` are 0.
#[must_use]
pub fn show(device: DeviceType, bytes: &[u8]) -> Option<Vec<ShownField>> {
    match device {
        DeviceType::NET => Some(NetConfig::decode(bytes).fields()),
        DeviceType::BLOCK => Some(BlkConfig::decode(bytes).fields()),
        DeviceType::CONSOLE => Some(ConsoleConfig::decode(bytes).fields()),
        DeviceType::BALLOON => Some(BalloonConfig::decode(bytes).fields()),
        DeviceType::SCSI => Some(ScsiConfig::decode(bytes).fields()),
        DeviceType::GPU => Some(GpuConfig::decode(bytes).fields()),
        DeviceType::VSOCK => Some(VsockConfig::decode(bytes).fields()),
        DeviceType::FS => Some(FsConfig::decode(bytes).fields()),
        DeviceType::ENTROPY => Some(Vec::new()),
        _ => None,
    }
}

/// Length in bytes of the known part of a device's config; 0 for types without one.
#[must_use]
pub fn len_of(device: DeviceType) -> u32 {
    let len = match device {
        DeviceType::NET => NetConfig::LEN,
        DeviceType::BLOCK => BlkConfig::LEN,
        DeviceType::CONSOLE => ConsoleConfig::LEN,
        DeviceType::BALLOON => BalloonConfig::LEN,
        DeviceType::SCSI => ScsiConfig::LEN,
        DeviceType::GPU => GpuConfig::LEN,
        DeviceType::VSOCK => VsockConfig::LEN,
        DeviceType::FS => FsConfig::LEN,
        _ => 0,
    };
    len as u32
}

/// Copies the part of `config` from byte `offset` on; bytes beyond its end read as 0.
pub fn read_bytes(config: &[u8], offset: u32, into: &mut [u8]) {
    let rest = config.get(offset as usize..).unwrap_or_default();
    let len = rest.len().min(into.len());
    into[..len].copy_from_slice(&rest[..len]);
    into[len..].fill(0);
}
