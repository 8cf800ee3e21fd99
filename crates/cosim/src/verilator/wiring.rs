//! Finds out what the ports of a design are for, by their names, and writes the C++ that connects
//! them: a struct of accessors for each bus, and one struct of all the parts.

use std::fmt::Write as _;

use super::axi;
use super::descriptors;
use super::pcie;
use super::ports::{Port, Way};
use super::streams;
use crate::{Card, CosimError};

/// What stands between ports of the design and the rest of the simulation.
pub struct Part {
    /// The C++ template, as `AxiLite`.
    pub kind: &'static str,
    /// The header it is in.
    pub header: &'static str,
    /// The members of its struct of accessors.
    pub wires: String,
    /// What its constructor gets beside the wires.
    pub arguments: &'static str,
    /// The BARs whose accesses it takes.
    pub bars: Vec<usize>,
}

/// The ports, and which of them are spoken for.
pub struct Ports<'p> {
    all: &'p [Port],
    taken: Vec<bool>,
}

impl<'p> Ports<'p> {
    pub fn new(all: &'p [Port]) -> Self {
        Self { all, taken: vec![false; all.len()] }
    }

    /// The port of that name, in any case, which is then spoken for.
    pub fn take(&mut self, name: &str, way: Way) -> Option<&'p Port> {
        let is_it = |port: &Port| port.way == way && port.name.eq_ignore_ascii_case(name);
        let index = self.all.iter().position(is_it)?;
        self.taken[index] = true;
        Some(&self.all[index])
    }

    /// What stands before `end` in names of ports that go that way.
    pub fn prefixes(&self, end: &str, way: Way) -> Vec<String> {
        let free = self.all.iter().zip(&self.taken).filter(|(_, taken)| !**taken);
        let names = free.filter(|(port, _)| port.way == way).map(|(port, _)| &port.name);
        names
            .filter_map(|name| name.to_ascii_lowercase().strip_suffix(end).map(str::to_owned))
            .collect()
    }

    /// Takes all inputs of one bit that are called like one of `names`, with anything before it.
    fn take_inputs(&mut self, names: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for (port, taken) in self.all.iter().zip(&mut self.taken) {
            let name = port.name.to_ascii_lowercase();
            let name = name.strip_suffix("_in").or(name.strip_suffix("_i")).unwrap_or(&name);
            let fits = names.iter().any(|end| name.ends_with(end));
            if !*taken && fits && port.bits == 1 && port.way == Way::In {
                *taken = true;
                found.push(port.name.clone());
            }
        }
        found
    }

    fn free(&self, way: Way) -> impl Iterator<Item = &'p Port> {
        let free = self.all.iter().zip(&self.taken).filter(|(_, taken)| !**taken);
        free.map(|(port, _)| port).filter(move |port| port.way == way)
    }
}

/// An accessor of a port, or of what stands for one that is not there.
pub fn accessor(wires: &mut String, name: &str, port: Option<&Port>, otherwise: &str) {
    let _ = match port {
        Some(port) => writeln!(wires, "    auto &{name}() {{ return m.{}; }}", port.name),
        None => writeln!(wires, "    {otherwise}"),
    };
}

/// The file `wires.h`.
pub fn write(all: &[Port], card: &Card) -> Result<String, CosimError> {
    let mut ports = Ports::new(all);
    let low = ports.take_inputs(&["rst_n", "rstn", "resetn", "reset_n", "nrst", "nreset"]);
    let high = ports.take_inputs(&["rst", "reset"]);
    let clocks = ports.take_inputs(&["clk", "clock"]);
    if clocks.is_empty() {
        return Err(CosimError::Design(format!("no clock: {}", listed(all))));
    }
    let mut parts = match card.virtio {
        Some(_) => vec![streams::virtio(&mut ports)?],
        None => axi::slaves(&mut ports, card)?,
    };
    parts.extend(pcie::xilinx(&mut ports, card)?);
    parts.extend(pcie::packets(&mut ports, card)?);
    parts.extend(axi::masters(&mut ports)?);
    parts.extend(descriptors::engines(&mut ports)?);
    if parts.is_empty() {
        let why = "no bus that is known: ports such as s_axil_awvalid or m_axi_arvalid";
        return Err(CosimError::Design(format!("{why}; {}", listed(all))));
    }
    parts.extend(interrupts(&mut ports));
    parts.extend(pcie::signals(&mut ports));
    for port in ports.free(Way::In) {
        tracing::warn!("input {} is connected to nothing: it is 0", port.name);
    }
    for port in ports.free(Way::Out) {
        tracing::debug!("output {} is connected to nothing", port.name);
    }
    Ok(render(&parts, &clocks, &high, &low))
}

fn listed(all: &[Port]) -> String {
    let names: Vec<&str> = all.iter().map(|port| port.name.as_str()).collect();
    format!("the ports are {}", names.join(", "))
}

/// Names under which interrupts are known.
const INTERRUPTS: &[&str] =
    &["irq", "interrupt", "intr", "msix", "msi", "usr_irq", "intx_msi", "cfg_interrupt_msi"];

fn interrupts(ports: &mut Ports<'_>) -> Vec<Part> {
    let mut parts = Vec::new();
    for base in INTERRUPTS {
        let mut any = |ends: &[&str], way| {
            ends.iter().find_map(|end| ports.take(&format!("{base}{end}"), way))
        };
        let mut wires = String::new();
        if let Some(level) = any(&["", "_o", "_out"], Way::Out) {
            accessor(&mut wires, "irq", Some(level), "");
            parts.push(part("InterruptLevels", "interrupts.h", wires, ", dev, link"));
        } else if let Some(request) = any(&["_req", "_request", "_valid", "_int"], Way::Out) {
            let ack = any(&["_ack", "_grant", "_ready", "_sent"], Way::In);
            let vector = any(&["_vector", "_num", "_number", "_data"], Way::Out);
            accessor(&mut wires, "request", Some(request), "");
            accessor(&mut wires, "ack", ack, "Nothing ack() { return {}; }");
            accessor(&mut wires, "vector", vector, "unsigned vector() { return 0; }");
            for (name, is_there) in [("HAS_ACK", ack), ("HAS_VECTOR", vector)] {
                let is_there = is_there.is_some();
                let _ = writeln!(wires, "    static constexpr bool {name} = {is_there};");
            }
            parts.push(part("InterruptRequests", "interrupts.h", wires, ", dev, link"));
        }
    }
    parts
}

/// A part that takes no accesses.
pub fn part(
    kind: &'static str,
    header: &'static str,
    wires: String,
    arguments: &'static str,
) -> Part {
    Part { kind, header, wires, arguments, bars: Vec::new() }
}

fn render(parts: &[Part], clocks: &[String], high: &[String], low: &[String]) -> String {
    let mut text = String::from(
        "// How the ports of the design are wired.\n#pragma once\n#include \"Vcard.h\"\n\
         #include \"access.h\"\n#include \"bits.h\"\n#include \"link.h\"\n\
         #include \"pace.h\"\n",
    );
    let mut headers: Vec<&str> = parts.iter().map(|part| part.header).collect();
    headers.dedup();
    // Writing to a string does not fail, here and below.
    for header in headers {
        let _ = writeln!(text, "#include \"{header}\"");
    }
    text += "\nnamespace viaduct {\n\n";
    for (n, part) in parts.iter().enumerate() {
        let _ = writeln!(text, "struct Wires{n} {{\n    Vcard &m;\n{}}};\n", part.wires);
    }
    text += "struct Wiring {\n    Vcard &m;\n";
    for (n, part) in parts.iter().enumerate() {
        let _ = writeln!(text, "    {}<Wires{n}> part{n};", part.kind);
    }
    text += "\n    Wiring(Vcard &m, viaduct_device *dev, Pace &pace, Link &link)\n        : m(m)";
    for (n, part) in parts.iter().enumerate() {
        let _ = write!(text, ", part{n}(Wires{n}{{m}}{})", part.arguments);
    }
    text += "\n    {\n        (void)dev, (void)pace, (void)link;\n    }\n\n";
    text += &accesses(parts);
    let each = |call: &str| -> String {
        (0..parts.len()).map(|n| format!("        part{n}.{call}();\n")).collect()
    };
    for call in ["drive", "sample", "clear"] {
        let _ = writeln!(text, "    void {call}()\n    {{\n{}    }}\n", each(call));
    }
    let busy = (0..parts.len()).map(|n| format!("part{n}.is_busy()")).collect::<Vec<_>>();
    let _ = writeln!(text, "    bool is_busy() const {{ return {}; }}\n", busy.join(" || "));
    let set = |names: &[String], value: &str| -> String {
        names.iter().map(|name| format!("        m.{name} = {value};\n")).collect()
    };
    let _ = writeln!(text, "    void set_clock(bool up)\n    {{\n{}    }}\n", set(clocks, "up"));
    let resets = set(high, "on") + &set(low, "!on");
    let _ =
        writeln!(text, "    void set_reset(bool on)\n    {{\n        (void)on;\n{resets}    }}");
    text + "};\n\n} // namespace viaduct\n"
}

/// The members that give accesses to the parts.
fn accesses(parts: &[Part]) -> String {
    let mut text = String::from(
        "    // Whether some part has taken it.\n    bool push(Access &&access)\n    {\n        \
         switch (access.bar) {\n",
    );
    let takers = || parts.iter().enumerate().filter(|(_, part)| !part.bars.is_empty());
    let each = || takers().flat_map(|(n, part)| part.bars.iter().map(move |bar| (n, bar)));
    for (n, bar) in each() {
        let _ = writeln!(text, "        case {bar}: part{n}.push(std::move(access)); return true;");
    }
    text += "        default: return false;\n        }\n    }\n\n";
    let busy: Vec<String> = takers().map(|(n, _)| format!("part{n}.has_accesses()")).collect();
    let busy = if busy.is_empty() { "false".to_owned() } else { busy.join(" || ") };
    let _ = writeln!(text, "    bool has_accesses() const {{ return {busy}; }}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ports, as `>clk:1 <irq:1`.
    fn ports(text: &str) -> Vec<Port> {
        let port = |word: &str| {
            let way = if word.starts_with('>') { Way::In } else { Way::Out };
            let (name, bits) = word[1..].split_once(':').unwrap();
            Port { name: name.to_owned(), way, bits: bits.parse().unwrap() }
        };
        text.split_whitespace().map(port).collect()
    }

    const SLAVE: &str = ">clk:1 >rst_n:1 >S_AXI_AWVALID:1 >S_AXI_AWADDR:12 >S_AXI_WVALID:1 \
                         >S_AXI_WDATA:32 >S_AXI_BREADY:1 >S_AXI_ARVALID:1 >S_AXI_ARADDR:12 \
                         >S_AXI_RREADY:1 <S_AXI_AWREADY:1 <S_AXI_WREADY:1 <S_AXI_BVALID:1 \
                         <S_AXI_ARREADY:1 <S_AXI_RVALID:1 <S_AXI_RDATA:32";

    #[test]
    fn a_slave_in_capitals_takes_a_bar() {
        let text = write(&ports(SLAVE), &Card::new(["bar2=4K"]).unwrap()).unwrap();
        assert!(text.contains("AxiLite<Wires0> part0;"), "{text}");
        assert!(text.contains("case 2: part0.push"), "{text}");
        assert!(text.contains("auto &awvalid() { return m.S_AXI_AWVALID; }"), "{text}");
        assert!(text.contains("Nothing wstrb()"), "{text}");
        assert!(text.contains("m.rst_n = !on;"), "{text}");
    }

    #[test]
    fn what_is_missing_is_told_by_name() {
        let fault = |text: &str| {
            let error = write(&ports(text), &Card::new(["bar0=4K"]).unwrap()).err();
            error.map(|error| error.to_string()).unwrap_or_default()
        };
        let without = SLAVE.replace("<S_AXI_RDATA:32", "");
        assert_eq!(fault(&without), "the bus s_axi_* has no s_axi_rdata");
        assert_eq!(
            fault(">clk:1 <led:8").split(';').next(),
            Some("no bus that is known: ports such as s_axil_awvalid or m_axi_arvalid")
        );
    }

    #[test]
    fn a_master_may_only_read_and_has_a_width_that_is_known() {
        let master = "<m_arvalid:1 <m_araddr:64 <m_rready:1 >m_arready:1 >m_rvalid:1 >m_rdata:48";
        let card = Card::new(["bar0=4K"]).unwrap();
        let error = write(&ports(&format!("{SLAVE} {master}")), &card).unwrap_err().to_string();
        assert_eq!(error, "the bus m_* is 48 bits wide: 32, 64, 128, 256 or 512");
        let master = master.replace("48", "128");
        let text = write(&ports(&format!("{SLAVE} {master} <irq:1")), &card).unwrap();
        assert!(text.contains("AxiMemory<Wires1> part1;"), "{text}");
        assert!(text.contains("uint64_t awvalid() { return 0; }"), "{text}");
        assert!(text.contains("uint64_t arsize() { return 4; }"), "{text}");
        assert!(text.contains("InterruptLevels<Wires2> part2;"), "{text}");
    }

    #[test]
    fn a_virtio_data_path_is_a_stream() {
        let card = Card::new(["virtio=rng"]).unwrap();
        let all = ">clk:1 <m_axis_tvalid:1 <m_axis_tdata:64 >m_axis_tready:1";
        let text = write(&ports(all), &card).unwrap();
        assert!(text.contains("Virtio<Wires0> part0;"), "{text}");
        assert!(text.contains("HAS_M = true") && text.contains("HAS_S = false"), "{text}");
    }
}
