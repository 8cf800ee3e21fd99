//! What the machine can do at best: the floor that everything else stands on.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mem::{Mapping, Span};
use sys::{Epoll, EventFd, Interest};
use worker::{PoolOptions, Progress, Task, Workers};

use crate::contest::{self, Cores, Entrant, Spread};
use crate::halts::halts;
use crate::lab::Lab;
use crate::placement::{CPUS, Label};
use crate::plot::Plot;
use crate::programs::Usage;
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::{Window, on_both, on_one, on_one_below};

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    wakes(lab, report)?;
    sockets(lab, report)?;
    copies(lab, report)
}

/// Waking a thread: by hand, and through a worker's task.
fn wakes(lab: &Lab, report: &mut Report) -> Result<()> {
    let entrants = vec![
        Entrant::new("worker task", || Ok(vec![worker_echo(lab)?])),
        Entrant::new("epoll and eventfd", || Ok(vec![bare_echo(lab)?])),
    ];
    let outcome = contest::run(lab, Cores::Two, 7, entrants)?;
    let measure = Measure { name: "us there and back", digits: 2 };
    report.table("wake a sleeping thread on the other core and be woken", &outcome, &[measure]);
    for label in outcome.labels() {
        let to = Target { row: "g-w", label, bound: Bound::AtMost, floor: 1.2, aim: 1.1 };
        report.ratio(&outcome, 0, (0, 1), to);
    }
    Ok(())
}

/// Two eventfds, one for each direction.
struct Bells {
    there: Arc<EventFd>,
    back: Arc<EventFd>,
}

impl Bells {
    fn new() -> Result<Self> {
        Ok(Self { there: Arc::new(EventFd::new()?), back: Arc::new(EventFd::new()?) })
    }

    /// Rings and sleeps until the answer, again and again; microseconds per round.
    fn ring(&self, length: Duration) -> Result<f64> {
        let epoll = Epoll::new()?;
        epoll.add(self.back.as_fd(), 0, Interest::Read)?;
        let mut ready = Vec::with_capacity(4);
        let (start, mut rounds) = (Instant::now(), 0u32);
        while start.elapsed() < length {
            self.there.signal();
            while !self.back.drain() {
                epoll.wait(&mut ready, Some(Duration::from_secs(1)))?;
                anyhow::ensure!(!ready.is_empty(), "no answer to a doorbell");
            }
            rounds += 1;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds))
    }
}

fn bare_echo(lab: &Lab) -> Result<f64> {
    let bells = Bells::new()?;
    let stop = AtomicBool::new(false);
    let echo = || -> Result<()> {
        let epoll = Epoll::new()?;
        epoll.add(bells.there.as_fd(), 0, Interest::Read)?;
        let mut ready = Vec::with_capacity(4);
        loop {
            epoll.wait(&mut ready, None)?;
            bells.there.drain();
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
            bells.back.signal();
        }
    };
    let (time, ended) = on_both(
        || {
            let time = bells.ring(lab.window());
            stop.store(true, Ordering::Release);
            bells.there.signal();
            time
        },
        echo,
    )?;
    ended?;
    time
}

/// Answers every doorbell.
struct Echo {
    bells: Bells,
    rung: bool,
}

impl Task for Echo {
    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.bells.there.as_fd()]
    }

    fn poll(&mut self, _budget: u32) -> Progress {
        if !std::mem::take(&mut self.rung) {
            return Progress::Idle;
        }
        self.bells.back.signal();
        Progress::Worked
    }

    fn arm(&mut self) -> bool {
        false
    }

    fn disarm(&mut self) {
        self.rung |= self.bells.there.drain();
    }
}

fn worker_echo(lab: &Lab) -> Result<f64> {
    let ours = Bells::new()?;
    let bells = Bells { there: Arc::clone(&ours.there), back: Arc::clone(&ours.back) };
    let options = PoolOptions { threads: 1, max_spin: Duration::ZERO, cycles: None };
    // Threads inherit processor and priority from the one that starts them.
    let workers = on_one_below(CPUS[1], || Workers::start(&options))??;
    let task = workers.spawn(Echo { bells, rung: false });
    let time = on_one(CPUS[0], || ours.ring(lab.window()))?;
    drop(task);
    time
}

/// Messages of 64 bytes through a UNIX socket: what a register access over vfio-user costs at
/// least.
fn sockets(lab: &Lab, report: &mut Report) -> Result<()> {
    let pair =
        |server, client_spins| move || Ok(vec![socket_round_trip(lab, server, client_spins)?.us]);
    let entrants = vec![
        Entrant::new("both block", pair(Server::Sleeps, false)),
        Entrant::new("server spins", pair(Server::POLLS, false)),
        Entrant::new("client spins", pair(Server::Sleeps, true)),
        Entrant::new("both spin", pair(Server::POLLS, true)),
    ];
    let outcome = contest::run(lab, Cores::Two, 5, entrants)?;
    let measure = Measure { name: "us there and back", digits: 2 };
    report.table("64 bytes through a UNIX socket", &outcome, &[measure]);
    Ok(())
}

/// What it takes that a message goes to a server and its answer comes back.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrips {
    /// Microseconds for one.
    pub us: f64,
    /// How many there were.
    pub rounds: f64,
    /// How often the client's processor halted for one.
    pub halts: f64,
    /// How often the server was put on its processor for one: 1 if it sleeps between messages, and
    /// hardly ever if it polls.
    pub wakes: f64,
}

impl RoundTrips {
    /// Measures a client for the length of a window, on the processor that is the client's
    /// everywhere, where it is now. The server's part is left at 0.
    pub fn of(lab: &Lab, mut exchange: impl FnMut() -> Result<()>) -> Result<Self> {
        let before = halts(CPUS[0]);
        let (start, mut rounds) = (Instant::now(), 0.0);
        while start.elapsed() < lab.window() {
            exchange()?;
            rounds += 1.0;
        }
        let us = start.elapsed().as_secs_f64() * 1e6 / rounds;
        Ok(Self { us, rounds, halts: (halts(CPUS[0]) - before) / rounds, wakes: 0.0 })
    }
}

/// What a bare server does with the time between messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// It sleeps.
    Sleeps,
    /// It polls, and does this for so long before it answers.
    Polls(Duration),
}

impl Server {
    /// It polls, and answers at once.
    pub const POLLS: Self = Self::Polls(Duration::ZERO);
}

/// 64 bytes there and 64 bytes back.
pub fn socket_round_trip(lab: &Lab, server: Server, client_spins: bool) -> Result<RoundTrips> {
    let (client, served) = UnixStream::pair().context("make a pair of sockets")?;
    client.set_nonblocking(client_spins)?;
    served.set_nonblocking(server != Server::Sleeps)?;
    let (trips, wakes) = on_both(
        move || {
            let (mut client, mut message) = (client, [0; 64]);
            RoundTrips::of(lab, || {
                client.write_all(&message)?;
                receive(&mut client, &mut message)?;
                Ok(())
            })
        },
        move || -> Result<f64> {
            let (mut socket, mut message) = (served, [0; 64]);
            let work = if let Server::Polls(work) = server { work } else { Duration::ZERO };
            let before = Usage::of_this_thread()?;
            while receive(&mut socket, &mut message)? {
                if work > Duration::ZERO {
                    let work = Window::start(work, lab.cycles_per_ns);
                    while work.is_open() {}
                }
                socket.write_all(&message)?;
            }
            Ok(Usage::of_this_thread()?.since(before).wakes as f64)
        },
    )?;
    let trips = trips?;
    Ok(RoundTrips { wakes: wakes? / trips.rounds, ..trips })
}

/// Reads a whole message, polling if the socket does not block; false at the end.
fn receive(socket: &mut UnixStream, message: &mut [u8]) -> Result<bool> {
    let mut have = 0;
    while have < message.len() {
        match socket.read(&mut message[have..]) {
            Ok(0) => return Ok(false),
            Ok(n) => have += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Sizes of copies, in bytes.
pub const SIZES: &[usize] = &[64, 256, 1500, 4096, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// The memory that copies walk through, in bytes: more than a core's own cache, less than the
/// shared one.
pub const SPAN: usize = 4 << 20;

/// Copying between two mappings against copying between two vectors.
fn copies(lab: &Lab, report: &mut Report) -> Result<()> {
    let (from, to) = (Mapping::new_memfd("from", SPAN)?, Mapping::new_memfd("to", SPAN)?);
    let (source, mut sink) = (vec![1u8; SPAN], vec![2u8; SPAN]);
    let whole = |mapping| Span::of_mapping(mapping, 0, SPAN).context("a span of a mapping");
    whole(&from)?.copy_from(&source);
    whole(&to)?.copy_from(&source);
    let mut entrants = Vec::new();
    let sink = std::cell::RefCell::new(&mut sink);
    for &size in SIZES {
        let (from, to, source, sink) = (&from, &to, &source, &sink);
        entrants.push(Entrant::new(format!("{size} bytes"), move || {
            let mut sink = sink.borrow_mut();
            let sink: &mut [u8] = &mut sink;
            on_one(CPUS[0], || {
                let (from, to) = (whole(from)?, whole(to)?);
                let span = |at| {
                    from.slice(at, size).copy_to_span(&to.slice(at, size));
                };
                let plain = |at| {
                    sink[at..at + size].copy_from_slice(&source[at..at + size]);
                    std::hint::black_box(&mut sink[at]);
                };
                Ok(gigabytes(lab, size, span, plain))
            })?
        }));
    }
    let outcome = contest::run(lab, Cores::One, 5, entrants)?;
    let measures = [
        Measure { name: "span to span GB/s", digits: 1 },
        Measure { name: "memcpy GB/s", digits: 1 },
    ];
    let title = "copying, 4 MiB from 4 MiB";
    let plot = Plot::new("copy-size", title, "bytes at a time", "GB/s");
    let points: Vec<f64> = SIZES.iter().map(|&size| size as f64).collect();
    report.curve(plot, &points, &outcome, &measures);
    for (index, size) in SIZES.iter().enumerate() {
        let gate = match size {
            1500 => Some((0.5, 0.7)),
            4096 => Some((0.75, 0.9)),
            65536 => Some((0.85, 0.95)),
            _ => None,
        };
        let medians = |measure| outcome.spread(Label::OneCore, index, measure).map(|s| s.median);
        if let Some(((floor, aim), (ours, plain))) = gate.zip(medians(0).zip(medians(1))) {
            let row = if *size > 4096 { "11" } else { "12" };
            let to = Target { row, label: Label::OneCore, bound: Bound::AtLeast, floor, aim };
            report.value(&format!("span / memcpy at {size} bytes"), ours / plain, to);
        }
    }
    Ok(())
}

/// Gigabytes a second of two ways to copy `size` bytes at each of the offsets. They take turns,
/// each going through all of the memory once, so that whatever slows the memory down slows both.
pub fn gigabytes(
    lab: &Lab,
    size: usize,
    mut one: impl FnMut(usize),
    mut other: impl FnMut(usize),
) -> Vec<f64> {
    let (mut rates, window) = ([Vec::new(), Vec::new()], lab.open_short());
    while window.is_open() {
        rates[0].push(walk(size, &mut one));
        rates[1].push(walk(size, &mut other));
    }
    rates.into_iter().filter_map(Spread::of).map(|spread| spread.median).collect()
}

fn walk(size: usize, mut copy: impl FnMut(usize)) -> f64 {
    let start = Instant::now();
    let places = SPAN / size;
    (0..places).for_each(|place| copy(place * size));
    (places * size) as f64 / start.elapsed().as_nanos() as f64
}
