//! The vfio-user service with a function behind it, against any client.

#![no_main]

#[path = "../../crates/pcie/tests/noise/mod.rs"]
mod noise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::session(bytes));
