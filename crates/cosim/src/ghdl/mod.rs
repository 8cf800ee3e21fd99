//! GHDL: VHDL, interpreted by its own code generator (mcode) or compiled (llvm, gcc).
//!
//! GHDL owns the main loop and its process, so a simulation is GHDL itself with a shared library of
//! ours in it, which VHDL calls (VHPIDIRECT).

mod axi;
mod synth;

use std::fs;
use std::path::{Path, PathBuf};

use crate::card::{Card, settings_in};
use crate::error::file;
use crate::{Clock, CosimError, HEADER, Job, Library, Program, Simulator, Tool};

pub use synth::{Either, Synthesis};

/// How to get it.
const ADVICE: &str = "apt install ghdl (2.0 or later), or see ghdl.github.io";
const CC_ADVICE: &str = "apt install gcc libc6-dev";

const PACKAGE: &str = include_str!("../../../../hdl/vhdl/pcie.vhd");
const ENDPOINT: &str = include_str!("../../../../hdl/vhdl/endpoint.vhd");
const GLUE: &str = include_str!("../../../../hdl/vhdl/endpoint.c");

const LIBRARY: &str = "viaduct-endpoint.so";

/// What VPCIe's endpoint is unless something else is said: data acquisition of no known kind with
/// one vector.
const USUAL: [&str; 2] = ["class=118000", "msi=1"];

/// GHDL.
pub struct Ghdl;

impl Simulator for Ghdl {
    fn name(&self) -> &'static str {
        "ghdl"
    }

    fn help(&self) -> &'static str {
        "VHDL as GHDL has it; also test benches with VPCIe's entity endpoint"
    }

    fn build(&self, job: &Job) -> Result<Program, CosimError> {
        if !job.includes.is_empty() || !job.defines.is_empty() {
            return Err(CosimError::Design("vhdl has no included files and no macros".to_owned()));
        }
        let build = Build::new(job)?;
        let declared = axi::declared(&build.texts()?, &job.top);
        if !declared.is_empty() {
            return axi::program(&build, &declared);
        }
        if job.clock != Clock::Free {
            let why = "a test bench in vhdl makes its own clock: only --clock free fits it";
            return Err(CosimError::Design(why.to_owned()));
        }
        build.endpoint()
    }
}

/// One run of the tools.
struct Build<'j> {
    job: &'j Job,
    ghdl: PathBuf,
    /// Makes programs; the other kind runs a design in its own process.
    is_compiler: bool,
    /// For each of its commands.
    options: Vec<String>,
}

impl<'j> Build<'j> {
    fn new(job: &'j Job) -> Result<Self, CosimError> {
        let ghdl = Tool::new("ghdl", ADVICE).arg("--version");
        let path = ghdl.program();
        let version = ghdl.run()?;
        let is_standard = |option: &String| option.starts_with("--std=");
        let mut options = vec![format!("--workdir={}", job.folder.display())];
        if !job.options.iter().any(is_standard) {
            options.push("--std=08".to_owned());
        }
        options.extend(job.options.iter().cloned());
        Ok(Self { job, ghdl: path, is_compiler: !version.contains("mcode"), options })
    }

    /// A test bench with VPCIe's entity.
    fn endpoint(&self) -> Result<Program, CosimError> {
        let library = self.library()?;
        self.packages()?;
        let own = ["pcie.vhd", "endpoint.vhd"].map(|name| self.job.folder.join(name));
        self.run("-a", |tool| tool.args(&own).args(&self.job.sources))?;
        let mut program = self.finish(&self.job.top, &library, &[])?;
        program.words.extend(self.job.parameters.iter().map(|said| format!("-g{said}").into()));
        Ok(program)
    }

    /// Elaborates `top`; what runs it.
    fn finish(&self, top: &str, library: &Path, more: &[&str]) -> Result<Program, CosimError> {
        let program = self.job.folder.join("simulation");
        self.run("-e", |tool| {
            let tool = if self.is_compiler {
                tool.arg("-o").arg(&program).arg(format!("-Wl,{}", library.display()))
            } else {
                tool
            };
            tool.arg(top)
        })?;
        let mut words = Vec::new();
        if self.is_compiler {
            words.push(program.into());
        } else {
            words.extend([self.ghdl.clone().into(), "-r".into()]);
            words.extend(self.options.iter().map(Into::into));
            words.push(top.into());
        }
        words.extend(more.iter().map(Into::into));
        if let Some(wave) = &self.job.wave {
            let is_vcd = wave.extension().is_some_and(|ending| ending == "vcd");
            let kind = if is_vcd { "vcd" } else { "fst" };
            words.push(format!("--{kind}={}", wave.display()).into());
        }
        let mut places = self.job.folder.clone().into_os_string();
        if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
            places.push(":");
            places.push(others);
        }
        let settings = vec![("LD_LIBRARY_PATH".to_owned(), places)];
        Ok(Program { words, settings, made_from: self.job.sources.clone() })
    }

    /// What stands before the name of a foreign function. A compiled simulation is linked with the
    /// library. For the other kind the loader finds it: GHDL has no room for long paths there.
    fn place(&self, library: &str) -> String {
        if self.is_compiler { String::new() } else { format!("{library} ") }
    }

    /// How a simulation is ended from inside. Before VHDL-2008 there is only one way.
    fn ending(&self) -> &'static str {
        let olds = ["87", "93", "93c", "00", "02"];
        let is_old = |option: &String| olds.iter().any(|old| *option == format!("--std={old}"));
        match self.options.iter().any(is_old) {
            true => "assert false report \"the port has gone\" severity failure;",
            false => "std.env.finish;",
        }
    }

    /// GHDL with one of its commands.
    fn tool(&self, command: &str) -> Tool {
        Tool::new("ghdl", ADVICE).within(&self.job.folder).arg(command).args(&self.options)
    }

    fn run(&self, command: &str, words: impl FnOnce(Tool) -> Tool) -> Result<String, CosimError> {
        words(self.tool(command)).run()
    }

    /// The sources.
    fn texts(&self) -> Result<Vec<String>, CosimError> {
        let read = |path: &PathBuf| {
            let text = fs::read(path).map_err(file("can't read", path))?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        self.job.sources.iter().map(read).collect()
    }

    /// The shared library that VHDL calls.
    fn library(&self) -> Result<PathBuf, CosimError> {
        let folder = &self.job.folder;
        write(folder, "viaduct.h", HEADER)?;
        write(folder, "card.h", &self.card()?.c_source(&self.job.top)?)?;
        write(folder, "endpoint.c", GLUE)?;
        let library = folder.join(LIBRARY);
        let cc = Tool::new("cc", CC_ADVICE).within(folder);
        let cc = cc.args(["-std=gnu11", "-O2", "-fPIC", "-shared", "-o"]).arg(&library);
        cc.arg("endpoint.c").args(Library::find()?.link_arguments()).run()?;
        Ok(library)
    }

    /// Package `pcie` and its entities.
    fn packages(&self) -> Result<(), CosimError> {
        let (place, ending) = (self.place(LIBRARY), self.ending());
        for (name, text) in [("pcie.vhd", PACKAGE), ("endpoint.vhd", ENDPOINT)] {
            let text = text.replace("@LIBRARY@", &place).replace("@FINISH@", ending);
            write(&self.job.folder, name, &text)?;
        }
        Ok(())
    }

    /// What the card is: by the command line, the environment as VPCIe has it, the sources.
    fn card(&self) -> Result<Card, CosimError> {
        let environment = from_environment(|name| std::env::var(name).ok());
        let texts = self.texts()?;
        let said = self.job.settings.iter().chain(&environment).map(String::as_str);
        let said = said.chain(texts.iter().flat_map(|text| settings_in(text))).chain(USUAL);
        Ok(Card::new(said)?)
    }
}

/// `PCIE_VENDOR_ID`, `PCIE_DEVICE_ID` and `PCIE_BAR0_SIZE` to 5, in hexadecimal, as settings.
fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let number = |name: &str| {
        let text = variable(name)?;
        u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    let mut settings = Vec::new();
    if let (Some(vendor), Some(device)) = (number("PCIE_VENDOR_ID"), number("PCIE_DEVICE_ID")) {
        settings.push(format!("id={vendor:x}:{device:x}"));
    }
    for bar in 0..6 {
        // A BAR of memory has 16 bytes or more.
        if let Some(size) = number(&format!("PCIE_BAR{bar}_SIZE")).filter(|size| *size > 0) {
            settings.push(format!("bar{bar}={}", size.max(16)));
        }
    }
    settings
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), CosimError> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(file("can't write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vpcie_s_environment_describes_a_card() {
        let variable = |name: &str| match name {
            "PCIE_VENDOR_ID" => Some("0x2a2a".to_owned()),
            "PCIE_DEVICE_ID" => Some("2b2b".to_owned()),
            "PCIE_BAR1_SIZE" => Some("100".to_owned()),
            "PCIE_BAR2_SIZE" => Some("0".to_owned()),
            "PCIE_BAR3_SIZE" => Some("8".to_owned()),
            _ => None,
        };
        let settings = from_environment(variable);
        assert_eq!(settings, ["id=2a2a:2b2b", "bar1=256", "bar3=16"]);
        let card = Card::new(settings.iter().map(String::as_str).chain(USUAL)).unwrap();
        assert_eq!((card.interrupts.msi, card.class), (1, 0x11_8000));
    }

    #[test]
    fn macros_are_refused() {
        let job = Job { defines: vec!["A".to_owned()], ..Job::default() };
        let error = Ghdl.build(&job).unwrap_err();
        assert_eq!(error.to_string(), "vhdl has no included files and no macros");
    }
}
