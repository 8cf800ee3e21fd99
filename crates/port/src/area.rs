//! The shared area: a sealed memfd with the rings of both directions.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mem::sync::{AtomicU64, Ordering};
use mem::{Mapping, MemoryError, Table};
use wire::cosim::{Area, OFFSETS, RingOffsets, State};

use crate::limits::RING_BYTES;
use crate::ring::Place;

/// The area as one side has it.
#[derive(Clone, Debug)]
pub struct Shared {
    words: Arc<Table<AtomicU64>>,
    ring_bytes: usize,
}

impl Shared {
    /// A fresh one, and its descriptor for the other side.
    pub fn create() -> Result<(Self, OwnedFd, u32), MemoryError> {
        let area = Area { ring_bytes: RING_BYTES };
        let mapping = Mapping::new_memfd("viaduct-port", area.len())?;
        let words = Arc::new(mapping.table::<AtomicU64>(0, area.len() / 8)?);
        for (word, bytes) in words.iter().zip(area.encode().chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(eight), Ordering::Relaxed);
        }
        let (file, _) = mapping.file().ok_or(MemoryError::Overflow)?;
        let file = file.try_clone_to_owned().map_err(|_| MemoryError::TooManyMappings)?;
        Ok((Self { words, ring_bytes: RING_BYTES as usize }, file, area.len() as u32))
    }

    /// The one that the other side made.
    pub fn open(file: OwnedFd, len: u32) -> Result<Self, MemoryError> {
        let bad = MemoryError::BadTable { offset: 0 };
        let mapping = Mapping::of_file(file, 0, len as usize)?;
        let words = mapping.table::<AtomicU64>(0, len as usize / 8)?;
        let head: Vec<u8> = words
            .iter()
            .take(2)
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        match Area::decode(&head) {
            Ok(area) if area.len() == len as usize => {
                Ok(Self { words: Arc::new(words), ring_bytes: area.ring_bytes as usize })
            }
            _ => Err(bad),
        }
    }

    /// The ring from the port to the model.
    pub fn requests(&self) -> Place {
        self.place(OFFSETS.requests, OFFSETS.data)
    }

    /// The ring from the model to the port.
    pub fn answers(&self) -> Place {
        self.place(OFFSETS.answers, OFFSETS.data + self.ring_bytes)
    }

    fn place(&self, control: RingOffsets, data: usize) -> Place {
        Place { words: Arc::clone(&self.words), control, data, len: self.ring_bytes }
    }

    /// What the port last said of the host and the configuration.
    pub fn state(&self) -> State {
        State::from_word(self.words[OFFSETS.state / 8].load(Ordering::Relaxed))
    }

    /// The port says it.
    pub fn set_state(&self, state: State) {
        self.words[OFFSETS.state / 8].store(state.to_word(), Ordering::Relaxed);
    }
}
