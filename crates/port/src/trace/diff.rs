//! Two recordings of the same driver, compared as the driver would: other addresses of host memory
//! are no difference, nor is how often a register was polled. What the driver does and what the
//! device does are compared each for itself: which of the two is quicker is no difference either.

use std::collections::{BTreeMap, HashMap};

use wire::cosim::{AnswerKind, RequestKind};

use super::{Entry, Trace};

/// Size in bytes of what memory is given in.
const PAGE: u64 = 4096;

/// Where two recordings part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// How many steps they have in common.
    pub common: usize,
    /// The last of those.
    pub before: Vec<String>,
    /// What the first has then; `None` if it is over.
    pub first: Option<String>,
    /// What the second has.
    pub second: Option<String>,
}

/// The first difference, or how many steps are the same.
///
/// # Errors
/// The difference.
pub fn difference(first: &Trace, second: &Trace) -> Result<usize, Difference> {
    /// Steps that are shown before a difference.
    const BEFORE: usize = 3;
    let (first, second) = (Steps::of(first), Steps::of(second));
    let mut all = 0;
    for (first, second) in [(first.driver, second.driver), (first.device, second.device)] {
        let common = first.iter().zip(&second).take_while(|(a, b)| a == b).count();
        all += common;
        if common != first.len() || common != second.len() {
            let before = first[common.saturating_sub(BEFORE)..common].to_vec();
            let at = |steps: &[String]| steps.get(common).cloned();
            return Err(Difference { common, before, first: at(&first), second: at(&second) });
        }
    }
    Ok(all)
}

/// Names for pages of host memory, in the order in which the device first used them.
#[derive(Default)]
struct Pages {
    names: BTreeMap<u64, usize>,
}

impl Pages {
    /// The pages that are used by transfers.
    fn of(trace: &Trace) -> Self {
        let mut pages = Self::default();
        for entry in &trace.entries {
            if matches!(entry.answer(), Some(AnswerKind::DmaRead | AnswerKind::DmaWrite)) {
                let next = pages.names.len();
                pages.names.entry(entry.address / PAGE).or_insert(next);
            }
        }
        pages
    }

    fn address(&self, address: u64) -> String {
        match self.names.get(&(address / PAGE)) {
            Some(name) => format!("page {name} + {:#x}", address % PAGE),
            None => format!("{address:#x}"),
        }
    }

    /// What is written into a register: an address of a page, a half of one, or what it is.
    fn value(&self, data: &[u8]) -> String {
        let mut bytes = [0; 8];
        let len = data.len().min(8);
        bytes[..len].copy_from_slice(&data[..len]);
        let value = u64::from_le_bytes(bytes);
        let is_low = |page: &u64| len == 4 && value / PAGE == *page & (u64::from(u32::MAX) / PAGE);
        if len == 8 && self.names.contains_key(&(value / PAGE)) {
            return self.address(value);
        }
        // A page at 0 would make every small number an address.
        if let Some(page) = self.names.keys().find(|page| is_low(page) && value >= PAGE) {
            return self.address(page * PAGE + value % PAGE);
        }
        let is_high = |page: &u64| value != 0 && len == 4 && page >> 20 == value;
        if self.names.keys().any(is_high) {
            return "upper half of an address".into();
        }
        format!("{} bytes {value:#x}", data.len())
    }
}

/// What a recording has to say to a comparison.
#[derive(Default)]
struct Steps {
    driver: Vec<String>,
    device: Vec<String>,
}

impl Steps {
    fn of(trace: &Trace) -> Self {
        let pages = Pages::of(trace);
        let driver = driver_steps(trace, &pages);
        let device = trace.entries.iter().filter_map(|entry| device_step(entry, &pages));
        Self { driver, device: device.collect() }
    }
}

fn driver_steps(trace: &Trace, pages: &Pages) -> Vec<String> {
    let mut reads: HashMap<u64, &Entry> = HashMap::new();
    let mut steps: Vec<String> = Vec::new();
    let mut last_read = None;
    for entry in &trace.entries {
        let (bar, at) = (entry.detail, entry.address);
        let step = match (entry.request(), entry.answer()) {
            (Some(RequestKind::Read), _) => {
                reads.insert(entry.tag, entry);
                continue;
            }
            (_, Some(AnswerKind::ReadDone)) => {
                let Some(read) = reads.remove(&entry.tag) else { continue };
                let place = (read.detail, read.address);
                // Polling: only the last of reads of the same register counts.
                if last_read.replace(place) == Some(place) {
                    steps.pop();
                }
                let value = pages.value(&entry.data);
                steps.push(format!("bar {} + {:#x} reads {value}", place.0, place.1));
                continue;
            }
            (Some(RequestKind::Write), _) => {
                format!("bar {bar} + {at:#x} is written {}", pages.value(&entry.data))
            }
            (Some(RequestKind::Reset), _) => "reset".into(),
            _ => continue,
        };
        last_read = None;
        steps.push(step);
    }
    steps
}

fn device_step(entry: &Entry, pages: &Pages) -> Option<String> {
    let at = entry.address;
    Some(match entry.answer()? {
        AnswerKind::DmaRead => {
            format!("device reads {} bytes at {}", entry.value, pages.address(at))
        }
        AnswerKind::DmaWrite => {
            format!("device writes {} at {}", sum(&entry.data), pages.address(at))
        }
        AnswerKind::Interrupt => {
            format!("interrupt {} {} {}", entry.detail, entry.value, entry.flags)
        }
        _ => return None,
    })
}

/// So many bytes, and a checksum of them (FNV-1a, 64 bits).
fn sum(data: &[u8]) -> String {
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let sum = data.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    format!("{} bytes (sum {sum:016x})", data.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::cosim::Hello;

    fn trace(base: u64, polls: usize, value: u32) -> Trace {
        let entry = |kind: u8, tag, address, value, data: &[u8]| Entry {
            kind,
            tag,
            address,
            value,
            data: data.to_vec(),
            ..Entry::default()
        };
        let low = (base as u32 + 0x10).to_le_bytes();
        let high = ((base >> 32) as u32).to_le_bytes();
        let mut entries = vec![
            entry(2, 0, 8, 0, &low),
            entry(2, 0, 12, 0, &high),
            entry(0x84, 1, base + 0x10, 64, &[]),
            entry(0x85, 2, base + 0x2000, 0, &[5; 64]),
        ];
        for tag in 0..polls as u64 {
            let status = if tag + 1 == polls as u64 { value } else { 1 };
            entries.push(entry(1, tag, 0x20, 4, &[]));
            entries.push(entry(0x81, tag, 0, 0, &status.to_le_bytes()));
        }
        let (bars, config) = (Default::default(), vec![0; 256]);
        let (writable, clearable, name) = (config.clone(), config.clone(), String::new());
        let hello = Hello {
            flags: 0,
            bars,
            intx: false,
            msi: 0,
            msix: None,
            config,
            writable,
            clearable,
            name,
        };
        Trace { hello, entries, torn: 0 }
    }

    #[test]
    fn other_addresses_and_more_polling_are_no_difference() {
        let (a, b) = (trace(0x1_2345_6000, 3, 2), trace(0x7_0000_1000, 9, 2));
        assert_eq!(difference(&a, &b), Ok(5));
    }

    #[test]
    fn another_value_is_one() {
        let (a, b) = (trace(0x1000, 3, 2), trace(0x5000, 3, 6));
        let found = difference(&a, &b).unwrap_err();
        assert_eq!(found.common, 2);
        assert_eq!(found.first.as_deref(), Some("bar 0 + 0x20 reads 4 bytes 0x2"));
        assert_eq!(found.second.as_deref(), Some("bar 0 + 0x20 reads 4 bytes 0x6"));
    }
}
