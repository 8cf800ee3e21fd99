//! A driver that asks for random numbers in any buffer.

#![no_main]

#[path = "../../crates/devices/tests/noise/mod.rs"]
mod noise;
#[path = "../../crates/devices/tests/rig/mod.rs"]
mod rig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::entropy(bytes));
