//! The measurements. One file per group; a new group is a file and a line in [`GROUPS`].

mod block;
mod boot;
mod busy;
mod cosim;
mod growth;
mod guest;
mod idle;
mod limits;
mod loopback;
mod net;
mod pass;
mod port;
mod registers;
mod remote;
mod ring;
mod shadow;

use anyhow::Result;

use crate::lab::Lab;
use crate::report::Report;

/// Some measurements that belong together and make one file of results.
pub struct Group {
    /// Name of the result file, and what the command line's words are looked for in.
    pub name: &'static str,
    /// What is measured.
    pub about: &'static str,
    /// Measures.
    pub run: fn(&Lab, &mut Report) -> Result<()>,
}

/// All groups, the quickest first.
pub const GROUPS: &[Group] = &[
    Group {
        name: "limits",
        about: "What this machine can do: copying, waking a thread, crossing a socket.",
        run: limits::run,
    },
    Group {
        name: "ring",
        about: "The queue library on one core, against rust-vmm's and against a bare walk.",
        run: ring::run,
    },
    Group {
        name: "shadow",
        about: "Relaying descriptors between two rings on a core of its own.",
        run: shadow::run,
    },
    Group {
        name: "net",
        about: "Joining two drivers on a core of its own, against DPDK's testpmd.",
        run: net::run,
    },
    Group {
        name: "pass",
        about: "A daemon reached through viaduct in pass mode, against the daemon itself.",
        run: pass::run,
    },
    Group {
        name: "block",
        about: "The built-in disk as a daemon, against qemu-storage-daemon.",
        run: block::run,
    },
    Group {
        name: "boot",
        about: "Accesses to a virtio device's registers while a Linux guest boots.",
        run: boot::run,
    },
    Group {
        name: "guest",
        about: "The built-in disk in a guest, against QEMU's own in the same guest.",
        run: guest::run,
    },
    Group {
        name: "registers",
        about: "Register reads and doorbells over vfio-user, against a bare UNIX socket.",
        run: registers::run,
    },
    Group {
        name: "remote",
        about: "Block requests where memory is reached by messages, against one message per field.",
        run: remote::run,
    },
    Group {
        name: "busy",
        about: "System calls and allocations of a request while there is always another one.",
        run: busy::run,
    },
    Group {
        name: "port",
        about: "A device in a process of its own, behind a port, against one in the port's.",
        run: port::run,
    },
    Group {
        name: "cosim",
        about: "A DMA engine in Verilog, simulated by Verilator behind a port.",
        run: cosim::run,
    },
    Group {
        name: "growth",
        about: "How cost grows with queues, devices and payload.",
        run: growth::run,
    },
    Group {
        name: "loopback",
        about: "The machine's own disk by VDUSE, against qemu-storage-daemon's own VDUSE export.",
        run: loopback::run,
    },
    Group {
        name: "idle",
        about: "Many devices that nobody uses, against the exports of qemu-storage-daemon.",
        run: idle::run,
    },
];
