//! Built-in virtio devices, one file each.

#![forbid(unsafe_code)]
