//! Blocks of a fixed piece of memory, by powers of two, without allocating and with a bounded cost.

/// Size of the smallest block: a cache line.
pub(crate) const UNIT_BYTES: usize = 64;

/// Most orders: blocks of 2^0 to 2^24 units, 1 GiB.
const ORDERS: usize = 25;

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Set in a tag when the block is free.
const FREE: u8 = 0x80;

/// A buddy allocator that joins blocks lazily.
///
/// Blocks come back to the list of their size and are taken from there first: the usual sizes cost
/// a few nanoseconds and stay in the cache. Only when there is no block that is large enough are
/// free neighbours joined. When nothing is in use
/// [`Pool::make_whole`] makes one block of everything, and splitting that always takes the smallest
/// block that fits, so whatever fits the pool by its sum can be had then: a request that waits for
/// room gets it, however small the pieces were.
///
/// The state is in private memory, none of it in the blocks.
#[derive(Debug)]
pub(crate) struct Pool {
    /// First free block of each order.
    heads: [u32; ORDERS],
    /// The next free block behind a free block.
    next: Vec<u32>,
    /// Where a block starts: its order plus one, and [`FREE`]. Elsewhere 0. As long as `next`: up
    /// to where the frontier has come, since most pools are never full.
    tags: Vec<u8>,
    units: u32,
    top: usize,
    /// From this unit on nothing has ever been in use, or all of it has come back. It is free, but
    /// in no list: as many blocks, each as large as its start allows, as if everything had been
    /// split down to here. Their links would lie on pages far apart.
    frontier: u32,
    free_units: u32,
    /// Whether blocks were freed since they were last joined.
    may_join: bool,
}

impl Pool {
    /// A pool of `bytes`, a power of two from [`UNIT_BYTES`] to 1 GiB.
    pub(crate) fn new(bytes: usize) -> Self {
        let units = bytes / UNIT_BYTES;
        assert!(units.is_power_of_two() && bytes.is_multiple_of(UNIT_BYTES), "a power of two");
        let top = units.ilog2() as usize;
        assert!(top < ORDERS, "a pool of 1 GiB at most");
        Self {
            heads: [NONE; ORDERS],
            next: Vec::new(),
            tags: Vec::new(),
            units: units as u32,
            top,
            frontier: 0,
            free_units: units as u32,
            may_join: false,
        }
    }

    /// Bytes of the pool.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES as u64
    }

    /// Bytes that a block for `len` bytes takes up.
    pub(crate) fn rounded(len: u32) -> u64 {
        (UNIT_BYTES as u64) << order_for(len)
    }

    /// A block for `len` bytes, as the number of its first unit.
    #[inline]
    pub(crate) fn alloc(&mut self, len: u32) -> Option<u32> {
        let order = order_for(len);
        if order > self.top || self.free_units < 1 << order {
            return None;
        }
        if self.heads[order] == NONE && !self.split_down_to(order) {
            return None;
        }
        let unit = self.pop(order);
        self.tags[unit as usize] = order as u8 + 1;
        self.free_units -= 1 << order;
        Some(unit)
    }

    /// Gives a block back.
    #[inline]
    pub(crate) fn free(&mut self, unit: u32) {
        let tag = self.tags[unit as usize];
        assert!(tag != 0 && tag & FREE == 0, "only blocks in use are freed");
        let order = usize::from(tag - 1);
        self.free_units += 1 << order;
        self.may_join = true;
        self.push(order, unit);
    }

    /// Makes one block of everything if nothing is in use; returns false if it is, or if there is
    /// nothing to join.
    #[cold]
    pub(crate) fn make_whole(&mut self) -> bool {
        if self.free_units != self.units || !std::mem::take(&mut self.may_join) {
            return false;
        }
        self.join();
        true
    }

    /// Makes a free block of `order` from a larger one; returns whether there is one.
    #[cold]
    fn split_down_to(&mut self, order: usize) -> bool {
        let listed = |pool: &Self| (order..=pool.top).find(|&order| pool.heads[order] != NONE);
        if listed(self).is_none() && self.unlisted(order).is_none() {
            if !std::mem::take(&mut self.may_join) {
                return false;
            }
            self.join();
        }
        // The smallest that fits, wherever it is.
        let (listed, unlisted) = (listed(self), self.unlisted(order));
        let from = match (listed, unlisted) {
            (Some(listed), Some((_, larger))) if listed > larger => None,
            (listed, _) => listed,
        };
        let Some(from) = from else {
            let Some((unit, _)) = unlisted else { return false };
            self.reach(unit + (1 << order));
            self.advance(unit);
            self.push(order, unit);
            self.frontier = unit + (1 << order);
            return true;
        };
        let unit = self.pop(from);
        for half in (order..from).rev() {
            self.push(half, unit + (1 << half));
        }
        self.push(order, unit);
        true
    }

    /// The smallest block that is free, in no list, and at least of `order`: its start and its
    /// order.
    fn unlisted(&self, order: usize) -> Option<(u32, usize)> {
        let unit = (self.frontier as usize).next_multiple_of(1 << order);
        let whole = (unit.trailing_zeros() as usize).min(self.top);
        (unit < self.units as usize).then_some((unit as u32, whole))
    }

    /// Makes room for what is known of the units up to `end`.
    fn reach(&mut self, end: u32) {
        let len = (end as usize).max(self.next.len());
        self.next.resize(len, 0);
        self.tags.resize(len, 0);
    }

    /// Lists the blocks between the frontier and `to`.
    fn advance(&mut self, to: u32) {
        let mut unit = self.frontier;
        while unit < to {
            let order = unit.trailing_zeros() as usize;
            self.push(order, unit);
            unit += 1 << order;
        }
        self.frontier = to;
    }

    /// Takes the blocks that end at the frontier, when all that can be joined is, out of their
    /// lists.
    fn retreat(&mut self) {
        while self.frontier > 0 {
            let order = self.frontier.trailing_zeros() as usize;
            let unit = self.frontier - (1 << order);
            if self.tags[unit as usize] != FREE | (order as u8 + 1) {
                return;
            }
            self.unlist(order, unit);
            self.frontier = unit;
        }
    }

    /// Takes one block out of its list, wherever it is in it.
    fn unlist(&mut self, order: usize, unit: u32) {
        let mut at = self.heads[order];
        if at == unit {
            self.pop(order);
            return;
        }
        while self.next[at as usize] != unit {
            at = self.next[at as usize];
        }
        self.next[at as usize] = self.next[unit as usize];
        self.tags[unit as usize] = 0;
    }

    /// Joins free neighbours, smallest first. Bounded by the number of free blocks, which is
    /// bounded by how many blocks were in use at once.
    fn join(&mut self) {
        for order in 0..self.top {
            let free = FREE | (order as u8 + 1);
            let joined = FREE | (order as u8 + 2);
            let mut unit = self.heads[order];
            while unit != NONE {
                let buddy = unit ^ (1 << order);
                let is_free = |unit: u32| self.tags.get(unit as usize) == Some(&free);
                if is_free(unit) && is_free(buddy) {
                    self.tags[unit.max(buddy) as usize] = 0;
                    self.tags[unit.min(buddy) as usize] = joined;
                }
                unit = self.next[unit as usize];
            }
            // Now that no neighbour is looked for any more the links may change.
            let mut unit = std::mem::replace(&mut self.heads[order], NONE);
            while unit != NONE {
                let next = self.next[unit as usize];
                match self.tags[unit as usize] {
                    tag if tag == free => self.push(order, unit),
                    tag if tag == joined => self.push(order + 1, unit),
                    _ => {}
                }
                unit = next;
            }
        }
        self.retreat();
    }

    #[inline]
    fn push(&mut self, order: usize, unit: u32) {
        self.tags[unit as usize] = FREE | (order as u8 + 1);
        self.next[unit as usize] = self.heads[order];
        self.heads[order] = unit;
    }

    #[inline]
    fn pop(&mut self, order: usize) -> u32 {
        let unit = self.heads[order];
        self.heads[order] = self.next[unit as usize];
        self.tags[unit as usize] = 0;
        unit
    }
}

#[inline]
fn order_for(len: u32) -> usize {
    let units = (len as usize).div_ceil(UNIT_BYTES).max(1);
    units.next_power_of_two().ilog2() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: usize = 64 << 10;

    proptest! {
        /// Blocks never overlap, and when all have come back everything can be had in one piece.
        #[test]
        fn blocks_are_apart_and_come_together_again(
            steps in prop::collection::vec((any::<bool>(), 1u32..20_000, any::<u16>()), 1..300)
        ) {
            let mut pool = Pool::new(BYTES);
            let mut used: Vec<(u32, u32)> = Vec::new();
            for (take, len, which) in steps {
                if take {
                    if let Some(unit) = pool.alloc(len) {
                        let units = len.div_ceil(UNIT_BYTES as u32);
                        prop_assert!(unit as usize + units as usize <= BYTES / UNIT_BYTES);
                        let is_apart = |at: u32, n: u32| unit >= at + n || at >= unit + units;
                        prop_assert!(used.iter().all(|&(at, n)| is_apart(at, n)));
                        used.push((unit, units));
                    }
                } else if !used.is_empty() {
                    let (unit, _) = used.swap_remove(usize::from(which) % used.len());
                    pool.free(unit);
                }
            }
            for (unit, _) in used.drain(..) {
                pool.free(unit);
            }
            prop_assert_eq!(pool.alloc(BYTES as u32), Some(0));
        }

        /// Whatever fits by its sum can be had from an empty pool, in any order.
        #[test]
        fn an_empty_pool_holds_what_adds_up(lens in prop::collection::vec(1u32..9000, 1..64)) {
            let mut pool = Pool::new(BYTES);
            let small = pool.alloc(1).unwrap();
            let other = pool.alloc(1).unwrap();
            pool.free(small);
            pool.free(other);
            prop_assert!(pool.make_whole());
            let mut left = BYTES as u64;
            for len in lens {
                if Pool::rounded(len) > left {
                    break;
                }
                left -= Pool::rounded(len);
                prop_assert!(pool.alloc(len).is_some());
            }
        }
    }

    #[test]
    #[should_panic(expected = "only blocks in use")]
    fn a_block_is_not_freed_twice() {
        let mut pool = Pool::new(BYTES);
        let unit = pool.alloc(100).unwrap();
        pool.free(unit);
        pool.free(unit);
    }
}
