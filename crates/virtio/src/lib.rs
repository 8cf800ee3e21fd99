//! Virtio's words: device ids, features, config layouts, the status machine, and the traits devices and driver ends implement.

#![forbid(unsafe_code)]
