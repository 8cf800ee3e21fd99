use super::port::MIN_FRAME;

/// Highest VLAN id.
pub(super) const MAX_VLAN: u16 = 4095;

/// Which frames the driver wants (VIRTIO 1.4, 5.1.6.5.1-5.1.6.5.3).
#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// The switches by the number of their command.
    modes: [bool; MODES],
    mac: [u8; 6],
    unicast: Vec<[u8; 6]>,
    multicast: Vec<[u8; 6]>,
    /// One bit for each VLAN; `None` if all are wanted.
    vlans: Option<Box<[u64; VLAN_WORDS]>>,
}

const PROMISCUOUS: usize = 0;
const ALL_MULTICAST: usize = 1;
const ALL_UNICAST: usize = 2;
const NO_MULTICAST: usize = 3;
const NO_UNICAST: usize = 4;
const NO_BROADCAST: usize = 5;
/// Commands of the class RX.
pub(super) const MODES: usize = 6;

const VLAN_WORDS: usize = (MAX_VLAN as usize + 1) / 64;

/// Ethernet type of a frame with a VLAN tag (IEEE 802.1Q).
const TAGGED: [u8; 2] = [0x81, 0x00];

impl Filter {
    /// Everything, until the driver says otherwise.
    pub(super) fn new(mac: [u8; 6]) -> Self {
        let mut modes = [false; MODES];
        modes[PROMISCUOUS] = true;
        Self { modes, mac, unicast: Vec::new(), multicast: Vec::new(), vlans: None }
    }

    pub(super) fn set_mac(&mut self, mac: [u8; 6]) {
        self.mac = mac;
    }

    /// Turns a switch; `mode` is the number of its command.
    pub(super) fn set_mode(&mut self, mode: u8, on: bool) {
        if let Some(switch) = self.modes.get_mut(usize::from(mode)) {
            *switch = on;
        }
    }

    pub(super) fn set_stations(&mut self, unicast: Vec<[u8; 6]>, multicast: Vec<[u8; 6]>) {
        self.unicast = unicast;
        self.multicast = multicast;
    }

    /// From now on no VLAN is wanted but those named by [`Filter::set_vlan`], or all are.
    pub(super) fn use_vlans(&mut self, used: bool) {
        self.vlans = used.then(|| Box::new([0; VLAN_WORDS]));
    }

    pub(super) fn set_vlan(&mut self, vlan: u16, wanted: bool) {
        let Some(vlans) = &mut self.vlans else { return };
        let (word, bit) = (usize::from(vlan / 64), 1 << (vlan % 64));
        if wanted {
            vlans[word] |= bit;
        } else {
            vlans[word] &= !bit;
        }
    }

    /// Whether the driver wants `frame`.
    pub(super) fn wants(&self, frame: &[u8]) -> bool {
        if self.modes[PROMISCUOUS] {
            return true;
        }
        let (Some(station), true) = (frame.first_chunk::<6>(), frame.len() >= MIN_FRAME) else {
            return false;
        };
        self.wants_vlan(frame) && self.wants_station(*station)
    }

    fn wants_vlan(&self, frame: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else { return true };
        // Cut short behind its tag it is in VLAN 0.
        let tag = frame[MIN_FRAME..].first_chunk::<2>().copied().unwrap_or_default();
        let vlan = u16::from_be_bytes(tag) & MAX_VLAN;
        frame[12..MIN_FRAME] != TAGGED || vlans[usize::from(vlan / 64)] & 1 << (vlan % 64) != 0
    }

    fn wants_station(&self, station: [u8; 6]) -> bool {
        if station == [0xff; 6] {
            !self.modes[NO_BROADCAST]
        } else if station[0] & 1 != 0 {
            let listed = self.modes[ALL_MULTICAST] || self.multicast.contains(&station);
            !self.modes[NO_MULTICAST] && listed
        } else {
            let listed = self.modes[ALL_UNICAST] || self.unicast.contains(&station);
            !self.modes[NO_UNICAST] && (listed || station == self.mac)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 1, 2, 4];
    const GROUP: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 1];
    const ALL: [u8; 6] = [0xff; 6];

    fn to(station: [u8; 6]) -> Vec<u8> {
        [&station[..], &OTHER, &[0x88, 0xb5], &[0; 46]].concat()
    }

    fn tagged(vlan: u16) -> Vec<u8> {
        let [high, low] = (vlan | 0x6000).to_be_bytes();
        [&OWN[..], &OTHER, &TAGGED, &[high, low], &[0; 46]].concat()
    }

    fn wanted(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, ALL].map(|station| filter.wants(&to(station)))
    }

    #[test]
    fn all_frames_come_until_the_driver_says_otherwise() {
        assert_eq!(wanted(&Filter::new(OWN)), [true; 4]);
    }

    #[test]
    fn each_switch_does_its_part() {
        let mut filter = Filter::new(OWN);
        filter.set_mode(0, false);
        assert_eq!(wanted(&filter), [true, false, false, true]);
        filter.set_mode(1, true);
        assert_eq!(wanted(&filter), [true, false, true, true]);
        filter.set_mode(2, true);
        assert_eq!(wanted(&filter), [true; 4]);
        for (mode, left) in
            [(3, [true, true, false, true]), (4, [false, false, false, true]), (5, [false; 4])]
        {
            filter.set_mode(mode, true);
            assert_eq!(wanted(&filter), left);
        }
        assert!(!filter.wants(&OWN), "no frame at all");
    }

    #[test]
    fn listed_stations_are_wanted() {
        let mut filter = Filter::new(OWN);
        filter.set_mode(0, false);
        filter.set_stations(vec![OTHER], vec![GROUP]);
        assert_eq!(wanted(&filter), [true; 4]);
        filter.set_stations(Vec::new(), Vec::new());
        filter.set_mac(OTHER);
        assert_eq!(wanted(&filter), [false, true, false, true]);
    }

    #[test]
    fn vlans_are_wanted_one_by_one() {
        let mut filter = Filter::new(OWN);
        filter.set_mode(0, false);
        assert!(filter.wants(&tagged(7)));
        filter.use_vlans(true);
        filter.set_vlan(7, true);
        filter.set_vlan(MAX_VLAN, true);
        let of = |filter: &Filter| [0, 7, 8, 4095].map(|vlan| filter.wants(&tagged(vlan)));
        assert_eq!(of(&filter), [false, true, false, true]);
        filter.set_vlan(7, false);
        assert_eq!(of(&filter), [false, false, false, true]);
        assert!(filter.wants(&to(OWN)), "untagged");
    }
}
