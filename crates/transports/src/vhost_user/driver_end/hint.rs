//! What a person types to attach a driver.

use std::path::Path;

use virtio::{DeviceType, Features, Identity};

use super::session::Terms;
use crate::vhost_user::place::Place;

/// Options of QEMU (10.1 or later), and of others that speak vhost-user, one line each.
pub(super) fn attach(place: &Place, identity: &Identity, terms: Terms) -> String {
    let (server, path) = match place {
        Place::Listen(_, path) => ("", Path::new(path)),
        Place::Connect(path) => (",server=on,wait=on", path.as_path()),
        Place::Given(_) => return "the driver's side is connected already\n".to_owned(),
    };
    // QEMU may be started in another folder. What we listen at and is no file is an abstract name.
    let is_name = server.is_empty() && !path.exists();
    let whole = std::path::absolute(path).ok().filter(|_| !is_name);
    let path = whole.unwrap_or_else(|| path.to_owned());
    let path = path.display();
    // QEMU's other devices do not wait for a connection that comes late, and fail.
    let waits = matches!(identity.device, DeviceType::BLOCK | DeviceType::NET);
    let reconnect = if server.is_empty() && waits { ",reconnect-ms=200" } else { "" };
    let mut hint = String::from(
        "-object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem\n",
    );
    hint += &format!("-chardev socket,id=viaduct,path={path}{server}{reconnect}\n");
    hint += &device(identity, terms);
    if identity.device == DeviceType::NET {
        let pairs = identity.queue_sizes.len() / 2;
        hint += &format!(
            "DPDK: --vdev net_virtio_user0,path={path},queues={pairs},queue_size={}\n",
            identity.queue_sizes.first().copied().unwrap_or(256)
        );
    }
    hint + &format!("User Mode Linux: virtio_uml.device={path}:{}\n", identity.device.0)
}

fn device(identity: &Identity, terms: Terms) -> String {
    let mut options = String::new();
    if identity.features.has(Features::RING_PACKED) {
        options += ",packed=on";
    }
    if terms.iommu {
        options += ",iommu_platform=on";
        // Drivers from before virtio 1.0 know nothing of it, so QEMU refuses it where it would
        // serve them too. The other types never had a legacy form.
        if matches!(identity.device, DeviceType::NET | DeviceType::BLOCK | DeviceType::SCSI) {
            options += ",disable-legacy=on";
        }
    }
    let queues = identity.queue_sizes.len();
    match identity.device {
        DeviceType::NET => {
            let pairs = queues / 2;
            let several =
                if pairs > 1 { format!(",mq=on,vectors={}", 2 * pairs + 2) } else { String::new() };
            let netdev = format!("-netdev vhost-user,id=net0,chardev=viaduct,queues={pairs}\n");
            netdev + &format!("-device virtio-net-pci,netdev=net0{several}{options}\n")
        }
        DeviceType::BLOCK => {
            format!("-device vhost-user-blk-pci,chardev=viaduct,num-queues={queues}{options}\n")
        }
        DeviceType::FS => {
            let requests = queues.saturating_sub(1).max(1);
            let several = if requests > 1 {
                format!(",num-request-queues={requests}")
            } else {
                String::new()
            };
            format!("-device vhost-user-fs-pci,chardev=viaduct,tag=viaduct{several}{options}\n")
        }
        DeviceType::ENTROPY => format!("-device vhost-user-rng-pci,chardev=viaduct{options}\n"),
        DeviceType::SCSI => format!("-device vhost-user-scsi-pci,chardev=viaduct{options}\n"),
        other => format!(
            "-device vhost-user-test-device-pci,chardev=viaduct,virtio-id={},num_vqs={queues},\
             config_size={}{options}\n",
            other.0, identity.config_len
        ),
    }
}
