//! Relaying descriptors between two rings: the bridge's data path without any device.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use virtqueue::{QueueSpec, RingFormat};

use crate::contest::{self, Cores, Entrant, Sample};
use crate::lab::Lab;
use crate::memory::{BASE, Guest};
use crate::raw::{Buffers, RawDevice, RawDriver, RawRelay};
use crate::report::{Measure, Report};
use crate::threads::{Busy, Window, on_both};

const SIZE: u16 = 1024;
const BURST: u16 = 32;
const MEMORY: usize = 64 << 20;
/// Added to every address on the way down, so that a forgotten translation does not work.
pub const SHIFT: u64 = 0x0700_0000_0000;

/// Two rings and the buffers of the first.
pub struct Scene {
    /// The memory all is in.
    pub guest: Guest,
    /// The driver's ring.
    pub a: QueueSpec,
    /// The device's ring.
    pub b: QueueSpec,
    /// What the driver offers.
    pub buffers: Buffers,
}

impl Scene {
    /// Rings of these formats in fresh memory.
    pub fn new(a: RingFormat, b: RingFormat) -> Result<Self> {
        let mut guest = Guest::new(MEMORY, 4)?;
        let (a, b) = (guest.queue(a, SIZE), guest.queue(b, SIZE));
        let base = guest.allocate(usize::from(SIZE) * 4096).0;
        assert!(base >= BASE);
        Ok(Self { guest, a, b, buffers: Buffers { base, stride: 4096, len: 64 } })
    }

    /// Both ends on one core, `poll` on the other, for a window; returns busy ns per descriptor and
    /// million descriptors a second.
    pub fn measure(
        &self,
        lab: &Lab,
        in_flight: u16,
        window: fn(&Lab) -> Window,
        mut poll: impl FnMut() -> Result<u64> + Send,
    ) -> Result<Sample> {
        let stop = AtomicBool::new(false);
        let map = self.guest.map();
        let (mut driver, mut device) =
            (RawDriver::new(&map, &self.a)?, RawDevice::new(&map, &self.b)?);
        let (bridge, (done, seconds)) = on_both(
            || {
                let window = window(lab);
                let mut busy = Busy::default();
                let mut outcome = Ok(());
                while window.is_open() && outcome.is_ok() {
                    busy.poll(|| {
                        poll().unwrap_or_else(|error| {
                            outcome = Err(error);
                            0
                        })
                    });
                }
                stop.store(true, Ordering::Relaxed);
                outcome.map(|()| busy)
            },
            || {
                let start = std::time::Instant::now();
                let (mut out, mut done) = (0, 0u64);
                while !stop.load(Ordering::Relaxed) {
                    let used = driver.take_used(BURST);
                    out -= used;
                    done += u64::from(used);
                    let more = (in_flight - out).min(BURST);
                    driver.offer(more, &self.buffers);
                    out += more;
                    device.serve(BURST, |addr, _| {
                        std::hint::black_box(addr);
                    });
                }
                (done, start.elapsed().as_secs_f64())
            },
        )?;
        let bridge = bridge?;
        Ok(vec![
            lab.ns(bridge.busy as f64 / done.max(1) as f64),
            done as f64 / seconds / 1e6,
            bridge.fraction(),
        ])
    }
}

/// What [`Scene::measure`] finds.
pub const MEASURES: &[Measure] = &[
    Measure { name: "bridge ns/descriptor", digits: 1 },
    Measure { name: "million descriptors/s", digits: 1 },
    Measure { name: "busy", digits: 2 },
];

/// The bare relay for one window.
fn bare(lab: &Lab, format: RingFormat, in_flight: u16) -> Result<Sample> {
    let scene = Scene::new(format, format)?;
    let mut relay = RawRelay::new(&scene.guest.map(), &scene.a, &scene.b, SHIFT)?;
    scene.measure(lab, in_flight, Lab::open, || relay.poll(BURST))
}

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let entrants = vec![
        Entrant::new("bare relay split", || bare(lab, RingFormat::Split, 512)),
        Entrant::new("bare relay packed", || bare(lab, RingFormat::Packed, 512)),
    ];
    let outcome = contest::run(lab, Cores::Two, 5, entrants)?;
    report.table("descriptors relayed, no data copied, 512 in flight", &outcome, MEASURES);
    Ok(())
}
