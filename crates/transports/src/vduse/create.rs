//! What is made of a device, what the kernel does not admit, and what is left of an earlier life.

use std::io;
use std::time::{Duration, Instant};

use sys::{VduseConfig, VduseControl, VduseDevice};
use virtio::{DeviceError, DeviceType, EndError, Features, Status, VirtioDevice};

use super::memory::{self, Pool};
use super::refuse::{Refuser, Remains};
use super::state::{Record, State};
use super::{Settings, sysfs};

/// Red Hat's, as virtio's drivers expect.
const VENDOR: u32 = 0x1af4;
/// Alignment of rings: a page, the most the kernel admits.
const ALIGNMENT: u32 = 4096;
/// Largest queue: a ring is physically contiguous memory, of which the kernel may not have more.
const MAX_QUEUE_SIZE: u16 = 1024;
/// Longest device config: a page.
const MAX_CONFIG: usize = 4096;
/// How long a device that was taken off the bus may take to be let go of by the kernel.
const LET_GO_LIMIT: Duration = Duration::from_secs(2);

/// Bits that only mean something between a driver and another bus, or between us and a daemon, and
/// packed rings: when the bounce pool is used up, the kernel's driver of a split ring waits, and
/// that of a packed ring fails the request (`virtqueue_add_packed` says EIO where the other says
/// ENOMEM), which is an I/O error to applications.
const NOT_OURS: Features = Features(
    Features::SR_IOV.0
        | Features::NOTIFICATION_DATA.0
        | Features::NOTIF_CONFIG_DATA.0
        | Features::RING_RESET.0
        | Features::ADMIN_VQ.0
        | Features::RING_PACKED.0
        | Features::PROTOCOL_FEATURES.0
        | Features::LOG_ALL.0,
);

/// `VIRTIO_BLK_F_CONFIG_WCE`: a config that drivers write, which VDUSE has not.
const BLOCK_CONFIG_WCE: Features = Features::bit(11);

/// `VIRTIO_NET_F_CTRL_VQ`, which VDUSE forbids, and all that needs it (VIRTIO 1.4, 5.1.3.1):
/// CTRL_GUEST_OFFLOADS, CTRL_RX to CTRL_MAC_ADDR (with MQ), HASH_TUNNEL, VQ_NOTF_COAL, NOTF_COAL,
/// HASH_REPORT, RSS.
const NET_CONTROL: Features =
    Features(1 << 2 | 0x7f << 17 | 1 << 51 | 1 << 52 | 1 << 53 | 1 << 57 | 1 << 60);

/// A device that exists and is not on the bus yet, or that another process has left there.
pub(super) struct Made {
    pub node: VduseDevice,
    /// Another process has put it there, or is about to.
    pub resumed: bool,
    /// What it was made as, and how far its driver is.
    pub record: Record,
    /// Where that is written down.
    pub state: Option<State>,
}

/// Opens the node through which devices are made.
pub(super) fn open_control(newest_api: u64) -> Result<VduseControl, EndError> {
    VduseControl::open(newest_api).map_err(explain_control)
}

/// Why that node could not be opened, and what to do.
pub(super) fn explain_control(error: io::Error) -> EndError {
    match error.kind() {
        io::ErrorKind::NotFound => EndError::Driver(
            "there is no /dev/vduse/control: modprobe vduse (Linux 5.15 or later)".into(),
        ),
        io::ErrorKind::PermissionDenied => {
            EndError::Driver("/dev/vduse/control may only be opened by root".into())
        }
        _ => EndError::System { attempt: "opening /dev/vduse/control".into(), source: error },
    }
}

/// Makes the device with the queues set up, ready for the bus.
pub(super) fn create(
    control: &VduseControl,
    settings: &Settings,
    device: &mut dyn VirtioDevice,
) -> Result<Made, EndError> {
    let name = &settings.name;
    let (config, sizes) = plan(name, device)?;
    if std::path::Path::new("/dev/vduse").join(name).exists() {
        if let Some(made) = resume(settings, &config, &sizes)? {
            return Ok(made);
        }
        clear(control, settings, &config)?;
    }
    control.create(&config).map_err(|error| refusal(control, &config, error))?;
    let made = finish(settings, &config, &sizes);
    if made.is_err() {
        // What was not finished does not stay; its own error would hide the first one.
        let _ = control.destroy(name);
    }
    made
}

/// Removes a device that is off the bus, and what was written down about it.
pub(super) fn remove(control: &VduseControl, settings: &Settings) -> Result<(), EndError> {
    let name = &settings.name;
    destroy(control, name).map_err(EndError::system(format!("removing {name}")))?;
    let Some(path) = &settings.state else { return Ok(()) };
    State::remove(path).map_err(EndError::system(format!("removing {}", path.display())))
}

fn destroy(control: &VduseControl, name: &str) -> io::Result<()> {
    /// There is no event for the kernel letting go of the last reference.
    const AGAIN: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + LET_GO_LIMIT;
    loop {
        match control.destroy(name) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(AGAIN);
            }
            result => return result,
        }
    }
}

/// What the kernel is to offer for `device`, and the sizes of its queues.
fn plan(name: &str, device: &mut dyn VirtioDevice) -> Result<(VduseConfig, Vec<u16>), EndError> {
    let identity = device.identity().clone();
    let features = offered(identity.device, identity.features);
    if !features.has(Features::VERSION_1) {
        let what = identity.device;
        return Err(EndError::Driver(format!(
            "this {what} device has no VERSION_1, which this kernel's drivers need on a vDPA bus"
        )));
    }
    // Without its control queue a network card has one pair.
    let most = if identity.device == DeviceType::NET { 2 } else { usize::from(virtio::MAX_QUEUES) };
    let sizes = identity.queue_sizes.iter().take(most).map(|size| *size.min(&MAX_QUEUE_SIZE));
    let mut config = vec![0; MAX_CONFIG.min(identity.config_len as usize)];
    device.read_config(0, &mut config);
    let sizes: Vec<u16> = sizes.collect();
    let config = VduseConfig {
        name: name.into(),
        vendor: VENDOR,
        device: identity.device.0.into(),
        features: features.0,
        queues: sizes.len() as u32,
        alignment: ALIGNMENT,
        config,
    };
    Ok((config, sizes))
}

/// What a driver may be offered on the vDPA bus: the addresses are not physical ones, and what
/// VDUSE forbids is left out.
fn offered(device: DeviceType, features: Features) -> Features {
    let forbidden = match device {
        DeviceType::BLOCK => BLOCK_CONFIG_WCE,
        DeviceType::NET => NET_CONTROL,
        _ => Features::NONE,
    };
    (features - NOT_OURS - forbidden) | Features::ACCESS_PLATFORM
}

fn finish(settings: &Settings, config: &VduseConfig, sizes: &[u16]) -> Result<Made, EndError> {
    let name = &settings.name;
    let node =
        VduseDevice::open(name).map_err(EndError::system(format!("opening /dev/vduse/{name}")))?;
    for (index, size) in sizes.iter().enumerate() {
        let attempt = format!("setting up queue {index} of {name}");
        node.set_up_queue(index as u32, *size).map_err(EndError::system(attempt))?;
    }
    let choices =
        [("bounce_size", settings.bounce_bytes), ("msg_timeout", settings.message_timeout)];
    for (key, value) in choices {
        let Some(value) = value else { continue };
        let attempt = format!("setting {key} of {name} to {value}");
        sysfs::set(name, key, value).map_err(EndError::system(attempt))?;
    }
    let record = Record {
        device: DeviceType(config.device as u16),
        offered: Features(config.features),
        queue_sizes: sizes.to_vec(),
        config: config.config.clone(),
        attached: false,
        status: Status::RESET,
    };
    let state = settings.state.as_ref().map(|path| {
        let attempt =
            format!("writing {} (state=PATH chooses another, state=off none)", path.display());
        State::create(path, name, record.clone()).map_err(EndError::system(attempt))
    });
    Ok(Made { node, resumed: false, record, state: state.transpose()? })
}

/// The device as an earlier process has left it, if we know enough to go on with it.
fn resume(
    settings: &Settings,
    config: &VduseConfig,
    sizes: &[u16],
) -> Result<Option<Made>, EndError> {
    let name = &settings.name;
    let state = settings.state.as_ref().and_then(|path| State::read(path, name));
    // If it was killed while the bus had it attached, that goes on, and waits for us.
    let Some(state) = state.filter(|_| sysfs::is_on_bus(name)) else {
        return Ok(None);
    };
    let node = open_node(name)?;
    let accepted = match state.record.status.has(Status::FEATURES_OK) {
        true => node.features().map(Features).map_err(EndError::system(format!(
            "asking for the features of {name}, which the kernel may have given up on (replace=on \
             removes it)"
        ))),
        // It may still take all that it was offered.
        false => Ok(state.record.offered),
    };
    let against = accepted.map(|accepted| against_resuming(&state.record, config, sizes, accepted));
    match against {
        Ok(None) => {
            Ok(Some(Made { node, resumed: true, record: state.record.clone(), state: Some(state) }))
        }
        _ if settings.replace => Ok(None),
        Ok(Some(why)) => Err(EndError::Driver(format!(
            "{name} can't be resumed: {why}; replace=on removes it, and requests that wait there \
             fail"
        ))),
        Err(error) => Err(error),
    }
}

/// Why a driver that accepted `accepted` of the device in `record` can't go on with this one.
fn against_resuming(
    record: &Record,
    config: &VduseConfig,
    sizes: &[u16],
    accepted: Features,
) -> Option<String> {
    let now = DeviceType(config.device as u16);
    if record.device != now {
        return Some(format!("it was a {} device and is a {now} device now", record.device));
    }
    let lost = accepted - Features(config.features);
    if !lost.is_empty() {
        return Some(format!("the device has lost {}", lost.names(Some(now)).join(" ")));
    }
    let shrunk = record
        .queue_sizes
        .iter()
        .enumerate()
        .any(|(index, &size)| sizes.get(index).is_none_or(|&now| now < size));
    if shrunk {
        return Some("the device has fewer or shorter queues now".into());
    }
    if record.config.len() != config.config.len() {
        return Some("the device's config has another length now".into());
    }
    None
}

/// Opens the node, which a process that was killed a moment ago may still have.
fn open_node(name: &str) -> Result<VduseDevice, EndError> {
    /// There is no event for it.
    const AGAIN: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + LET_GO_LIMIT;
    loop {
        let error = match VduseDevice::open(name) {
            Ok(node) => return Ok(node),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::ResourceBusy {
            let attempt = format!("opening /dev/vduse/{name}");
            return Err(EndError::System { attempt, source: error });
        }
        if Instant::now() >= deadline {
            return Err(EndError::Driver(format!(
                "another process serves {name}: choose another name"
            )));
        }
        std::thread::sleep(AGAIN);
    }
}

/// Removes what an earlier process has left, as far as that hurts nobody or was asked for.
fn clear(
    control: &VduseControl,
    settings: &Settings,
    config: &VduseConfig,
) -> Result<(), EndError> {
    let name = &settings.name;
    if !sysfs::is_on_bus(name) {
        match destroy(control, name) {
            Ok(()) => {
                tracing::info!("{name}: removed what an earlier process had left");
                return Ok(());
            }
            // Another process serves it, or was killed while it took it away.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => {
                return Err(EndError::Driver(format!(
                    "{name} exists and can't be removed, choose another name: {error}"
                )));
            }
        }
    }
    // Opening shows whether anybody serves it.
    let node = open_node(name)?;
    let state = settings.state.as_ref().and_then(|path| State::read(path, name));
    // What leaves the bus is not there by name any more, long before its driver has let go: until
    // what it waits for has failed. As it was to go, nobody need ask for that.
    let is_leaving = !sysfs::is_on_bus(name);
    if !is_leaving && !settings.replace {
        return Err(EndError::Driver(format!(
            "{name} is on the vDPA bus, nobody serves it, and how far it was is not known: \
             replace=on removes it first, and requests that wait there fail"
        )));
    }
    let refuser = match refuser_of(&node, state, config) {
        Ok(refuser) => Some(refuser),
        Err(error) => {
            // There may be nothing that waits.
            tracing::debug!("{name}: {error}");
            None
        }
    };
    super::bus::abandon(name, &node, refuser)?;
    drop(node);
    if is_leaving {
        tracing::info!("{name}: removed, as an earlier process had begun to; what waited fails");
    }
    remove(control, settings)
}

/// What fails the requests that an earlier process has left; if nothing is known of it, it is taken
/// for a device of the same type.
fn refuser_of(
    node: &VduseDevice,
    mut state: Option<State>,
    config: &VduseConfig,
) -> Result<Refuser, DeviceError> {
    let (device, queues) = match &state {
        Some(state) => (state.record.device, state.record.queue_sizes.len()),
        None => (DeviceType(config.device as u16), config.queues as usize),
    };
    let attempt = "asking for the features of the old device";
    let features = Features(node.features().map_err(DeviceError::system(attempt))?);
    let memory = memory::read(node, &Pool::Kernels)?;
    let in_flight = state.as_mut().map(State::in_flight).transpose()?;
    Refuser::take_over(Remains { node, device, queues, features, memory, in_flight })
}

/// Why the kernel did not make the device, and what would work.
fn refusal(control: &VduseControl, config: &VduseConfig, error: io::Error) -> EndError {
    let name = &config.name;
    let device = DeviceType(config.device as u16);
    match error.kind() {
        io::ErrorKind::PermissionDenied => EndError::Driver(format!(
            "the kernel lets only CAP_NET_ADMIN make a {device} device: run as root"
        )),
        io::ErrorKind::InvalidInput => {
            let admitted = admitted(control);
            if admitted.contains(&device) {
                let features = Features(config.features).names(Some(device)).join(" ");
                return EndError::Driver(format!(
                    "the kernel refuses a {device} device with {features}"
                ));
            }
            EndError::Driver(not_admitted(device, &admitted))
        }
        _ => EndError::System { attempt: format!("making the device {name}"), source: error },
    }
}

fn not_admitted(device: DeviceType, admitted: &[DeviceType]) -> String {
    let names: Vec<String> = admitted.iter().map(ToString::to_string).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    format!(
        "this kernel admits no {device} device by VDUSE (it admits: {names}); instead of vduse: \
         use vhost-user: with QEMU or User Mode Linux, vfio-user: with QEMU, or a kernel with \
         virtio-msg"
    )
}

/// The types that the kernel admits, by making throw-away devices that are on no bus.
fn admitted(control: &VduseControl) -> Vec<DeviceType> {
    let name = format!("viaduct-probe-{}", std::process::id());
    let mut found = Vec::new();
    for (device, _) in DeviceType::ALL {
        let config = VduseConfig {
            name: name.clone(),
            vendor: VENDOR,
            device: device.0.into(),
            features: (Features::VERSION_1 | Features::ACCESS_PLATFORM).0,
            queues: 1,
            alignment: ALIGNMENT,
            config: Vec::new(),
        };
        match control.create(&config) {
            Ok(()) => {
                found.push(*device);
                let _ = control.destroy(&name);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found.push(*device),
            Err(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vduse_forbids_is_not_offered() {
        let everything = Features(u64::MAX);
        let disk = offered(DeviceType::BLOCK, everything);
        assert!((disk & (BLOCK_CONFIG_WCE | Features::PROTOCOL_FEATURES)).is_empty());
        assert!((disk & Features::RING_PACKED).is_empty(), "a full pool would be an I/O error");
        assert!(disk.has(Features::bit(12)), "a disk keeps its queues");
        let card = offered(DeviceType::NET, everything);
        let names = card.names(Some(DeviceType::NET));
        assert!(!names.iter().any(|name| name.starts_with("CTRL") || name == "MQ"), "{names:?}");
        assert!(!names.iter().any(|name| name == "GUEST_ANNOUNCE" || name == "RSS"), "{names:?}");
        assert!(names.iter().any(|name| name == "MAC"), "{names:?}");
    }

    #[test]
    fn a_device_that_can_do_less_does_not_take_anothers_place() {
        let features = Features::VERSION_1 | Features::EVENT_IDX;
        let config = |device: DeviceType, features: Features| VduseConfig {
            name: "d".into(),
            vendor: VENDOR,
            device: device.0.into(),
            features: features.0,
            queues: 2,
            alignment: ALIGNMENT,
            config: vec![1; 60],
        };
        let record = Record {
            device: DeviceType::BLOCK,
            offered: features,
            queue_sizes: vec![128, 128],
            config: vec![0; 60],
            attached: true,
            status: Status(15),
        };
        let same = config(DeviceType::BLOCK, features);
        let against = |config: &VduseConfig, sizes: &[u16], accepted| {
            against_resuming(&record, config, sizes, accepted).unwrap_or_default()
        };
        assert_eq!(against(&same, &[128, 256, 1], features), "");
        assert!(against(&config(DeviceType::NET, features), &[128; 2], features).contains("net"));
        let less = config(DeviceType::BLOCK, Features::VERSION_1);
        assert!(against(&less, &[128; 2], features).contains("EVENT_IDX"));
        assert_eq!(against(&less, &[128; 2], Features::VERSION_1), "", "it was not in use");
        assert!(against(&same, &[128], features).contains("queues"));
        assert!(against(&same, &[128, 64], features).contains("queues"));
        let longer = VduseConfig { config: vec![0; 61], ..same };
        assert!(against(&longer, &[128; 2], features).contains("length"));
    }

    #[test]
    fn addresses_always_go_through_the_platform() {
        assert!(offered(DeviceType::FS, Features::VERSION_1).has(Features::ACCESS_PLATFORM));
    }

    #[test]
    fn a_refused_type_is_told_what_else_would_work() {
        let text = not_admitted(DeviceType::ENTROPY, &[DeviceType::NET, DeviceType::BLOCK]);
        assert!(text.contains("no rng device") && text.contains("net, blk"), "{text}");
        assert!(text.contains("User Mode Linux") && text.contains("QEMU"), "{text}");
    }
}
