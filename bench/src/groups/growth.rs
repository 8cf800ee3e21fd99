//! How cost grows with queues, devices and payload. Growth with depth is in `shadow`, with regions
//! in `ring`, of memory with devices in `idle`.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bridge::{Mover, QueueBridge, TranslateMover};
use sys::{Epoll, EventFd, Interest};
use virtqueue::RingFormat;
use worker::{PoolOptions, Progress, Task, Workers};

use crate::contest::{self, Cores, Entrant, Sample};
use crate::lab::Lab;
use crate::memory::{Guest, copy_mover};
use crate::placement::{CPUS, Label};
use crate::plot::Plot;
use crate::raw::{Buffers, RawDevice, RawDriver};
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::{Busy, on_one, on_one_below};

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    queues(lab, report)?;
    payload(lab, report)?;
    devices(lab, report)
}

/// A driver, a bridge and a device, all polled by one thread, of which the bridge is timed.
struct Line<M: Mover> {
    driver: RawDriver,
    bridge: QueueBridge<M>,
    device: RawDevice,
    buffers: Buffers,
}

impl<M: Mover> Line<M> {
    /// A queue of `size` chains of `chain` in `guest`.
    fn new(guest: &mut Guest, size: u16, chain: &'static [(u32, bool)], mover: M) -> Result<Self> {
        let (a, b) = (guest.queue(RingFormat::Split, size), guest.queue(RingFormat::Split, size));
        let stride = u64::from(chain[0].0).next_multiple_of(64);
        let base = guest.allocate(usize::from(size) * stride as usize).0;
        let (map, bridge) = (guest.map(), guest.bridge(&a, &b, mover)?);
        let (driver, device) = (RawDriver::new(&map, &a)?, RawDevice::new(&map, &b)?);
        Ok(Self { driver, bridge, device, buffers: Buffers { base, stride, chain } })
    }

    /// `burst` chains there and back.
    fn round(&mut self, burst: u16, busy: &mut Busy) -> Result<()> {
        self.driver.offer(burst, &self.buffers);
        let (mut served, mut back, mut rounds) = (0, 0, 0);
        while back < burst {
            let mut finished = false;
            busy.poll(|| {
                finished = self.bridge.poll(burst.into()) == Progress::Finished;
                1
            });
            ensure!(!finished && rounds < 1000, "the bridge stopped");
            served += self.device.serve(burst, |addr, _| {
                std::hint::black_box(addr);
                0
            });
            back += self.driver.take_used(burst, &self.buffers);
            rounds += 1;
        }
        ensure!(served == burst, "as many chains there as back");
        Ok(())
    }
}

/// Nanoseconds of bridge time per chain in a window, over all `lines` in turn.
fn timed<M: Mover>(lab: &Lab, lines: &mut [Line<M>], burst: u16) -> Result<f64> {
    let (mut busy, mut chains) = (Busy::default(), 0u64);
    let window = lab.open_short();
    while window.is_open() {
        for line in &mut *lines {
            line.round(burst, &mut busy)?;
            chains += u64::from(burst);
        }
    }
    Ok(lab.ns(busy.busy as f64 / chains as f64))
}

/// Active queues on one thread.
fn queues(lab: &Lab, report: &mut Report) -> Result<()> {
    const COUNTS: &[usize] = &[1, 2, 4, 8, 16, 32, 64];
    const CHAIN: &[(u32, bool)] = &[(64, false)];
    let entrants = COUNTS.iter().map(|&count| {
        Entrant::new(format!("{count} queues"), move || -> Result<Sample> {
            let mut guest = Guest::new(64 << 20, 4)?;
            let line = |_| Line::new(&mut guest, 256, CHAIN, TranslateMover::new());
            let mut lines = (0..count).map(line).collect::<Result<Vec<_>>>()?;
            Ok(vec![on_one(CPUS[0], || timed(lab, &mut lines, 32))??])
        })
    });
    let outcome = contest::run(lab, Cores::One, 5, entrants.collect())?;
    let title = "a translating bridge on one thread, by queues that are busy";
    let plot = Plot::new("growth-queues", title, "queues", "ns per chain");
    let points: Vec<f64> = COUNTS.iter().map(|&count| count as f64).collect();
    let measure = Measure { name: "ns/chain", digits: 1 };
    report.curve(plot, &points, &outcome, &[measure]);
    let label = Label::OneCore;
    let to = Target { row: "g-q", label, bound: Bound::AtMost, floor: 1.5, aim: 1.1 };
    report.ratio(&outcome, 0, (COUNTS.len() - 1, 0), to);
    Ok(())
}

/// Bytes of a chain's buffer.
const PAYLOADS: [[(u32, bool); 1]; 8] = [
    [(64, false)],
    [(256, false)],
    [(1500, false)],
    [(4096, false)],
    [(16 << 10, false)],
    [(64 << 10, false)],
    [(256 << 10, false)],
    [(1 << 20, false)],
];

/// Payload through a bridge that hands addresses on and one that copies.
fn payload(lab: &Lab, report: &mut Report) -> Result<()> {
    const BURST: u16 = 4;
    const SIZE: u16 = 16;
    let entrants = PAYLOADS.iter().map(|chain| {
        Entrant::new(format!("{} bytes", chain[0].0), move || -> Result<Sample> {
            let mut guest = Guest::new(40 << 20, 1)?;
            let mut translate = [Line::new(&mut guest, SIZE, chain, TranslateMover::new())?];
            let mut copying_guest = Guest::new(40 << 20, 1)?;
            let mover = copy_mover(SIZE)?;
            let mut copy = [Line::new(&mut copying_guest, SIZE, chain, mover)?];
            let (translate, copy) = on_one(CPUS[0], || {
                let translate = timed(lab, &mut translate, BURST)?;
                anyhow::Ok((translate, timed(lab, &mut copy, BURST)?))
            })??;
            Ok(vec![translate, copy])
        })
    });
    let outcome = contest::run(lab, Cores::One, 5, entrants.collect())?;
    let title = "time per chain through a bridge, by bytes of its buffer; 4 at a time";
    let plot = Plot::new("growth-payload", title, "bytes", "ns per chain");
    let points: Vec<f64> = PAYLOADS.iter().map(|chain| f64::from(chain[0].0)).collect();
    let measures = [
        Measure { name: "translate ns/chain", digits: 1 },
        Measure { name: "copy ns/chain", digits: 1 },
    ];
    report.curve(plot, &points, &outcome, &measures);
    Ok(())
}

/// Answers a doorbell with an interrupt, if it ever rings.
struct Device {
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
    rung: bool,
}

impl Task for Device {
    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.kick.as_fd()]
    }

    fn poll(&mut self, _budget: u32) -> Progress {
        if !std::mem::take(&mut self.rung) {
            return Progress::Idle;
        }
        self.call.signal();
        Progress::Worked
    }

    fn arm(&mut self) -> bool {
        false
    }

    fn disarm(&mut self) {
        self.rung |= self.kick.drain();
    }
}

/// The way to one device and back with others asleep on the same worker.
fn devices(lab: &Lab, report: &mut Report) -> Result<()> {
    const COUNTS: &[usize] = &[1, 4, 16, 64, 256, 1024];
    let entrants = COUNTS.iter().map(|&count| {
        Entrant::new(format!("{count} devices"), move || Ok(vec![ring_one_of(lab, count)?]))
    });
    let outcome = contest::run(lab, Cores::Two, 3, entrants.collect())?;
    let title = "waking one device's worker and being woken, by devices asleep on it";
    let plot = Plot::new("growth-devices", title, "devices", "us there and back");
    let points: Vec<f64> = COUNTS.iter().map(|&count| count as f64).collect();
    let measure = Measure { name: "us there and back", digits: 2 };
    report.curve(plot, &points, &outcome, &[measure]);
    for label in outcome.labels() {
        let to = Target { row: "g-v", label, bound: Bound::AtMost, floor: 1.2, aim: 1.1 };
        report.ratio(&outcome, 0, (COUNTS.len() - 1, 0), to);
    }
    Ok(())
}

fn ring_one_of(lab: &Lab, count: usize) -> Result<f64> {
    let options = PoolOptions { threads: 1, max_spin: Duration::ZERO, cycles: None };
    let workers = on_one_below(CPUS[1], || Workers::start(&options))??;
    let call = Arc::new(EventFd::new()?);
    let mut kicks = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..count {
        let kick = Arc::new(EventFd::new()?);
        let call = Arc::clone(&call);
        tasks.push(workers.spawn(Device { kick: Arc::clone(&kick), call, rung: false }));
        kicks.push(kick);
    }
    let kick = &kicks[count / 2];
    let time = on_one(CPUS[0], || {
        let epoll = Epoll::new()?;
        epoll.add(call.as_fd(), 0, Interest::Read)?;
        let mut ready = Vec::new();
        let (start, mut rounds) = (Instant::now(), 0u32);
        while start.elapsed() < lab.window() {
            kick.signal();
            while !call.drain() {
                epoll.wait(&mut ready, Some(Duration::from_secs(1)))?;
                ensure!(!ready.is_empty(), "no answer to a doorbell");
            }
            rounds += 1;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds))
    })?;
    drop(tasks);
    time
}
