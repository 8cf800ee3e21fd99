//! A PCIe device whose model is RTL: turns sources and a port list into a program that a port
//! starts, as it would start a model in C.
//!
//! A simulation is an ordinary model: a process over the C interface of `libviaduct`, written
//! beside the design (`hdl/`) and built with it. So what a port does for a model it does for a
//! simulation too: it may crash, hang, be built anew and come back inside a running virtual
//! machine. This crate runs the tools and nothing else; it talks to no port and simulates nothing.
//!
//! A simulator is one file here and one line in [`SIMULATORS`].

#![forbid(unsafe_code)]

mod cache;
mod card;
mod error;
mod foreign;
mod ghdl;
mod icarus;
mod job;
mod sdk;
mod tool;
mod verilator;

pub use cache::cache_folder;
pub use card::{Bar, BarKind, CARD_SETTINGS, Card, CardError, Interrupts, settings_in};
pub use error::CosimError;
pub use job::{Clock, Job, Program};
pub use sdk::{HEADER, Library};
pub use tool::Tool;

/// A tool that runs RTL.
pub trait Simulator: Sync {
    /// What it is called on the command line.
    fn name(&self) -> &'static str;

    /// A line for people.
    fn help(&self) -> &'static str;

    /// Builds the simulation in [`Job::folder`], which exists and may hold what an earlier call
    /// left there.
    ///
    /// # Errors
    /// A tool is missing, or found a mistake in the design; the text is for its author.
    fn build(&self, job: &Job) -> Result<Program, CosimError>;
}

/// Every simulator.
pub const SIMULATORS: &[&dyn Simulator] =
    &[&verilator::Verilator, &ghdl::Either, &ghdl::Synthesis, &ghdl::Ghdl, &icarus::Icarus];

/// The simulator of that name.
#[must_use]
pub fn simulator(name: &str) -> Option<&'static dyn Simulator> {
    SIMULATORS.iter().copied().find(|simulator| simulator.name() == name)
}
