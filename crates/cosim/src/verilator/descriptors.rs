//! Host memory by descriptors and AXI4-Stream: `*read_desc_valid` and `*write_desc_valid` of a
//! design, with the streams and the status that belong to them.

use std::fmt::Write as _;

use super::ports::{Port, Way};
use super::wiring::{Part, Ports, accessor, part};
use crate::CosimError;

/// One engine that reads and one that writes, or one of them, or none.
pub fn engines(ports: &mut Ports<'_>) -> Result<Vec<Part>, CosimError> {
    let mut parts = Vec::new();
    for (verb, kind, way) in
        [("read", "DescriptorReads", Way::In), ("write", "DescriptorWrites", Way::Out)]
    {
        if ports.prefixes(&format!("{verb}_desc_valid"), Way::Out).is_empty() {
            continue;
        }
        let wires = engine(ports, verb, way)?;
        parts.push(part(kind, "descriptors.h", wires, ", dev, pace"));
    }
    Ok(parts)
}

/// The accessors of an engine; `way` is that of its data.
fn engine(ports: &mut Ports<'_>, verb: &str, way: Way) -> Result<String, CosimError> {
    let mut wires = String::new();
    let back = if way == Way::In { Way::Out } else { Way::In };
    // Name of the accessor, end of the port's name, way, what it is without a port.
    let signals = [
        ("desc_addr", "desc_addr", Way::Out, ""),
        ("desc_len", "desc_len", Way::Out, ""),
        ("desc_valid", "desc_valid", Way::Out, ""),
        ("desc_ready", "desc_ready", Way::In, ""),
        ("desc_tag", "desc_tag", Way::Out, "0"),
        ("status_valid", "desc_status_valid", Way::In, "Nothing"),
        ("status_tag", "desc_status_tag", Way::In, "Nothing"),
        ("status_error", "desc_status_error", Way::In, "Nothing"),
        ("tvalid", "data_tvalid", way, ""),
        ("tready", "data_tready", back, ""),
        ("tkeep", "data_tkeep", way, if way == Way::In { "Nothing" } else { "~0ull" }),
        ("tlast", "data_tlast", way, if way == Way::In { "Nothing" } else { "0" }),
    ];
    for (name, end, way, otherwise) in signals {
        let port = by_end(ports, verb, end, way);
        if port.is_none() && otherwise.is_empty() {
            return Err(missing(verb, end));
        }
        let none = match otherwise {
            "Nothing" => format!("Nothing {name}() {{ return {{}}; }}"),
            value => format!("uint64_t {name}() {{ return {value}; }}"),
        };
        accessor(&mut wires, name, port, &none);
    }
    let data = by_end(ports, verb, "data_tdata", way).ok_or_else(|| missing(verb, "data_tdata"))?;
    accessor(&mut wires, "tdata", Some(data), "");
    if !data.bits.is_power_of_two() || !(8..=512).contains(&data.bits) {
        let why = format!("{} is {} bits wide: 8, 16, ... 512", data.name, data.bits);
        return Err(CosimError::Design(why));
    }
    // Writing to a string does not fail.
    let _ = writeln!(wires, "    static constexpr unsigned DATA_BITS = {};", data.bits);
    Ok(wires)
}

/// The port whose name ends so, with anything before it.
fn by_end<'p>(ports: &mut Ports<'p>, verb: &str, end: &str, way: Way) -> Option<&'p Port> {
    let end = format!("{verb}_{end}");
    let before = ports.prefixes(&end, way).into_iter().next()?;
    ports.take(&format!("{before}{end}"), way)
}

fn missing(verb: &str, end: &str) -> CosimError {
    CosimError::Design(format!("descriptors: there is no *{verb}_{end}"))
}
