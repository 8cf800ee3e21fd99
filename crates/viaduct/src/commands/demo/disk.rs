//! The block rows: write a pattern, read it back, compare.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use driver::{Disk, Operation, SECTOR_BYTES};

use super::path::Path as Way;
use super::report::{Meter, Row};
use crate::address::{self, Address};

/// Bytes of a request.
const BLOCK_BYTES: usize = 4096;

/// Requests in flight.
const DEPTH: usize = 32;

/// A scratch image of `mib` MiB in `folder`.
pub fn device(folder: &Path, mib: u32) -> Result<Address> {
    let image = folder.join("disk.img");
    let file = File::create(&image).context("can't make a scratch image")?;
    file.set_len(u64::from(mib) << 20).context("can't make the scratch image that large")?;
    let text = image.to_str().context("the folder for temporary files is not UTF-8")?;
    let values = [("path".to_owned(), address::value(text))].into();
    Ok(Address { scheme: "blk".into(), values })
}

/// Runs a row.
pub fn run(path: Way, mib: u32) -> Result<Row> {
    let (access, memory, wish) = path.attach()?;
    // Without FLUSH a device must bring each write to the medium before it answers.
    let mut disk = Disk::open(access, memory, wish | Disk::FLUSH, DEPTH, BLOCK_BYTES)?;
    let blocks = (u64::from(mib) << 20) / BLOCK_BYTES as u64;
    ensure!(
        disk.sectors() == blocks * sectors_per_block(),
        "the disk has {} sectors",
        disk.sectors()
    );
    let mut meter = Meter::start("blk", blocks * 2, &path);
    let before = disk.notifications();
    for operation in [Operation::Write, Operation::Read] {
        pass(&mut disk, operation, blocks, &mut meter)?;
    }
    let after = disk.notifications();
    let row = meter.finish(&path, after.0 - before.0 + after.1 - before.1);
    drop(disk);
    path.close()?;
    Ok(row)
}

fn sectors_per_block() -> u64 {
    (BLOCK_BYTES / SECTOR_BYTES) as u64
}

/// Goes over the whole disk once, keeping [`DEPTH`] requests in flight.
fn pass(disk: &mut Disk, operation: Operation, blocks: u64, meter: &mut Meter) -> Result<()> {
    let mut started = [(0, Instant::now()); DEPTH];
    let mut pattern = vec![0; BLOCK_BYTES];
    let mut found = vec![0; BLOCK_BYTES];
    let mut next = 0;
    let mut done = 0;
    while done < blocks {
        let mut offered = false;
        while next < blocks
            && let Some(slot) = disk.free_slot()
        {
            if operation == Operation::Write {
                fill(&mut pattern, next);
                disk.data(slot).copy_from(&pattern);
            }
            started[slot] = (next, Instant::now());
            disk.start(slot, operation, next * sectors_per_block())?;
            next += 1;
            offered = true;
        }
        if offered {
            disk.publish();
        }
        let mut any = false;
        while let Some(completion) = disk.take_done()? {
            let (block, since) = started[completion.slot];
            meter.done(BLOCK_BYTES as u64, since);
            if operation == Operation::Read {
                disk.data(completion.slot).copy_to(&mut found);
                fill(&mut pattern, block);
                ensure!(found == pattern, "block {block} came back changed");
            }
            done += 1;
            any = true;
        }
        if !any && done < blocks {
            disk.wait()?;
        }
    }
    Ok(())
}

/// Fills `block` with what belongs at `number`: a xorshift sequence that no other block has.
fn fill(block: &mut [u8], number: u64) {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in block.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}
