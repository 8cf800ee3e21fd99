//! The record of requests in flight of a packed ring, written by a hostile driver, and a device
//! that is killed again and again.

#![no_main]

#[path = "../../crates/virtqueue/tests/noise/mod.rs"]
mod noise;
#[path = "../../crates/virtqueue/tests/rig/mod.rs"]
mod rig;

use virtqueue::RingFormat;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    noise::hostile_record(RingFormat::Packed, bytes);
});
