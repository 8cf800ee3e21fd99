//! A series of accesses of the DMA engine that is the same in every run, from this process: for
//! simulations that are to be compared.

use std::path::Path;

use ::driver::{Client, GuestMemory};
use anyhow::{Context, Result};
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
