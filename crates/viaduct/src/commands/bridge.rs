//! `viaduct bridge`: one driver end, one device end, and what stands between them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use bridge::{BridgeOptions, Mode, RateLimits, Shadow};
use virtio::{Features, Parameters, Value, VirtioDevice};
use virtqueue::RingFormat;
use worker::{PoolOptions, Workers};

use crate::address::{self, Address};
use crate::cli;
use crate::ends;
use crate::monitor::{Monitor, Reports};
use crate::supervisor::{self, Bridge};

/// Most worker threads one may ask for.
const MAX_WORKERS: u64 = 64;

/// Most microseconds of polling one may ask for.
pub const MAX_SPIN_US: u64 = worker::MAX_SPIN.as_micros() as u64;

/// A bridge that is ready to run.
pub struct Opened {
    /// To run it.
    pub bridge: Bridge,
    /// To watch it.
    pub monitor: Monitor,
    /// How often to print counters.
    pub stats: Option<Duration>,
}

/// What the bridge's own settings say.
pub struct Settings {
    options: BridgeOptions,
    /// The device's type, for a daemon that can't tell.
    device_type: Option<String>,
    stats: Option<Duration>,
    workers: usize,
    spin: Option<Duration>,
}

/// Runs one bridge until stopped.
pub fn run(options: &cli::Bridge) -> Result<()> {
    let driver = Address::parse(&options.driver_end)?;
    let device = Address::parse(&options.device_end)?;
    let values = address::settings(&options.settings)?;
    let Opened { bridge, monitor, stats } = open("bridge", &driver, &device, values)?;
    println!("{}", bridge.driver.attach_hint(bridge.device.as_ref()));
    let mut reports = Reports::default();
    reports.add(None, &monitor, stats);
    supervisor::run(vec![bridge], Some(reports))
}

/// Opens both ends with whatever the settings ask for between them.
pub fn open(
    name: &str,
    driver: &Address,
    device: &Address,
    values: BTreeMap<String, Value>,
) -> Result<Opened> {
    let settings = Settings::read(values)?;
    settings.start_workers()?;
    // The device first: a driver that finds the socket expects somebody behind it.
    let inner = settings.open_device(device)?;
    let (shadow, monitor, stats) = settings.shadow(inner, name, &device.scheme)?;
    let driver = ends::open_driver(driver)?;
    let bridge = Bridge { name: name.into(), driver, device: Box::new(shadow) };
    Ok(Opened { bridge, monitor, stats })
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// One of them is wrong.
    pub fn read(values: BTreeMap<String, Value>) -> Result<Self> {
        read_settings(values).context("in the bridge's settings")
    }

    /// Starts the threads they ask for.
    ///
    /// # Errors
    /// The system has none.
    pub fn start_workers(&self) -> Result<()> {
        start_workers(self.workers, self.spin)
    }

    /// Opens where the device is.
    ///
    /// # Errors
    /// A mistake in the address, or [`ends::NotOpened`] for something outside.
    pub fn open_device(&self, address: &Address) -> Result<Box<dyn VirtioDevice>> {
        let mut address = address.clone();
        if let Some(kind) = &self.device_type {
            address.values.entry("type".into()).or_insert_with(|| address::value(kind));
        }
        ends::open_device(&address)
    }

    /// What they ask for between the ends, how to watch it, and how often to print counters.
    ///
    /// # Errors
    /// The device can't be used so.
    pub fn shadow(
        self,
        inner: Box<dyn VirtioDevice>,
        name: &str,
        scheme: &str,
    ) -> Result<(Shadow, Monitor, Option<Duration>)> {
        let shadow = Shadow::new(inner, name, self.options)
            .with_context(|| format!("can't set up the bridge to {scheme}"))?;
        let monitor = Monitor::new(&shadow);
        Ok((shadow, monitor, self.stats))
    }
}

/// Starts the process's worker threads; the first caller decides how many, and how long they poll
/// at most before they sleep.
pub fn start_workers(count: usize, spin: Option<Duration>) -> Result<()> {
    let usual = PoolOptions::with_threads(count);
    let options = match spin {
        Some(spin) => usual.spinning(spin),
        None => usual,
    };
    Workers::configure(&options).context("can't start worker threads")?;
    Ok(())
}

fn read_settings(values: BTreeMap<String, Value>) -> Result<Settings> {
    let mut given = Parameters::new(values);
    let modes = [
        ("auto", Mode::Auto),
        ("pass", Mode::Pass),
        ("translate", Mode::Translate),
        ("copy", Mode::Copy),
        ("remote", Mode::Remote),
    ];
    let formats =
        [("auto", None), ("split", Some(RingFormat::Split)), ("packed", Some(RingFormat::Packed))];
    let driver_format = given.choice("driver-ring", &formats)?.flatten();
    let packed_if = |wanted: bool| if wanted { Features::RING_PACKED } else { Features::NONE };
    let indirect =
        given.choice("indirect", &[("auto", None), ("on", Some(true)), ("off", Some(false))])?;
    let indirect_if = |wanted: bool| match indirect.flatten() == Some(wanted) {
        true => Features::INDIRECT_DESC,
        false => Features::NONE,
    };
    let number = |value: Option<u64>| value.unwrap_or(0);
    let limits = RateLimits {
        bytes_per_second: number(given.number("bytes-per-second", 1..=u64::MAX)?),
        requests_per_second: number(given.number("requests-per-second", 1..=u64::MAX)?),
    };
    let pool_range = bridge::MIN_POOL_BYTES as u64..=bridge::MAX_POOL_BYTES as u64;
    let options = BridgeOptions {
        mode: given.choice("mode", &modes)?.unwrap_or_default(),
        pool_bytes: number(given.number("pool", pool_range)?) as usize,
        limits,
        device_format: given.choice("ring", &formats)?.flatten(),
        require: packed_if(driver_format == Some(RingFormat::Packed)) | indirect_if(true),
        hide: packed_if(driver_format == Some(RingFormat::Split)) | indirect_if(false),
        queue_size: given.number("queue-size", 2..=32768)?.map(|size| size as u16),
        ..BridgeOptions::default()
    };
    let settings = Settings {
        options,
        device_type: given.text("type"),
        stats: given.number("stats", 1..=86_400)?.map(Duration::from_secs),
        workers: given.number("workers", 1..=MAX_WORKERS)?.unwrap_or(1) as usize,
        spin: given.number("spin", 0..=MAX_SPIN_US)?.map(Duration::from_micros),
    };
    given.finish()?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Settings> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        read_settings(address::settings(&words)?)
    }

    #[test]
    fn settings_are_read_and_mistakes_named() {
        let settings =
            read(&["mode=copy", "pool=16M", "ring=packed", "type=net", "workers=2", "spin=9"]);
        let settings = settings.unwrap();
        assert_eq!(settings.options.mode, Mode::Copy);
        assert_eq!(settings.options.pool_bytes, 16 << 20);
        assert_eq!(settings.options.device_format, Some(RingFormat::Packed));
        assert_eq!(settings.device_type.as_deref(), Some("net"));
        let hidden = read(&["driver-ring=split"]).unwrap().options;
        assert_eq!((hidden.hide, hidden.require), (Features::RING_PACKED, Features::NONE));
        let required = read(&["driver-ring=packed"]).unwrap().options;
        assert_eq!((required.hide, required.require), (Features::NONE, Features::RING_PACKED));
        let indirect = read(&["indirect=on"]).unwrap().options;
        assert_eq!((indirect.hide, indirect.require), (Features::NONE, Features::INDIRECT_DESC));
        assert_eq!(read(&["indirect=off"]).unwrap().options.hide, Features::INDIRECT_DESC);
        assert_eq!((settings.workers, settings.spin), (2, Some(Duration::from_micros(9))));
        let wrong = |words: &[&str]| read(words).err().map(|error| format!("{error:#}")).unwrap();
        assert!(wrong(&["mode=fast"]).contains("auto, pass, translate, copy, remote"));
        assert!(wrong(&["pol=1M"]).contains("unknown setting pol="));
        assert!(wrong(&["pool=1"]).contains("a number from"));
    }
}
