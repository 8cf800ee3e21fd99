//! Every bound of the service, with its reason. Bounds of single messages are in
//! [`wire::vfio_user`].

use std::time::Duration;

/// Longest time a function may take to answer a read, before the driver gets all ones, unless
/// [`Function::read_limit`](crate::Function::read_limit) says otherwise. A machine
/// whose processor waits is blocked as a whole; QEMU itself gives up after 5 s.
pub const READ_LIMIT: Duration = Duration::from_millis(100);

/// Most reads that wait for a function at a time. A virtual machine has one per processor; PCIe has
/// 256 tags.
pub const MAX_WAITING_READS: usize = 256;

/// Most messages taken from the socket in one turn, so that other events are not starved.
pub const MAX_MESSAGES_PER_TURN: usize = 256;

/// The shortest payload of a request, but for one that has none: of a region read, and of a
/// question for what the device is.
pub const LEAST_PAYLOAD: usize = 16;

/// How much is taken at once behind a post: some 28 doorbells. Each that is taken moves what is
/// left to the front.
pub const POSTED_BYTES: usize = 1024;

/// While the service polls, how many times it looks at the client's socket before it looks at
/// everything, which takes a call more when there is something.
pub const LOOKS_PER_SWEEP: u32 = 8;

/// Bytes waiting to be sent above which nothing more is read from the client: it has to take its
/// answers first. Two of the largest messages.
pub const MAX_WAITING_BYTES: usize = 2 * wire::vfio_user::MAX_PAYLOAD;

/// Most bytes that leave by one call, unless they are one message. The kernel puts up to 32 KiB (in
/// fact a page more, less its own header; `unix_stream_sendmsg` in net/unix/af_unix.c) of a stream
/// into one buffer, and takes a buffer as a whole or not at all. A header is therefore never cut in
/// two: QEMU 11.1 reads it with one call and ends the connection when it gets less.
pub const WHOLE_SEND_BYTES: usize = 32 << 10;

/// Most bytes of one DMA message, for the same reason: QEMU 11.1 answers with one call and takes
/// an answer of which the socket had room for a part as sent; what follows then has no framing.
pub const MAX_DMA_BYTES: u32 = 32 << 10;

/// Most DMA messages in flight at a time, of all queues together.
pub const MAX_DMA_IN_FLIGHT: usize = 1024;

/// Most DMA messages in flight of one queue, so that none can starve the others.
pub const MAX_DMA_PER_CHANNEL: u32 = 128;

/// Longest wait for the answer to a DMA message. QEMU serves them in its main loop, which may be
/// busy for seconds.
pub const DMA_LIMIT: Duration = Duration::from_secs(10);

/// How often waiting DMA messages are looked at for being too late, while there is a channel.
pub const DMA_TICK: Duration = Duration::from_secs(1);

/// Longest wait for queues to let go of memory that is being unmapped. They come round every few
/// microseconds.
pub const UNMAP_LIMIT: Duration = Duration::from_secs(1);

/// Longest wait for the self-test of shared memory; a client that does not answer leaves it
/// undecided.
pub const SELF_TEST_LIMIT: Duration = Duration::from_millis(500);

/// Longest time that answers are still sent after the service was asked to stop.
pub const DRAIN_LIMIT: Duration = Duration::from_millis(500);
