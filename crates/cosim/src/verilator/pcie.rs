//! PCI Express blocks by the names of ports: streams of packets, and the signals beside them.

use std::fmt::Write as _;

use super::ports::{Port, Way};
use super::wiring::{Part, Ports, accessor, part};
use crate::{Card, CosimError};

/// The four streams of Xilinx's hard blocks: `*cq_t…` and `*rc_t…` to the design, `*cc_t…` and
/// `*rq_t…` from it.
pub fn xilinx(ports: &mut Ports<'_>, card: &Card) -> Result<Option<Part>, CosimError> {
    if ports.prefixes("cq_tvalid", Way::In).is_empty() {
        return Ok(None);
    }
    let mut wires = String::new();
    let mut widths = Vec::new();
    for (name, way) in [("Cq", Way::In), ("Cc", Way::Out), ("Rq", Way::Out), ("Rc", Way::In)] {
        let found = stream(ports, name, way)?;
        let stream = found.ok_or_else(|| missing("Xilinx's streams", name))?;
        let user = stream.user_bits.unwrap_or(0);
        let (_, narrow, wide) =
            TUSER.into_iter().find(|(other, ..)| *other == name).unwrap_or((name, 0, 0));
        let needed = if stream.bits == 512 { wide } else { narrow };
        if user < needed {
            let why = format!("{}tuser has {user} bits, and not {needed} or more", stream.prefix);
            return Err(CosimError::Design(why));
        }
        widths.push(stream.bits);
        let more = match (name, way) {
            ("Cq", _) => sideband("xilinx_sideband(*this, p, true, first, last, len);"),
            (_, Way::In) => sideband("xilinx_sideband(*this, p, false, first, last, len);"),
            ("Rq", _) => "    Marks marks() { return xilinx_marks(*this, 20); }\n    \
                 void enables(Packet &p, unsigned n) { xilinx_enables(*this, p, n); }\n"
                .to_owned(),
            _ => "    Marks marks() { return xilinx_marks(*this, 0); }\n    \
                  void enables(Packet &, unsigned) {}\n"
                .to_owned(),
        };
        stream.put(&mut wires, name, &more);
    }
    same_width("Xilinx's streams", &widths)?;
    // Numbers of requests that were taken, and reads that the design is ready for.
    let number = first(ports, &["rq_seq_num0", "rq_seq_num_0", "rq_seq_num"], Way::In);
    accessor(&mut wires, "sequence", number, NOTHING_SEQUENCE);
    let valids = ["rq_seq_num_vld0", "rq_seq_num_valid_0", "rq_seq_num_vld", "rq_seq_num_valid"];
    let valid = first(ports, &valids, Way::In);
    accessor(&mut wires, "sequence_valid", valid, "Nothing sequence_valid() { return {}; }");
    let credits = first(ports, &["cq_np_req"], Way::Out);
    accessor(&mut wires, "credits", credits, "unsigned credits() { return 0; }");
    for (name, is_there) in [("HAS_SEQUENCE", valid.is_some()), ("HAS_CREDITS", credits.is_some())]
    {
        let _ = writeln!(wires, "    static constexpr bool {name} = {is_there};");
    }
    let sizes = card.bars.map(|bar| bar.map_or(0, |bar| bar.size.trailing_zeros()).to_string());
    let _ = writeln!(
        wires,
        "    static unsigned bar_bits(unsigned bar)\n    {{\n        \
         static constexpr unsigned BITS[6] = {{{}}};\n        \
         return bar < 6 ? BITS[bar] : 0;\n    }}",
        sizes.join(", ")
    );
    Ok(Some(Part { bars: bars(card), ..part("XilinxPcie", "xilinx.h", wires, DEV_PACE_LINK) }))
}

/// Transaction layer packets as they are: `*rx_t…` to the design, `*tx_t…` from it.
pub fn packets(ports: &mut Ports<'_>, card: &Card) -> Result<Option<Part>, CosimError> {
    let has = |end, way| !ports.prefixes(end, way).is_empty();
    if card.virtio.is_some() || !(has("rx_tvalid", Way::In) && has("tx_tvalid", Way::Out)) {
        return Ok(None);
    }
    let mut wires = String::new();
    let mut widths = Vec::new();
    for (name, way) in [("Rx", Way::In), ("Tx", Way::Out)] {
        let found = stream(ports, name, way)?;
        let stream = found.ok_or_else(|| missing("packets", name))?;
        widths.push(stream.bits);
        let more = match (way, stream.user_bits) {
            (Way::In, Some(_)) => sideband("tlp_sideband(*this, p, first, last, len);"),
            (Way::In, None) => sideband("(void)p, (void)first, (void)last, (void)len;"),
            (Way::Out, _) => "    Marks marks() { return {}; }\n    \
                              void enables(Packet &, unsigned) {}\n"
                .to_owned(),
        };
        stream.put(&mut wires, name, &more);
    }
    same_width("the streams of packets", &widths)?;
    Ok(Some(Part { bars: bars(card), ..part("TlpStreams", "tlp.h", wires, DEV_PACE_LINK) }))
}

/// Inputs of usual names, and what they show of a `Link &l`.
const SHOWN: &[(&[&str], &str)] = &[
    (&["cfg_max_payload"], "l.payload_code()"),
    (&["cfg_max_read_req"], "l.request_code()"),
    (&["cfg_rcb_status"], "l.link_control >> 3 & 1"),
    // I/O, memory, bus master, INTx disabled.
    (&["cfg_function_status"], "(l.command & 7) | (l.command >> 10 & 1) << 3"),
    (&["cfg_command"], "l.command"),
    (&["cfg_dcommand"], "l.device_control"),
    (&["cfg_lcommand"], "l.link_control"),
    (&["cfg_bus_number"], "1"),
    (&["cfg_interrupt_msi_enable", "cfg_interrupt_msienable", "cfg_msi_enable"], "l.has_msi"),
    (&["cfg_interrupt_msi_mmenable", "cfg_interrupt_mmenable"], "l.msi_vectors_log2"),
    (&["cfg_msi_address"], "l.msi_address"),
    (&["cfg_msi_data"], "l.msi_data"),
    (&["cfg_interrupt_msixenable", "cfg_interrupt_msix_enable"], "l.has_msix"),
    (&["user_lnk_up", "cfg_phy_link_up"], "1"),
    // Room for packets, which is never short here.
    (&["cfg_fc_ph", "cfg_fc_nph", "cfg_fc_cplh", "fc_ph", "fc_nph", "fc_cplh"], "0x40"),
    (&["cfg_fc_pd", "cfg_fc_npd", "cfg_fc_cpld", "fc_pd", "fc_npd", "fc_cpld"], "0x400"),
    (&["pcie_tfc_nph_av", "pcie_tfc_npd_av"], "3"),
    (&["tx_buf_av"], "0x20"),
];

/// What a block tells of itself and of the configuration space.
pub fn signals(ports: &mut Ports<'_>) -> Option<Part> {
    let mut shown = String::new();
    for (names, value) in SHOWN {
        for port in names.iter().filter_map(|name| ports.take(name, Way::In)) {
            // Writing to a string does not fail, here and below.
            let _ = writeln!(shown, "        m.{} = {};", port.name, masked(value, port.bits));
        }
    }
    let mut wires = String::new();
    let read = ports.take("cfg_mgmt_read", Way::Out);
    if shown.is_empty() && read.is_none() {
        return None;
    }
    accessor(&mut wires, "read", read, "bool read() { return false; }");
    let outs = [("write", "0"), ("addr", "0"), ("write_data", "0"), ("byte_enable", "15")];
    for (name, otherwise) in outs {
        let port = ports.take(&format!("cfg_mgmt_{name}"), Way::Out);
        accessor(&mut wires, name, port, &format!("unsigned {name}() {{ return {otherwise}; }}"));
    }
    for name in ["read_data", "read_write_done"] {
        let port = ports.take(&format!("cfg_mgmt_{name}"), Way::In);
        accessor(&mut wires, name, port, &format!("Nothing {name}() {{ return {{}}; }}"));
    }
    let _ =
        writeln!(wires, "    void show(const Link &l)\n    {{\n        (void)l;\n{shown}    }}");
    Some(part("LinkSignals", "link_signals.h", wires, ", dev, link"))
}

/// The value as a port of so many bits holds it.
fn masked(value: &str, bits: u32) -> String {
    if bits < 64 { format!("({value}) & ones({bits})") } else { (*value).to_owned() }
}

const DEV_PACE_LINK: &str = ", dev, pace, link";
const NOTHING_SEQUENCE: &str = "Nothing sequence() { return {}; }";

/// Bits of tuser at less than 512 bits, and at 512 (PG156, PG213).
const TUSER: [(&str, u32, u32); 4] =
    [("Cq", 85, 183), ("Cc", 33, 81), ("Rq", 60, 137), ("Rc", 75, 161)];

/// A stream of packets.
struct Stream {
    prefix: String,
    bits: u32,
    user_bits: Option<u32>,
    wires: String,
}

impl Stream {
    /// A struct of accessors within the others.
    fn put(&self, wires: &mut String, name: &str, more: &str) {
        let (inner, lower) = (&self.wires, name.to_lowercase());
        let _ = writeln!(wires, "    struct {name} {{\n    Vcard &m;\n{inner}{more}    }};");
        let _ = writeln!(wires, "    {name} {lower}() {{ return {{ m }}; }}");
    }
}

/// The stream `*NAME_t…`, if there is one.
fn stream(ports: &mut Ports<'_>, name: &str, way: Way) -> Result<Option<Stream>, CosimError> {
    let (lower, back) = (name.to_lowercase(), if way == Way::In { Way::Out } else { Way::In });
    let prefix = ports.prefixes(&format!("{lower}_tvalid"), way).into_iter().next();
    let Some(prefix) = prefix.map(|before| format!("{before}{lower}_")) else { return Ok(None) };
    let mut wires = String::new();
    let mut take = |end: &str, way| ports.take(&format!("{prefix}{end}"), way).cloned();
    let none = |end: &str| CosimError::Design(format!("the stream {prefix}* has no {prefix}{end}"));
    let mut needed = |end: &str, way| -> Result<Port, CosimError> {
        let port = take(end, way).ok_or_else(|| none(end))?;
        accessor(&mut wires, end, Some(&port), "");
        Ok(port)
    };
    let (bits, keep) = (needed("tdata", way)?.bits, needed("tkeep", way)?.bits);
    let ready = needed("tready", back)?.bits;
    needed("tvalid", way)?;
    needed("tlast", way)?;
    if !bits.is_power_of_two() || !(64..=512).contains(&bits) {
        let why = format!("the stream {prefix}* is {bits} bits wide: 64, 128, 256 or 512");
        return Err(CosimError::Design(why));
    }
    if keep != bits / 32 && keep != bits / 8 {
        let why = format!("{prefix}tkeep has {keep} bits: one for each dword, or for each byte");
        return Err(CosimError::Design(why));
    }
    let user = take("tuser", way);
    let user_bits = user.as_ref().map(|port| port.bits);
    let user = user.filter(|_| way == Way::In || name != "Tx");
    accessor(&mut wires, "tuser", user.as_ref(), "Nothing tuser() { return {}; }");
    let numbers = [
        ("DATA_BITS", bits),
        ("KEEP", keep / (bits / 32)),
        ("USER_BITS", user_bits.unwrap_or(0)),
        ("USER_BYTES", user_bits.unwrap_or(0).div_ceil(8)),
        ("READY", (1 << ready.min(22)) - 1),
    ];
    for (name, number) in numbers {
        let _ = writeln!(wires, "    static constexpr unsigned {name} = {number};");
    }
    Ok(Some(Stream { prefix, bits, user_bits, wires }))
}

/// What sets the sideband of a beat.
fn sideband(body: &str) -> String {
    format!(
        "    void sideband(const Packet &p, bool first, bool last, unsigned len)\n    \
         {{ {body} }}\n"
    )
}

fn missing(what: &str, name: &str) -> CosimError {
    CosimError::Design(format!("{what}: there is no *{}_tvalid", name.to_lowercase()))
}

fn same_width(what: &str, widths: &[u32]) -> Result<(), CosimError> {
    if widths.iter().all(|bits| *bits == widths[0]) {
        return Ok(());
    }
    Err(CosimError::Design(format!("{what} have one width")))
}

fn bars(card: &Card) -> Vec<usize> {
    (0..6).filter(|bar| card.bars[*bar].is_some()).collect()
}

/// The first port that ends so.
fn first<'p>(ports: &mut Ports<'p>, ends: &[&str], way: Way) -> Option<&'p Port> {
    ends.iter().find_map(|end| {
        let before = ports.prefixes(end, way).into_iter().next()?;
        ports.take(&format!("{before}{end}"), way)
    })
}

#[cfg(test)]
mod tests {
    use super::super::wiring::write;
    use super::*;

    /// A stream of 128 bits, as `rx` in and `tx` out, with a tuser of so many bits or none.
    fn stream(name: &str, way: Way, user: u32) -> Vec<Port> {
        let back = if way == Way::In { Way::Out } else { Way::In };
        let port = |end: &str, way, bits| Port { name: format!("{name}_{end}"), way, bits };
        let mut ports = vec![
            port("tdata", way, 128),
            port("tkeep", way, 4),
            port("tvalid", way, 1),
            port("tlast", way, 1),
            port("tready", back, 1),
        ];
        ports.extend((user > 0).then(|| port("tuser", way, user)));
        ports
    }

    fn design(streams: &[(&str, Way, u32)]) -> Vec<Port> {
        let clock = Port { name: "clk".to_owned(), way: Way::In, bits: 1 };
        let all = streams.iter().flat_map(|(name, way, user)| stream(name, *way, *user));
        std::iter::once(clock).chain(all).collect()
    }

    fn xilinx_design() -> Vec<Port> {
        design(&[
            ("s_axis_cq", Way::In, 88),
            ("m_axis_cc", Way::Out, 33),
            ("m_axis_rq", Way::Out, 62),
            ("s_axis_rc", Way::In, 75),
        ])
    }

    fn card() -> Card {
        Card::new(["bar0=4K", "bar2=1M,mem64"]).unwrap()
    }

    fn fault(ports: &[Port]) -> String {
        write(ports, &card()).unwrap_err().to_string()
    }

    #[test]
    fn packets_are_found_and_take_all_bars() {
        let text =
            write(&design(&[("m_axis_rx", Way::In, 22), ("s_axis_tx", Way::Out, 4)]), &card());
        let text = text.unwrap();
        assert!(text.contains("TlpStreams<Wires0> part0;"), "{text}");
        assert!(text.contains("case 0: part0.push") && text.contains("case 2: part0.push"));
        assert!(text.contains("static constexpr unsigned KEEP = 1;"), "{text}");
        assert!(text.contains("tlp_sideband"), "{text}");
        let plain = write(&design(&[("rx", Way::In, 0), ("tx", Way::Out, 0)]), &card()).unwrap();
        assert!(!plain.contains("tlp_sideband"), "{plain}");
    }

    #[test]
    fn streams_that_can_not_be_are_told_by_name() {
        let mut ports = design(&[("rx", Way::In, 0), ("tx", Way::Out, 0)]);
        ports.iter_mut().find(|port| port.name == "rx_tkeep").unwrap().bits = 5;
        assert_eq!(fault(&ports), "rx_tkeep has 5 bits: one for each dword, or for each byte");
        for (end, bits) in [("tdata", 256), ("tkeep", 8)] {
            let name = format!("rx_{end}");
            ports.iter_mut().find(|port| port.name == name).unwrap().bits = bits;
        }
        assert_eq!(fault(&ports), "the streams of packets have one width");
        let mut ports = xilinx_design();
        ports.iter_mut().find(|port| port.name == "m_axis_rq_tuser").unwrap().bits = 8;
        assert_eq!(fault(&ports), "m_axis_rq_tuser has 8 bits, and not 60 or more");
        let without: Vec<Port> =
            xilinx_design().into_iter().filter(|port| !port.name.contains("_rc_")).collect();
        assert_eq!(fault(&without), "Xilinx's streams: there is no *rc_tvalid");
    }

    #[test]
    fn signals_beside_the_streams_are_wired() {
        let mut ports = xilinx_design();
        for (name, way, bits) in [
            ("s_axis_rq_seq_num_0", Way::In, 6),
            ("s_axis_rq_seq_num_valid_0", Way::In, 1),
            ("pcie_cq_np_req", Way::Out, 2),
            ("cfg_max_payload", Way::In, 2),
            ("cfg_mgmt_read", Way::Out, 1),
            ("cfg_mgmt_read_data", Way::In, 32),
        ] {
            ports.push(Port { name: name.to_owned(), way, bits });
        }
        let text = write(&ports, &card()).unwrap();
        assert!(text.contains("HAS_SEQUENCE = true") && text.contains("HAS_CREDITS = true"));
        assert!(text.contains("BITS[6] = {12, 0, 20, 0, 0, 0};"), "{text}");
        assert!(text.contains("m.cfg_max_payload = (l.payload_code()) & ones(2);"), "{text}");
        assert!(text.contains("LinkSignals<Wires1> part1;"), "{text}");
        let plain = write(&xilinx_design(), &card()).unwrap();
        assert!(plain.contains("HAS_CREDITS = false") && !plain.contains("LinkSignals"), "{plain}");
    }
}
