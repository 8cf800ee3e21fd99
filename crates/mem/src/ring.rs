//! The entries of virtqueues as they lie in memory, made of atomics (VIRTIO 1.4, 2.7.5, 2.7.8,
//! 2.8.13, 2.8.14).
//!
//! Little-endian on the wire; the accessors convert, so callers only see native integers.

use crate::Shared;
use crate::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};

macro_rules! little_endian {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $field:ident: $int:ty;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            pub fn $get(&self, order: Ordering) -> $int {
                <$int>::from_le(self.$field.load(order))
            }

            /// Writes the field of the same name.
            #[inline]
            pub fn $set(&self, value: $int, order: Ordering) {
                self.$field.store(value.to_le(), order);
            }
        )*
    };
}

/// An entry of a split virtqueue's descriptor table, 16 bytes (VIRTIO 1.4, 2.7.5).
#[repr(C)]
#[derive(Debug, Default)]
pub struct Descriptor {
    addr: AtomicU64,
    len: AtomicU32,
    flags: AtomicU16,
    next: AtomicU16,
}

impl Descriptor {
    little_endian! {
        /// Address of the buffer in the driver's address space.
        addr, set_addr, addr: u64;
        /// Length of the buffer in bytes.
        len, set_len, len: u32;
        /// NEXT, WRITE, INDIRECT.
        flags, set_flags, flags: u16;
        /// Index of the next descriptor of the chain, if NEXT is set.
        next, set_next, next: u16;
    }
}

/// An entry of a split virtqueue's used ring, 8 bytes (VIRTIO 1.4, 2.7.8).
#[repr(C)]
#[derive(Debug, Default)]
pub struct UsedElement {
    id: AtomicU32,
    len: AtomicU32,
}

impl UsedElement {
    little_endian! {
        /// Index of the head of the used chain.
        id, set_id, id: u32;
        /// Bytes written into the chain's device-writable part.
        len, set_len, len: u32;
    }
}

/// An entry of a packed virtqueue's descriptor ring, 16 bytes (VIRTIO 1.4, 2.8.13).
#[repr(C)]
#[derive(Debug, Default)]
pub struct PackedDescriptor {
    addr: AtomicU64,
    len: AtomicU32,
    id: AtomicU16,
    flags: AtomicU16,
}

impl PackedDescriptor {
    little_endian! {
        /// Address of the buffer in the driver's address space.
        addr, set_addr, addr: u64;
        /// Length of the buffer, or the bytes written in a used descriptor.
        len, set_len, len: u32;
        /// Buffer id.
        id, set_id, id: u16;
        /// NEXT, WRITE, INDIRECT, AVAIL, USED.
        flags, set_flags, flags: u16;
    }
}

// SAFETY: `repr(C)`, 8 + 4 + 2 + 2 bytes of atomics without padding.
unsafe impl Shared for Descriptor {}
// SAFETY: `repr(C)`, 4 + 4 bytes of atomics without padding.
unsafe impl Shared for UsedElement {}
// SAFETY: `repr(C)`, 8 + 4 + 2 + 2 bytes of atomics without padding.
unsafe impl Shared for PackedDescriptor {}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Descriptor>() == 16);
    assert!(size_of::<UsedElement>() == 8);
    assert!(size_of::<PackedDescriptor>() == 16);
};
