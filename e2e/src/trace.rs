//! A series of accesses of the DMA engine that is the same in every run, from this process: for
//! simulations that are to be compared.

use std::path::Path;
use std::time::{Duration, Instant};

use ::driver::{Client, GuestMemory};
use anyhow::{Context, Result, ensure};
use mem::DriverAddress;

/// Steps of the series.
const STEPS: u32 = 400;
/// Memory of the driver: the first half is copied into the second.
const MEMORY: usize = 1 << 16;
const HALF: u64 = MEMORY as u64 / 2;

/// Marsaglia's xorshift32.
struct Numbers(u32);

impl Numbers {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % end
    }
}

/// Runs it on the card at `socket`: all that was read, and the memory at the end.
pub fn run(socket: &Path) -> Result<Vec<u64>> {
    let memory = GuestMemory::new(MEMORY)?;
    let (base, map) = (memory.base().0, memory.map()?);
    let mut numbers = Numbers(0x2545_f491);
    let bytes: Vec<u8> = (0..MEMORY).map(|_| numbers.below(256) as u8).collect();
    map.write(DriverAddress(base), &bytes)?;
    let mut card = Client::new(sys::connect_unix(socket)?, &memory, true)?;
    // Memory space and bus mastering.
    card.write(7, 4, &6u16.to_le_bytes())?;
    let mut seen = Vec::new();
    for step in 0..STEPS {
        if step % 10 == 0 {
            copy(&mut card, base, &mut numbers).with_context(|| format!("step {step}"))?;
        }
        let width = 1 << numbers.below(4);
        let at = u64::from(numbers.below(64)) & !(width - 1);
        let mut value = [0; 8];
        // Registers that begin nothing, and those that are there to be read.
        if at >= 0x30 && numbers.below(2) == 0 {
            value[..4].copy_from_slice(&numbers.below(u32::MAX).to_le_bytes());
            card.write(0, at, &value[..width as usize])?;
        } else {
            card.read(0, at, &mut value[..width as usize])?;
            seen.push(u64::from_le_bytes(value));
        }
        card.read(0, 0x20, &mut value[..4])?;
        seen.push(u32::from_le_bytes([value[0], value[1], value[2], value[3]]).into());
    }
    let mut copied = vec![0; HALF as usize];
    map.read(DriverAddress(base + HALF), &mut copied)?;
    seen.extend(copied.iter().map(|byte| u64::from(*byte) << 32));
    Ok(seen)
}

/// Writes a register `count` times, and waits until that is done; calls `written` in between.
pub fn writes(socket: &Path, count: u32, written: impl FnOnce() -> Result<()>) -> Result<()> {
    let memory = GuestMemory::new(MEMORY)?;
    let mut card = Client::new(sys::connect_unix(socket)?, &memory, true)?;
    for number in 1..=count {
        card.write(0, 0x30, &number.to_le_bytes())?;
    }
    written()?;
    let mut last = [0; 4];
    let end = Instant::now() + Duration::from_secs(20);
    // All ones while it has more to do than a port waits for.
    while last != count.to_le_bytes() {
        ensure!(Instant::now() < end, "the last write is not there");
        card.read(0, 0x30, &mut last)?;
    }
    Ok(())
}

/// Copies `count` times half a MiB.
pub fn copies(socket: &Path, count: u32) -> Result<()> {
    const LEN: u32 = 512 << 10;
    let memory = GuestMemory::new(2 * LEN as usize)?;
    let (base, map) = (memory.base().0, memory.map()?);
    map.write(DriverAddress(base), &[0x5a; 4096])?;
    let mut card = Client::new(sys::connect_unix(socket)?, &memory, true)?;
    card.write(7, 4, &6u16.to_le_bytes())?;
    card.write(0, 0x08, &base.to_le_bytes())?;
    card.write(0, 0x10, &(base + u64::from(LEN)).to_le_bytes())?;
    card.write(0, 0x18, &LEN.to_le_bytes())?;
    for done in 1..=count {
        card.write(0, 0x1c, &1u32.to_le_bytes())?;
        let mut seen = [0; 4];
        while seen != done.to_le_bytes() {
            card.read(0, 0x28, &mut seen)?;
        }
    }
    let mut copied = [0; 4096];
    map.read(DriverAddress(base + u64::from(LEN)), &mut copied)?;
    ensure!(copied == [0x5a; 4096], "the copy is another");
    Ok(())
}

/// Begins a copy; some are of nothing, some of memory that there is not.
fn copy(card: &mut Client, base: u64, numbers: &mut Numbers) -> Result<()> {
    let len = numbers.below(600);
    let from = base + u64::from(numbers.below(HALF as u32 - 600));
    let from = if numbers.below(8) == 0 { 0x1000 } else { from };
    let to = base + HALF + u64::from(numbers.below(HALF as u32 - 600));
    card.write(0, 0x08, &from.to_le_bytes())?;
    card.write(0, 0x10, &to.to_le_bytes())?;
    card.write(0, 0x18, &len.to_le_bytes())?;
    card.write(0, 0x1c, &1u32.to_le_bytes())?;
    Ok(())
}
