//! A recording for people and for other programs.

use std::fmt::Write;

use wire::cosim::{AnswerKind, RequestKind, flag, interrupt, reset, status};

use super::{Entry, Trace, kind};

/// Most bytes of data in a line.
const MAX_SHOWN: usize = 32;

/// One entry in words.
#[must_use]
pub fn describe(entry: &Entry) -> String {
    let Entry { tag, address, value, detail, data, .. } = entry;
    if let Some(request) = entry.request() {
        return match request {
            RequestKind::Read => format!("read #{tag} bar {detail} + {address:#x}, {value} bytes"),
            RequestKind::Write => format!("write bar {detail} + {address:#x} {}", hex(data)),
            RequestKind::Reset if *detail == reset::MACHINE => "reset of the machine".into(),
            RequestKind::Reset => "reset of the function".into(),
            RequestKind::Config => {
                format!("config {address:#x} is {} bytes {}", data.len(), hex(data))
            }
            RequestKind::DmaDone if *detail != status::OK => format!("dma #{tag:x} failed"),
            RequestKind::DmaDone => format!("dma #{tag:x} done {}", hex(data)),
            RequestKind::State => format!("state {value:#x}"),
            RequestKind::Memory => format!("memory #{tag} {} bytes", data.len()),
        };
    }
    if let Some(answer) = entry.answer() {
        return match answer {
            AnswerKind::ReadDone if *detail != status::OK => format!("read #{tag} failed"),
            AnswerKind::ReadDone => format!("read #{tag} gets {}", hex(data)),
            AnswerKind::ResetDone => "reset done".into(),
            AnswerKind::MemoryDone => format!("memory #{tag} done"),
            AnswerKind::DmaRead => format!("dma #{tag:x} read {address:#x}, {value} bytes"),
            AnswerKind::DmaWrite => format!("dma #{tag:x} write {address:#x} {}", hex(data)),
            AnswerKind::Interrupt if *detail == interrupt::LINE => {
                let up = entry.flags & flag::RAISED != 0;
                format!("line {}", if up { "up" } else { "down" })
            }
            AnswerKind::Interrupt => format!("interrupt {value}"),
            AnswerKind::ConfigPut => format!("config {address:#x} becomes {}", hex(data)),
            AnswerKind::Log => format!("log {}", text(data)),
        };
    }
    match entry.kind {
        kind::CONFIG_READ => format!("config read {address:#x} gets {}", hex(data)),
        kind::CONFIG_WRITE => format!("config write {address:#x} {}", hex(data)),
        kind::ATTACHED => "the model is here".into(),
        kind::LOST => format!("the model is lost: {}", text(data)),
        kind::NOTE => text(data),
        other => format!("something of kind {other:#x}"),
    }
}

fn hex(data: &[u8]) -> String {
    let mut out = String::new();
    for byte in data.iter().take(MAX_SHOWN) {
        let _ = write!(out, "{byte:02x}");
    }
    if data.len() > MAX_SHOWN {
        let _ = write!(out, "... ({} bytes)", data.len());
    }
    out
}

fn text(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A short name of what it is.
fn name(entry: &Entry) -> &'static str {
    match (entry.request(), entry.answer(), entry.kind) {
        (Some(RequestKind::Read), ..) => "read",
        (Some(RequestKind::Write), ..) => "write",
        (Some(RequestKind::Reset), ..) => "reset",
        (Some(RequestKind::Config), ..) => "config",
        (Some(RequestKind::DmaDone), ..) => "dma-done",
        (Some(RequestKind::State), ..) => "state",
        (Some(RequestKind::Memory), ..) => "memory",
        (_, Some(AnswerKind::ReadDone), _) => "read-done",
        (_, Some(AnswerKind::ResetDone), _) => "reset-done",
        (_, Some(AnswerKind::MemoryDone), _) => "memory-done",
        (_, Some(AnswerKind::DmaRead), _) => "dma-read",
        (_, Some(AnswerKind::DmaWrite), _) => "dma-write",
        (_, Some(AnswerKind::Interrupt), _) => "interrupt",
        (_, Some(AnswerKind::ConfigPut), _) => "config-put",
        (_, Some(AnswerKind::Log), _) => "log",
        (.., kind::CONFIG_READ) => "config-read",
        (.., kind::CONFIG_WRITE) => "config-write",
        (.., kind::ATTACHED) => "attached",
        (.., kind::LOST) => "lost",
        (.., kind::NOTE) => "note",
        _ => "unknown",
    }
}

/// The entries as an array of JSON objects; addresses and data are texts, in hexadecimal.
#[must_use]
pub fn json(trace: &Trace) -> String {
    let line = |entry: &Entry| {
        let data: String = entry.data.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "{{\"time_ns\":{},\"what\":\"{}\",\"detail\":{},\"flags\":{},\"tag\":{},\
             \"address\":\"{:#x}\",\"value\":\"{:#x}\",\"data\":\"{data}\"}}",
            entry.time_ns,
            name(entry),
            entry.detail,
            entry.flags,
            entry.tag,
            entry.address,
            entry.value
        )
    };
    let lines: Vec<String> = trace.entries.iter().map(line).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// What a waveform shows: name, width in bits, mark.
const SIGNALS: &[(&str, u32, char)] = &[
    ("read_address", 64, '!'),
    ("read_data", 64, '"'),
    ("write_address", 64, '#'),
    ("write_data", 64, '$'),
    ("dma_read_address", 64, '%'),
    ("dma_write_address", 64, '&'),
    ("dma_length", 32, '\''),
    ("interrupt", 1, '('),
    ("vector", 16, ')'),
    ("bar", 3, '*'),
];

/// A waveform (IEEE 1364, value change dump) in nanoseconds, to be looked at beside a simulator's.
#[must_use]
pub fn vcd(trace: &Trace) -> String {
    let mut out = String::from("$timescale 1ns $end\n$scope module port $end\n");
    for (name, width, mark) in SIGNALS {
        let _ = writeln!(out, "$var wire {width} {mark} {name} $end");
    }
    out += "$upscope $end\n$enddefinitions $end\n";
    let mut last = None;
    let mut is_up = false;
    for entry in &trace.entries {
        let changes = changes(entry);
        if changes.is_empty() {
            continue;
        }
        // Two things at the same nanosecond would hide each other.
        let time = last.map_or(entry.time_ns, |last| entry.time_ns.max(last + 1));
        last = Some(time);
        let _ = writeln!(out, "#{time}");
        if std::mem::take(&mut is_up) {
            out += "0(\n";
        }
        for (mark, value) in changes {
            if mark == '(' {
                is_up = true;
                out += "1(\n";
            } else {
                let _ = writeln!(out, "b{value:b} {mark}");
            }
        }
    }
    out
}

fn changes(entry: &Entry) -> Vec<(char, u64)> {
    let data = || {
        let mut eight = [0; 8];
        let len = entry.data.len().min(8);
        eight[..len].copy_from_slice(&entry.data[..len]);
        u64::from_le_bytes(eight)
    };
    let (address, bar) = (entry.address, ('*', entry.detail.into()));
    match (entry.request(), entry.answer()) {
        (Some(RequestKind::Read), _) => vec![bar, ('!', address)],
        (Some(RequestKind::Write), _) => vec![bar, ('#', address), ('$', data())],
        (_, Some(AnswerKind::ReadDone)) => vec![('"', data())],
        (_, Some(AnswerKind::DmaRead)) => vec![('%', address), ('\'', entry.value)],
        (_, Some(AnswerKind::DmaWrite)) => vec![('&', address), ('\'', entry.data.len() as u64)],
        (_, Some(AnswerKind::Interrupt)) => vec![(')', entry.value), ('(', 1)],
        _ => Vec::new(),
    }
}
