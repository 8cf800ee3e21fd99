//! What must hold for any accesses and any messages. Shared by the property tests and the fuzz
//! targets: both bring bytes, [`Unstructured`] makes choices of them.
#![allow(dead_code, unused_imports, missing_docs, clippy::unwrap_used)]

mod registers;
mod session;
mod strict;

pub use registers::registers;
pub use session::session;

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use mem::Mapping;
use pcie::virtio_pci::{Legacy, VirtioPci, VirtioPciOptions};

use strict::{Facts, Strict};

/// Added to every address, so that one used without translation can't work by luck.
const POISON: u64 = 0x7_0000_0000;
/// The driver's memory.
const MEMORY_BYTES: usize = 0x1_0000;

thread_local! {
    /// Made once: nothing here writes it.
    static MEMORY: Arc<Mapping> = Mapping::new_memfd("noise", MEMORY_BYTES).unwrap();
}

/// A function around a device that checks its callers.
fn function(noise: &mut Unstructured) -> Result<(VirtioPci, Arc<Facts>)> {
    let facts = Facts::new();
    let options = VirtioPciOptions {
        legacy: noise.choose_iter([Legacy::Off, Legacy::Io, Legacy::Memory])?,
        express: noise.arbitrary()?,
        vectors: noise.choose_iter([None, Some(0), Some(2)])?,
        ..VirtioPciOptions::default()
    };
    let function = VirtioPci::new(Box::new(Strict::new(Arc::clone(&facts))), options).unwrap();
    Ok((function, facts))
}

/// A number as it is likely to be wrong: small, at a border, or anything.
fn number(noise: &mut Unstructured, small: u64) -> Result<u64> {
    Ok(match noise.int_in_range(0..=9)? {
        0..=6 => noise.int_in_range(0..=small)?,
        7 => noise.choose_iter([small + 1, 0x7fff_ffff, 0xffff_ffff, 1 << 32, u64::MAX])?,
        8 => noise.arbitrary::<u32>()?.into(),
        _ => noise.arbitrary()?,
    })
}
