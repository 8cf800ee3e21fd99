//! A queue that copies, between a driver and a device that may both be hostile.

#![no_main]

#[path = "../../crates/bridge/tests/noise/mod.rs"]
mod noise;
#[path = "../../crates/virtqueue/tests/rig/mod.rs"]
mod rig;
#[path = "../../crates/virtqueue/tests/noise/mod.rs"]
mod rings;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::copying(bytes));
