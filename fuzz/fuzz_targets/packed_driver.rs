//! Packed rings written by a hostile device, against our driver side.

#![no_main]

#[path = "../../crates/virtqueue/tests/noise/mod.rs"]
mod noise;
#[path = "../../crates/virtqueue/tests/rig/mod.rs"]
mod rig;

use virtqueue::RingFormat;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::hostile_device(RingFormat::Packed, bytes));
