//! A queue whose driver's memory is reached by messages, between a driver, a device and answers
//! that may all be hostile.

#![no_main]

#[path = "../../crates/bridge/tests/noise/mod.rs"]
mod noise;
#[path = "../../crates/virtqueue/tests/rig/mod.rs"]
mod rig;
#[path = "../../crates/virtqueue/tests/noise/mod.rs"]
mod rings;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::far_away(bytes));
