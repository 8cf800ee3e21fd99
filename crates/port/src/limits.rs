//! Every bound of the port and the model, with its reason.

use std::time::Duration;

/// Size in bytes of each ring: several of the longest records, and small enough to stay in a
/// processor's own cache.
pub const RING_BYTES: u32 = 128 << 10;

/// How long the model may take for an answer, unless told otherwise. QEMU gives up after 5 s, and
/// its guest stands still meanwhile.
pub const DEADLINE: Duration = Duration::from_millis(100);

/// How much may wait for room in the ring, unless told otherwise: a model that is stopped in a
/// debugger finds its writes when it goes on, and one that never does can't fill our memory.
pub const BACKLOG_BYTES: usize = 4 << 20;

/// Most reads that wait for the model. A virtual machine has one per processor; PCIe has 256 tags.
pub const MAX_READS: usize = 256;

/// Longest read; a longer one gets all ones. What a client may ask at once (vfio-user's
/// `max_data_xfer_size`).
pub const MAX_READ_BYTES: usize = 1 << 20;

/// Most transfers by message that a model has on their way.
pub const MAX_TRANSFERS: usize = 64;

/// Most records taken from a ring in one turn, so that nothing else starves.
pub const MAX_RECORDS_PER_TURN: usize = 4096;

/// How long a process that has connected may take to say who it is.
pub const HELLO_LIMIT: Duration = Duration::from_secs(2);

/// Most messages and descriptors on their way to a model that does not read its socket.
pub const MAX_MESSAGES_WAITING: usize = 1024;

/// Most interrupts and answers that a model holds back while the port is busy.
pub const MAX_ANSWERS_WAITING: usize = 64 << 10;

/// How often an end of a stream to another machine gives a sign of life, and looks for one.
pub const FAR_TICK: Duration = Duration::from_millis(500);

/// How long the other end may say nothing before it counts as gone: several signs of life, and
/// longer than a busy machine keeps a process waiting.
pub const FAR_SILENCE: Duration = Duration::from_secs(5);

/// How much may wait for a stream to another machine: about what a ring holds, so that neither
/// waits for the other long.
pub const FAR_OUTPUT_BYTES: usize = 256 << 10;

/// Names in the environment how many microseconds models, and those who serve ports and functions,
/// poll at most before they sleep: 0 to 50.
pub const SPIN_VARIABLE: &str = "VIADUCT_SPIN";

/// What [`SPIN_VARIABLE`] says, else 50 us where there is a processor for each of the three: the
/// model, the port, and the driver's. With fewer, polling takes the time of those it waits for.
#[must_use]
pub fn spin_limit() -> Duration {
    let said = std::env::var(SPIN_VARIABLE).ok().and_then(|text| text.parse().ok());
    let limit = said.map_or_else(|| worker::usual_spin(1), Duration::from_micros);
    limit.min(worker::MAX_SPIN)
}
