//! What a card is, beyond its ports: ids, BARs, interrupts.
//!
//! Said as `key=value` on the command line, or in comments of the sources, which then need nothing
//! beside them: `// viaduct: id=1234:0da7 bar0=4K msix=1` (`--` in VHDL).

use std::fmt::Write as _;

/// What is said of a card can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("card setting '{setting}': {why}")]
pub struct CardError {
    setting: String,
    why: String,
}

/// Kind of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next BAR too.
    Memory64,
}

/// A BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Where it is.
    pub kind: BarKind,
    /// Reads have no effect.
    pub prefetchable: bool,
    /// In bytes, a power of two.
    pub size: u64,
}

/// What a card can interrupt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// It has a line.
    pub intx: bool,
    /// Vectors of MSI, or 0.
    pub msi: u8,
    /// Vectors of MSI-X, or 0.
    pub msix: u16,
    /// BAR, table and pending bits of MSI-X, if said.
    pub msix_place: Option<(u8, u32, u32)>,
}

/// A card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Vendor and device.
    pub id: (u16, u16),
    /// Subsystem vendor and subsystem, if it is not the id.
    pub subsystem: Option<(u16, u16)>,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// No PCI Express.
    pub conventional: bool,
    /// The BARs.
    pub bars: [Option<Bar>; 6],
    /// The interrupts.
    pub interrupts: Interrupts,
    /// Type of the virtio device whose data path the design is, if it is one.
    pub virtio: Option<u16>,
    /// Cycles that host memory takes to answer a simulation, at least.
    pub latency: u32,
    /// Percent of the cycles in which host memory takes and gives nothing.
    pub stalls: u32,
}

impl Default for Card {
    fn default() -> Self {
        Self {
            id: (0x1234, 0x0001),
            subsystem: None,
            class: 0xff_0000,
            revision: 0,
            conventional: false,
            bars: [None; 6],
            interrupts: Interrupts::default(),
            virtio: None,
            latency: 0,
            stalls: 0,
        }
    }
}

/// The settings, for help texts.
pub const CARD_SETTINGS: &str =
    "  id=VVVV:DDDD            vendor and device, hexadecimal (1234:0001)
  subsystem=VVVV:DDDD     (the same as id)
  class=CCSSPP            class, subclass, programming interface (ff0000)
  revision=RR             (00)
  barN=SIZE[,KIND]        KIND: mem32 (usual), mem64, io; with ',prefetchable' (bar0=4K)
  intx=on                 has a line
  msi=N                   vectors, a power of two up to 32
  msix=N[,BAR:TABLE:PBA]  vectors; the places, hexadecimal (half and three quarters up BAR 0)
  conventional=on         PCI without PCI Express
  virtio=TYPE             is the data path of a virtio device: net, blk, console, rng, or a number
  latency=CYCLES          that host memory takes to answer, at least (0)
  stalls=PERCENT          of the cycles in which host memory takes and gives nothing (0)";

impl Card {
    /// A card with these settings; the first one that says something of a thing counts.
    ///
    /// # Errors
    /// A setting that is not one, or can't be.
    pub fn new<'s>(settings: impl IntoIterator<Item = &'s str>) -> Result<Self, CardError> {
        let mut card = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for setting in settings {
            let fault = |why: &str| CardError { setting: setting.to_owned(), why: why.to_owned() };
            let (key, value) = setting.split_once('=').ok_or_else(|| fault("not key=value"))?;
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            card.set(key, value).map_err(|why| fault(&why))?;
        }
        if let Some(kind) = card.virtio {
            card.become_virtio(kind, &seen);
        }
        if card.bars.iter().all(Option::is_none) {
            card.bars[0] = parse_bar("4K").ok();
        }
        Ok(card)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "id" => self.id = parse_ids(value)?,
            "subsystem" => self.subsystem = Some(parse_ids(value)?),
            "class" => self.class = parse_hex(value, 0xff_ffff)?,
            "revision" => self.revision = parse_hex(value, 0xff)? as u8,
            "intx" => self.interrupts.intx = parse_switch(value)?,
            "conventional" => self.conventional = parse_switch(value)?,
            "msi" => {
                let count: u8 = value.parse().map_err(|_| "not a number")?;
                if count > 32 || !(count == 0 || count.is_power_of_two()) {
                    return Err("1, 2, 4, 8, 16 or 32 vectors".to_owned());
                }
                self.interrupts.msi = count;
            }
            "msix" => self.set_msix(value)?,
            "virtio" => self.virtio = Some(virtio_type(value)?),
            "latency" => self.latency = value.parse().map_err(|_| "not a number")?,
            "stalls" => {
                let percent = value.parse().ok().filter(|percent| *percent < 100);
                self.stalls = percent.ok_or("a number below 100")?;
            }
            _ => {
                let index = key.strip_prefix("bar").and_then(|n| n.parse::<usize>().ok());
                let index = index.filter(|n| *n < 6).ok_or("there is no such setting")?;
                self.bars[index] = Some(parse_bar(value)?);
            }
        }
        Ok(())
    }

    /// What a virtio device is unless something else was said (VIRTIO 1.2, 4.1.2).
    fn become_virtio(&mut self, kind: u16, said: &[&str]) {
        let is_said = |key| said.contains(&key);
        if !is_said("id") {
            self.id = (0x1af4, 0x1040 + kind);
        }
        if !is_said("class") {
            self.class = match kind {
                1 => 0x02_0000,
                2 => 0x01_0000,
                3 => 0x07_8000,
                _ => 0x00_ff00,
            };
        }
        if !is_said("revision") {
            self.revision = 1;
        }
        self.bars[0] = Some(Bar { kind: BarKind::Memory64, prefetchable: false, size: 32 << 10 });
        self.interrupts = Interrupts { intx: true, msi: 0, msix: 2, msix_place: None };
    }

    fn set_msix(&mut self, value: &str) -> Result<(), String> {
        let (count, place) = match value.split_once(',') {
            Some((count, place)) => (count, Some(place)),
            None => (value, None),
        };
        let count: u16 = count.parse().map_err(|_| "not a number")?;
        if count > 2048 {
            return Err("at most 2048 vectors".to_owned());
        }
        self.interrupts.msix = count;
        let Some(place) = place else { return Ok(()) };
        let numbers: Result<Vec<u32>, _> =
            place.split(':').map(|n| parse_hex(n, u32::MAX)).collect();
        match numbers?[..] {
            [bar, table, pending] if bar < 6 => {
                self.interrupts.msix_place = Some((bar as u8, table, pending));
                Ok(())
            }
            _ => Err("the place is BAR:TABLE:PBA".to_owned()),
        }
    }

    /// Where MSI-X has its table and its pending bits: as said, or in the upper half of BAR 0.
    ///
    /// # Errors
    /// They don't fit there.
    pub fn msix_place(&self) -> Result<(u8, u32, u32), CardError> {
        if let Some(place) = self.interrupts.msix_place {
            return Ok(place);
        }
        let size = self.bars[0].map_or(0, |bar| bar.size.min(1 << 31));
        let quarter = size / 4;
        if quarter < 16 * u64::from(self.interrupts.msix) {
            let setting = format!("msix={}", self.interrupts.msix);
            let why = "the table has no room in bar0: say msix=N,BAR:TABLE:PBA".to_owned();
            return Err(CardError { setting, why });
        }
        Ok((0, 2 * quarter as u32, 3 * quarter as u32))
    }

    /// C code: a function `make_card` that makes the device by `viaduct.h`, called `name`.
    ///
    /// # Errors
    /// As [`Card::msix_place`].
    pub fn c_source(&self, name: &str) -> Result<String, CardError> {
        let mut lines = String::new();
        let mut call = |what: String| {
            // Writing to a string does not fail.
            let _ = writeln!(lines, "    if (viaduct_set_{what})\n        return dev;");
        };
        call(format!("class(dev, 0x{:06x}, 0x{:02x})", self.class, self.revision));
        if let Some((vendor, device)) = self.subsystem {
            call(format!("subsystem(dev, 0x{vendor:04x}, 0x{device:04x})"));
        }
        if self.conventional {
            call("conventional(dev)".to_owned());
        }
        for (index, bar) in self.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let kind = match bar.kind {
                BarKind::Io => "VIADUCT_IO",
                BarKind::Memory32 => "VIADUCT_MEMORY32",
                BarKind::Memory64 => "VIADUCT_MEMORY64",
            };
            let kind = if bar.prefetchable {
                format!("{kind} | VIADUCT_PREFETCHABLE")
            } else {
                kind.to_owned()
            };
            call(format!("bar(dev, {index}, {kind}, 0x{:x}ull)", bar.size));
        }
        if self.interrupts.intx {
            call("intx(dev)".to_owned());
        }
        if self.interrupts.msi > 0 {
            call(format!("msi(dev, {})", self.interrupts.msi));
        }
        if self.interrupts.msix > 0 {
            let (bar, table, pending) = self.msix_place()?;
            let count = self.interrupts.msix;
            call(format!("msix(dev, {count}, {bar}, 0x{table:x}, 0x{pending:x})"));
        }
        if self.virtio.is_some() {
            lines += &virtio_capabilities();
        }
        let (vendor, device) = self.id;
        let name: String =
            name.chars().filter(|c| c.is_ascii_graphic() && !"\"\\".contains(*c)).collect();
        Ok(format!(
            "/* What the card is. What can't be is told by viaduct_connect(). */\n\
             #include \"viaduct.h\"\n\n\
             static viaduct_device *make_card(void)\n{{\n    \
             viaduct_device *dev = viaduct_new(\"{name}\", 0x{vendor:04x}, 0x{device:04x});\n    \
             if (!dev)\n        return dev;\n{lines}    return dev;\n}}\n"
        ))
    }
}

/// The settings in the comments of a source.
pub fn settings_in(source: &str) -> impl Iterator<Item = &str> {
    source.lines().flat_map(|line| {
        let line = line.trim_start();
        let comment = line.strip_prefix("//").or_else(|| line.strip_prefix("--"));
        let said = comment.and_then(|text| text.trim_start().strip_prefix("viaduct:"));
        said.unwrap_or_default().split_whitespace()
    })
}

fn virtio_type(text: &str) -> Result<u16, String> {
    Ok(match text {
        "net" => 1,
        "blk" => 2,
        "console" => 3,
        "rng" => 4,
        _ => text.parse().ok().filter(|n| *n < 64).ok_or("no such type of device")?,
    })
}

/// C code that adds the capabilities of virtio (VIRTIO 1.2, 4.1.4): what is where in BAR 0.
fn virtio_capabilities() -> String {
    // Type, offset, length: common configuration, doorbells, interrupt status, device's own.
    let structures = [(1, 0, 56), (2, 0x3000, 4), (3, 0x1000, 1), (4, 0x2000, 0x1000)];
    let mut text = String::new();
    for (kind, offset, len) in structures {
        let is_notify = kind == 2;
        let size: u8 = if is_notify { 20 } else { 16 };
        let mut body = vec![size, kind, 0, 0, 0, 0];
        body.extend(u32::to_le_bytes(offset));
        body.extend(u32::to_le_bytes(len));
        if is_notify {
            // All queues ring at one address.
            body.extend(u32::to_le_bytes(0));
        }
        let bytes: Vec<String> = body.iter().map(u8::to_string).collect();
        let (count, bytes) = (body.len(), bytes.join(", "));
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "    {{\n        static const unsigned char body[] = {{{bytes}}};\n        \
             if (viaduct_add_capability(dev, 9, body, 0, {count}))\n            \
             return dev;\n    }}\n"
        );
    }
    text
}

fn parse_ids(text: &str) -> Result<(u16, u16), String> {
    let (vendor, device) = text.split_once(':').ok_or("two numbers with a colon between them")?;
    Ok((parse_hex(vendor, 0xffff)? as u16, parse_hex(device, 0xffff)? as u16))
}

fn parse_hex(text: &str, most: u32) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let number = u32::from_str_radix(digits, 16).map_err(|_| "not a hexadecimal number")?;
    if number > most { Err(format!("more than {most:#x}")) } else { Ok(number) }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

fn parse_bar(text: &str) -> Result<Bar, String> {
    let mut words = text.split(',');
    let size = words.next().unwrap_or_default();
    let (digits, shift) = match size.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if size.ends_with('K') => (digits, 10),
        Some(digits) if size.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (size, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "the size is no number")?;
    let size = number.checked_mul(1 << shift).filter(|size| size.is_power_of_two());
    let size = size.ok_or("the size is a power of two")?;
    let mut bar = Bar { kind: BarKind::Memory32, prefetchable: false, size };
    for word in words {
        match word {
            "mem32" => bar.kind = BarKind::Memory32,
            "mem64" => bar.kind = BarKind::Memory64,
            "io" => bar.kind = BarKind::Io,
            "prefetchable" => bar.prefetchable = true,
            _ => return Err(format!("no kind of BAR is called {word}")),
        }
    }
    Ok(bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_describe_a_card() {
        let source = "module a;\n  // viaduct: id=1af4:1044 bar0=16K,mem64,prefetchable\n\
                      -- viaduct: msix=2 intx=on\n// viaducts are bridges\n";
        let card = Card::new(settings_in(source)).unwrap();
        assert_eq!(card.id, (0x1af4, 0x1044));
        let bar = Bar { kind: BarKind::Memory64, prefetchable: true, size: 16384 };
        assert_eq!(card.bars[0], Some(bar));
        assert_eq!(card.msix_place(), Ok((0, 8192, 12288)));
        assert!(card.interrupts.intx);
    }

    #[test]
    fn what_is_said_first_counts() {
        let card = Card::new(["id=1:2", "id=3:4"]).unwrap();
        assert_eq!(card.id, (1, 2));
    }

    #[test]
    fn what_can_not_be_is_told() {
        let fault = |setting: &str| Card::new([setting]).unwrap_err().to_string();
        assert_eq!(fault("bar0=3K"), "card setting 'bar0=3K': the size is a power of two");
        assert_eq!(fault("bar6=4K"), "card setting 'bar6=4K': there is no such setting");
        assert_eq!(fault("msi=3"), "card setting 'msi=3': 1, 2, 4, 8, 16 or 32 vectors");
        let card = Card::new(["bar0=4K", "msix=65"]).unwrap();
        assert!(card.msix_place().is_err());
    }

    #[test]
    fn the_c_code_is_c() {
        let card = Card::new(["id=1:2", "msix=1", "intx=on", "bar2=1M,mem64"]).unwrap();
        // BAR 0 is not there, so MSI-X has to be given a place.
        assert!(card.c_source("x").is_err());
        let card = Card::new(["subsystem=5:6", "msix=1,2:0:800", "msi=4", "bar2=1M,mem64"]);
        let source = card.unwrap().c_source("my \"card\"").unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("viaduct.h"), crate::HEADER).unwrap();
        let text = source + "int main(void) { return !make_card(); }\n";
        std::fs::write(folder.path().join("card.c"), text).unwrap();
        let cc = crate::Tool::new("cc", "").args(["-Wall", "-Wextra", "-Werror", "-c", "card.c"]);
        cc.within(folder.path()).run().unwrap();
    }
}
