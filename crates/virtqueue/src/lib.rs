//! Virtqueues: split and packed, the driver's and the device's side of both.

#![forbid(unsafe_code)]
