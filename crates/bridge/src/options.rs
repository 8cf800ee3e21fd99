use std::fmt;
use std::sync::Arc;

use virtio::Features;
use virtqueue::{RingFormat, Segment};

use crate::Mode;

/// Pool of a queue that copies, unless told otherwise. A Linux block request has 1.3 MiB at most
/// and the largest file system requests 4 MiB; memory that was never used costs nothing.
pub const DEFAULT_POOL_BYTES: usize = 8 << 20;

/// Smallest pool: one packet with segmentation offload fits.
pub const MIN_POOL_BYTES: usize = 128 << 10;

/// Largest pool.
pub const MAX_POOL_BYTES: usize = 1 << 30;

/// How a [`Shadow`](crate::Shadow) stands between driver and device.
#[derive(Clone, Default)]
pub struct BridgeOptions {
    /// What happens to rings and bytes.
    pub mode: Mode,
    /// Bytes per queue for copies, rounded up to a power of two within [`MIN_POOL_BYTES`] and
    /// [`MAX_POOL_BYTES`]; 0 for
    /// [`DEFAULT_POOL_BYTES`]. A request that is larger breaks its queue.
    pub pool_bytes: usize,
    /// How fast a queue may be used.
    pub limits: RateLimits,
    /// The ring format shown to the device; `None` for the driver's if the device has it.
    pub device_format: Option<RingFormat>,
    /// Largest queue offered to the driver; `None` for the device's.
    pub queue_size: Option<u16>,
    /// Ring features that the driver must be offered even if the device lacks them.
    pub require: Features,
    /// Features that the driver must not be offered even if the device has them.
    pub hide: Features,
    /// Requests in flight must be recorded: by the device, or here.
    pub record: bool,
    /// Sees every request, and may lose notifications.
    pub observer: Option<Arc<dyn Observer>>,
}

impl BridgeOptions {
    /// Whether somebody has to see each request.
    #[must_use]
    pub fn looks_inside(&self) -> bool {
        self.limits != RateLimits::default() || self.observer.is_some()
    }

    /// The pool's size as it is used.
    #[must_use]
    pub fn pool_size(&self) -> usize {
        match self.pool_bytes {
            0 => DEFAULT_POOL_BYTES,
            bytes => bytes.clamp(MIN_POOL_BYTES, MAX_POOL_BYTES).next_power_of_two(),
        }
    }
}

impl fmt::Debug for BridgeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BridgeOptions")
            .field("mode", &self.mode)
            .field("pool_bytes", &self.pool_size())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Limits per queue; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes per second, both directions together.
    pub bytes_per_second: u64,
    /// Requests per second.
    pub requests_per_second: u64,
}

/// Watches a bridge's requests, for traces and for tests that need trouble. Called on the data
/// path.
pub trait Observer: Send + Sync {
    /// A chain goes to the device; `id` comes back in [`Observer::inbound`].
    fn outbound(&self, queue: u16, id: u16, readable: &[Segment], writable: &[Segment]) {
        let _ = (queue, id, readable, writable);
    }

    /// The device has used the chain and written so many bytes.
    fn inbound(&self, queue: u16, id: u16, written: u32) {
        let _ = (queue, id, written);
    }

    /// Whether to lose this notification to the device.
    fn lose_kick(&self, queue: u16) -> bool {
        let _ = queue;
        false
    }

    /// Whether to lose this interrupt to the driver.
    fn lose_interrupt(&self, queue: u16) -> bool {
        let _ = queue;
        false
    }
}
