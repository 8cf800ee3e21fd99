//! A driver that asks a disk for anything.

#![no_main]

#[path = "../../crates/devices/tests/noise/mod.rs"]
mod noise;
#[path = "../../crates/devices/tests/rig/mod.rs"]
mod rig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::disk(bytes));
