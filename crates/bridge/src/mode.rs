use std::fmt;

use mem::{Access, Backing, MemoryMap};
use virtio::{DeviceError, Features, Identity, Reach, Sharing, VirtioDevice};
use virtqueue::RingFormat;

use crate::{BridgeOptions, aliases};

/// How much stands between driver and device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The first of the others that is possible, in this order.
    #[default]
    Auto,
    /// Nothing: the device works on the driver's rings.
    Pass,
    /// Our rings, the driver's buffers.
    Translate,
    /// Our rings and our buffers.
    Copy,
    /// As copy, and the driver's memory is reached by messages only.
    Remote,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Pass => "pass",
            Self::Translate => "translate",
            Self::Copy => "copy",
            Self::Remote => "remote",
        })
    }
}

/// A mode and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Never [`Mode::Auto`].
    pub mode: Mode,
    pub reason: String,
}

/// What the choice depends on.
#[derive(Clone, Debug)]
pub(crate) struct Situation {
    reach: Reach,
    features: Features,
    regions: usize,
    /// Most of the driver's memory can only be reached by messages.
    remote: bool,
    /// The device records which requests are in flight.
    records: bool,
    /// The device lives in another process, which is not given all of the driver's memory.
    hides_some: bool,
    /// Nor any of it.
    hides_all: bool,
    /// Why the device did not take the driver's memory.
    refused: Option<String>,
    /// The driver's addresses come and go behind an IOMMU; `regions` counts files then.
    paged: bool,
}

impl Situation {
    pub(crate) fn of(device: &dyn VirtioDevice, map: Option<&MemoryMap>) -> Self {
        let now = Self::new(device.reach(), device.identity(), map);
        let is_elsewhere = device.sharing() != Sharing::Nothing;
        Self {
            records: device.records_in_flight(),
            hides_some: now.hides_some && is_elsewhere,
            hides_all: now.hides_all && is_elsewhere,
            ..now
        }
    }

    /// The same with a device that did not take the driver's memory.
    pub(crate) fn after(self, refused: Option<&String>) -> Self {
        Self { refused: refused.cloned(), ..self }
    }

    fn new(reach: Reach, identity: &Identity, map: Option<&MemoryMap>) -> Self {
        let regions = map.map_or(&[][..], MemoryMap::regions);
        // A machine whose RAM is shared still has ROMs and video memory that are not.
        let (mut mapped, mut remote, mut count, mut ours) = (0, 0, 0, 0);
        for region in regions {
            match region.backing {
                Backing::Mapped { .. } if region.access == Access::Ours => {
                    mapped += region.len;
                    ours += 1;
                }
                Backing::Mapped { .. } => {
                    mapped += region.len;
                    count += 1;
                }
                Backing::Remote(_) => remote += region.len,
            }
        }
        let (features, remote) = (identity.features, remote > mapped);
        let (hides_some, hides_all) = (ours > 0, ours > 0 && count == 0);
        let paged = map.filter(|map| aliases::is_paged(map));
        Self {
            reach,
            features,
            regions: paged.map_or(count, aliases::count),
            remote,
            paged: paged.is_some(),
            records: false,
            hides_some,
            hides_all,
            refused: None,
        }
    }

    /// Why the device can't work on the driver's rings itself.
    fn against_pass(&self) -> Option<String> {
        if !self.reach.runs_rings {
            return Some("the device can't run the driver's rings".into());
        }
        if self.paged && !self.reach.follows_iommu {
            return Some("the device does not follow the driver's IOMMU".into());
        }
        if self.hides_some {
            return Some("the driver's rings are not shared".into());
        }
        self.against_sharing(0)
    }

    /// Why the device can't reach the driver's buffers, next to `extra` regions of ours.
    fn against_sharing(&self, extra: usize) -> Option<String> {
        let most = self.reach.max_regions;
        if self.remote {
            return Some("the driver's memory can only be reached by messages".into());
        }
        if !self.reach.maps_memory {
            return Some("the device can't map the driver's memory".into());
        }
        if self.hides_all {
            return Some("the driver's memory is not shared".into());
        }
        if let Some(why) = &self.refused {
            return Some(format!("the device does not take the driver's memory ({why})"));
        }
        if self.regions + extra > most {
            let regions = self.regions;
            return Some(format!(
                "the driver has {regions} memory regions and the device takes {most}"
            ));
        }
        None
    }
}

const NO_PACKED_REMOTE: &str = "packed rings are not reached by messages";

/// Chooses a mode.
///
/// # Errors
/// What was asked for is not possible.
pub(crate) fn choose(options: &BridgeOptions, now: &Situation) -> Result<Choice, DeviceError> {
    let packed_needs = Features::RING_PACKED | Features::VERSION_1;
    if options.device_format == Some(RingFormat::Packed) && !now.features.has(packed_needs) {
        return Err(DeviceError::Refused("the device has no packed rings".into()));
    }
    let asked = |mode| Ok(Choice { mode, reason: "asked for".into() });
    let impossible = |mode: Mode, why: String| {
        Err(DeviceError::Refused(format!("mode={mode} is not possible: {why}")))
    };
    match options.mode {
        Mode::Auto => match automatic(options, now) {
            Choice { mode: Mode::Remote, reason } if options.require.has(Features::RING_PACKED) => {
                impossible(Mode::Remote, format!("{NO_PACKED_REMOTE}, and {reason}"))
            }
            choice => Ok(choice),
        },
        Mode::Pass => match now.against_pass().or_else(|| needs_a_look(options, now)) {
            None => asked(Mode::Pass),
            Some(why) => impossible(Mode::Pass, why),
        },
        Mode::Translate => match now.against_sharing(1) {
            None => asked(Mode::Translate),
            Some(why) => impossible(Mode::Translate, why),
        },
        Mode::Copy if now.remote => {
            impossible(Mode::Copy, "the driver's memory can only be reached by messages".into())
        }
        Mode::Remote if options.require.has(Features::RING_PACKED) => {
            impossible(Mode::Remote, NO_PACKED_REMOTE.into())
        }
        mode => asked(mode),
    }
}

fn automatic(options: &BridgeOptions, now: &Situation) -> Choice {
    let unsafe_to_pass = || {
        let unrecorded = options.record && !now.records;
        unrecorded.then(|| "the device keeps no record of requests in flight".to_owned())
    };
    let against_pass = now.against_pass().or_else(|| needs_a_look(options, now));
    let Some(mut reason) = against_pass.or_else(unsafe_to_pass) else {
        let reason = "the device reaches the driver's rings and memory".into();
        return Choice { mode: Mode::Pass, reason };
    };
    if now.remote {
        return Choice { mode: Mode::Remote, reason };
    }
    let Some(against) = now.against_sharing(1) else {
        return Choice { mode: Mode::Translate, reason };
    };
    if against != reason {
        reason = format!("{reason}, and {against}");
    }
    Choice { mode: Mode::Copy, reason }
}

/// Why the rings must be ours even if the device could do without.
fn needs_a_look(options: &BridgeOptions, now: &Situation) -> Option<String> {
    if options.looks_inside() {
        return Some("limits or traces need to see each request".into());
    }
    let lacking = options.require - now.features;
    if !lacking.is_empty() {
        let names = lacking.names(None).join(", ");
        return Some(format!("the driver is to have {names}, which the device lacks"));
    }
    let format = options.device_format?;
    Some(format!("the device is to see {format} rings"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mem::remote::{RemoteChannel, RemoteError, RemoteMemory};
    use mem::{Access, DriverAddress, Region};
    use virtio::DeviceType;

    use super::*;
    use crate::RateLimits;

    fn situation(reach: Reach) -> Situation {
        let identity = Identity {
            device: DeviceType::BLOCK,
            features: Features::VERSION_1,
            queue_sizes: vec![128],
            config_len: 0,
        };
        Situation::new(reach, &identity, None)
    }

    fn auto(now: &Situation) -> (Mode, String) {
        let choice = choose(&BridgeOptions::default(), now).unwrap();
        (choice.mode, choice.reason)
    }

    #[test]
    fn the_least_that_works_is_chosen() {
        let mut now = situation(Reach::LOCAL);
        assert_eq!(auto(&now).0, Mode::Pass);
        now.reach.runs_rings = false;
        assert_eq!(auto(&now), (Mode::Translate, "the device can't run the driver's rings".into()));
        now.reach.maps_memory = false;
        let (mode, reason) = auto(&now);
        assert_eq!(mode, Mode::Copy);
        assert!(reason.contains("can't map"), "{reason}");
    }

    #[test]
    fn too_many_regions_need_a_copy() {
        let mut now = situation(Reach { max_regions: 8, ..Reach::LOCAL });
        now.regions = 8;
        assert_eq!(auto(&now).0, Mode::Pass);
        now.regions = 9;
        assert_eq!(auto(&now).0, Mode::Copy);
    }

    #[test]
    fn whoever_wants_to_look_gets_rings_of_ours() {
        let limits = RateLimits { requests_per_second: 1, ..RateLimits::default() };
        let wishes = [
            BridgeOptions { limits, ..BridgeOptions::default() },
            BridgeOptions { require: Features::RING_PACKED, ..BridgeOptions::default() },
            BridgeOptions { device_format: Some(RingFormat::Split), ..BridgeOptions::default() },
        ];
        for options in wishes {
            let now = situation(Reach::LOCAL);
            assert_eq!(choose(&options, &now).unwrap().mode, Mode::Translate);
            let pass = BridgeOptions { mode: Mode::Pass, ..options };
            assert!(choose(&pass, &now).is_err());
        }
    }

    #[test]
    fn where_a_record_must_be_kept_somebody_keeps_it() {
        let mut now = situation(Reach::LOCAL);
        let options = BridgeOptions { record: true, ..BridgeOptions::default() };
        let choice = choose(&options, &now).unwrap();
        assert_eq!(choice.mode, Mode::Translate);
        assert!(choice.reason.contains("no record"), "{}", choice.reason);
        now.records = true;
        assert_eq!(choose(&options, &now).unwrap().mode, Mode::Pass);
        now.records = false;
        let told_so = BridgeOptions { mode: Mode::Pass, ..options };
        assert_eq!(choose(&told_so, &now).unwrap().mode, Mode::Pass);
    }

    #[test]
    fn memory_that_is_not_shared_or_not_taken_is_copied() {
        let refused = situation(Reach::LOCAL).after(Some(&"no".to_owned()));
        let (mode, reason) = auto(&refused);
        assert_eq!(mode, Mode::Copy);
        assert!(reason.contains("does not take the driver's memory (no)"), "{reason}");
        let some = Situation { hides_some: true, ..situation(Reach::LOCAL) };
        assert_eq!(auto(&some).0, Mode::Translate);
        let all = Situation { hides_all: true, ..some };
        assert_eq!(auto(&all).0, Mode::Copy);
        let mapping = mem::Mapping::new_memfd("m", 4096).unwrap();
        let region = |start, access| {
            Region::mapped(DriverAddress(start), 4096, access, Arc::clone(&mapping), 0).unwrap()
        };
        let (reach, identity) = (Reach::LOCAL, identity());
        let map = MemoryMap::new(vec![region(0, Access::Ours)]).unwrap();
        let now = Situation::new(reach, &identity, Some(&map));
        assert!(now.hides_some && now.hides_all);
        let map = vec![region(0, Access::Ours), region(4096, Access::ReadWrite)];
        let now = Situation::new(reach, &identity, Some(&MemoryMap::new(map).unwrap()));
        assert!(now.hides_some && !now.hides_all);
    }

    #[derive(Debug)]
    struct FarAway;

    impl RemoteMemory for FarAway {
        fn open(&self) -> Result<Box<dyn RemoteChannel>, RemoteError> {
            Err(RemoteError::Closed)
        }
    }

    #[test]
    fn memory_behind_messages_is_remote() {
        let backing = Backing::Remote(Arc::new(FarAway));
        let start = DriverAddress(0);
        let region = Region { start, len: 4096, access: Access::ReadWrite, backing };
        let mut now = situation(Reach::LOCAL);
        let map = MemoryMap::new(vec![region]).unwrap();
        now.remote = Situation::new(now.reach, &identity(), Some(&map)).remote;
        assert_eq!(auto(&now).0, Mode::Remote);
        let packed = BridgeOptions { require: Features::RING_PACKED, ..BridgeOptions::default() };
        let refused = choose(&packed, &now).unwrap_err().to_string();
        assert!(refused.contains(NO_PACKED_REMOTE), "{refused}");
        for mode in [Mode::Pass, Mode::Translate, Mode::Copy] {
            let options = BridgeOptions { mode, ..BridgeOptions::default() };
            let error = choose(&options, &now).unwrap_err().to_string();
            assert!(error.contains("by messages"), "{error}");
        }
    }

    fn identity() -> Identity {
        let features = Features::VERSION_1;
        Identity { device: DeviceType::BLOCK, features, queue_sizes: vec![1], config_len: 0 }
    }
}
