//! A function's layout and configuration space as a Hello has them, and back.

use pcie::config::{ConfigSpace, Msix};
use pcie::{BarKind, BarLayout, FunctionLayout, InterruptLayout, LayoutError};
use wire::cosim::{BarShape, Hello, MAX_NAME, MsixShape, bar_kind};

/// In what a Hello tells the parts of BARs that are memory.
const PAGE: u64 = 4096;

/// What a model says of its function.
pub fn hello(layout: &FunctionLayout, config: &ConfigSpace, name: &str, flags: u32) -> Hello {
    let bar = |bar: &BarLayout| {
        let (kind, prefetchable) = match bar.kind {
            BarKind::None => (bar_kind::NONE, false),
            BarKind::Io => (bar_kind::IO, false),
            BarKind::Memory32 { prefetchable } => (bar_kind::MEMORY32, prefetchable),
            BarKind::Memory64 { prefetchable } => (bar_kind::MEMORY64, prefetchable),
        };
        // Nothing said is all of it.
        let areas = bar.mappable.as_ref().map(|mappable| &mappable.areas[..]);
        // A part that does not fit the message is left to messages, as is all but the first.
        let mapped = areas.and_then(|areas| {
            let (at, len) = areas.first().copied().unwrap_or((0, bar.size));
            Some(((at / PAGE).try_into().ok()?, (len / PAGE).try_into().ok()?))
        });
        BarShape { kind, prefetchable, size: bar.size, mapped: mapped.unwrap_or_default() }
    };
    Hello {
        flags,
        bars: std::array::from_fn(|index| bar(&layout.bars[index])),
        intx: layout.interrupts.intx,
        msi: layout.interrupts.msi,
        msix: layout.interrupts.msix.map(|msix| MsixShape {
            vectors: msix.vectors,
            bar: msix.bar,
            table: msix.table,
            pending: msix.pending,
        }),
        config: config.pristine(),
        writable: config.writable(),
        clearable: config.clearable(),
        name: name.chars().take(MAX_NAME / 4).collect(),
    }
}

/// The function that a model says it is.
///
/// # Errors
/// There can be no such function.
pub fn function(hello: &Hello) -> Result<(FunctionLayout, ConfigSpace), LayoutError> {
    let bar = |index: u8| {
        let shape = &hello.bars[usize::from(index)];
        let prefetchable = shape.prefetchable;
        let kind = match shape.kind {
            bar_kind::IO => BarKind::Io,
            bar_kind::MEMORY32 => BarKind::Memory32 { prefetchable },
            bar_kind::MEMORY64 => BarKind::Memory64 { prefetchable },
            _ => return Ok(BarLayout::default()),
        };
        let bar = BarLayout { kind, size: shape.size, mappable: None };
        match (kind, shape.mapped) {
            (BarKind::Io, _) | (_, (_, 0)) => Ok(bar),
            (_, (first, pages)) => bar
                .mapped(u64::from(first) * PAGE, u64::from(pages) * PAGE)
                .map_err(|_| LayoutError::BadBar(index)),
        }
    };
    let layout = FunctionLayout {
        bars: [bar(0)?, bar(1)?, bar(2)?, bar(3)?, bar(4)?, bar(5)?],
        interrupts: InterruptLayout {
            intx: hello.intx,
            msi: hello.msi,
            msix: hello.msix.map(|msix| Msix {
                vectors: msix.vectors,
                bar: msix.bar,
                table: msix.table,
                pending: msix.pending,
            }),
        },
    };
    layout.check()?;
    if hello.msi > 32 || (hello.msi > 0 && !hello.msi.is_power_of_two()) {
        return Err(LayoutError::BadVectors(hello.msi.into()));
    }
    let (bytes, writable) = (hello.config.clone(), hello.writable.clone());
    let config = ConfigSpace::from_parts(bytes, writable, hello.clearable.clone())?;
    Ok((layout, config))
}

/// What a model that comes back has changed in a way that a running machine can't follow.
pub fn difference(old: &Hello, new: &Hello) -> Option<String> {
    for (index, (old, new)) in old.bars.iter().zip(&new.bars).enumerate() {
        if old != new {
            return Some(format!("bar {index} has {} bytes and had {}", new.size, old.size));
        }
    }
    let interrupts = |hello: &Hello| (hello.intx, hello.msi, hello.msix);
    if interrupts(old) != interrupts(new) {
        return Some("its interrupts are others".into());
    }
    let spaces =
        |hello: &Hello| (hello.config.clone(), hello.writable.clone(), hello.clearable.clone());
    (spaces(old) != spaces(new)).then(|| "its configuration space is another".into())
}
