use std::fmt;

/// Most queues of one device that we serve. vhost-user numbers them in 8 bits.
pub const MAX_QUEUES: u16 = 256;

/// A device type id (VIRTIO 1.4, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceType(pub u16);

macro_rules! types {
    ($($(#[$doc:meta])* $konst:ident = $id:literal, $name:literal;)*) => {
        impl DeviceType {
            $($(#[$doc])* pub const $konst: Self = Self($id);)*

            /// Every type with a name here.
            pub const ALL: &[(Self, &'static str)] = &[$((Self($id), $name),)*];
        }
    };
}

types! {
    /// Network card.
    NET = 1, "net";
    /// Block device.
    BLOCK = 2, "blk";
    /// Console.
    CONSOLE = 3, "console";
    /// Entropy source.
    ENTROPY = 4, "rng";
    /// Memory balloon (traditional).
    BALLOON = 5, "balloon";
    /// SCSI host.
    SCSI = 8, "scsi";
    /// 9P transport.
    P9 = 9, "9p";
    /// Graphics.
    GPU = 16, "gpu";
    /// Input device.
    INPUT = 18, "input";
    /// Socket device.
    VSOCK = 19, "vsock";
    /// Crypto device.
    CRYPTO = 20, "crypto";
    /// IOMMU.
    IOMMU = 23, "iommu";
    /// Memory device.
    MEM = 24, "mem";
    /// Sound device.
    SOUND = 25, "sound";
    /// File system.
    FS = 26, "fs";
    /// Persistent memory.
    PMEM = 27, "pmem";
    /// RPMB device.
    RPMB = 28, "rpmb";
    /// Video encoder.
    VIDEO_ENCODER = 30, "video-encoder";
    /// Video decoder.
    VIDEO_DECODER = 31, "video-decoder";
    /// System control and management interface.
    SCMI = 32, "scmi";
    /// I2C adapter.
    I2C = 34, "i2c";
    /// Watchdog.
    WATCHDOG = 35, "watchdog";
    /// CAN controller.
    CAN = 36, "can";
    /// GPIO controller.
    GPIO = 41, "gpio";
    /// RDMA device.
    RDMA = 42, "rdma";
    /// Camera.
    CAMERA = 43, "camera";
    /// SPI controller.
    SPI = 45, "spi";
    /// Media device.
    MEDIA = 49, "media";
}

impl DeviceType {
    /// The type called `name`, or with that number.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let aliases = match name {
            "block" => "blk",
            "entropy" => "rng",
            other => other,
        };
        let named = Self::ALL.iter().find(|(_, known)| *known == aliases).map(|(id, _)| *id);
        named.or_else(|| name.parse().ok().filter(|&id| id != 0).map(Self))
    }

    /// The usual short name, if it has one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::ALL.iter().find(|(id, _)| *id == self).map(|(_, name)| *name)
    }

    /// The PCI device id of the transitional device, for the types that have one (VIRTIO 1.4,
    /// 4.1.2.1).
    #[must_use]
    pub fn transitional_pci_id(self) -> Option<u16> {
        match self {
            Self::NET => Some(0x1000),
            Self::BLOCK => Some(0x1001),
            Self::BALLOON => Some(0x1002),
            Self::CONSOLE => Some(0x1003),
            Self::SCSI => Some(0x1004),
            Self::ENTROPY => Some(0x1005),
            Self::P9 => Some(0x1009),
            _ => None,
        }
    }

    /// The PCI device id of the modern device: 0x1040 plus the type (VIRTIO 1.4, 4.1.2).
    #[must_use]
    pub fn modern_pci_id(self) -> u16 {
        0x1040 + self.0
    }

    /// The PCI class, subclass and programming interface that drivers and people expect.
    #[must_use]
    pub fn pci_class(self) -> u32 {
        match self {
            Self::NET => 0x02_00_00,
            Self::BLOCK | Self::SCSI => 0x01_00_00,
            Self::CONSOLE => 0x07_80_00,
            Self::GPU => 0x03_80_00,
            Self::INPUT => 0x09_80_00,
            Self::CRYPTO => 0x10_00_00,
            Self::SOUND => 0x04_01_00,
            Self::FS => 0x01_80_00,
            Self::PMEM | Self::BALLOON | Self::MEM => 0x05_80_00,
            Self::VSOCK => 0x02_80_00,
            _ => 0x00_ff_00,
        }
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_go_both_ways() {
        for (id, name) in DeviceType::ALL {
            assert_eq!(DeviceType::by_name(name), Some(*id));
            assert_eq!(id.to_string(), *name);
        }
        assert_eq!(DeviceType::by_name("42"), Some(DeviceType::RDMA));
        assert_eq!(DeviceType::by_name("0"), None);
        assert_eq!(DeviceType::by_name("nonsense"), None);
    }
}
