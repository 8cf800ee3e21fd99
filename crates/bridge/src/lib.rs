//! Shadow rings: a decorator that puts our own rings between a driver and a device.

#![forbid(unsafe_code)]
