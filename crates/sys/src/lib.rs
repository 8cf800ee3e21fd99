//! The operating system: eventfds, sockets that carry file descriptors, epoll, timers, signals,
//! processors, vectored I/O on spans.
//!
//! Thin and safe: each type is one kernel object, each method one system call. What it deliberately
//! lacks: any protocol, any policy, and any name that is not the kernel's.

mod allocator;
mod apart;
mod calls;
mod capability;
mod cpu;
mod epoll;
mod eventfd;
mod file_io;
mod file_watch;
mod inherited;
mod process;
mod signal;
mod socket;
mod stack;
mod tap;
mod timer;
mod uring;
mod vdpa_netlink;
mod vduse;
mod vhost_vdpa;
mod window;

pub use allocator::{CountingAllocator, allocations};
pub use apart::spawn_apart;
pub use calls::system_calls;
pub use capability::{Capability, has_capability, is_writable_without_override, keep_capabilities};
pub use cpu::{Realtime, cycles, pin_to_cpu};
pub use epoll::{Epoll, Interest, Ready};
pub use eventfd::EventFd;
pub use file_io::{read_at, write_at};
pub use file_watch::FileWatch;
pub use inherited::{inherited_fd, is_listening};
pub use process::{ask_to_end, process_fd};
pub use signal::{
    StopSignal, Wish, WishSignal, end_on_closed_pipe, raise_file_limit, raise_lock_limit,
};
pub use socket::{
    Connection, Listener, MAX_FDS_PER_MESSAGE, Received, connect_unix, listen_unix, wait_for_any,
    wait_for_room,
};
pub use stack::give_back_stack;
pub use tap::{TAP_HEADER_BYTES, Tap, TapOffloads};
pub use timer::Timer;
pub use uring::{Completed, MAX_SPANS_PER_TRANSFER, Transfer, Uring};
pub use vdpa_netlink::VdpaBus;
pub use vduse::{
    VDUSE_API_LATEST, VDUSE_NAME_MAX, VduseConfig, VduseControl, VduseDevice, VduseIotlbEntry,
    VduseMessage, VduseQueueInfo, VduseRequest,
};
pub use vhost_vdpa::{VdpaAbilities, VdpaQueue, VdpaRange, VhostVdpa};
pub use window::WindowSignal;
