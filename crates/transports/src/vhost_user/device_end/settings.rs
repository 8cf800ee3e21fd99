//! What a person may say about a daemon, and what we make of a daemon that does not say enough
//! about itself.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use virtio::config::{self, BlkConfig, FsConfig, NetConfig, VsockConfig};
use virtio::{DeviceType, Features, Identity, MAX_QUEUES, ParameterError, Parameters};
use wire::vhost_user::features as protocol;

use super::link::Offer;

/// How long a daemon may take to answer, unless said otherwise.
const DEFAULT_TIMEOUT_MS: u64 = 5000;

/// Feature bits that need a control queue, which a vhost-user daemon never sees.
const NET_CONTROL: Features = Features(0x00be_0004);
/// Net: several queue pairs.
const NET_MQ: Features = Features::bit(22);
/// Net: the config holds an MTU, a hardware address, the link state.
const NET_MTU: Features = Features::bit(3);
const NET_MAC: Features = Features::bit(5);
const NET_STATUS: Features = Features::bit(16);
/// Block: several queues.
const BLK_MQ: Features = Features::bit(12);

/// Bits that are between a driver and its bus, not between it and a daemon; the last five exist on
/// the bus only.
const NOT_THE_DAEMONS: Features = Features(
    Features::PROTOCOL_FEATURES.0
        | Features::LOG_ALL.0
        | Features::ACCESS_PLATFORM.0
        | Features::SR_IOV.0
        | Features::NOTIFICATION_DATA.0
        | Features::NOTIF_CONFIG_DATA.0
        | Features::RING_RESET.0
        | Features::ADMIN_VQ.0,
);

/// Settings of a device end.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    device: Option<DeviceType>,
    queues: Option<u16>,
    queue_size: Option<u16>,
    /// Whether to wait for a daemon that went away.
    pub reconnect: bool,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Notifications are messages, both ways, and not events.
    pub in_band: bool,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    tag: Option<String>,
    guest_cid: Option<u64>,
}

impl Settings {
    /// Takes ours from `parameters`.
    pub(super) fn take(parameters: &mut Parameters) -> Result<Self, ParameterError> {
        let device = parameters.text("type").map(|text| device_type(&text)).transpose()?;
        let short = |value: Option<u64>| value.map(|value| value as u16);
        let settings = Self {
            device,
            queues: short(parameters.number("queues", 1..=u64::from(MAX_QUEUES))?),
            queue_size: short(parameters.number("queue-size", 1..=32768)?),
            reconnect: parameters.flag("reconnect", true)?,
            timeout: Duration::from_millis(
                parameters.number("timeout", 1..=600_000)?.unwrap_or(DEFAULT_TIMEOUT_MS),
            ),
            in_band: parameters.flag("in-band", false)?,
            mac: parameters.text("mac").map(|text| mac(&text)).transpose()?,
            mtu: short(parameters.number("mtu", 68..=65535)?),
            tag: parameters.text("tag").map(tag).transpose()?,
            guest_cid: parameters.number("cid", 3..=u64::from(u32::MAX))?,
        };
        Ok(settings)
    }

    /// Protocol features to ask for on top of the usual ones.
    pub(super) fn more(&self) -> u64 {
        if self.in_band { protocol::INBAND_NOTIFICATIONS } else { 0 }
    }

    /// The device's type: as told, or guessed where only one fits.
    pub(super) fn device_type(&self, offer: &Offer) -> Result<DeviceType, String> {
        self.device.or_else(|| guess(offer)).ok_or_else(|| {
            let known: Vec<&str> = DeviceType::ALL.iter().map(|(_, name)| *name).collect();
            format!(
                "the daemon does not say what kind of device it is: add type= with one of {}",
                known.join(", ")
            )
        })
    }

    /// What the driver is shown. `config` is the daemon's, or empty, and becomes what the driver is
    /// shown.
    pub(super) fn identity(
        &self,
        device: DeviceType,
        offer: &Offer,
        config: &mut Vec<u8>,
    ) -> Result<Identity, String> {
        let from_daemon = !config.is_empty();
        if !from_daemon {
            config.resize(config::len_of(device) as usize, 0);
        }
        let queues = self.queue_count(device, offer, config);
        let mut features = offer.features - NOT_THE_DAEMONS;
        match device {
            DeviceType::NET => features = self.net(features, queues, from_daemon, config),
            DeviceType::BLOCK if features.has(BLK_MQ) => {
                let whole = BlkConfig { num_queues: queues, ..BlkConfig::decode(config) };
                put(config, &whole.encode());
            }
            DeviceType::FS => self.fs(queues, from_daemon, config),
            DeviceType::VSOCK => self.vsock(from_daemon, config)?,
            _ => {}
        }
        let size = self.queue_size.unwrap_or(usual_queue_size(device));
        Ok(Identity {
            device,
            features,
            queue_sizes: vec![size; usize::from(queues)],
            config_len: config.len() as u32,
        })
    }

    fn queue_count(&self, device: DeviceType, offer: &Offer, config: &[u8]) -> u16 {
        let told = offer.queues.map(|queues| queues.min(u64::from(MAX_QUEUES)) as u16);
        let asked = self.queues;
        let most = told.unwrap_or(MAX_QUEUES).max(1);
        match device {
            // The daemon counts pairs; without being told we use one of perhaps 128.
            DeviceType::NET => 2 * asked.unwrap_or(1).min(most).min(MAX_QUEUES / 2),
            DeviceType::BLOCK => {
                let config = BlkConfig::decode(config).num_queues;
                let several = offer.features.has(BLK_MQ);
                let default = told.or(several.then_some(config)).unwrap_or(1);
                asked.unwrap_or(default).clamp(1, most)
            }
            DeviceType::FS => {
                asked.map_or(told.unwrap_or(2), |queues| queues + 1).clamp(2, most.max(2))
            }
            DeviceType::CONSOLE => asked.or(told).unwrap_or(2).max(2),
            DeviceType::ENTROPY => 1,
            DeviceType::VSOCK => 3,
            _ => asked.or(told).unwrap_or(1).clamp(1, most),
        }
    }

    fn net(
        &self,
        offered: Features,
        queues: u16,
        from_daemon: bool,
        config: &mut [u8],
    ) -> Features {
        let mut features = (offered - NET_CONTROL) | NET_STATUS | NET_MAC;
        let mut whole = NetConfig::decode(config);
        let no_address = !from_daemon || !offered.has(NET_MAC) || whole.mac == [0; 6];
        if let Some(mac) = self.mac {
            whole.mac = mac;
        } else if no_address {
            whole.mac = random_mac();
        }
        if !from_daemon || !offered.has(NET_STATUS) {
            // Bit 0: the link is up.
            whole.status = 1;
        }
        whole.max_virtqueue_pairs = queues / 2;
        if queues <= 2 {
            features = features - NET_MQ;
        }
        if let Some(mtu) = self.mtu {
            whole.mtu = mtu;
            features = features | NET_MTU;
        } else if !from_daemon {
            features = features - NET_MTU;
        }
        put(config, &whole.encode());
        features
    }

    fn fs(&self, queues: u16, from_daemon: bool, config: &mut [u8]) {
        let mut whole = FsConfig::decode(config);
        if self.tag.is_some() || !from_daemon {
            let tag = self.tag.as_deref().unwrap_or("viaduct");
            whole.tag = [0; 36];
            whole.tag[..tag.len()].copy_from_slice(tag.as_bytes());
        }
        whole.num_request_queues = u32::from(queues) - 1;
        put(config, &whole.encode());
    }

    fn vsock(&self, from_daemon: bool, config: &mut [u8]) -> Result<(), String> {
        if let Some(guest_cid) = self.guest_cid {
            put(config, &VsockConfig { guest_cid }.encode());
        } else if !from_daemon {
            return Err("the daemon does not say which context id the guest has: add cid=".into());
        }
        Ok(())
    }
}

/// What daemons of this type take, since no message says it: drivers' sides that don't ask for less
/// (User Mode Linux, libblkio) make queues of 256, and the console daemon refuses more than 128.
fn usual_queue_size(device: DeviceType) -> u16 {
    if device == DeviceType::CONSOLE { 128 } else { 256 }
}

/// Sizes to ask a daemon for, largest first: some refuse a window beyond the config they know, and
/// older ones know less.
pub(super) fn config_sizes(device: DeviceType) -> &'static [u32] {
    match device {
        DeviceType::BLOCK => &[96, 72, 60, 36],
        DeviceType::NET => &[28, 24, 20, 12, 10, 8],
        DeviceType::FS => &[44, 40],
        DeviceType::CONSOLE => &[12, 8],
        DeviceType::BALLOON => &[16, 8],
        DeviceType::SCSI => &[36],
        DeviceType::GPU => &[16, 12],
        DeviceType::VSOCK => &[8],
        DeviceType::ENTROPY => &[],
        _ => &[256, 128, 64, 32, 16, 8, 4],
    }
}

/// The type, where the daemon's features leave only one.
fn guess(offer: &Offer) -> Option<DeviceType> {
    const BLOCK_SIGNS: Features = Features(1 << 2 | 1 << 6 | 1 << 9);
    if offer.protocol_features & (protocol::RARP | protocol::MTU) != 0 {
        return Some(DeviceType::NET);
    }
    let own = offer.features - Features::TRANSPORT;
    let known = virtio::names_of(DeviceType::BLOCK).iter();
    let block = known.fold(Features::NONE, |all, (bit, _)| all | Features::bit(*bit));
    let has_config = offer.protocol_features & protocol::CONFIG != 0;
    (has_config && (own - block).is_empty() && own.has(BLOCK_SIGNS)).then_some(DeviceType::BLOCK)
}

fn put(config: &mut [u8], whole: &[u8]) {
    let len = config.len().min(whole.len());
    config[..len].copy_from_slice(&whole[..len]);
}

fn device_type(text: &str) -> Result<DeviceType, ParameterError> {
    DeviceType::by_name(text).ok_or_else(|| expected("type", text, "a device type, as blk or 2"))
}

fn mac(text: &str) -> Result<[u8; 6], ParameterError> {
    let parse = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2);
    let bytes: Option<Vec<u8>> = text.split(':').map(parse).collect();
    bytes
        .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
        .filter(|mac| mac[0] & 1 == 0)
        .ok_or_else(|| expected("mac", text, "a unicast address, as 52:54:00:12:34:56"))
}

fn tag(text: String) -> Result<String, ParameterError> {
    let fits = (1..=36).contains(&text.len());
    if fits { Ok(text) } else { Err(expected("tag", &text, "1 to 36 bytes")) }
}

fn expected(key: &str, text: &str, what: &str) -> ParameterError {
    ParameterError::Expected { key: key.into(), text: text.into(), expected: what.into() }
}

/// A locally administered unicast address.
fn random_mac() -> [u8; 6] {
    let bits = RandomState::new().build_hasher().finish().to_le_bytes();
    [0x52, 0x54, bits[0], bits[1], bits[2], bits[3]]
}
