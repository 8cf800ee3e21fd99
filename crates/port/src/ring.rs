//! One direction of the shared area: records from one producer to one consumer.
//!
//! ```text
//!   producer                                        consumer
//!     words of the record                             produced  (acquire: pairs with ^)
//!     produced += length   (release)                  words of the record
//!     ---- full fence ----                            consumed += length   (release)
//!     asleep? -> 0, signal                            nothing left: asleep = 1
//!                                                     ---- full fence ----
//!                                                     produced again; if it moved, stay awake
//! ```
//!
//! Either the producer sees `asleep`, or the consumer sees what was produced: the two fences pair.
//! The same with `full` the other way round. Both counters are bytes since the beginning and never
//! wrap. Each side keeps its own counter in private memory and only writes it to the area; what it
//! reads of the other's is checked before it is used.

use std::marker::PhantomData;
use std::sync::Arc;

use mem::Table;
use mem::sync::{AtomicU64, Ordering, fence};
use wire::DecodeError;
use wire::cosim::{HEADER_WORDS, Kind, Record, RingOffsets};

/// The other side does not keep to the rules: nothing in the ring can be believed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A counter that went back, or beyond what there is.
    #[error("the counters of a ring make no sense")]
    Counters,
    /// A record that is none.
    #[error("a record makes no sense: {0}")]
    Record(#[from] DecodeError),
}

/// The full fences by name: a loom test leaves them out one by one and must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Producer: what it produced before `asleep`. Partner: `Sleep`.
    Push,
    /// Consumer: `asleep` before what was produced.
    Sleep,
    /// Consumer: what it consumed before `full`. Partner: `WaitForRoom`.
    GiveRoom,
    /// Producer: `full` before what was consumed.
    WaitForRoom,
}

impl Fence {
    #[inline]
    fn pass(self) {
        #[cfg(loom)]
        if model::left_out() == Some(self) {
            return;
        }
        fence(Ordering::SeqCst);
    }
}

/// For loom tests.
#[cfg(loom)]
pub mod model {
    use std::sync::{Mutex, PoisonError};

    use super::Fence;

    static LEFT_OUT: Mutex<Option<Fence>> = Mutex::new(None);

    /// Leaves a fence out from now on.
    pub fn leave_out(fence: Option<Fence>) {
        *LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner) = fence;
    }

    pub(super) fn left_out() -> Option<Fence> {
        *LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a ring is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The area, as words.
    pub words: Arc<Table<AtomicU64>>,
    /// The control words, in bytes.
    pub control: RingOffsets,
    /// The data, in bytes.
    pub data: usize,
    /// Its size in bytes, a power of two.
    pub len: usize,
}

impl Place {
    fn control(&self, offset: usize) -> &AtomicU64 {
        &self.words[offset / 8]
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        // Counters are whole words: the remainder is inside the ring whatever they are.
        let inside = at as usize & (self.len - 1);
        &self.words[(self.data + inside) / 8]
    }
}

/// Whether the record has found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Yes, and the consumer sees it by itself.
    Seen,
    /// Yes, and the consumer sleeps: signal its event.
    WantsEvent,
    /// No.
    Full,
}

/// The side that writes.
#[derive(Debug)]
pub struct Producer<K: Kind> {
    place: Place,
    produced: u64,
    /// As last read; never ahead of the truth.
    consumed: u64,
    _kind: PhantomData<K>,
}

impl<K: Kind> Producer<K> {
    /// At the beginning of a fresh ring.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, produced: 0, consumed: 0, _kind: PhantomData }
    }

    fn refresh(&mut self) -> Result<(), RingError> {
        // Acquire: the consumer has copied what it gave back. Pairs with the store in `pop`.
        let consumed = self.place.control(self.place.control.consumed).load(Ordering::Acquire);
        let used = self.produced.checked_sub(consumed).ok_or(RingError::Counters)?;
        if consumed < self.consumed || used > self.place.len as u64 || !consumed.is_multiple_of(8) {
            return Err(RingError::Counters);
        }
        self.consumed = consumed;
        Ok(())
    }

    /// Whether the consumer has taken everything.
    ///
    /// # Errors
    /// [`RingError::Counters`].
    pub fn is_drained(&mut self) -> Result<bool, RingError> {
        self.refresh()?;
        Ok(self.consumed == self.produced)
    }

    /// How many bytes the consumer had taken when it was last looked at, since the beginning.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.consumed
    }

    /// Appends a record with `data`, whose length is set here.
    ///
    /// # Errors
    /// [`RingError::Counters`].
    pub fn push(&mut self, mut record: Record<K>, data: &[u8]) -> Result<Pushed, RingError> {
        record.data_len = data.len() as u32;
        let len = 8 * record.words() as u64;
        if self.place.len as u64 - (self.produced - self.consumed) < len {
            self.refresh()?;
            if self.place.len as u64 - (self.produced - self.consumed) < len {
                return Ok(Pushed::Full);
            }
        }
        let mut at = self.produced;
        for word in record.encode() {
            self.place.word(at).store(word, Ordering::Relaxed);
            at += 8;
        }
        for chunk in data.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            self.place.word(at).store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            at += 8;
        }
        self.produced = at;
        // Release: the words before the counter. Pairs with the load in `pop`.
        self.place.control(self.place.control.produced).store(at, Ordering::Release);
        // Pairs with the fence in `sleep`.
        Fence::Push.pass();
        let asleep = self.place.control(self.place.control.asleep);
        let wants = asleep.load(Ordering::Relaxed) != 0 && asleep.swap(0, Ordering::Relaxed) != 0;
        Ok(if wants { Pushed::WantsEvent } else { Pushed::Seen })
    }

    /// Asks for an event when something is taken; false if that has happened since the last look.
    ///
    /// # Errors
    /// [`RingError::Counters`].
    pub fn wait_for_room(&mut self) -> Result<bool, RingError> {
        self.place.control(self.place.control.full).store(1, Ordering::Relaxed);
        // Pairs with the fence in `give_room`.
        Fence::WaitForRoom.pass();
        let before = self.consumed;
        self.refresh()?;
        Ok(self.consumed == before)
    }
}

/// The side that reads.
#[derive(Debug)]
pub struct Consumer<K: Kind> {
    place: Place,
    consumed: u64,
    /// What `consumed` was when the producer was last asked whether it waits for room.
    told: u64,
    _kind: PhantomData<K>,
}

impl<K: Kind> Consumer<K> {
    /// At the beginning of a fresh ring.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, consumed: 0, told: 0, _kind: PhantomData }
    }

    /// How many bytes there are to be taken.
    fn available(&self) -> Result<u64, RingError> {
        // Acquire: the words behind the counter. Pairs with the store in `push`.
        let produced = self.place.control(self.place.control.produced).load(Ordering::Acquire);
        let len = produced.checked_sub(self.consumed).ok_or(RingError::Counters)?;
        if len > self.place.len as u64 || !len.is_multiple_of(8) {
            return Err(RingError::Counters);
        }
        Ok(len)
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.available() == Ok(0)
    }

    /// Takes the next record, with its data in `data`.
    ///
    /// # Errors
    /// The producer breaks the rules.
    pub fn pop(&mut self, data: &mut Vec<u8>) -> Result<Option<Record<K>>, RingError> {
        let available = self.available()?;
        if available == 0 {
            return Ok(None);
        }
        if available < 8 * HEADER_WORDS as u64 {
            return Err(RingError::Counters);
        }
        let mut at = self.consumed;
        let mut take = || {
            let word = self.place.word(at).load(Ordering::Relaxed);
            at += 8;
            word
        };
        let head: [u64; HEADER_WORDS] = std::array::from_fn(|_| take());
        let record = Record::<K>::decode(head)?;
        if 8 * record.words() as u64 > available {
            return Err(RingError::Counters);
        }
        data.clear();
        for _ in HEADER_WORDS..record.words() {
            data.extend_from_slice(&take().to_ne_bytes());
        }
        data.truncate(record.data_len as usize);
        self.consumed = at;
        // Release: what was read before it is given back. Pairs with the load in `refresh`.
        self.place.control(self.place.control.consumed).store(at, Ordering::Release);
        Ok(Some(record))
    }

    /// After some were taken: whether the producer waits for room, so its event is to be signalled.
    #[must_use]
    pub fn give_room(&mut self) -> bool {
        // A producer that waits has looked at `consumed` after it had said so.
        if self.told == self.consumed {
            return false;
        }
        self.told = self.consumed;
        // Pairs with the fence in `wait_for_room`.
        Fence::GiveRoom.pass();
        let full = self.place.control(self.place.control.full);
        full.load(Ordering::Relaxed) != 0 && full.swap(0, Ordering::Relaxed) != 0
    }

    /// Asks for an event when something comes; false if something has come, and then there will be
    /// no event.
    #[must_use]
    pub fn sleep(&self) -> bool {
        let asleep = self.place.control(self.place.control.asleep);
        asleep.store(1, Ordering::Relaxed);
        // Pairs with the fence in `push`.
        Fence::Sleep.pass();
        if self.is_empty() {
            return true;
        }
        asleep.store(0, Ordering::Relaxed);
        false
    }

    /// Asks for no more events.
    pub fn wake(&self) {
        let asleep = self.place.control(self.place.control.asleep);
        // Nobody is to fetch a line in which nothing changes.
        if asleep.load(Ordering::Relaxed) != 0 {
            asleep.store(0, Ordering::Relaxed);
        }
    }
}
