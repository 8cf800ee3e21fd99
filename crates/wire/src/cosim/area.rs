use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// The first eight bytes of the shared area.
pub const AREA_MAGIC: u64 = u64::from_le_bytes(*b"viaduct\x01");

/// Places in the shared area, in bytes from its start. What one side writes and the other reads is
/// alone in its pair of cache lines, which is what processors fetch.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    /// [`AREA_MAGIC`], then the fields of [`Area`].
    pub head: usize,
    /// [`State`], written by the port.
    pub state: usize,
    /// Control words of the ring from the port to the model.
    pub requests: RingOffsets,
    /// Control words of the ring from the model to the port.
    pub answers: RingOffsets,
    /// The rings' bytes: requests, then answers.
    pub data: usize,
}

/// Control words of one ring, each a u64.
#[derive(Clone, Copy, Debug)]
pub struct RingOffsets {
    /// Bytes ever written, by the producer.
    pub produced: usize,
    /// Bytes ever taken, by the consumer.
    pub consumed: usize,
    /// 1 while the consumer sleeps and wants an event; the producer puts it back to 0.
    pub asleep: usize,
    /// 1 while the producer waits for room and wants an event; the consumer puts it back to 0.
    pub full: usize,
}

/// The one layout of version 1.
pub const OFFSETS: Offsets = Offsets {
    head: 0,
    state: 0x80,
    requests: RingOffsets { produced: 0x100, consumed: 0x180, asleep: 0x200, full: 0x280 },
    answers: RingOffsets { produced: 0x300, consumed: 0x380, asleep: 0x400, full: 0x480 },
    data: 0x1000,
};

/// The head of the shared area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Size in bytes of each ring: a power of two, a whole number of pages.
    pub ring_bytes: u32,
}

impl Area {
    /// Smallest ring: room for a record with most data, twice.
    pub const LEAST_RING: u32 = 64 << 10;
    /// Largest ring.
    pub const MOST_RING: u32 = 16 << 20;

    /// Size in bytes of the whole area.
    #[must_use]
    pub fn len(&self) -> usize {
        OFFSETS.data + 2 * self.ring_bytes as usize
    }

    /// Whether the area has no bytes; never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Reads the first 16 bytes of the area.
    ///
    /// # Errors
    /// Another protocol, or a ring of an impossible size.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        let magic = fields.u64()?;
        if magic != AREA_MAGIC {
            return Err(DecodeError::Value { field: "area magic", value: magic });
        }
        let ring_bytes = fields.u32()?;
        let fits = (Self::LEAST_RING..=Self::MOST_RING).contains(&ring_bytes);
        if !ring_bytes.is_power_of_two() || !fits {
            return Err(DecodeError::Value { field: "ring size", value: ring_bytes.into() });
        }
        Ok(Self { ring_bytes })
    }

    /// The first 16 bytes of the area.
    #[must_use]
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = Vec::with_capacity(16);
        bytes.put_u64(AREA_MAGIC);
        bytes.put_u32(self.ring_bytes);
        bytes.put_u32(0);
        let mut head = [0; 16];
        head.copy_from_slice(&bytes);
        head
    }
}

/// What the port keeps up to date for the model to look at without asking: bits 0 to 15 the command
/// register, 16 and 17 the power state, 24 to 26 which interrupts the host has put events behind,
/// 32 whether a host is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The command register.
    pub command: u16,
    /// The power state, 0 (D0) to 3 (D3hot).
    pub power: u8,
    /// Whether the host uses INTx.
    pub intx: bool,
    /// Whether the host uses MSI.
    pub msi: bool,
    /// Whether the host uses MSI-X.
    pub msix: bool,
    /// Whether a host is connected.
    pub present: bool,
}

impl State {
    /// As the word in the area.
    #[must_use]
    pub fn to_word(self) -> u64 {
        u64::from(self.command)
            | u64::from(self.power & 3) << 16
            | u64::from(self.intx) << 24
            | u64::from(self.msi) << 25
            | u64::from(self.msix) << 26
            | u64::from(self.present) << 32
    }

    /// From the word in the area; bits without a meaning are ignored.
    #[must_use]
    pub fn from_word(word: u64) -> Self {
        let bit = |n: u32| word >> n & 1 != 0;
        Self {
            command: word as u16,
            power: (word >> 16 & 3) as u8,
            intx: bit(24),
            msi: bit(25),
            msix: bit(26),
            present: bit(32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_area_survives_a_round() {
        let area = Area { ring_bytes: 128 << 10 };
        assert_eq!(Area::decode(&area.encode()), Ok(area));
        assert!(Area::decode(&area.encode()[..11]).is_err());
        assert!(Area::decode(&Area { ring_bytes: 4096 }.encode()).is_err());
        assert!(Area::decode(&Area { ring_bytes: 96 << 10 }.encode()).is_err());
        assert!(Area::decode(&[0; 16]).is_err());
    }

    #[test]
    fn the_state_survives_a_round() {
        let state =
            State { command: 0x407, power: 3, msix: true, present: true, ..State::default() };
        assert_eq!(State::from_word(state.to_word()), state);
        assert_eq!(state.to_word(), 0x1_0403_0407);
    }
}
