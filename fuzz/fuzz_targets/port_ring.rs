//! A ring whose other side writes anything into it.

#![no_main]

#[path = "../../crates/port/tests/noise/mod.rs"]
mod noise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::ring(bytes));
