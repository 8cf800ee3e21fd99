use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a queue has done, counted by its task alone and readable by everybody without a
        /// lock.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Count,)*
        }

        /// The counters at one moment. They are read one after the other, so they may differ by
        /// what is going on.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// The counters now.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Chains handed to the device.
    chains,
    /// Chains given back to the driver.
    completions,
    /// Bytes in device-readable buffers of those chains.
    bytes_out,
    /// Bytes the device wrote.
    bytes_in,
    /// Bytes we copied, both ways.
    copied_bytes,
    /// Notifications sent to the device.
    kicks,
    /// Batches the device did not want to be notified of.
    suppressed_kicks,
    /// Interrupts sent to the driver.
    interrupts,
    /// Batches the driver did not want to be interrupted for.
    suppressed_interrupts,
    /// Times a request had to wait for room in the ring or in the pool.
    backpressure,
    /// Times a request had to wait for a rate limit.
    throttled,
    /// Times a request had to wait for an address translation.
    misses,
    /// Broken rules and other failures.
    errors,
    /// Times the queue was started again on a device that came back.
    restarts,
}

/// A number that one thread counts up and all may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts `n` up. Only for the one thread that counts.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        // Relaxed, and not one atomic step: there is one writer, and readers need no order.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
