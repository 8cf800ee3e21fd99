//! What must hold for any contents of a ring and any order of calls. Shared by the property tests
//! and the fuzz targets: both bring bytes, [`Unstructured`] makes choices of them.
#![allow(dead_code, unused_imports, reason = "each user takes one side")]

mod device_side;
mod driver_side;
mod logged;

pub use device_side::hostile_driver;
pub use driver_side::hostile_device;
pub use logged::hostile_record;

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use mem::{Access, DriverAddress, Mapping, MemoryMap, Region};
use virtqueue::{PackedPoint, QueuePosition, QueueSpec, RingFormat};

use crate::rig::raw::{AVAIL, INDIRECT, NEXT, Raw, USED, WRITE};
use crate::rig::{DATA, POISON, REGION_BYTES, Rig, TABLES, plain};

/// Bytes that get written at the start of the rings and of the tables; the rest of the region is
/// never touched.
const WINDOW: usize = 0x1000;

thread_local! {
    /// Made once: a mapping costs more than a whole run.
    static MAPPING: Arc<Mapping> = Mapping::new_memfd("noise", REGION_BYTES).unwrap();
}

/// Clean memory with rings as the bytes choose.
fn rig(format: RingFormat, noise: &mut Unstructured) -> Result<Rig> {
    rig_in(MAPPING.with(Arc::clone), format, noise)
}

/// The same in memory of the caller's, which must be of [`REGION_BYTES`].
pub fn rig_in(mapping: Arc<Mapping>, format: RingFormat, noise: &mut Unstructured) -> Result<Rig> {
    // The border between two regions lies where indirect tables can cross it and rings do not.
    let border = TABLES - POISON + 0x808;
    let region = |from: u64, to: u64| {
        let start = DriverAddress(POISON + from);
        let region = Region::mapped(start, to - from, Access::ReadWrite, mapping.clone(), from);
        region.unwrap()
    };
    let regions = vec![region(0, border), region(border, REGION_BYTES as u64)];
    let map = Arc::new(MemoryMap::new(regions).unwrap());
    let rig = Rig { mapping, map, spec: spec(format, noise)? };
    for start in [POISON, TABLES] {
        rig.write(DriverAddress(start), &[0; WINDOW]);
    }
    Ok(rig)
}

fn spec(format: RingFormat, noise: &mut Unstructured) -> Result<QueueSpec> {
    let size = match format {
        RingFormat::Split => 1 << noise.int_in_range(0..=6)?,
        RingFormat::Packed => noise.int_in_range(1..=64)?,
    };
    let mut spec = plain(format, size);
    (spec.indirect, spec.event_idx, spec.in_order) = noise.arbitrary()?;
    spec.start_at = position(&spec, noise)?;
    Ok(spec)
}

/// A position that a queue may start at.
fn position(spec: &QueueSpec, noise: &mut Unstructured) -> Result<QueuePosition> {
    Ok(match spec.format {
        RingFormat::Split => QueuePosition::split(noise.choose_iter([0, 1, 65530, 65535, 32767])?),
        RingFormat::Packed => {
            let index = noise.int_in_range(0..=spec.size - 1)?;
            let point = PackedPoint { index, wrap: noise.arbitrary()? };
            QueuePosition::packed(point, point)
        }
    })
}

/// Rings that lie on top of each other, or of the tables.
fn overlapping(spec: &mut QueueSpec, noise: &mut Unstructured) -> Result<()> {
    for at in
        [&mut spec.addresses.descriptor, &mut spec.addresses.driver, &mut spec.addresses.device]
    {
        let start = noise.choose_iter([POISON, TABLES])?;
        at.0 = start + 16 * noise.int_in_range(0..=32)?;
    }
    Ok(())
}

/// Bytes anywhere in what the queue looks at.
pub fn scribble(rig: &Rig, noise: &mut Unstructured) -> Result<()> {
    let start = noise.choose_iter([POISON, TABLES])?;
    let at = start + noise.int_in_range(0..=WINDOW as u64 / 2)?;
    let bytes: [u8; 4] = noise.arbitrary()?;
    rig.write(DriverAddress(at), &bytes[..noise.int_in_range(1..=4)?]);
    Ok(())
}

/// A descriptor that is often nearly right.
pub fn descriptor(spec: &QueueSpec, bits: u16, noise: &mut Unstructured) -> Result<Raw> {
    let addr = match noise.int_in_range(0..=7)? {
        0..=3 => DATA + noise.int_in_range(0..=255)?,
        4 => TABLES + 16 * noise.int_in_range(0..=3)?,
        5 => TABLES + 16 * noise.int_in_range(0..=160)?,
        6 => POISON + 8 * noise.int_in_range(0..=80)?,
        _ => noise.arbitrary()?,
    };
    let len = match noise.int_in_range(0..=7)? {
        0..=3 => noise.int_in_range(1..=64)?,
        4 | 5 => 16 * noise.int_in_range(0..=3)?,
        6 => 16 * noise.int_in_range(0..=70)?,
        _ => noise.arbitrary()?,
    };
    let flags = match noise.int_in_range(0..=7)? {
        0..=5 => bits | noise.choose_iter([0, WRITE, NEXT, NEXT | WRITE, INDIRECT])?,
        6 => noise.arbitrary::<u16>()? & (NEXT | WRITE | INDIRECT | AVAIL | USED),
        _ => noise.arbitrary()?,
    };
    let index = match noise.int_in_range(0..=7)? {
        0..=2 => noise.int_in_range(0..=3)?,
        3..=6 => noise.int_in_range(0..=spec.size)?,
        _ => noise.arbitrary()?,
    };
    Ok(match spec.format {
        RingFormat::Split => (addr, len, flags, index),
        RingFormat::Packed => (addr, len, index, flags),
    })
}
