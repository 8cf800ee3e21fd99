//! The queue library alone: ns per descriptor on one core, everything in the cache.

mod rust_vmm;

use anyhow::Result;
use mem::Resolver;
use virtqueue::{Burst, Chain, DeviceQueue, DriverQueue, MAX_BURST, RingFormat, Segment};

use crate::contest::{self, Cores, Entrant, Sample};
use crate::lab::Lab;
use crate::memory::{BASE, Guest};
use crate::placement::{CPUS, Label};
use crate::plot::Plot;
use crate::raw::{Buffers, RawDevice, RawDriver};
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::{Busy, on_one};

/// Descriptors in a ring.
pub const SIZE: u16 = 256;
/// Chains made available at a time.
pub const BATCH: u16 = 32;
/// Bytes of a buffer.
const LEN: u32 = 64;
/// Bytes of memory, in four regions as in a guest with holes.
const MEMORY: usize = 64 << 20;

const NS: Measure = Measure { name: "ns/descriptor", digits: 2 };

/// What is taken from the ring, and how much of it.
#[derive(Clone, Copy)]
struct Load {
    format: RingFormat,
    size: u16,
    batch: u16,
    regions: usize,
}

const USUAL: Load = Load { format: RingFormat::Split, size: SIZE, batch: BATCH, regions: 4 };

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let packed = Load { format: RingFormat::Packed, ..USUAL };
    let outcome = contest::run(
        lab,
        Cores::One,
        7,
        vec![
            Entrant::new("viaduct split", || on_one(CPUS[0], || library(lab, USUAL))?),
            Entrant::new("viaduct packed", || on_one(CPUS[0], || library(lab, packed))?),
            Entrant::new("viaduct split, bursts", || on_one(CPUS[0], || bursts(lab, USUAL))?),
            Entrant::new("viaduct packed, bursts", || on_one(CPUS[0], || bursts(lab, packed))?),
            Entrant::new("rust-vmm pop", || on_one(CPUS[0], || rust_vmm::pop(lab))?),
            Entrant::new("rust-vmm iter", || on_one(CPUS[0], || rust_vmm::iter(lab))?),
            Entrant::new("rust-vmm atomic memory", || on_one(CPUS[0], || rust_vmm::atomic(lab))?),
            Entrant::new("bare walk split", || on_one(CPUS[0], || bare(lab, USUAL))?),
            Entrant::new("bare walk packed", || on_one(CPUS[0], || bare(lab, packed))?),
        ],
    )?;
    report.table("device side: take, resolve, give back; batch 32", &outcome, &[NS]);
    let target = |bound, floor, aim| Target { row: "20", label: Label::OneCore, bound, floor, aim };
    for ours in 0..4 {
        report.ratio(&outcome, 0, (ours, 4), target(Bound::AtMost, 0.25, 0.10));
    }
    both_sides(lab, report)?;
    growth(lab, report)
}

/// Driver's and device's side of the library on one ring.
fn both_sides(lab: &Lab, report: &mut Report) -> Result<()> {
    let pair = |format| move || on_one(CPUS[0], || round_trip(lab, format))?;
    let entrants = vec![
        Entrant::new("split", pair(RingFormat::Split)),
        Entrant::new("packed", pair(RingFormat::Packed)),
    ];
    let outcome = contest::run(lab, Cores::One, 5, entrants)?;
    report.table("offer, take, give back, take used; batch 32", &outcome, &[NS]);
    Ok(())
}

/// How the cost of a descriptor grows with regions, depth and ring size.
fn growth(lab: &Lab, report: &mut Report) -> Result<()> {
    const REGIONS: &[usize] = &[1, 2, 4, 8, 16, 32, 64];
    const DEPTHS: &[u16] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000];
    let both = [RingFormat::Split, RingFormat::Packed];
    let measures = [
        Measure { name: "split ns/descriptor", digits: 2 },
        Measure { name: "packed ns/descriptor", digits: 2 },
    ];
    let point = |load: Load| {
        move || {
            let of = |format| on_one(CPUS[0], || library(lab, Load { format, ..load }))?;
            both.iter().map(|&format| Ok(of(format)?[0])).collect::<Result<Sample>>()
        }
    };
    let entrants = REGIONS.iter().map(|&regions| {
        Entrant::new(format!("{regions} regions"), point(Load { regions, ..USUAL }))
    });
    let outcome = contest::run(lab, Cores::One, 5, entrants.collect())?;
    let title = "cost of a descriptor by memory regions";
    let plot = Plot::new("ring-regions", title, "memory regions", "ns per descriptor");
    let points: Vec<f64> = REGIONS.iter().map(|&regions| regions as f64).collect();
    report.curve(plot, &points, &outcome, &measures);
    let extra = |entrant| outcome.spread(Label::OneCore, entrant, 0).map(|spread| spread.median);
    if let Some((one, many)) = extra(0).zip(extra(REGIONS.len() - 1)) {
        let (floor, aim) = (1.5, 1.0);
        let bound = Bound::AtMost;
        let to = Target { row: "g-r", label: Label::OneCore, bound, floor, aim };
        report.value("ns more with 64 regions than with 1", many - one, to);
    }
    let entrants = DEPTHS.iter().map(|&batch| {
        Entrant::new(format!("{batch} in flight"), point(Load { batch, size: 1024, ..USUAL }))
    });
    let outcome = contest::run(lab, Cores::One, 5, entrants.collect())?;
    let title = "cost of a descriptor by chains in flight";
    let plot = Plot::new("ring-depth", title, "chains in flight", "ns per descriptor");
    let points: Vec<f64> = DEPTHS.iter().map(|&depth| f64::from(depth)).collect();
    report.curve(plot, &points, &outcome, &measures);
    let depth = |wanted| DEPTHS.iter().position(|&depth| depth == wanted).unwrap_or(0);
    let target =
        |row| Target { row, label: Label::OneCore, bound: Bound::AtMost, floor: 1.1, aim: 1.0 };
    report.ratio(&outcome, 0, (depth(256), depth(64)), target("g-d"));
    report.ratio(&outcome, 1, (depth(256), depth(64)), target("g-d"));
    Ok(())
}

/// The buffers of a load: one page each, spread over the regions.
fn buffers(guest: &mut Guest, load: Load) -> Vec<Segment> {
    let mut all: Vec<Segment> =
        (0..load.size).map(|_| Segment { addr: guest.allocate(4096), len: LEN }).collect();
    // Neighbours in the ring in different regions would be the worst case; a guest's allocator lies
    // between, and so does a fourth of the ring per region.
    let step = usize::from(load.size) / load.regions.min(4);
    let region = (MEMORY / load.regions) as u64;
    for (index, segment) in all.iter_mut().enumerate() {
        let which = (index / step) * load.regions / 4;
        let which = which.min(load.regions - 1) as u64;
        if which > 0 {
            segment.addr.0 = BASE + 2 * which * region + (index as u64) * 1024 % region;
        }
    }
    all
}

/// The library's device side; the driver's side is the library's too, and not counted.
fn library(lab: &Lab, load: Load) -> Result<Sample> {
    let mut chain = Chain::with_capacity(usize::from(load.size));
    device_side(lab, load, |device, memory, data| {
        let (mut taken, mut bytes) = (0, 0);
        while let Some(id) = device.take(memory, &mut chain)? {
            for segment in chain.writable() {
                bytes += data.span(segment.addr, segment.len.into())?.len();
            }
            device.give_back(id, LEN);
            taken += 1;
        }
        device.publish_used();
        Ok((taken, bytes))
    })
}

/// The same, many chains at a time.
fn bursts(lab: &Lab, load: Load) -> Result<Sample> {
    let mut burst = Burst::new();
    let written = [LEN; MAX_BURST];
    device_side(lab, load, |device, _, data| {
        let (mut taken, mut bytes) = (0, 0);
        loop {
            device.take_burst(MAX_BURST, &mut burst);
            let len = burst.len();
            if len == 0 {
                break;
            }
            for segment in burst.segments() {
                bytes += data.span(segment.addr, segment.len.into())?.len();
            }
            device.give_back_burst(&mut burst, &written[..len]);
            taken += len as u64;
        }
        device.publish_used();
        Ok((taken, bytes))
    })
}

/// Measures `serve`, which says how many chains it took and how many bytes they had.
fn device_side(
    lab: &Lab,
    load: Load,
    mut serve: impl FnMut(&mut DeviceQueue, &mut Resolver, &mut Resolver) -> Result<(u64, usize)>,
) -> Result<Sample> {
    let mut guest = Guest::new(MEMORY, load.regions)?;
    let spec = guest.queue(load.format, load.size);
    let buffers = buffers(&mut guest, load);
    let map = guest.map();
    let mut driver = DriverQueue::<()>::new(&map, &spec, None)?;
    let mut device = DeviceQueue::new(&map, &spec)?;
    let (mut memory, mut data) = (Resolver::new(map.clone()), Resolver::new(map));
    let (mut busy, mut next, mut bytes) = (Busy::default(), 0, 0);
    let window = lab.open_short();
    while window.is_open() {
        for _ in 0..load.batch {
            let segment = [buffers[next % buffers.len()]];
            next += 1;
            let _ = driver.offer(&[], &segment, ());
        }
        driver.publish_available();
        let mut outcome = Ok(());
        busy.poll(|| match serve(&mut device, &mut memory, &mut data) {
            Ok((taken, more)) => {
                bytes += more;
                taken
            }
            Err(error) => {
                outcome = Err(error);
                0
            }
        });
        outcome?;
        while driver.take_used()?.is_some() {}
    }
    anyhow::ensure!(bytes as u64 == busy.units * u64::from(LEN), "every buffer was resolved");
    Ok(vec![lab.ns(busy.per_unit())])
}

/// The least that the same can cost: translation checked, one publication per batch.
fn bare(lab: &Lab, load: Load) -> Result<Sample> {
    let mut guest = Guest::new(MEMORY, load.regions)?;
    let spec = guest.queue(load.format, load.size);
    let base = guest.allocate(usize::from(load.size) * 4096).0;
    let buffers = Buffers { base, stride: 4096, chain: &[(LEN, true)] };
    let map = guest.map();
    let mut driver = RawDriver::new(&map, &spec)?;
    let mut device = RawDevice::new(&map, &spec)?;
    let regions: Vec<(u64, u64)> = map.regions().iter().map(|r| (r.start.0, r.len)).collect();
    let (mut busy, mut bytes) = (Busy::default(), 0);
    let window = lab.open_short();
    while window.is_open() {
        driver.offer(load.batch, &buffers);
        busy.poll(|| {
            let served = device.serve(load.batch, |addr, len| {
                let fits = |&&(start, size): &&(u64, u64)| {
                    let offset = addr.wrapping_sub(start);
                    offset < size && u64::from(len) <= size - offset
                };
                if std::hint::black_box(&regions).iter().find(fits).is_some() {
                    bytes += u64::from(len);
                }
                len
            });
            served.into()
        });
        driver.take_used(load.batch, &buffers);
    }
    anyhow::ensure!(bytes == busy.units * u64::from(LEN), "every buffer was resolved");
    Ok(vec![lab.ns(busy.per_unit())])
}

/// Both sides of the library.
fn round_trip(lab: &Lab, format: RingFormat) -> Result<Sample> {
    let load = Load { format, ..USUAL };
    let mut guest = Guest::new(MEMORY, load.regions)?;
    let spec = guest.queue(format, load.size);
    let segment = [Segment { addr: guest.allocate(4096), len: LEN }];
    let map = guest.map();
    let mut driver = DriverQueue::<u32>::new(&map, &spec, None)?;
    let mut device = DeviceQueue::new(&map, &spec)?;
    let mut memory = Resolver::new(map);
    let mut chain = Chain::with_capacity(usize::from(load.size));
    let mut busy = Busy::default();
    let window = lab.open_short();
    while window.is_open() {
        let mut outcome = Ok(());
        busy.poll(|| {
            for context in 0..u32::from(load.batch) {
                let _ = driver.offer(&segment, &[], context);
            }
            driver.publish_available();
            while let Ok(Some(id)) = device.take(&mut memory, &mut chain) {
                device.give_back(id, 0);
            }
            device.publish_used();
            let mut done = 0;
            loop {
                match driver.take_used() {
                    Ok(Some(_)) => done += 1,
                    Ok(None) => break,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            done
        });
        outcome?;
    }
    Ok(vec![lab.ns(busy.per_unit())])
}
