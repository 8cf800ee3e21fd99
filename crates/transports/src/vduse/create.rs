//! What is made of a device, what the kernel does not admit, and what is left of an earlier life.

use std::io;
use std::time::{Duration, Instant};

use sys::{VduseConfig, VduseControl, VduseDevice};
use virtio::{DeviceType, EndError, Features, VirtioDevice};

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

/// A device that exists and is not on the bus yet.
pub(super) struct Made {
    pub node: VduseDevice,
    /// What the driver is offered.
    pub offered: Features,
    pub queues: u16,
    pub config_len: u32,
}

/// Opens the node through which devices are made.
pub(super) fn open_control(newest_api: u64) -> Result<VduseControl, EndError> {
    VduseControl::open(newest_api).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => EndError::Driver(
            "there is no /dev/vduse/control: modprobe vduse (Linux 5.15 or later)".into(),
        ),
        io::ErrorKind::PermissionDenied => {
            EndError::Driver("/dev/vduse/control may only be opened by root".into())
        }
        _ => EndError::System { attempt: "opening /dev/vduse/control".into(), source: error },
    })
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
        clear(control, settings)?;
    }
    control.create(&config).map_err(|error| refusal(control, &config, error))?;
    let made = finish(settings, &config, &sizes);
    if made.is_err() {
        // What was not finished does not stay; its own error would hide the first one.
        let _ = control.destroy(name);
    }
    made
}

/// Removes a device that is off the bus.
pub(super) fn remove(control: &VduseControl, name: &str) -> Result<(), EndError> {
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
            result => return result.map_err(EndError::system(format!("removing {name}"))),
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
    let offered = Features(config.features);
    let config_len = config.config.len() as u32;
    Ok(Made { node, offered, queues: sizes.len() as u16, config_len })
}

/// Removes what an earlier process has left, as far as that hurts nobody or was asked for.
fn clear(control: &VduseControl, settings: &Settings) -> Result<(), EndError> {
    let name = &settings.name;
    if !sysfs::is_on_bus(name) {
        return match control.destroy(name) {
            Ok(()) => {
                tracing::info!("{name}: removed what an earlier process had left");
                Ok(())
            }
            Err(error) => Err(EndError::Driver(format!(
                "{name} exists and can't be removed ({error}): another process has it, or choose \
                 another name"
            ))),
        };
    }
    // Opening shows whether anybody serves it.
    let node = VduseDevice::open(name).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            EndError::Driver(format!("another process serves {name}: choose another name"))
        }
        _ => EndError::System { attempt: format!("opening /dev/vduse/{name}"), source: error },
    })?;
    if !settings.replace {
        return Err(EndError::Driver(format!(
            "{name} is on the vDPA bus and nobody serves it: replace=on removes it first, and \
             requests that wait there fail"
        )));
    }
    super::server::abandon(name, &node)?;
    drop(node);
    remove(control, name)
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
