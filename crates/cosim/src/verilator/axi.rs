//! AXI4 and AXI4-Lite by the names of ports: `PREFIXawvalid` and the rest, in any case.
//!
//! An input `awvalid` makes it a slave, which takes the accesses of a BAR; an output a master,
//! which reaches host memory. What the design has no port for is what the standard says it then is.

use std::fmt::Write as _;

use super::ports::{Port, Way};
use super::wiring::{Part, Ports, accessor, part};
use crate::{Card, CosimError};

/// What the simulation drives at a slave; without these a bus is none.
const SLAVE_IN: &[&str] =
    &["awvalid", "awaddr", "wvalid", "wdata", "bready", "arvalid", "araddr", "rready"];
const SLAVE_IN_MAYBE: &[&str] =
    &["wstrb", "wlast", "awlen", "awsize", "awburst", "arlen", "arsize", "arburst"];
/// Tied to 0 by Verilator, and so spoken for.
const TIED: &[&str] = &[
    "awid", "arid", "awprot", "arprot", "awcache", "arcache", "awlock", "arlock", "awqos", "arqos",
    "awregion", "arregion", "awuser", "aruser", "wuser", "buser", "ruser",
];
const SLAVE_OUT: &[&str] = &["awready", "wready", "bvalid", "arready", "rvalid", "rdata"];
const SLAVE_OUT_MAYBE: &[&str] = &["bresp", "rresp"];

/// The slaves.
pub fn slaves(ports: &mut Ports<'_>, card: &Card) -> Result<Vec<Part>, CosimError> {
    let mut bars: Vec<usize> = (0..6).filter(|bar| card.bars[*bar].is_some()).collect();
    let mut prefixes = ports.prefixes("awvalid", Way::In);
    // Those that name their BAR come first, the others share what is left.
    prefixes.sort_by_key(|prefix| (bar_in(prefix).is_none(), prefix.clone()));
    let mut parts = Vec::new();
    for prefix in prefixes {
        let place = match bar_in(&prefix) {
            Some(named) => bars.iter().position(|bar| *bar == named),
            None => (!bars.is_empty()).then_some(0),
        };
        let place = place.ok_or_else(|| {
            CosimError::Design(format!("no BAR is left for {prefix}*: say barN=SIZE"))
        })?;
        let mut wires = String::new();
        for name in SLAVE_IN {
            let port = needed(ports, &prefix, name, Way::In)?;
            accessor(&mut wires, name, Some(port), "");
        }
        for name in SLAVE_IN_MAYBE {
            let port = ports.take(&format!("{prefix}{name}"), Way::In);
            accessor(&mut wires, name, port, &format!("Nothing {name}() {{ return {{}}; }}"));
        }
        let mut bits = 0;
        for name in SLAVE_OUT {
            let port = needed(ports, &prefix, name, Way::Out)?;
            bits = if *name == "rdata" { port.bits } else { bits };
            accessor(&mut wires, name, Some(port), "");
        }
        for name in SLAVE_OUT_MAYBE {
            let port = ports.take(&format!("{prefix}{name}"), Way::Out);
            accessor(&mut wires, name, port, &format!("unsigned {name}() {{ return 0; }}"));
        }
        tie(ports, &prefix);
        width(&mut wires, &prefix, bits, 32..=512)?;
        let bar = bars.remove(place);
        parts.push(Part { bars: vec![bar], ..part("AxiLite", "axi_lite.h", wires, "") });
    }
    Ok(parts)
}

/// `s_bar2_axi_` names BAR 2.
fn bar_in(prefix: &str) -> Option<usize> {
    let (_, rest) = prefix.split_once("bar")?;
    rest.chars().next()?.to_digit(6).map(|digit| digit as usize)
}

/// The masters. One may have one direction only.
pub fn masters(ports: &mut Ports<'_>) -> Result<Vec<Part>, CosimError> {
    let mut prefixes = ports.prefixes("arvalid", Way::Out);
    prefixes.extend(ports.prefixes("awvalid", Way::Out));
    prefixes.sort();
    prefixes.dedup();
    prefixes.into_iter().map(|prefix| master(ports, &prefix)).collect()
}

fn master(ports: &mut Ports<'_>, prefix: &str) -> Result<Part, CosimError> {
    let mut wires = String::new();
    let mut bits = None;
    let reads = ports.prefixes("arvalid", Way::Out).contains(&prefix.to_owned());
    let writes = ports.prefixes("awvalid", Way::Out).contains(&prefix.to_owned());
    let rdata = if reads { Some(needed(ports, prefix, "rdata", Way::In)?) } else { None };
    let wdata = if writes { Some(needed(ports, prefix, "wdata", Way::Out)?) } else { None };
    for port in [rdata, wdata].into_iter().flatten() {
        if bits.replace(port.bits).is_some_and(|other| other != port.bits) {
            let why = format!("{prefix}rdata and {prefix}wdata have different widths");
            return Err(CosimError::Design(why));
        }
    }
    let bits = bits.unwrap_or(0);
    let size = (bits / 8).checked_ilog2().unwrap_or(0);
    for (name, port) in [("rdata", rdata), ("wdata", wdata)] {
        let words = bits.div_ceil(32).max(1);
        let none =
            format!("VlWide<{words}> &{name}() {{ static VlWide<{words}> none; return none; }}");
        accessor(&mut wires, name, port, &none);
    }
    let channels = [(reads, MASTER_READS), (writes, MASTER_WRITES)];
    for (is_there, signals) in channels {
        for (name, way, otherwise) in signals {
            let port = ports.take(&format!("{prefix}{name}"), *way);
            if is_there && port.is_none() && *otherwise == "needed" {
                return Err(missing(prefix, name));
            }
            let value = match *otherwise {
                "size" => size.to_string(),
                "needed" => "0".to_owned(),
                value => value.to_owned(),
            };
            let none = match way {
                Way::Out => format!("uint64_t {name}() {{ return {value}; }}"),
                Way::In => format!("Nothing {name}() {{ return {{}}; }}"),
            };
            accessor(&mut wires, name, port, &none);
        }
    }
    tie(ports, prefix);
    width(&mut wires, prefix, bits, 32..=512)?;
    Ok(part("AxiMemory", "axi_memory.h", wires, ", dev, pace"))
}

/// Signal, way, and what it is without a port.
type Signal = (&'static str, Way, &'static str);

const MASTER_READS: &[Signal] = &[
    ("arvalid", Way::Out, "needed"),
    ("araddr", Way::Out, "needed"),
    ("arid", Way::Out, "0"),
    ("arlen", Way::Out, "0"),
    ("arsize", Way::Out, "size"),
    ("arburst", Way::Out, "1"),
    ("rready", Way::Out, "needed"),
    ("arready", Way::In, "needed"),
    ("rvalid", Way::In, "needed"),
    ("rid", Way::In, ""),
    ("rresp", Way::In, ""),
    ("rlast", Way::In, ""),
];

const MASTER_WRITES: &[Signal] = &[
    ("awvalid", Way::Out, "needed"),
    ("awaddr", Way::Out, "needed"),
    ("awid", Way::Out, "0"),
    ("awlen", Way::Out, "0"),
    ("awsize", Way::Out, "size"),
    ("awburst", Way::Out, "1"),
    ("wvalid", Way::Out, "needed"),
    ("wstrb", Way::Out, "~0ull"),
    ("wlast", Way::Out, "1"),
    ("bready", Way::Out, "needed"),
    ("awready", Way::In, "needed"),
    ("wready", Way::In, "needed"),
    ("bvalid", Way::In, "needed"),
    ("bid", Way::In, ""),
    ("bresp", Way::In, ""),
];

fn needed<'p>(
    ports: &mut Ports<'p>,
    prefix: &str,
    name: &str,
    way: Way,
) -> Result<&'p Port, CosimError> {
    ports.take(&format!("{prefix}{name}"), way).ok_or_else(|| missing(prefix, name))
}

fn missing(prefix: &str, name: &str) -> CosimError {
    CosimError::Design(format!("the bus {prefix}* has no {prefix}{name}"))
}

fn tie(ports: &mut Ports<'_>, prefix: &str) {
    for name in TIED {
        for way in [Way::In, Way::Out] {
            ports.take(&format!("{prefix}{name}"), way);
        }
    }
}

fn width(
    wires: &mut String,
    prefix: &str,
    bits: u32,
    allowed: std::ops::RangeInclusive<u32>,
) -> Result<(), CosimError> {
    if !bits.is_power_of_two() || !allowed.contains(&bits) {
        let why = format!("the bus {prefix}* is {bits} bits wide: 32, 64, 128, 256 or 512");
        return Err(CosimError::Design(why));
    }
    let _ = writeln!(wires, "    static constexpr unsigned DATA_BITS = {bits};");
    let _ = writeln!(wires, "    static constexpr const char *NAME = \"{prefix}\";");
    Ok(())
}
