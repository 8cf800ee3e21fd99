//! Verilator: SystemVerilog turned into C++.
//!
//! The design becomes the class `Vcard`; its header tells the ports, from which the wiring is
//! written; design and harness are compiled as one file, which is quicker for the compiler and for
//! the simulation, and linked with the runtime that was compiled long ago.

mod axi;
mod descriptors;
mod pcie;
pub mod ports;
mod runtime;
mod streams;
pub mod wiring;

use std::fs;
use std::path::{Path, PathBuf};

use crate::card::settings_in;
use crate::error::file;
use crate::{Card, Clock, CosimError, HEADER, Job, Library, Program, Simulator, Tool};
use runtime::Flags;

/// How to get it.
const ADVICE: &str = "apt install verilator g++ (5.006 or later), or see verilator.org";

/// The C++ that is built with every design.
pub const HARNESS: &[(&str, &str)] = &[
    ("access.h", include_str!("../../../../hdl/verilog/access.h")),
    ("axi_lite.h", include_str!("../../../../hdl/verilog/axi_lite.h")),
    ("axi_memory.h", include_str!("../../../../hdl/verilog/axi_memory.h")),
    ("descriptors.h", include_str!("../../../../hdl/verilog/descriptors.h")),
    ("bits.h", include_str!("../../../../hdl/verilog/bits.h")),
    ("harness.cpp", include_str!("../../../../hdl/verilog/harness.cpp")),
    ("interrupts.h", include_str!("../../../../hdl/verilog/interrupts.h")),
    ("link.h", include_str!("../../../../hdl/verilog/link.h")),
    ("link_signals.h", include_str!("../../../../hdl/verilog/link_signals.h")),
    ("pace.h", include_str!("../../../../hdl/verilog/pace.h")),
    ("packets.h", include_str!("../../../../hdl/verilog/packets.h")),
    ("tlp.h", include_str!("../../../../hdl/verilog/tlp.h")),
    ("transactions.h", include_str!("../../../../hdl/verilog/transactions.h")),
    ("xilinx.h", include_str!("../../../../hdl/verilog/xilinx.h")),
    ("virtio.h", include_str!("../../../../hdl/verilog/virtio.h")),
    ("wave.h", include_str!("../../../../hdl/verilog/wave.h")),
    ("viaduct.h", HEADER),
];

/// Verilator.
pub struct Verilator;

/// Which kind of waveform.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wave {
    None,
    Fst,
    Vcd,
}

impl Wave {
    fn of(job: &Job) -> Result<Self, CosimError> {
        let Some(path) = &job.wave else { return Ok(Self::None) };
        match path.extension().and_then(|end| end.to_str()) {
            Some("fst") => Ok(Self::Fst),
            Some("vcd") => Ok(Self::Vcd),
            _ => Err(CosimError::Design(format!("{}: .fst or .vcd", path.display()))),
        }
    }
}

impl Simulator for Verilator {
    fn name(&self) -> &'static str {
        "verilator"
    }

    fn help(&self) -> &'static str {
        "Verilog and SystemVerilog, compiled; the fastest"
    }

    fn build(&self, job: &Job) -> Result<Program, CosimError> {
        let wave = Wave::of(job)?;
        let card = card(job)?;
        let design = job.folder.join("design");
        let version = tool().arg("--version").run()?;
        let root = tool().args(["--getenv", "VERILATOR_ROOT"]).run()?;
        let include = Path::new(root.trim()).join("include");
        // What an earlier call left there would be compiled too.
        let _ = fs::remove_dir_all(&design);
        verilate(job, wave, &design)?;
        let header = read(&design.join("Vcard.h"))?;
        let wires = wiring::write(&ports::ports(&header), &card)?;
        put(&job.folder, "wires.h", &wires)?;
        put(&job.folder, "card.h", &card.c_source(&job.top)?)?;
        put(&job.folder, "settings.h", &settings(job, &card, wave))?;
        put(&job.folder, "all.cpp", &one_file(&design)?)?;
        for (name, text) in HARNESS {
            put(&job.folder, name, text)?;
        }
        let flags = Flags::new(&include, wave == Wave::Fst, wave == Wave::Vcd);
        let names = runtime::needed(&read(&design.join("Vcard_classes.mk"))?);
        let model =
            compile(job, &flags, || runtime::objects(version.trim(), &include, &flags, &names))?;
        Ok(Program {
            words: vec![model.into()],
            settings: Vec::new(),
            made_from: made_from(job, &design),
        })
    }
}

fn tool() -> Tool {
    Tool::new("verilator", ADVICE)
}

fn card(job: &Job) -> Result<Card, CosimError> {
    let texts = job.sources.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let said = job.settings.iter().map(String::as_str);
    Ok(Card::new(said.chain(texts.iter().flat_map(|text| settings_in(text))))?)
}

fn verilate(job: &Job, wave: Wave, design: &Path) -> Result<(), CosimError> {
    let mut tool = tool().args(["--cc", "--prefix", "Vcard", "--top-module", &job.top]);
    tool = tool.arg("--Mdir").arg(design);
    // Mistakes are told as warnings, which are the author's to heed.
    tool = tool.args(["-O3", "-Wno-fatal", "--output-split", "0", "--x-assign", "fast"]);
    tool = tool.args(["--x-initial", "fast", "-MMD"]);
    tool = match wave {
        Wave::None => tool,
        Wave::Fst => tool.arg("--trace-fst"),
        Wave::Vcd => tool.arg("--trace"),
    };
    tool = tool.args(job.includes.iter().map(|folder| format!("-I{}", folder.display())));
    tool = tool.args(job.defines.iter().map(|define| format!("+define+{define}")));
    tool = tool.args(job.parameters.iter().map(|parameter| format!("-G{parameter}")));
    let said = tool.args(&job.options).args(&job.sources).run()?;
    // What begins with a dash are its own statistics.
    let warnings: Vec<&str> = said.lines().filter(|line| !line.starts_with("- ")).collect();
    if !warnings.is_empty() {
        tracing::warn!("verilator:\n{}", warnings.join("\n"));
    }
    Ok(())
}

/// A file that includes all of the design's.
fn one_file(design: &Path) -> Result<String, CosimError> {
    let entries = fs::read_dir(design).map_err(file("can't read", design))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut sources: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "cpp")).collect();
    sources.sort();
    let includes = sources.iter().map(|path| format!("#include \"{}\"\n", path.display()));
    Ok(includes.collect::<String>() + "#include \"harness.cpp\"\n")
}

/// The file `settings.h`.
pub fn settings(job: &Job, card: &Card, wave: Wave) -> String {
    let (clock, cycles) = match job.clock {
        Clock::Free => ("FREE", 0),
        Clock::Paced(cycles) => ("PACED", cycles),
        Clock::Locked(cycles) => ("LOCKED", cycles),
    };
    let (latency, stalls) = (card.latency, card.stalls);
    let path = job.wave.as_deref().unwrap_or(Path::new("")).display().to_string();
    let path = path.replace('\\', r"\\").replace('"', "\\\"");
    format!(
        "#pragma once\n#include <cstdint>\n\n#define WAVE_FST {}\n#define WAVE_VCD {}\n\
         #define WAVE_FILE \"{path}\"\n\nnamespace viaduct {{\n\n\
         enum Clock {{ FREE, PACED, LOCKED }};\n\
         constexpr Clock CLOCK = {clock};\nconstexpr uint64_t CYCLES = {cycles};\n\
         constexpr unsigned LATENCY = {latency}, STALLS = {stalls};\n\n}} // namespace viaduct\n",
        u8::from(wave == Wave::Fst),
        u8::from(wave == Wave::Vcd),
    )
}

/// Compiles and links; the program. The runtime is compiled meanwhile where it has to be.
fn compile(
    job: &Job,
    flags: &Flags,
    runtime: impl FnOnce() -> Result<Vec<PathBuf>, CosimError> + Send,
) -> Result<PathBuf, CosimError> {
    let folder = &job.folder;
    let object = folder.join("all.o");
    let (objects, compiled) = std::thread::scope(|scope| {
        let runtime = scope.spawn(runtime);
        let compiler = runtime::compiler().args(flags.words()).arg("-I").arg(folder);
        let compiler = compiler.arg("-I").arg(folder.join("design")).arg("-c").arg("-o");
        let compiled = compiler.arg(&object).arg(folder.join("all.cpp")).run();
        let objects = runtime.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (objects, compiled)
    });
    compiled?;
    // A model that runs keeps the file that it was started from.
    let (fresh, model) = (folder.join("model.new"), folder.join("model"));
    let linker = runtime::compiler().arg("-o").arg(&fresh).arg(&object).args(objects?);
    linker.args(Library::find()?.link_arguments()).args(["-lz", "-lpthread"]).run()?;
    fs::rename(&fresh, &model).map_err(file("can't rename", &fresh))?;
    Ok(model)
}

/// The files that Verilator has read, by the list of dependencies that it writes.
fn made_from(job: &Job, design: &Path) -> Vec<PathBuf> {
    let mut files = job.sources.clone();
    let list = fs::read_to_string(design.join("Vcard__ver.d")).unwrap_or_default();
    let (_, read) = list.split_once(':').unwrap_or_default();
    let others = read.split_whitespace().filter(|word| word.contains('.')).map(PathBuf::from);
    for path in others {
        if !files.contains(&path) && path.is_file() {
            files.push(path);
        }
    }
    files
}

fn read(path: &Path) -> Result<String, CosimError> {
    fs::read_to_string(path).map_err(file("can't read", path))
}

/// Writes a file into the build folder.
fn put(folder: &Path, name: &str, text: &str) -> Result<(), CosimError> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(file("can't write", &path))
}
