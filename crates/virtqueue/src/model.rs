//! For loom: queues over tables of loom's atomics, and barriers that can be taken away.

use std::cell::Cell;
use std::sync::Arc;

use mem::sync::{AtomicU16, AtomicU32};
use mem::{Shared, Table};

pub use crate::barrier::Barrier;
use crate::device::{PackedTables, SplitTables};
use crate::{DeviceQueue, DriverQueue, QueueSpec, RingFormat};

std::thread_local! {
    static REMOVED: Cell<Option<Barrier>> = const { Cell::new(None) };
}

/// Takes one barrier away, for all models that this thread runs.
pub fn remove(barrier: Barrier) {
    REMOVED.set(Some(barrier));
}

pub(crate) fn removed() -> Option<Barrier> {
    REMOVED.get()
}

fn shared<T: Shared + Default>(len: usize) -> [Table<T>; 2] {
    let entries: Arc<[T]> = (0..len).map(|_| T::default()).collect();
    [Table::from_entries(Arc::clone(&entries)), Table::from_entries(entries)]
}

fn split(spec: &QueueSpec) -> [SplitTables; 2] {
    let size = usize::from(spec.size);
    let event = usize::from(spec.event_idx);
    let [d0, d1] = shared(size);
    let [a0, a1] = shared::<AtomicU16>(2 + size + event);
    let [h0, h1] = shared(2);
    let [u0, u1] = shared(size);
    let [e0, e1] = shared::<AtomicU16>(1).map(|table| (event == 1).then_some(table));
    let tables = |descriptors, available, used_header, used, available_event| SplitTables {
        descriptors,
        available,
        used_header,
        used,
        available_event,
    };
    [tables(d0, a0, h0, u0, e0), tables(d1, a1, h1, u1, e1)]
}

fn packed(spec: &QueueSpec) -> [PackedTables; 2] {
    let [r0, r1] = shared(spec.size.into());
    let [a0, a1] = shared::<AtomicU32>(1);
    let [b0, b1] = shared::<AtomicU32>(1);
    let tables =
        |ring, driver_event, device_event| PackedTables { ring, driver_event, device_event };
    [tables(r0, a0, b0), tables(r1, a1, b1)]
}

/// Both sides of a fresh ring.
#[must_use]
pub fn pair<T>(spec: &QueueSpec) -> (DriverQueue<T>, DeviceQueue) {
    match spec.format {
        RingFormat::Split => {
            let [ours, theirs] = split(spec);
            (DriverQueue::of_split(ours, spec), DeviceQueue::of_split(theirs, spec))
        }
        RingFormat::Packed => {
            let [ours, theirs] = packed(spec);
            (DriverQueue::of_packed(ours, spec), DeviceQueue::of_packed(theirs, spec))
        }
    }
}
