//! vduse: the drivers of this very kernel, without a hypervisor. The device appears on the host's
//! vDPA bus and becomes /dev/vdX, a network interface or a file system's tag.
//!
//! ```text
//!   applications
//!   /dev/vda, eth0          CREATE_DEV, VQ_SETUP ----> /dev/vduse/NAME
//!        |                  DEV_NEW (netlink) -------> on the bus; a driver takes it
//!   virtio_blk, virtio_net  <----- SET_STATUS(FEATURES_OK): are the features ours?
//!        |                  <----- SET_STATUS(DRIVER_OK): answered, then memory, queues, kicks
//!   virtio_vdpa == rings, bounce pages ==> device
//!        |  <-- VQ_INJECT_IRQ -- call events, once the kernel knows of DRIVER_OK
//!        |                  <----- SET_STATUS(0): queues stopped, device reset, answered
//!                           DEV_DEL (netlink), DESTROY_DEV: nothing is left
//! ```
//!
//! The memory is one file: rings and the pages through which the kernel copies data, nothing else
//! of the machine. A process that is killed leaves the device behind; the next one opens it, reads
//! from a file what the kernel does not tell (`state`), and goes on.
//!
//! What it deliberately lacks: the bus by hand (`vdpa dev add`) and a registered bounce pool.

mod bus;
mod create;
mod host;
mod memory;
mod queues;
mod refuse;
mod server;
mod state;
mod sysfs;

use std::path::PathBuf;
use std::time::Duration;

use virtio::{DriverEnd, EndError, ParameterError, Parameters, Stop, VirtioDevice};

use crate::{OpenError, Transport};

pub use host::{NameUse, missing_for, use_of_name};

/// The table's entry.
pub(crate) static TRANSPORT: Transport = Transport {
    scheme: "vduse",
    help: "this kernel's own drivers: /dev/vdX, a network interface, a virtiofs tag",
    settings: &[
        "path=NAME           the device's name on the vDPA bus, as disk0",
        "bounce-size=SIZE    pages through which the kernel copies, 1M to 1G (64M)",
        "message-timeout=S   seconds until the kernel gives up on us, 0 for never (30)",
        "api=0|1             newest version of the kernel's interface to use (1)",
        "state=PATH|off      file from which a killed device is resumed (/run/viaduct/vduse-NAME)",
        "release-timeout=S   seconds until requests that keep the device from going fail (10)",
        "replace=on          remove what a killed process has left and can't be resumed",
    ],
    driver_end: Some(open),
    device_end: None,
    probe: None,
};

/// What a person can choose.
#[derive(Clone, Debug)]
struct Settings {
    name: String,
    bounce_bytes: Option<u64>,
    message_timeout: Option<u64>,
    newest_api: u64,
    /// The file from which it is resumed.
    state: Option<PathBuf>,
    /// How long a device that is to go waits for requests to be answered.
    patience: Duration,
    replace: bool,
}

/// Is told, each time the device is attached, what has appeared: `/dev/vda`, `eth0`.
pub type Attached = Box<dyn FnMut(&[String]) + Send>;

fn open(parameters: Parameters) -> Result<Box<dyn DriverEnd>, OpenError> {
    open_on_host(parameters, Box::new(|_| ()))
}

/// Makes the driver end `vduse:`, which tells `attached` what has appeared. Raises the limit on
/// locked memory already, so that the right to do so is not needed later.
///
/// # Errors
/// A setting is wrong, or VDUSE is not there or not ours to use.
pub fn open_on_host(
    mut parameters: Parameters,
    attached: Attached,
) -> Result<Box<dyn DriverEnd>, OpenError> {
    /// `VDUSE_BOUNCE_SIZE` of the kernel's driver.
    const USUAL_BOUNCE_BYTES: u64 = 64 << 20;
    let settings = read_settings(&mut parameters)?;
    parameters.finish()?;
    let control = create::open_control(settings.newest_api)?;
    sys::raise_lock_limit(settings.bounce_bytes.unwrap_or(USUAL_BOUNCE_BYTES));
    Ok(Box::new(VduseEnd { settings, control, attached }))
}

fn read_settings(parameters: &mut Parameters) -> Result<Settings, ParameterError> {
    /// `VDUSE_MIN_BOUNCE_SIZE` and `VDUSE_MAX_BOUNCE_SIZE` of the kernel's driver.
    const BOUNCE_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;
    /// A day.
    const LONGEST_WAIT: u64 = 86_400;
    /// More than a daemon takes to come back, less than `server::END_LIMIT` with time to spare.
    const USUAL_PATIENCE: u64 = 10;
    const LONGEST_PATIENCE: u64 = 25;
    let name = parameters.text("path").ok_or(ParameterError::Missing("path"))?;
    if !is_name(&name) {
        return Err(ParameterError::Expected {
            key: "path".into(),
            text: name,
            expected: "a name of 1 to 64 letters, digits, '-', '_' and '.', as disk0".into(),
        });
    }
    let state = match parameters.text("state").as_deref() {
        Some("off") => None,
        Some(path) => Some(path.into()),
        None => Some(state::default_path(&name)),
    };
    Ok(Settings {
        name,
        state,
        bounce_bytes: parameters.number("bounce-size", BOUNCE_BYTES)?,
        message_timeout: parameters.number("message-timeout", 0..=LONGEST_WAIT)?,
        newest_api: parameters
            .number("api", 0..=sys::VDUSE_API_LATEST)?
            .unwrap_or(sys::VDUSE_API_LATEST),
        patience: Duration::from_secs(
            parameters.number("release-timeout", 0..=LONGEST_PATIENCE)?.unwrap_or(USUAL_PATIENCE),
        ),
        replace: parameters.flag("replace", false)?,
    })
}

/// A name that is also good in paths and on the bus.
fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&name.len())
        && name.chars().all(good)
        && !name.starts_with('.')
        && name != "control"
}

/// A device to be on the host's vDPA bus.
struct VduseEnd {
    settings: Settings,
    control: sys::VduseControl,
    attached: Attached,
}

impl DriverEnd for VduseEnd {
    fn attach_hint(&self, _device: &dyn VirtioDevice) -> String {
        let name = &self.settings.name;
        format!(
            "nothing: it is attached to this kernel's drivers as {name}\n\
             ls -d /sys/bus/vdpa/devices/{name}/virtio*/*/*"
        )
    }

    fn time_to_end(&self) -> Duration {
        server::END_LIMIT
    }

    fn serve(self: Box<Self>, device: Box<dyn VirtioDevice>, stop: Stop) -> Result<(), EndError> {
        let Self { settings, control, attached } = *self;
        let mut device = device;
        if settings.state.is_some() {
            device.want_record();
        }
        let made = create::create(&control, &settings, &mut *device)?;
        let result = server::Server::new(&settings, made, device, stop, attached)
            .and_then(|mut server| server.run());
        if sysfs::is_on_bus(&settings.name) {
            // It is there for who comes next, with all that waits.
            return result;
        }
        result.and(create::remove(&control, &settings))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use virtio::Value;

    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        let value = |text: &str| Value {
            text: text.into(),
            number: text.parse().ok(),
            flag: Some(text == "on"),
        };
        let pairs = pairs.iter().map(|(key, text)| ((*key).into(), value(text)));
        Parameters::new(pairs.collect::<BTreeMap<_, _>>())
    }

    #[test]
    fn settings_are_read_and_names_checked() {
        let mut good = parameters(&[("path", "disk0"), ("bounce-size", "1048576"), ("api", "0")]);
        let settings = read_settings(&mut good).unwrap();
        assert_eq!((settings.name.as_str(), settings.bounce_bytes), ("disk0", Some(1 << 20)));
        assert_eq!((settings.newest_api, settings.replace), (0, false));
        assert!(settings.state.is_some_and(|path| path.ends_with("viaduct/vduse-disk0")));
        let mut off = parameters(&[("path", "disk0"), ("state", "off")]);
        assert_eq!(read_settings(&mut off).unwrap().state, None);
        let mut given = parameters(&[("path", "disk0"), ("state", "/tmp/here")]);
        assert_eq!(read_settings(&mut given).unwrap().state, Some("/tmp/here".into()));
        for name in ["", "control", "../disk", ".", "a b", &"x".repeat(65)] {
            assert!(read_settings(&mut parameters(&[("path", name)])).is_err(), "{name}");
        }
        assert!(read_settings(&mut parameters(&[("path", "d"), ("bounce-size", "1")])).is_err());
    }
}
