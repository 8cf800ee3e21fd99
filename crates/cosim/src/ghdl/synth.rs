//! The quick way for VHDL: GHDL synthesises it to Verilog, and Verilator compiles that.

use crate::card::settings_in;
use crate::ghdl::{Build, write};
use crate::verilator::Verilator;
use crate::{CosimError, Job, Program, Simulator};

/// GHDL's synthesis, then Verilator.
pub struct Synthesis;

impl Simulator for Synthesis {
    fn name(&self) -> &'static str {
        "ghdl-synth"
    }

    fn help(&self) -> &'static str {
        "VHDL that can be synthesised, compiled by way of Verilog; the fastest for VHDL"
    }

    fn build(&self, job: &Job) -> Result<Program, CosimError> {
        let build = Build::new(job)?;
        build.run("-a", |tool| tool.args(&job.sources))?;
        let generics = job.parameters.iter().map(|said| format!("-g{said}"));
        let tool = build.tool("synth").args(["--out=verilog"]).args(generics).arg(&job.top);
        write(&job.folder, "synthesised.v", &tool.output()?)?;
        // What the sources say of the card is not in there.
        let texts = build.texts()?;
        let said = texts.iter().flat_map(|text| settings_in(text)).map(str::to_owned);
        let settings = job.settings.iter().cloned().chain(said).collect();
        let verilog = Job {
            sources: vec![job.folder.join("synthesised.v")],
            settings,
            parameters: Vec::new(),
            options: Vec::new(),
            ..job.clone()
        };
        let program = Verilator.build(&verilog)?;
        Ok(Program { made_from: job.sources.clone(), ..program })
    }
}

/// [`Synthesis`] where that works, else GHDL itself.
pub struct Either;

impl Simulator for Either {
    fn name(&self) -> &'static str {
        "vhdl"
    }

    fn help(&self) -> &'static str {
        "VHDL: ghdl-synth if it can be synthesised, else ghdl"
    }

    fn build(&self, job: &Job) -> Result<Program, CosimError> {
        match Synthesis.build(job) {
            Ok(program) => Ok(program),
            Err(error) => {
                let why = error.to_string();
                // A mistake in the design is found by both, and told by the second one.
                let why = why.lines().take(3).collect::<Vec<_>>().join(" ");
                tracing::info!("simulated by GHDL, which is slow: no way by synthesis ({why})");
                super::Ghdl.build(job)
            }
        }
    }
}
