//! Which feature bits the driver is offered, and which the device gets, when the rings between them
//! are ours.

use virtio::Features;
use virtqueue::RingFormat;

use crate::Mode;
use crate::remote::MAX_INDIRECT_SIZE;

/// What our rings do on either side, whatever the other side has.
const OURS: Features =
    Features(Features::INDIRECT_DESC.0 | Features::EVENT_IDX.0 | Features::RING_PACKED.0);

/// Agreements about the path a notification takes, which ends here: it is for the driver's end to
/// offer them.
const HIDDEN: Features =
    Features(Features::NOTIFICATION_DATA.0 | Features::NOTIF_CONFIG_DATA.0 | Features::SR_IOV.0);

/// What the driver is offered.
///
/// VERSION_1 stays the device's decision, since it changes what headers and config look like and
/// not only the rings; and packed rings exist only with it. IN_ORDER is only offered if the device
/// completes in order anyway: otherwise one slow request would hold up the others, perhaps for
/// ever.
///
/// `wanted` are features that somebody asked for; `largest_queue` is a size.
pub(crate) fn offered(
    mode: Mode,
    device: Features,
    largest_queue: u16,
    wanted: Features,
) -> Features {
    if mode == Mode::Pass {
        return device;
    }
    let mut offered = (device - HIDDEN) | OURS;
    if mode == Mode::Remote {
        // Each batch with indirect tables costs another round trip, and only split rings are
        // mirrored.
        offered = offered - Features::RING_PACKED;
        if !wanted.has(Features::INDIRECT_DESC) || largest_queue > MAX_INDIRECT_SIZE {
            offered = offered - Features::INDIRECT_DESC;
        }
    }
    if !device.has(Features::VERSION_1) {
        offered = offered - Features::RING_PACKED;
    }
    if mode != Mode::Translate {
        // The device sees addresses of ours only.
        offered = offered | Features::ACCESS_PLATFORM;
    }
    offered
}

/// What the device gets when the driver has accepted `accepted`; `format` is the wanted one, if one
/// is.
pub(crate) fn for_device(
    accepted: Features,
    device: Features,
    format: Option<RingFormat>,
) -> Features {
    let mut features = (accepted - OURS) & device;
    let wants_packed = match format {
        Some(format) => format == RingFormat::Packed,
        None => accepted.has(Features::RING_PACKED),
    };
    let mut ours = Features::EVENT_IDX;
    // Without indirect chains from the driver all chains in its ring fit ours, which is as long.
    ours = ours | (accepted & Features::INDIRECT_DESC);
    if wants_packed && features.has(Features::VERSION_1) {
        ours = ours | Features::RING_PACKED;
    }
    features = features | (ours & device);
    features
}

/// Whether a driver may accept `accepted` when it was offered `offered`.
pub(crate) fn acceptable(accepted: Features, offered: Features) -> bool {
    offered.has(accepted) && is_consistent(accepted)
}

/// Whether the features go together, whoever offered them: packed rings are of VIRTIO 1.1.
pub(crate) fn is_consistent(accepted: Features) -> bool {
    !accepted.has(Features::RING_PACKED) || accepted.has(Features::VERSION_1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLK_FLUSH: Features = Features(1 << 9);

    #[test]
    fn ring_features_are_added_and_device_features_kept() {
        let device = Features::VERSION_1 | BLK_FLUSH | Features::NOTIFICATION_DATA;
        let offered = offered(Mode::Copy, device, 256, Features::NONE);
        assert!(offered.has(OURS | BLK_FLUSH | Features::VERSION_1));
        assert!((offered & (Features::NOTIFICATION_DATA | Features::IN_ORDER)).is_empty());
        let accepted = OURS | BLK_FLUSH | Features::VERSION_1 | Features::ACCESS_PLATFORM;
        assert!(acceptable(accepted, offered));
        assert_eq!(for_device(accepted, device, None), Features::VERSION_1 | BLK_FLUSH);
    }

    #[test]
    fn packed_needs_version_1_on_both_sides() {
        let old = Features::RING_PACKED | BLK_FLUSH;
        assert!(
            (offered(Mode::Translate, old, 256, Features::NONE) & Features::RING_PACKED).is_empty()
        );
        let new = old | Features::VERSION_1;
        assert!(!acceptable(
            Features::RING_PACKED,
            offered(Mode::Translate, new, 256, Features::NONE)
        ));
        let legacy_driver = for_device(BLK_FLUSH, new, Some(RingFormat::Packed));
        assert_eq!(legacy_driver, BLK_FLUSH);
    }

    #[test]
    fn the_device_gets_the_format_that_was_asked_for() {
        let device = Features::VERSION_1 | OURS;
        let split = Features::VERSION_1 | Features::EVENT_IDX;
        let packed = Some(RingFormat::Packed);
        assert!(for_device(split, device, packed).has(Features::RING_PACKED));
        let accepted = split | Features::RING_PACKED;
        assert_eq!(for_device(accepted, device, Some(RingFormat::Split)), split);
        assert!(for_device(accepted, device, None).has(Features::RING_PACKED));
    }

    #[test]
    fn indirect_tables_behind_a_link_have_to_be_asked_for() {
        let device = Features::VERSION_1 | OURS;
        let has =
            |size, wanted| offered(Mode::Remote, device, size, wanted).has(Features::INDIRECT_DESC);
        assert!(!has(256, Features::NONE));
        assert!(has(MAX_INDIRECT_SIZE, Features::INDIRECT_DESC));
        assert!(!has(2 * MAX_INDIRECT_SIZE, Features::INDIRECT_DESC));
    }

    #[test]
    fn pass_changes_nothing() {
        let device = Features(u64::MAX);
        assert_eq!(offered(Mode::Pass, device, 256, Features::NONE), device);
    }
}
