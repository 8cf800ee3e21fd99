//! DEVICE_FEATURE: flags and the data of the features that vfio-user has, all for migration
//! ("Device Features").

use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// Bits 0-15 of the flags: which feature.
pub const INDEX_MASK: u32 = 0xffff;
/// Bit 16 of the flags: read it.
pub const GET: u32 = 1 << 16;
/// Bit 17 of the flags: write it.
pub const SET: u32 = 1 << 17;
/// Bit 18 of the flags: only say whether it could be read or written.
pub const PROBE: u32 = 1 << 18;

/// Feature 1: what migration can do; data is a u64 of [`STOP_COPY`], [`P2P`] and [`PRE_COPY`].
pub const MIGRATION: u16 = 1;
/// Feature 2: the state; data is a [`MigrationState`].
pub const MIG_DEVICE_STATE: u16 = 2;
/// Feature 6: start the log of writes; data is a [`LoggingControl`] and its ranges.
pub const DMA_LOGGING_START: u16 = 6;
/// Feature 7: stop it.
pub const DMA_LOGGING_STOP: u16 = 7;
/// Feature 8: read it; data is a [`LoggingReport`] and, in the reply, the bitmap.
pub const DMA_LOGGING_REPORT: u16 = 8;

/// Bit 0 of [`MIGRATION`]: the state can be read while the device is stopped.
pub const STOP_COPY: u64 = 1 << 0;
/// Bit 1 of [`MIGRATION`]: peer-to-peer states; not used in vfio-user.
pub const P2P: u64 = 1 << 1;
/// Bit 2 of [`MIGRATION`]: the state can be read while the device runs.
pub const PRE_COPY: u64 = 1 << 2;

/// States of a device (`enum vfio_device_mig_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationState {
    /// 0: it has failed; only a reset helps.
    Error,
    /// 1.
    Stop,
    /// 2.
    Running,
    /// 3: stopped, its state can be read.
    StopCopy,
    /// 4: stopped, its state is being written.
    Resuming,
    /// 5: not used in vfio-user.
    RunningP2p,
    /// 6: running, its state can be read already.
    PreCopy,
    /// 7: not used in vfio-user.
    PreCopyP2p,
}

impl MigrationState {
    /// All states, each at its number.
    const ALL: [Self; 8] = [
        Self::Error,
        Self::Stop,
        Self::Running,
        Self::StopCopy,
        Self::Resuming,
        Self::RunningP2p,
        Self::PreCopy,
        Self::PreCopyP2p,
    ];

    /// Decodes the data of [`MIG_DEVICE_STATE`]: the state and a descriptor that is not used.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(data);
        let (state, _data_fd) = (fields.u32()?, fields.u32()?);
        let wrong = DecodeError::Value { field: "migration state", value: state.into() };
        Self::ALL.get(state as usize).copied().ok_or(wrong)
    }

    /// Appends the data of [`MIG_DEVICE_STATE`].
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u32(self as u32);
        out.put_u32(u32::MAX);
    }
}

/// A range of addresses whose writes are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingRange {
    /// First DMA address.
    pub iova: u64,
    /// Size in bytes.
    pub len: u64,
}

/// Data of [`DMA_LOGGING_START`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingControl<'a> {
    /// Bytes per bit that are asked for, or in the reply the ones chosen.
    pub page_size: u64,
    ranges: &'a [u8],
}

impl<'a> LoggingControl<'a> {
    /// Size in bytes of a range.
    const RANGE_LEN: usize = 16;

    /// Decodes the data of [`DMA_LOGGING_START`].
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(data);
        let (page_size, count, _reserved) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let wrong = DecodeError::Value { field: "number of ranges", value: count.into() };
        let len = (count as usize).checked_mul(Self::RANGE_LEN).ok_or(wrong)?;
        Ok(Self { page_size, ranges: fields.bytes(len)? })
    }

    /// The ranges; none means all addresses.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = LoggingRange> + use<'a> {
        self.ranges.chunks_exact(Self::RANGE_LEN).map(|range| {
            let (iova, len) = range.split_at(size_of::<u64>());
            let number = |bytes| Fields::new(bytes).u64().unwrap_or(0);
            LoggingRange { iova: number(iova), len: number(len) }
        })
    }

    /// Appends the data of [`DMA_LOGGING_START`].
    pub fn encode(page_size: u64, ranges: &[LoggingRange], out: &mut Vec<u8>) {
        out.put_u64(page_size);
        out.put_u32(ranges.len() as u32);
        out.put_u32(0);
        for range in ranges {
            out.put_u64(range.iova);
            out.put_u64(range.len);
        }
    }
}

/// Data of [`DMA_LOGGING_REPORT`], without the bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingReport {
    /// First DMA address.
    pub iova: u64,
    /// Size in bytes.
    pub len: u64,
    /// Bytes per bit, a power of two.
    pub page_size: u64,
}

impl LoggingReport {
    /// Decodes the data of [`DMA_LOGGING_REPORT`] and gives the bitmap behind it, empty in a
    /// request.
    pub fn decode(data: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut fields = Fields::new(data);
        let (iova, len, page_size) = (fields.u64()?, fields.u64()?, fields.u64()?);
        if !page_size.is_power_of_two() {
            return Err(DecodeError::Value { field: "dirty page size", value: page_size });
        }
        super::message::check_range("dirty page range", iova, len)?;
        Ok((Self { iova, len, page_size }, fields.rest()))
    }

    /// Size in bytes of the bitmap: one bit per page, in whole u64 words.
    pub fn bitmap_len(&self) -> u64 {
        self.len.div_ceil(self.page_size.max(1)).div_ceil(64).saturating_mul(8)
    }

    /// Appends the data of [`DMA_LOGGING_REPORT`]; the bitmap, if any, comes behind it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.iova);
        out.put_u64(self.len);
        out.put_u64(self.page_size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_their_numbers() {
        for (number, state) in MigrationState::ALL.into_iter().enumerate() {
            let mut data = Vec::new();
            state.encode(&mut data);
            assert_eq!(data[..4], (number as u32).to_ne_bytes());
            assert_eq!(MigrationState::decode(&data), Ok(state));
        }
        assert!(MigrationState::decode(&[8, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn ranges_are_bounded_by_the_data() {
        let ranges = [LoggingRange { iova: 1, len: 2 }, LoggingRange { iova: 3, len: 4 }];
        let mut data = Vec::new();
        LoggingControl::encode(4096, &ranges, &mut data);
        let control = LoggingControl::decode(&data).expect("just encoded");
        assert_eq!(control.ranges().collect::<Vec<_>>(), ranges);
        data[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(LoggingControl::decode(&data).is_err());
    }

    #[test]
    fn bitmap_size_does_not_overflow() {
        let report = |len, page_size| LoggingReport { iova: 0, len, page_size };
        assert_eq!(report(4096 * 65, 4096).bitmap_len(), 16);
        assert_eq!(report(u64::MAX, 1).bitmap_len(), 1 << 61);
        let mut data = Vec::new();
        report(1, 0).encode(&mut data);
        assert!(LoggingReport::decode(&data).is_err());
    }
}
