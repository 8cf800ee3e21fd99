//! The ways to reach a driver or a device, one file each, and the table of them.

#![forbid(unsafe_code)]
