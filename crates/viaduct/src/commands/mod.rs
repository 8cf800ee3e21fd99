//! One file per subcommand.

pub mod attach;
pub mod bridge;
pub mod cosim;
pub mod demo;
pub mod device;
pub mod doctor;
pub mod generate;
mod keeper;
pub mod pcie;
pub mod probe;
pub mod run;
