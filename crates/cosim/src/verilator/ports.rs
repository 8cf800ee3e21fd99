//! The ports of a design, from the header that Verilator writes: the same in all its versions,
//! after parameters and types are resolved.

/// Which way a port goes, seen from the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// As C++ calls it.
    pub name: String,
    pub way: Way,
    pub bits: u32,
}

/// The ports that the header of the top declares, as `VL_IN8(&clk,0,0);`.
pub fn ports(header: &str) -> Vec<Port> {
    header.lines().filter_map(|line| port(line.trim())).collect()
}

fn port(line: &str) -> Option<Port> {
    let (way, rest) = match line.strip_prefix("VL_IN") {
        Some(rest) if !rest.starts_with("OUT") => (Way::In, rest),
        _ => (Way::Out, line.strip_prefix("VL_OUT")?),
    };
    let (_, inside) = rest.split_once('(')?;
    let mut words = inside.split([',', ')']);
    let name = words.next()?.trim_start_matches(['&', '(']).to_owned();
    let high: u32 = words.next()?.trim().parse().ok()?;
    let low: u32 = words.next()?.trim().parse().ok()?;
    Some(Port { name, way, bits: high.checked_sub(low)? + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_tells_its_ports() {
        let header = "class alignas(64) Vcard VL_NOT_FINAL : public VerilatedModel {\n  public:\n\
                      \x20   VL_IN8(&clk,0,0);\n    VL_OUTW(&m_axi_wdata,255,0,8);\n\
                      \x20   VL_INOUT8(&pad,0,0);\n    VL_IN64(&a,63,0);\n    VL_IN8(clk,0,0);\n";
        let port = |name: &str, way, bits| Port { name: name.to_owned(), way, bits };
        let expected = [
            port("clk", Way::In, 1),
            port("m_axi_wdata", Way::Out, 256),
            port("a", Way::In, 64),
            port("clk", Way::In, 1),
        ];
        assert_eq!(ports(header), expected);
    }
}
