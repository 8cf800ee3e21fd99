use anyhow::{Result, ensure};
use mem::sync::Ordering;
use mem::{Backing, MemoryMap};
use virtqueue::{PackedPoint, QueueSpec, RingFormat};

use super::{flag, packed, split};

/// Relays descriptors from ring A, whose device it is, to ring B, whose driver it is, and used ones
/// back: the least that a shadow ring can cost with every address checked and translated. Both
/// rings have the same format.
pub struct RawRelay {
    regions: Vec<Window>,
    rings: Rings,
    /// By id on B, the id on A.
    ids: Box<[u16]>,
}

/// A region: from where, how long, and what to add.
struct Window {
    start: u64,
    len: u64,
    shift: u64,
}

enum Rings {
    Split(Box<SplitPair>),
    Packed(Box<PackedPair>),
}

struct SplitPair {
    a: split::Ring,
    b: split::Ring,
    available: u16,
    used: u16,
}

struct PackedPair {
    a: packed::Ring,
    b: packed::Ring,
    a_available: PackedPoint,
    a_used: PackedPoint,
    b_available: PackedPoint,
    b_used: PackedPoint,
    out: u16,
}

impl RawRelay {
    /// Between the rings of `a` and `b`; B's addresses are `shift` above A's offsets in the
    /// mapping.
    pub fn new(map: &MemoryMap, a: &QueueSpec, b: &QueueSpec, shift: u64) -> Result<Self> {
        ensure!(a.format == b.format && a.size == b.size, "rings of one kind");
        let window = |region: &mem::Region| {
            let Backing::Mapped { offset, .. } = region.backing else { return None };
            let shift = (offset as u64).wrapping_sub(region.start.0).wrapping_add(shift);
            Some(Window { start: region.start.0, len: region.len, shift })
        };
        let start = PackedPoint::START;
        let rings = match a.format {
            RingFormat::Split => {
                let (a, b) = (split::Ring::new(map, a)?, split::Ring::new(map, b)?);
                Rings::Split(Box::new(SplitPair { a, b, available: 0, used: 0 }))
            }
            RingFormat::Packed => Rings::Packed(Box::new(PackedPair {
                a: packed::Ring::new(map, a)?,
                b: packed::Ring::new(map, b)?,
                a_available: start,
                a_used: start,
                b_available: start,
                b_used: start,
                out: 0,
            })),
        };
        let regions = map.regions().iter().filter_map(window).collect();
        Ok(Self { regions, rings, ids: vec![0; usize::from(a.size)].into_boxed_slice() })
    }

    /// Relays at most `burst` descriptors each way; returns how many in all.
    #[inline]
    pub fn poll(&mut self, burst: u16) -> Result<u64> {
        match &mut self.rings {
            Rings::Split(pair) => poll_split(&self.regions, &mut self.ids, pair, burst),
            Rings::Packed(pair) => poll_packed(&self.regions, &mut self.ids, pair, burst),
        }
    }
}

#[inline]
fn translated(regions: &[Window], addr: u64, len: u32) -> Result<u64> {
    for region in regions {
        let offset = addr.wrapping_sub(region.start);
        if offset < region.len && u64::from(len) <= region.len - offset {
            return Ok(addr.wrapping_add(region.shift));
        }
    }
    anyhow::bail!("address {addr:#x} is in no region")
}

fn poll_split(
    regions: &[Window],
    ids: &mut [u16],
    pair: &mut SplitPair,
    burst: u16,
) -> Result<u64> {
    let SplitPair { a, b, available, used } = pair;
    let down = a.available_index().wrapping_sub(*available).min(burst);
    for _ in 0..down {
        let head = a.available(*available) & a.mask;
        let from = &a.descriptors[usize::from(head)];
        let (addr, len) = (from.addr(Ordering::Relaxed), from.len(Ordering::Relaxed));
        let slot = *available & b.mask;
        let to = &b.descriptors[usize::from(slot)];
        to.set_addr(translated(regions, addr, len)?, Ordering::Relaxed);
        to.set_len(len, Ordering::Relaxed);
        to.set_flags(from.flags(Ordering::Relaxed), Ordering::Relaxed);
        ids[usize::from(slot)] = head;
        b.set_available(*available, slot);
        *available = available.wrapping_add(1);
    }
    if down > 0 {
        b.publish_available(*available);
    }
    let up = b.used_index().wrapping_sub(*used).min(burst);
    for _ in 0..up {
        let (id, len) = b.used(*used);
        a.set_used(*used, ids[(id & u32::from(b.mask)) as usize].into(), len);
        *used = used.wrapping_add(1);
    }
    if up > 0 {
        a.publish_used(*used);
    }
    Ok((down + up).into())
}

fn poll_packed(
    regions: &[Window],
    ids: &mut [u16],
    pair: &mut PackedPair,
    burst: u16,
) -> Result<u64> {
    let PackedPair { a, b, .. } = pair;
    // Copies, so that the loops keep them in registers.
    let (mut from, mut to, mut out) = (pair.a_available, pair.b_available, pair.out);
    let mut down = 0;
    while down < burst && out < b.size && a.is_available(from) {
        let source = &a.descriptors[usize::from(from.index)];
        let (addr, len) = (source.addr(Ordering::Relaxed), source.len(Ordering::Relaxed));
        let sink = &b.descriptors[usize::from(to.index)];
        sink.set_addr(translated(regions, addr, len)?, Ordering::Relaxed);
        sink.set_len(len, Ordering::Relaxed);
        sink.set_id(to.index, Ordering::Relaxed);
        ids[usize::from(to.index)] = source.id(Ordering::Relaxed);
        b.set_available(to, source.flags(Ordering::Relaxed) & flag::WRITE);
        (from, to) = (a.next(from), b.next(to));
        out += 1;
        down += 1;
    }
    (pair.a_available, pair.b_available) = (from, to);
    let (mut from, mut to) = (pair.b_used, pair.a_used);
    let mut up = 0;
    while up < burst && out > 0 && b.is_used(from) {
        let sink = &a.descriptors[usize::from(to.index)];
        sink.set_id(ids[usize::from(from.index)], Ordering::Relaxed);
        sink.set_len(
            b.descriptors[usize::from(from.index)].len(Ordering::Relaxed),
            Ordering::Relaxed,
        );
        a.set_used(to);
        (from, to) = (b.next(from), a.next(to));
        out -= 1;
        up += 1;
    }
    (pair.b_used, pair.a_used, pair.out) = (from, to, out);
    Ok((down + up).into())
}
