//! A design with ports in a simulator that is no C++: the same wiring and the same harness as with
//! Verilator, as a shared library in the simulator's process.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::file;
use crate::verilator::ports::{Port, Way};
use crate::verilator::{HARNESS, settings, wiring};
use crate::{Card, Clock, CosimError, Job, Library, Tool};

const ADVICE: &str = "apt install g++";

const SHIM: &[(&str, &str)] = &[
    ("verilated.h", include_str!("../../../hdl/foreign/verilated.h")),
    ("foreign.h", include_str!("../../../hdl/foreign/foreign.h")),
    ("foreign.cpp", include_str!("../../../hdl/foreign/foreign.cpp")),
    ("ghdl.h", include_str!("../../../hdl/foreign/ghdl.h")),
    ("vpi.h", include_str!("../../../hdl/foreign/vpi.h")),
];

/// Which simulator the library is for: the header that speaks with it, and words for the compiler.
pub struct Kind {
    pub header: &'static str,
    pub flags: Vec<String>,
}

/// Builds the shared library `name` in the job's folder.
pub fn library(
    job: &Job,
    card: &Card,
    ports: &[Port],
    kind: &Kind,
    name: &str,
) -> Result<PathBuf, CosimError> {
    if job.clock != Clock::Free && matches!(job.clock, Clock::Paced(_)) {
        tracing::warn!("a paced clock is kept only if the simulator is quick enough");
    }
    // Apart from what Verilator's way leaves, which has files of the same names.
    let folder = &job.folder.join("foreign");
    fs::create_dir_all(folder).map_err(file("can't make the folder", folder))?;
    for (name, text) in HARNESS.iter().chain(SHIM) {
        put(folder, name, text)?;
    }
    put(folder, "wires.h", &wiring::write(ports, card)?)?;
    put(folder, "card.h", &card.c_source(&job.top)?)?;
    // Waveforms are the simulator's own.
    let quiet = Job { wave: None, ..job.clone() };
    put(folder, "settings.h", &settings(&quiet, card, crate::verilator::Wave::None))?;
    put(folder, "Vcard.h", &class(ports))?;
    put(folder, "Vcard___024root.h", "#include \"Vcard.h\"\n")?;
    put(folder, "Vcard__Syms.h", "#include \"Vcard.h\"\n")?;
    let simulator = format!("#define TOP \"{}\"\n#include \"{}\"\n", job.top, kind.header);
    put(folder, "simulator.h", &simulator)?;
    let (fresh, library) = (folder.join(name), job.folder.join(name));
    let compiler = Tool::new("g++", ADVICE).within(folder);
    let compiler = compiler.args(["-std=gnu++17", "-O2", "-w", "-fPIC", "-shared", "-I.", "-o"]);
    let compiler = compiler.arg(&fresh).arg("foreign.cpp").args(&kind.flags);
    compiler.args(Library::find()?.link_arguments()).run()?;
    fs::rename(&fresh, &library).map_err(file("can't rename", &fresh))?;
    Ok(library)
}

/// Whether a port is a clock, by the rule of the wiring.
pub fn is_clock(port: &Port) -> bool {
    let name = port.name.to_ascii_lowercase();
    let name = name.strip_suffix("_in").or(name.strip_suffix("_i")).unwrap_or(&name);
    port.way == Way::In && port.bits == 1 && (name.ends_with("clk") || name.ends_with("clock"))
}

/// The class `Vcard` as the harness knows it from Verilator.
fn class(ports: &[Port]) -> String {
    let mut members = String::new();
    let mut table = String::new();
    for port in ports {
        let kind = match port.bits {
            0..=8 => "CData".to_owned(),
            9..=16 => "SData".to_owned(),
            17..=32 => "IData".to_owned(),
            33..=64 => "QData".to_owned(),
            bits => format!("VlWide<{}>", bits.div_ceil(32)),
        };
        let Port { name, bits, way } = port;
        // Writing to a string does not fail.
        let _ = writeln!(members, "    {kind} {name};");
        let (is_input, is_clock) = (*way == Way::In, is_clock(port));
        let _ = writeln!(
            table,
            "    {{\"{name}\", offsetof(Vcard__Syms, {name}), {bits}, {is_input}, {is_clock}}},"
        );
    }
    format!(
        "#pragma once\n#include \"foreign.h\"\n#include \"verilated.h\"\n\n\
         struct Vcard__Syms {{\n{members}    uint32_t unsettled;\n}};\n\n\
         struct Vcard___024root {{\n    Vcard__Syms *vlSymsp;\n}};\n\n\
         struct Vcard : Vcard__Syms {{\n    Vcard___024root root{{this}}, *rootp = &root;\n    \
         viaduct::Quiet quiet;\n\n    explicit Vcard(VerilatedContext *) : Vcard__Syms()\n    \
         {{\n        attach();\n    }}\n    void attach();\n    void eval()\n    {{\n        \
         viaduct::yield();\n        unsettled = 0;\n        \
         unsettled = quiet.look(static_cast<Vcard__Syms &>(*this));\n    }}\n    \
         void final() {{}}\n}};\n\n\
         static const viaduct::Port PORTS[] = {{\n{table}}};\n"
    )
}

fn put(folder: &Path, name: &str, text: &str) -> Result<(), CosimError> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(file("can't write", &path))
}
