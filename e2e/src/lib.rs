//! End-to-end tests: real software on both sides, and a library that lets a test read like prose.
//!
//! * [`Root`] knows where the software is and runs it.
//! * [`Lab`] is one test's folder of sockets, images and logs, its deadline and its processes.
//! * [`Guest`] is a virtual machine (emulated, so that no hardware help is needed), [`Uml`] a User
//!   Mode Linux; both answer commands through a [`Shell`].
//! * [`table`] says what is connected to what; [`runner`] runs it.
//!
//! What it deliberately lacks: any use of viaduct's own crates. viaduct is a program here, started
//! like all others.
#![forbid(unsafe_code)]

pub mod architecture;
pub mod bare_host;
pub mod bare_peers;
pub mod cards;
pub mod changes;
pub mod cocotb;
pub mod console;
pub mod cpio;
pub mod daemon;
pub mod driver;
pub mod far;
pub mod faults;
pub mod firmware;
pub mod guest;
pub mod hints;
pub mod initrd;
pub mod lab;
pub mod load;
pub mod monitor;
pub mod peer;
pub mod ports;
pub mod programs;
pub mod root;
pub mod row;
pub mod runner;
pub mod shell;
pub mod story;
pub mod table;
pub mod trace;
pub mod uml;
pub mod verilog;
pub mod vhdl;
pub mod work;

pub use daemon::Daemon;
pub use guest::Guest;
pub use initrd::Initrd;
pub use lab::Lab;
pub use root::Root;
pub use shell::Shell;
pub use uml::Uml;
