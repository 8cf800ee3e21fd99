//! Icarus Verilog: an interpreter, for designs that Verilator does not take and for test benches.

use crate::card::settings_in;
use crate::error::file;
use crate::foreign::{self, Kind};
use crate::verilator::ports::{Port, Way};
use crate::{Card, CosimError, Job, Program, Simulator, Tool};

const ADVICE: &str = "apt install iverilog (11 or later)";

/// Other modules for the simulator, cocotb's say: paths with colons between them.
const MODULES: &str = "VIADUCT_VPI";

/// Before the sources, which may say something else.
const TIMESCALE: &str = "`timescale 1ns/1ps\n";

/// Icarus Verilog.
pub struct Icarus;

impl Simulator for Icarus {
    fn name(&self) -> &'static str {
        "icarus"
    }

    fn help(&self) -> &'static str {
        "Verilog, interpreted: slow, with four states and delays"
    }

    fn build(&self, job: &Job) -> Result<Program, CosimError> {
        let design = job.folder.join("design.vvp");
        compile(job, &design)?;
        let text = std::fs::read_to_string(&design).map_err(file("can't read", &design))?;
        let mut texts = Vec::new();
        for path in &job.sources {
            texts.push(std::fs::read_to_string(path).map_err(file("can't read", path))?);
        }
        let said = job.settings.iter().map(String::as_str);
        let card = Card::new(said.chain(texts.iter().flat_map(|text| settings_in(text))))?;
        let flags = Tool::new("iverilog-vpi", ADVICE).arg("--cflags").run()?;
        let flags = flags.split_whitespace().filter(|word| word.starts_with("-I"));
        let kind = Kind { header: "vpi.h", flags: flags.map(str::to_owned).collect() };
        foreign::library(job, &card, &ports(&text), &kind, "viaduct.vpi")?;
        let vvp = Tool::new("vvp", ADVICE).program();
        let mut words = vec![vvp.into(), "-M".into(), job.folder.clone().into()];
        words.extend(["-m".into(), "viaduct".into()]);
        for module in std::env::var(MODULES).unwrap_or_default().split(':') {
            let path = std::path::Path::new(module);
            if let (Some(folder), Some(name)) = (path.parent(), path.file_stem()) {
                words.extend(["-M".into(), folder.into(), "-m".into(), name.into()]);
            }
        }
        words.push(design.into());
        if let Some(wave) = &job.wave {
            words.push(if is_fst(wave) { "-fst" } else { "-vcd" }.into());
        }
        Ok(Program { words, made_from: job.sources.clone(), ..Program::default() })
    }
}

fn is_fst(wave: &std::path::Path) -> bool {
    wave.extension().is_some_and(|ending| ending == "fst")
}

fn compile(job: &Job, design: &std::path::Path) -> Result<(), CosimError> {
    let top = &job.top;
    let scale = job.folder.join("viaduct_timescale.v");
    std::fs::write(&scale, TIMESCALE).map_err(file("can't write", &scale))?;
    let mut tool = Tool::new("iverilog", ADVICE).args(["-g2012", "-s", top, "-o"]).arg(design);
    tool = tool.args(job.includes.iter().map(|folder| format!("-I{}", folder.display())));
    tool = tool.args(job.defines.iter().map(|define| format!("-D{define}")));
    tool = tool.args(job.parameters.iter().map(|said| format!("-P{top}.{said}")));
    tool = tool.args(&job.options).arg(scale).args(&job.sources);
    if let Some(wave) = &job.wave {
        let source = job.folder.join("viaduct_wave.v");
        let text = format!(
            "module viaduct_wave;\n    initial begin\n        $dumpfile(\"{}\");\n        \
             $dumpvars(0, {top});\n    end\nendmodule\n",
            wave.display()
        );
        std::fs::write(&source, text).map_err(file("can't write", &source))?;
        tool = tool.args(["-s", "viaduct_wave"]).arg(source);
    }
    let said = tool.run()?;
    if !said.trim().is_empty() {
        tracing::warn!("iverilog:\n{}", said.trim_end());
    }
    Ok(())
}

/// The ports of the top, as the compiled design has them: `.port_info 0 /INPUT 12 "name";`.
fn ports(design: &str) -> Vec<Port> {
    let port = |line: &str| {
        let mut words = line.trim().strip_prefix(".port_info")?.split_whitespace();
        let way = match words.nth(1)? {
            "/INPUT" => Way::In,
            "/OUTPUT" => Way::Out,
            _ => return None,
        };
        let bits = words.next()?.parse().ok()?;
        let name = words.next()?.trim_matches(['"', ';']).to_owned();
        Some(Port { name, way, bits })
    };
    design.lines().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiled_design_tells_its_ports() {
        let design = "    .port_info 0 /INPUT 1 \"clk\";\n    .port_info 1 /OUTPUT 32 \"q\";\n\
                      \x20   .port_info 2 /INOUT 1 \"pad\";\n";
        let port = |name: &str, way, bits| Port { name: name.to_owned(), way, bits };
        assert_eq!(ports(design), [port("clk", Way::In, 1), port("q", Way::Out, 32)]);
    }
}
