//! A record of chains in flight that a driver may write as it does its rings, and a device that is
//! killed again and again.

use arbitrary::{Result, Unstructured};
use mem::{DriverAddress, Resolver};
use virtqueue::{Chain, ChainId, DeviceQueue, DriverQueue, InFlightLog, RingFormat};

use super::{descriptor, rig, scribble};
use crate::rig::{POISON, Rig, area, segment};

/// Where the record lies: behind everything else.
const LOG_AT: usize = 0x30_0000;
/// Bytes of it that are ever used, for the largest ring.
const LOG_BYTES: usize = 0x1000;
/// Deaths of the device in one run.
const MAX_DEATHS: usize = 64;

struct Target {
    rig: Rig,
    driver: DriverQueue<u32>,
    device: DeviceQueue,
    resolver: Resolver,
    chain: Chain,
    /// Taken, and how much is written there.
    held: Vec<(ChainId, u32)>,
    next: u32,
    deaths: usize,
    /// Nobody has written nonsense so far: nothing may be an error, and nothing is lost.
    honest: bool,
}

/// Lets `bytes` play the driver, and choose when the device dies. No panic; no more chains are
/// taken than there are descriptors, whatever the record says; as long as nobody wrote nonsense,
/// each chain comes back once and all do in the end.
pub fn hostile_record(format: RingFormat, bytes: &[u8]) {
    let mut noise = Unstructured::new(bytes);
    let Ok(mut target) = Target::new(format, &mut noise) else { return };
    while !noise.is_empty() && target.deaths < MAX_DEATHS && target.step(&mut noise).is_ok() {
        let most = usize::from(target.rig.spec.size);
        assert!(usize::from(target.device.in_flight()) == target.held.len());
        assert!(target.held.len() <= most && target.device.to_take_again() <= most);
    }
    target.end();
}

impl Target {
    fn new(format: RingFormat, noise: &mut Unstructured) -> Result<Self> {
        let mut rig = rig(format, noise)?;
        // A record holds where the queue stands; a fresh one stands at the start.
        rig.spec.start_at = crate::rig::plain(format, rig.spec.size).start_at;
        rig.spec.in_order = false;
        let zeros = DriverAddress(POISON + LOG_AT as u64);
        rig.write(zeros, &[0; LOG_BYTES]);
        let driver = rig.driver(rig.spec.indirect.then(|| area(4, 4)));
        let mut device = rig.device();
        device.attach_log(record(&rig)).expect("an empty record");
        let (resolver, chain) = (rig.resolver(), Chain::with_capacity(rig.spec.size.into()));
        let (held, honest) = (Vec::new(), true);
        Ok(Self { rig, driver, device, resolver, chain, held, next: 0, deaths: 0, honest })
    }

    fn step(&mut self, noise: &mut Unstructured) -> Result<()> {
        match noise.int_in_range(0..=15)? {
            0..=3 => self.offer(),
            4..=6 => drop(self.take()),
            7 | 8 => self.give_back(noise)?,
            9 => self.device.publish_used(),
            10 => self.complete(),
            11 | 12 => self.die(),
            13 => {
                self.honest = false;
                let at = LOG_AT as u64 + noise.int_in_range(0..=0x220)?;
                let bytes: [u8; 8] = noise.arbitrary()?;
                let len = noise.int_in_range(1..=8)?;
                self.rig.write(DriverAddress(POISON + at), &bytes[..len]);
            }
            14 if noise.ratio(1, 2)? => {
                self.honest = false;
                scribble(&self.rig, noise)?;
            }
            15 if noise.ratio(1, 2)? => {
                self.honest = false;
                let raw = descriptor(&self.rig.spec, noise.arbitrary()?, noise)?;
                self.rig.raw_descriptors(noise.int_in_range(0..=self.rig.spec.size - 1)?, &[raw]);
            }
            _ => {}
        }
        Ok(())
    }

    fn offer(&mut self) {
        let at = u64::from(self.next % 64) * 64;
        let writable = [segment(at + 16, 8), segment(at + 32, 8)];
        let writable = &writable[..1 + (self.next % 2) as usize];
        if self.driver.offer(&[segment(at, 8)], writable, self.next).is_ok() {
            self.next += 1;
            self.driver.publish_available();
        }
    }

    /// Takes a chain; whether there was one.
    fn take(&mut self) -> bool {
        match self.device.take(&mut self.resolver, &mut self.chain) {
            Ok(Some(id)) => {
                self.held.push((id, self.chain.writable_len().min(8) as u32));
                true
            }
            Ok(None) => false,
            Err(error) => {
                assert!(!self.honest, "an honest ring is refused: {error}");
                false
            }
        }
    }

    fn give_back(&mut self, noise: &mut Unstructured) -> Result<()> {
        if !self.held.is_empty() {
            let which = noise.int_in_range(0..=self.held.len() - 1)?;
            let (id, written) = self.held.swap_remove(which);
            self.device.give_back(id, written);
        }
        Ok(())
    }

    fn complete(&mut self) {
        while let Ok(Some((context, _))) = self.driver.take_used() {
            assert!(context < self.next);
        }
    }

    /// The device is killed, and another one goes on from the record. One that is nonsense is
    /// refused, and begins anew.
    fn die(&mut self) {
        self.deaths += 1;
        self.held.drain(..).for_each(|(id, _)| id.abandon());
        self.device = self.rig.device();
        if let Err(error) = self.device.attach_log(record(&self.rig)) {
            assert!(!self.honest, "an honest record is refused: {error}");
            self.rig.write(DriverAddress(POISON + LOG_AT as u64), &[0; LOG_BYTES]);
            self.device = self.rig.device();
            self.device.attach_log(record(&self.rig)).expect("an empty record");
        }
        // Bounded whatever it says: as many as there are descriptors.
        let mut taken = 0;
        while self.device.to_take_again() > 0 && self.take() {
            taken += 1;
            assert!(taken <= self.rig.spec.size);
        }
    }

    fn end(mut self) {
        if self.honest {
            self.die();
            // Bounded by what was offered.
            for _ in 0..=self.next {
                let _more = self.take();
                self.held.drain(..).for_each(|(id, len)| self.device.give_back(id, len));
                self.device.publish_used();
                self.complete();
            }
            assert_eq!(self.driver.in_flight(), 0, "a chain is lost");
        }
        self.held.drain(..).for_each(|(id, _)| id.abandon());
        self.driver.drain(drop);
    }
}

fn record(rig: &Rig) -> InFlightLog {
    InFlightLog::new(&rig.mapping, LOG_AT, rig.spec.format, rig.spec.size).unwrap()
}
