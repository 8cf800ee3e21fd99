use crate::queue::{Buffers, Fault};

/// Bytes of a sector, the unit of every address and length (VIRTIO 1.4, 5.2.4).
pub(super) const SECTOR: u64 = 512;

/// `virtio_blk_req` without data and status.
pub(super) const HEADER_BYTES: usize = 16;

/// Most data bytes of a request. Drivers stay below 4 MiB; without a limit one request could keep a
/// worker busy for seconds.
const MAX_REQUEST_BYTES: u64 = 64 << 20;

/// Most ranges of a discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 32;

/// Most sectors of a range to discard: 1 GiB, which file systems do in milliseconds.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// Most sectors of a range to zero: 32 MiB, which takes about 10 ms where the zeros must be
/// written.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 16;

/// The answer to a request (VIRTIO 1.4, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the writable part, but for the status, from byte `offset` on.
    Read { offset: u64, len: u64 },
    /// Store the readable part behind the header at byte `offset`.
    Write { offset: u64, len: u64 },
    /// Make earlier writes last.
    Flush,
    /// The serial number.
    Identify,
    /// The ranges behind the header are not needed any more.
    Discard,
    /// The ranges behind the header shall read as zeros.
    WriteZeros,
}

/// A range of a discard or write-zeroes request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) unmap: bool,
}

/// What a disk allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Size in sectors.
    pub(super) capacity: u64,
    pub(super) readonly: bool,
    /// Whether discard and write-zeroes were offered.
    pub(super) discard: bool,
}

impl Request {
    /// Reads the request in `buffers`: what to do, or the status to answer with (VIRTIO 1.4,
    /// 5.2.6).
    ///
    /// # Errors
    /// There is no byte to put a status in, or far too much data.
    pub(super) fn parse(
        buffers: &Buffers<'_>,
        limits: &Limits,
    ) -> Result<Result<Self, Status>, Fault> {
        let Some(room) = buffers.writable_len().checked_sub(1) else {
            return Err(Fault::Request("a block request without a writable byte for its status"));
        };
        if room.max(buffers.readable_len()) > MAX_REQUEST_BYTES {
            return Err(Fault::Request("a block request with more than 64 MiB of data"));
        }
        let mut reader = buffers.reader();
        // One copy of the header; the driver can change the original under us.
        let Some(header) = reader.array::<HEADER_BYTES>() else { return Ok(Err(Status::IoError)) };
        let data = reader.left();
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector: [u8; 8] = header[8..].try_into().expect("the header has 16 bytes");
        let sector = u64::from_le_bytes(sector);
        Ok(match kind {
            0 => limits.check(sector, room).map(|offset| Self::Read { offset, len: room }),
            1 if limits.readonly => Err(Status::IoError),
            1 => limits.check(sector, data).map(|offset| Self::Write { offset, len: data }),
            4 => Ok(Self::Flush),
            8 => Ok(Self::Identify),
            11 | 13 if limits.readonly => Err(Status::IoError),
            11 if limits.discard => Ok(Self::Discard),
            13 if limits.discard => Ok(Self::WriteZeros),
            _ => Err(Status::Unsupported),
        })
    }
}

impl Limits {
    /// The byte offset of `len` bytes at `sector`, if they are whole sectors and on the disk.
    fn check(&self, sector: u64, len: u64) -> Result<u64, Status> {
        let end = sector.checked_add(len / SECTOR).filter(|&end| end <= self.capacity);
        match end {
            // The capacity in bytes fits in 64 bits, so no product below it overflows.
            Some(_) if len.is_multiple_of(SECTOR) => Ok(sector * SECTOR),
            _ => Err(Status::IoError),
        }
    }

    /// Hands each range of a write-zeroes (`zero`) or discard request to `each`, after all of them
    /// were checked.
    pub(super) fn ranges(
        &self,
        buffers: &Buffers<'_>,
        zero: bool,
        each: impl FnMut(Range) -> Result<(), Status>,
    ) -> Result<(), Status> {
        /// `virtio_blk_discard_write_zeroes`.
        const BYTES: usize = 16;
        let mut reader = buffers.reader();
        reader.array::<HEADER_BYTES>().ok_or(Status::IoError)?;
        let count = reader.left() / BYTES as u64;
        let whole = reader.left().is_multiple_of(BYTES as u64);
        if !whole || count == 0 || count > MAX_RANGES.into() {
            return Err(Status::IoError);
        }
        let mut ranges = [Range { offset: 0, len: 0, unmap: false }; MAX_RANGES as usize];
        let ranges = &mut ranges[..count as usize];
        for range in &mut *ranges {
            let bytes = reader.array::<BYTES>().ok_or(Status::IoError)?;
            *range = self.range(u128::from_le_bytes(bytes), zero)?;
        }
        ranges.iter().filter(|range| range.len > 0).copied().try_for_each(each)
    }

    /// Checks one range: sector in the low 64 bits, then 32 bits of length and 32 of flags.
    fn range(&self, bits: u128, zero: bool) -> Result<Range, Status> {
        let (sector, sectors, flags) = (bits as u64, (bits >> 64) as u32, (bits >> 96) as u32);
        // Bit 0 is unmap, only for write-zeroes; the others are unknown (VIRTIO 1.4, 5.2.6.2).
        if flags & !u32::from(zero) != 0 {
            return Err(Status::Unsupported);
        }
        let most = if zero { MAX_ZERO_SECTORS } else { MAX_DISCARD_SECTORS };
        if sectors > most {
            return Err(Status::IoError);
        }
        let len = u64::from(sectors) * SECTOR;
        Ok(Range { offset: self.check(sector, len)?, len, unmap: flags & 1 != 0 })
    }
}
