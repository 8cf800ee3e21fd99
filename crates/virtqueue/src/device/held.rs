use crate::{QueueError, QueueSpec};

/// What we must know of a chain in flight. Private: the driver can rewrite everything in its rings
/// meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    /// Length of the device-writable part.
    writable: u32,
    /// Ring descriptors the chain takes up (1 for indirect; always 1 in split rings), 0 if the id
    /// is not in flight.
    slots: u16,
    /// With IN_ORDER: given back, but waiting for an earlier chain.
    done: bool,
}

impl Entry {
    /// Notes a chain of one descriptor, if the id may be taken now.
    #[inline]
    pub(super) fn claim(&mut self, writable: u32) -> bool {
        let is_free = self.slots == 0;
        if is_free {
            (self.writable, self.slots) = (writable, 1);
        }
        is_free
    }

    /// Whether it is a chain in flight of one descriptor.
    #[inline]
    pub(super) fn is_single(&self) -> bool {
        self.slots == 1
    }

    /// Notes that the chain is done; returns its used length and ring descriptors. Only without
    /// IN_ORDER.
    #[inline]
    pub(super) fn release(&mut self, written: u32) -> (u32, u16) {
        let slots = std::mem::take(&mut self.slots);
        assert!(slots > 0, "a chain that is given back is in flight");
        debug_assert!(written <= self.writable, "more written than the chain has room for");
        (written.min(self.writable), slots)
    }
}

/// The chains in flight, by head or buffer id.
#[derive(Debug)]
pub(super) struct Held {
    /// Up to the highest id so far, since most queues are idle most of the time. Grows to `size`,
    /// and only in [`Held::make`].
    entries: Vec<Entry>,
    size: u16,
    /// Since a log is kept: chains taken and not done. (Before, nobody asks often enough for that
    /// to be worth a counter.)
    logged: u16,
    order: Option<Box<Order>>,
    /// Without IN_ORDER: what the latest finished chain makes due.
    due: Option<Due>,
}

/// With IN_ORDER: the chains in flight as a queue in order of taking.
#[derive(Debug)]
struct Order {
    ids: Box<[u16]>,
    written: Box<[u32]>,
    first: usize,
    len: usize,
    /// Whether one used element may stand for several chains.
    batches: bool,
}

/// A used element that is due: it stands for `chains` chains, which take up `slots` descriptors,
/// the last of them `id`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub id: u16,
    pub written: u32,
    pub chains: u16,
    pub slots: u16,
}

/// Entries there are from the start.
const FIRST_ENTRIES: usize = 4;

impl Held {
    pub(super) fn new(spec: &QueueSpec) -> Self {
        let size = usize::from(spec.size);
        let first = FIRST_ENTRIES.min(size);
        let order = spec.in_order.then(|| {
            Box::new(Order {
                ids: vec![0; size].into_boxed_slice(),
                written: vec![0; size].into_boxed_slice(),
                first: 0,
                len: 0,
                batches: true,
            })
        });
        Self {
            entries: vec![Entry::default(); first],
            size: spec.size,
            logged: 0,
            order,
            due: None,
        }
    }

    /// Chains taken and not done, counted one by one.
    pub(super) fn count(&self) -> u16 {
        self.entries.iter().filter(|entry| entry.slots > 0 && !entry.done).count() as u16
    }

    /// The same once a log is kept, at no cost.
    pub(super) fn logged(&self) -> u16 {
        self.logged
    }

    /// Begins to keep a log: gives every chain a used element of its own from now on.
    pub(super) fn begin_log(&mut self) {
        self.logged = self.count();
        if let Some(order) = &mut self.order {
            order.batches = false;
        }
    }

    /// Whether `id` may be taken now.
    #[inline]
    pub(super) fn check_free(&self, id: u16) -> Result<(), QueueError> {
        match self.entries.get(usize::from(id)) {
            Some(Entry { slots: 0, .. }) => Ok(()),
            Some(_) => Err(QueueError::AvailableTwice(id)),
            None if id < self.size => Ok(()),
            None => {
                let size = self.size.into();
                Err(QueueError::IndexOutOfRange { index: id.into(), size })
            }
        }
    }

    /// Notes that `id`, checked before, is in flight.
    #[inline]
    pub(super) fn insert(&mut self, id: u16, writable: u32, slots: u16) {
        self.make(id);
        self.entries[usize::from(id)] = Entry { writable, slots, done: false };
        self.logged = self.logged.wrapping_add(1);
        self.note_order(&[id]);
    }

    /// Sees to it that there is an entry for `id`; returns whether there was none and now is one.
    #[inline]
    pub(super) fn make(&mut self, id: u16) -> bool {
        let is_new = id < self.size && usize::from(id) >= self.entries.len();
        if is_new {
            self.grow(id);
        }
        is_new
    }

    /// Makes an entry for `id`, and for twice as many as there were.
    #[cold]
    fn grow(&mut self, id: u16) {
        let (wanted, most) = (usize::from(id) + 1, usize::from(self.size));
        let len = wanted.max(self.entries.len() * 2).min(most);
        self.entries.reserve_exact(len - self.entries.len());
        self.entries.resize(len, Entry::default());
    }

    /// What is known of each chain, by id, for a loop that claims or releases many. For an id
    /// behind the end [`Held::make`] makes an entry, if it is in range. After claims
    /// [`Held::note_order`] is due. Only while no log is kept.
    #[inline]
    pub(super) fn entries(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// Notes that chains were claimed in this order.
    #[inline]
    pub(super) fn note_order(&mut self, ids: &[u16]) {
        if let Some(order) = &mut self.order {
            ids.iter().for_each(|&id| order.push(id));
        }
    }

    /// Whether chains are given back as they are, in any order.
    #[inline]
    pub(super) fn is_unordered(&self) -> bool {
        self.order.is_none()
    }

    /// Notes that `id`, of one descriptor, is in flight, if it may be and is not a new one; only
    /// without IN_ORDER.
    #[inline]
    pub(super) fn try_insert(&mut self, id: u16, writable: u32) -> bool {
        self.entries.get_mut(usize::from(id)).is_some_and(|entry| entry.claim(writable))
    }

    /// Notes that `id` is done; returns its used length and ring descriptors. Only without
    /// IN_ORDER.
    #[inline]
    pub(super) fn remove(&mut self, id: u16, written: u32) -> (u32, u16) {
        self.entries[usize::from(id)].release(written)
    }

    /// Forgets `id`, the latest taken; returns its ring descriptors.
    #[inline]
    pub(super) fn undo(&mut self, id: u16) -> u16 {
        let slots = std::mem::take(&mut self.entries[usize::from(id)]).slots;
        assert!(slots > 0, "a chain that is untaken is in flight on this queue");
        self.logged = self.logged.wrapping_sub(1);
        if let Some(order) = &mut self.order {
            order.pop_last(id);
        }
        slots
    }

    /// Notes that `id` is done. What is due then, [`Held::next_due`] says.
    pub(super) fn finish(&mut self, id: u16, written: u32) {
        self.logged = self.logged.wrapping_sub(1);
        match &mut self.order {
            None => {
                let (written, slots) = self.remove(id, written);
                self.due = Some(Due { id, written, chains: 1, slots });
            }
            Some(order) => {
                let entry = &mut self.entries[usize::from(id)];
                assert!(entry.slots > 0 && !entry.done, "a chain that is given back is in flight");
                debug_assert!(written <= entry.writable, "more written than there is room for");
                entry.done = true;
                order.written[usize::from(id)] = written.min(entry.writable);
            }
        }
    }

    /// The next used element that is due.
    pub(super) fn next_due(&mut self) -> Option<Due> {
        match &mut self.order {
            None => self.due.take(),
            Some(order) => order.next_due(&mut self.entries),
        }
    }

    /// With IN_ORDER: takes out chains that are done, as far as they are the first in flight in
    /// this order, and hands what is due to `each`; returns how many. The others are to be finished
    /// one by one, and then [`Held::next_due`] has more if they were given back before.
    #[inline]
    pub(super) fn remove_first(
        &mut self,
        ids: &[u16],
        written: &[u32],
        mut each: impl FnMut(Due),
    ) -> usize {
        let Some(order) = &mut self.order else { return 0 };
        let mut removed = 0;
        let (mut chains, mut slots) = (0, 0);
        for (&id, &written) in ids.iter().zip(written).take(order.len) {
            let entry = &mut self.entries[usize::from(id)];
            if order.ids[order.first] != id || entry.done {
                break;
            }
            debug_assert!(written <= entry.writable, "more written than there is room for");
            let written = written.min(entry.writable);
            let full = written == entry.writable;
            chains += 1;
            slots += std::mem::take(&mut entry.slots);
            order.first = if order.first + 1 == order.ids.len() { 0 } else { order.first + 1 };
            removed += 1;
            // As in `next_due`.
            if !full || !order.batches || removed == ids.len() {
                each(Due { id, written, chains, slots });
                (chains, slots) = (0, 0);
            }
        }
        if chains > 0 {
            let id = ids[removed - 1];
            let written = written[removed - 1].min(self.entries[usize::from(id)].writable);
            each(Due { id, written, chains, slots });
        }
        order.len -= removed;
        removed
    }
}

impl Order {
    fn push(&mut self, id: u16) {
        let size = self.ids.len();
        let mut at = self.first + self.len;
        if at >= size {
            at -= size;
        }
        self.ids[at] = id;
        self.len += 1;
    }

    fn pop_last(&mut self, id: u16) {
        self.len -= 1;
        let size = self.ids.len();
        let at = (self.first + self.len) % size;
        assert!(self.ids[at] == id, "chains are untaken in reverse order");
    }

    /// One element for as many of the done chains at the front as possible: a chain without an
    /// element of its own counts as completely written, so one that is not ends a batch (VIRTIO
    /// 1.4, 2.7.9, 2.8.9).
    fn next_due(&mut self, entries: &mut [Entry]) -> Option<Due> {
        let (mut chains, mut slots) = (0, 0);
        // Bounded: every round takes a chain out.
        while self.len > 0 {
            let id = self.ids[self.first];
            let entry = &mut entries[usize::from(id)];
            if !entry.done {
                break;
            }
            let written = self.written[usize::from(id)];
            let full = written == entry.writable;
            chains += 1;
            slots += entry.slots;
            *entry = Entry::default();
            self.first += 1;
            if self.first == self.ids.len() {
                self.first = 0;
            }
            self.len -= 1;
            let next_done = self.len > 0 && entries[usize::from(self.ids[self.first])].done;
            if !full || !next_done || !self.batches {
                return Some(Due { id, written, chains, slots });
            }
        }
        None
    }
}
