//! Registers of a virtio function, and its configuration space, against any driver.

#![no_main]

#[path = "../../crates/pcie/tests/noise/mod.rs"]
mod noise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::registers(bytes));
