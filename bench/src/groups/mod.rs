//! The measurements. One file per group; a new group is a file and a line in [`GROUPS`].

mod limits;
mod net;
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
];
