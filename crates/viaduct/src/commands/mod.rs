//! One file per subcommand.

pub mod bridge;
pub mod demo;
pub mod device;
pub mod doctor;
pub mod generate;
pub mod probe;
pub mod run;
