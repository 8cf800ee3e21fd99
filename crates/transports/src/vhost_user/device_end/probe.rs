//! Asks a daemon what it is, and leaves it as it was.

use virtio::{DeviceType, Parameters};
use wire::vhost_user::features::protocol_feature_names;

use super::link::Link;
use super::settings::Settings;
use super::{read_config, recover};
use crate::vhost_user::place::{BarePath, Place};
use crate::{Findings, OpenError};

/// Connects, makes the handshake, and reads the config if the type of the device is known.
pub(in crate::vhost_user) fn probe(mut parameters: Parameters) -> Result<Findings, OpenError> {
    let mut place = Place::from_parameters(&mut parameters, BarePath::Connect)?;
    let settings = Settings::take(&mut parameters)?;
    parameters.finish()?;
    let deadline = std::time::Instant::now() + settings.timeout;
    let connection = recover::wait_for(&mut place, deadline)?;
    let mut link = Link::new(connection, settings.timeout, 0).map_err(virtio::DeviceError::from)?;
    let offer = link.offer.clone();
    let device: Option<DeviceType> = settings.device_type(&offer).ok();
    let config = match device {
        Some(device) => read_config(&mut link, device, None)?,
        None => Vec::new(),
    };
    let names = protocol_feature_names(offer.protocol_features);
    let protocol_features =
        names.map(|(bit, name)| name.map_or_else(|| format!("bit {bit}"), str::to_owned));
    Ok(Findings {
        device,
        features: offer.features,
        protocol_features: protocol_features.collect(),
        queues: offer.queues,
        memory_slots: offer.memory_slots,
        config,
    })
}
