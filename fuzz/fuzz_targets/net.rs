//! A driver that sends a network card any frame and any command.

#![no_main]

#[path = "../../crates/devices/tests/noise/mod.rs"]
mod noise;
#[path = "../../crates/devices/tests/rig/mod.rs"]
mod rig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::net(bytes));
