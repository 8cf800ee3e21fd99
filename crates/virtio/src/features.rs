use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};

use crate::DeviceType;

/// A set of feature bits 0 to 63 (VIRTIO 1.4, 2.2 and 6). Bits from 64 on are not defined yet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u64);

macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
        }

        /// The names of the bits that mean the same for every device.
        const COMMON: &[FeatureName] = &[$(($bit, stringify!($name)),)*];
    };
}

/// A bit number and its name in the specification.
pub type FeatureName = (u8, &'static str);

bits! {
    /// Legacy devices: notify when the ring runs empty, even if told not to.
    NOTIFY_ON_EMPTY = 24;
    /// vhost: record writes for migration (`VHOST_F_LOG_ALL`); never seen by a guest.
    LOG_ALL = 26;
    /// Legacy devices: any message framing.
    ANY_LAYOUT = 27;
    /// Indirect descriptors.
    INDIRECT_DESC = 28;
    /// Event-index notification suppression.
    EVENT_IDX = 29;
    /// vhost-user: protocol features can be negotiated; never seen by a guest.
    PROTOCOL_FEATURES = 30;
    /// Not a legacy device.
    VERSION_1 = 32;
    /// Addresses go through the platform's IOMMU.
    ACCESS_PLATFORM = 33;
    /// Packed virtqueues.
    RING_PACKED = 34;
    /// Buffers are used in the order they were made available.
    IN_ORDER = 35;
    /// Memory accesses are ordered as the platform's.
    ORDER_PLATFORM = 36;
    /// Single-root I/O virtualisation.
    SR_IOV = 37;
    /// Driver notifications carry the position in the ring.
    NOTIFICATION_DATA = 38;
    /// The device names the data that notifications carry.
    NOTIF_CONFIG_DATA = 39;
    /// Queues can be reset one by one.
    RING_RESET = 40;
    /// Administration virtqueues.
    ADMIN_VQ = 41;
}

impl Features {
    /// No bits.
    pub const NONE: Self = Self(0);

    /// What is agreed about rings and the transport rather than about the device: bits 24 and
    /// 26-41.
    pub const TRANSPORT: Self = Self(0x3ff_fd00_0000);

    /// What a ring of ours can do on either side, so that a shadow may offer it whatever the device
    /// says.
    pub const RINGS: Self =
        Self(Self::INDIRECT_DESC.0 | Self::EVENT_IDX.0 | Self::RING_PACKED.0 | Self::VERSION_1.0);

    /// Whether all bits of `other` are here.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Only bit `number`.
    #[must_use]
    pub const fn bit(number: u8) -> Self {
        Self(1 << number)
    }

    /// Whether there are no bits.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of the set bits, for a device of type `device`; unnamed ones as `bit N`.
    #[must_use]
    pub fn names(self, device: Option<DeviceType>) -> Vec<String> {
        let own = device.map_or(&[][..], names_of);
        (0..64)
            .filter(|&bit| self.has(Self::bit(bit)))
            .map(|bit| {
                let known = COMMON.iter().chain(own).find(|(number, _)| *number == bit);
                known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
            })
            .collect()
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Features {
    type Output = Self;

    /// The bits of `self` that are not in `other`.
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The device-specific bits' names (VIRTIO 1.4, 5.x.3 of each device).
#[must_use]
pub fn names_of(device: DeviceType) -> &'static [FeatureName] {
    match device {
        DeviceType::NET => NET,
        DeviceType::BLOCK => BLOCK,
        DeviceType::CONSOLE => CONSOLE,
        DeviceType::BALLOON => BALLOON,
        DeviceType::SCSI => SCSI,
        DeviceType::GPU => GPU,
        DeviceType::VSOCK => VSOCK,
        DeviceType::FS => FS,
        _ => &[],
    }
}

const NET: &[FeatureName] = &[
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (20, "CTRL_RX_EXTRA"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (52, "HASH_TUNNEL"),
    (53, "VQ_NOTF_COAL"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
    (57, "HASH_REPORT"),
    (59, "GUEST_HDRLEN"),
    (60, "RSS"),
    (61, "RSC_EXT"),
    (62, "STANDBY"),
    (63, "SPEED_DUPLEX"),
];
const BLOCK: &[FeatureName] = &[
    (1, "SIZE_MAX"),
    (2, "SEG_MAX"),
    (4, "GEOMETRY"),
    (5, "RO"),
    (6, "BLK_SIZE"),
    (9, "FLUSH"),
    (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"),
    (12, "MQ"),
    (13, "DISCARD"),
    (14, "WRITE_ZEROES"),
    (15, "LIFETIME"),
    (16, "SECURE_ERASE"),
    (17, "ZONED"),
];
const CONSOLE: &[FeatureName] = &[(0, "SIZE"), (1, "MULTIPORT"), (2, "EMERG_WRITE")];
const BALLOON: &[FeatureName] = &[
    (0, "MUST_TELL_HOST"),
    (1, "STATS_VQ"),
    (2, "DEFLATE_ON_OOM"),
    (3, "FREE_PAGE_HINT"),
    (4, "PAGE_POISON"),
    (5, "PAGE_REPORTING"),
];
const SCSI: &[FeatureName] = &[(0, "INOUT"), (1, "HOTPLUG"), (2, "CHANGE"), (3, "T10_PI")];
const GPU: &[FeatureName] =
    &[(0, "VIRGL"), (1, "EDID"), (2, "RESOURCE_UUID"), (3, "RESOURCE_BLOB"), (4, "CONTEXT_INIT")];
const VSOCK: &[FeatureName] = &[(0, "STREAM"), (1, "SEQPACKET"), (2, "NO_IMPLIED_STREAM")];
const FS: &[FeatureName] = &[(0, "NOTIFICATION")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_names() {
        let features = Features(0x1_7500_7e44);
        let names = features.names(Some(DeviceType::BLOCK));
        assert!(names.iter().any(|name| name == "SEG_MAX"));
        assert!(names.iter().any(|name| name == "EVENT_IDX"));
        assert!(!names.iter().any(|name| name.starts_with("bit ")), "{names:?}");
        assert_eq!(Features::bit(50).names(None), ["bit 50"]);
    }

    #[test]
    fn the_transport_mask_holds_every_common_bit() {
        let common = COMMON.iter().fold(Features::NONE, |all, (bit, _)| all | Features::bit(*bit));
        assert_eq!(common - Features::TRANSPORT, Features::NONE);
        assert!(Features::TRANSPORT.has(Features::RINGS));
        assert!((Features::TRANSPORT & Features::bit(23)).is_empty());
        assert!((Features::TRANSPORT & Features::bit(50)).is_empty());
    }
}
