//! A design with ports in GHDL itself: the golden model of what synthesis makes of it.

use std::fmt::Write as _;

use super::{Build, write};
use crate::card::{Card, settings_in};
use crate::foreign::{self, Kind, is_clock};
use crate::verilator::ports::{Port, Way};
use crate::{CosimError, Program};

const LIBRARY: &str = "viaduct-ghdl.so";
const BENCH: &str = include_str!("../../../../hdl/foreign/bench.vhd");

/// A port as VHDL has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    pub way: Way,
    /// As `std_logic_vector`, in small letters, without its range.
    pub kind: String,
}

/// The simulation of a top with these ports.
pub fn program(build: &Build<'_>, declared: &[Declared]) -> Result<Program, CosimError> {
    let job = build.job;
    build.run("-a", |tool| tool.args(&job.sources))?;
    let widths = widths(build)?;
    let mut ports = Vec::new();
    for Declared { name, way, .. } in declared {
        let width = widths.iter().find(|(found, _)| found == name);
        let bits = width.map(|(_, bits)| *bits).ok_or_else(|| {
            CosimError::Design(format!("{name} has a type that ports of a card can't have"))
        })?;
        ports.push(Port { name: name.clone(), way: *way, bits });
    }
    let texts = build.texts()?;
    let said = job.settings.iter().map(String::as_str);
    let card = Card::new(said.chain(texts.iter().flat_map(|text| settings_in(text))))?;
    let kind = Kind { header: "ghdl.h", flags: Vec::new() };
    let library = foreign::library(job, &card, &ports, &kind, LIBRARY)?;
    write(&job.folder, "bench.vhd", &bench(build, declared, &ports))?;
    build.run("-a", |tool| tool.arg("bench.vhd"))?;
    build.finish("viaduct_bench", &library, &["--ieee-asserts=disable-at-0"])
}

/// The widths of the top's signals, by the header of a waveform: there generics are resolved.
fn widths(build: &Build<'_>) -> Result<Vec<(String, u32)>, CosimError> {
    let top = &build.job.top;
    let generics = build.job.parameters.iter().map(|said| format!("-g{said}"));
    let header = if build.is_compiler {
        let probe = build.job.folder.join("probe");
        build.run("-e", |tool| tool.arg("-o").arg(&probe).arg(top))?;
        let tool = crate::Tool::at(&probe);
        tool.args(generics).args(["--vcd=-", "--stop-time=0ns"]).output()?
    } else {
        let tool = build.tool("-r").arg(top).args(generics);
        tool.args(["--vcd=-", "--stop-time=0ns"]).output()?
    };
    Ok(widths_in(&header, top))
}

fn widths_in(header: &str, top: &str) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut scopes: Vec<String> = Vec::new();
    for line in header.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["$scope", _, name, ..] => scopes.push(name.to_owned()),
            ["$upscope", ..] => drop(scopes.pop()),
            ["$var", _, bits, _, name, ..] if scopes.last().is_some_and(|s| s == top) => {
                let name = name.split('[').next().unwrap_or(name).to_ascii_lowercase();
                found.extend(bits.parse().ok().map(|bits| (name, bits)));
            }
            ["$enddefinitions", ..] => break,
            _ => {}
        }
    }
    found
}

/// The entity that connects the top to the harness.
fn bench(build: &Build<'_>, declared: &[Declared], ports: &[Port]) -> String {
    let (mut inputs, mut outputs) = (0, 0);
    let mut map = Vec::new();
    for (declared, port) in declared.iter().zip(ports) {
        let Declared { name, kind, .. } = declared;
        if is_clock(port) {
            map.push(format!("{name} => clock"));
            continue;
        }
        let (vector, from) = match port.way {
            Way::In => ("inputs", &mut inputs),
            Way::Out => ("outputs", &mut outputs),
        };
        let (first, last) = (*from, *from + port.bits - 1);
        *from += port.bits;
        let slice = if kind.ends_with("vector") || kind.ends_with("signed") {
            format!("{vector}({first} to {last})")
        } else {
            format!("{vector}({first})")
        };
        map.push(match (kind.as_str(), port.way) {
            ("unsigned" | "signed", Way::In) => format!("{name} => {kind}({slice})"),
            ("unsigned" | "signed", Way::Out) => format!("std_logic_vector({name}) => {slice}"),
            _ => format!("{name} => {slice}"),
        });
    }
    let mut generics = String::new();
    if !build.job.parameters.is_empty() {
        let all = build.job.parameters.iter().map(|said| said.replacen('=', " => ", 1));
        // Writing to a string does not fail.
        let _ = write!(generics, "generic map ({})", all.collect::<Vec<_>>().join(", "));
    }
    BENCH
        .replace("@LIBRARY@", &build.place(LIBRARY))
        .replace("@FINISH@", build.ending())
        .replace("@INPUTS@", &(inputs.max(1) - 1).to_string())
        .replace("@OUTPUTS@", &(outputs.max(1) - 1).to_string())
        .replace("@TOP@", &build.job.top)
        .replace("@GENERICS@", &generics)
        .replace("@PORTS@", &map.join(",\n        "))
}

/// The ports of entity `top`, by its text; none if it has none or is not there.
pub fn declared(texts: &[String], top: &str) -> Vec<Declared> {
    let top = top.to_ascii_lowercase();
    texts.iter().find_map(|text| declared_in(text, &top)).unwrap_or_default()
}

fn declared_in(text: &str, top: &str) -> Option<Vec<Declared>> {
    let lines = text.lines().map(|line| line.split("--").next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words = words.split_once(&format!("entity {top} is"))?.1.to_owned();
    words.truncate(words.find(" end ").unwrap_or(words.len()));
    let clause = words.split_once("port (").or_else(|| words.split_once("port("))?.1;
    let mut depth = 1;
    let end = clause.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    })?;
    let mut ports = Vec::new();
    for declaration in clause[..end].split(';') {
        let Some((names, what)) = declaration.split_once(':') else { continue };
        let mut words = what.trim().splitn(2, ' ');
        let (way, rest) = match (words.next()?, words.next()) {
            ("in", Some(rest)) => (Way::In, rest),
            ("out" | "buffer", Some(rest)) => (Way::Out, rest),
            _ => (Way::In, what.trim()),
        };
        let kind = rest.split(['(', ' ', ':']).next()?.to_owned();
        for name in names.trim().trim_start_matches("signal ").split(',') {
            ports.push(Declared { name: name.trim().to_owned(), way, kind: kind.clone() });
        }
    }
    Some(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_tells_its_ports() {
        let text = "-- entity a is\nENTITY A is generic (N : natural := 3);\n port (clk, R : in \
                    std_logic; -- the clock\n q : out unsigned((N * 8) - 1 downto 0);\n\
                    d: in std_logic_vector(7 downto 0) := (others => '0'));\nend entity;";
        let port = |name: &str, way, kind: &str| Declared {
            name: name.to_owned(),
            way,
            kind: kind.to_owned(),
        };
        let expected = [
            port("clk", Way::In, "std_logic"),
            port("r", Way::In, "std_logic"),
            port("q", Way::Out, "unsigned"),
            port("d", Way::In, "std_logic_vector"),
        ];
        assert_eq!(declared(&[text.to_owned()], "a"), expected);
        assert_eq!(declared(&["entity a is\nend entity a;".to_owned()], "a"), []);
    }

    #[test]
    fn a_waveform_tells_widths() {
        let header = "$scope module standard $end\n$upscope $end\n$scope module a $end\n\
                      $var reg 1 ! clk $end\n$var reg 24 \" q[23:0] $end\n\
                      $scope module inner $end\n$var reg 2 # r[1:0] $end\n\
                      $upscope $end\n$enddefinitions $end\n";
        assert_eq!(widths_in(header, "a"), [("clk".to_owned(), 1), ("q".to_owned(), 24)]);
    }
}
