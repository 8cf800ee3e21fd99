//! AXI4-Stream by the names of ports, for the data path of a virtio device.

use std::fmt::Write as _;

use super::ports::{Port, Way};
use super::wiring::{Part, Ports, accessor, part};
use crate::CosimError;

/// A design that is the data path of a virtio device: a stream in each direction, or one of them,
/// and what it wants to know of its queue.
pub fn virtio(ports: &mut Ports<'_>) -> Result<Part, CosimError> {
    let mut wires = String::new();
    let from = ports.prefixes("tvalid", Way::Out);
    let to = ports.prefixes("tvalid", Way::In);
    if from.len() > 1 || to.len() > 1 || from.len() + to.len() == 0 {
        let why = "virtio: one stream from the design, one to it, or both, as m_axis_tvalid";
        return Err(CosimError::Design(why.to_owned()));
    }
    let out = from.first().map(|prefix| stream(ports, &mut wires, "m", prefix, Way::Out));
    let into = to.first().map(|prefix| stream(ports, &mut wires, "s", prefix, Way::In));
    let (out, into) = (out.transpose()?, into.transpose()?);
    let bits = out.or(into).unwrap_or(8);
    if into.is_some_and(|other| other != bits) {
        let why = "virtio: the two streams have different widths";
        return Err(CosimError::Design(why.to_owned()));
    }
    if out.is_none() {
        absent(&mut wires, "m", Way::Out, bits);
    }
    if into.is_none() {
        absent(&mut wires, "s", Way::In, bits);
    }
    let known =
        ["status", "queue_enable", "queue_desc", "queue_driver", "queue_device", "doorbell"];
    for name in known {
        let port = ports.take(name, Way::In);
        let port = port.or_else(|| ports.take(&format!("virtio_{name}"), Way::In));
        accessor(&mut wires, name, port, &format!("Nothing {name}() {{ return {{}}; }}"));
    }
    // Writing to a string does not fail.
    let _ = writeln!(wires, "    static constexpr unsigned DATA_BITS = {bits};");
    let _ = writeln!(wires, "    static constexpr bool HAS_M = {};", out.is_some());
    let _ = writeln!(wires, "    static constexpr bool HAS_S = {};", into.is_some());
    Ok(Part { bars: vec![0], ..part("Virtio", "virtio.h", wires, ", dev") })
}

/// The accessors `NAME_tdata` and so on of the stream `PREFIX`; its width. `way` is that of its
/// data.
fn stream(
    ports: &mut Ports<'_>,
    wires: &mut String,
    name: &str,
    prefix: &str,
    way: Way,
) -> Result<u32, CosimError> {
    let back = if way == Way::In { Way::Out } else { Way::In };
    let mut take = |end: &str, way| ports.take(&format!("{prefix}{end}"), way);
    let needed = |end: &str, port: Option<&Port>| {
        let why = || CosimError::Design(format!("the stream {prefix}* has no {prefix}{end}"));
        port.cloned().ok_or_else(why)
    };
    let data = needed("tdata", take("tdata", way))?;
    let valid = needed("tvalid", take("tvalid", way))?;
    if !data.bits.is_power_of_two() || !(8..=512).contains(&data.bits) {
        let why = format!("the stream {prefix}* is {} bits wide: 8, 16, ... 512", data.bits);
        return Err(CosimError::Design(why));
    }
    accessor(wires, &format!("{name}_tdata"), Some(&data), "");
    accessor(wires, &format!("{name}_tvalid"), Some(&valid), "");
    for end in ["tlast", "tkeep"] {
        accessor(wires, &format!("{name}_{end}"), take(end, way), &without(name, end, way));
    }
    let ready = take("tready", back);
    accessor(wires, &format!("{name}_tready"), ready, &without(name, "tready", back));
    Ok(data.bits)
}

/// A signal that has no port: always ready, all bytes count, no end.
fn without(name: &str, end: &str, way: Way) -> String {
    let value = match end {
        "tkeep" => "~0ull",
        "tready" => "1",
        _ => "0",
    };
    match way {
        Way::In => format!("Nothing {name}_{end}() {{ return {{}}; }}"),
        Way::Out => format!("uint64_t {name}_{end}() {{ return {value}; }}"),
    }
}

/// The accessors of a stream that is not there at all.
fn absent(wires: &mut String, name: &str, way: Way, bits: u32) {
    let back = if way == Way::In { Way::Out } else { Way::In };
    for (end, way) in [("tvalid", way), ("tlast", way), ("tkeep", way), ("tready", back)] {
        accessor(wires, &format!("{name}_{end}"), None, &without(name, end, way));
    }
    let words = bits.div_ceil(32);
    let data = format!("VlWide<{words}> &{name}_tdata() {{ static VlWide<{words}> w; return w; }}");
    accessor(wires, "", None, &data);
}
