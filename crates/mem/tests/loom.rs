//! Memory taken away from a queue that may be using it, in all interleavings that the memory model
//! allows; and without each of the two barriers, to show that the model would notice.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use mem::gate::{Barrier, Generation, REMOVED, Slot};

/// A queue uses memory, if it has not heard that it went away; the control thread takes it away,
/// if the queue has left it.
fn model() {
    loom::model(|| {
        let current = Arc::new(Generation::new(1));
        let slot = Arc::new(Slot::parked());
        let is_there = Arc::new(AtomicBool::new(true));
        let queue = {
            let (current, slot, is_there) = (current.clone(), slot.clone(), is_there.clone());
            thread::spawn(move || {
                if slot.hold(1, &current) {
                    assert!(is_there.load(Ordering::Relaxed), "used after it was taken away");
                    slot.park();
                }
            })
        };
        current.advance(2);
        // Where production waits for another round, this is the end.
        if !slot.is_held(2) {
            is_there.store(false, Ordering::Relaxed);
        }
        queue.join().unwrap();
    });
}

#[test]
fn no_queue_uses_memory_that_was_taken_away() {
    *REMOVED.lock().unwrap() = None;
    model();
    for barrier in [Barrier::Hold, Barrier::Look] {
        *REMOVED.lock().unwrap() = Some(barrier);
        let outcome = std::panic::catch_unwind(model);
        assert!(outcome.is_err(), "it also works without {barrier:?}, or the model is wrong");
    }
    *REMOVED.lock().unwrap() = None;
}
