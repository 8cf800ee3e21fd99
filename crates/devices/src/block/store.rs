use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use mem::{Mapping, Span};
use rustix::fs::{FallocateFlags, FileType};
use rustix::io::Errno;

use crate::queue::Cursor;

/// Where a disk's bytes are.
#[derive(Clone, Debug)]
pub(super) enum Store {
    /// A regular file or a block device of the system.
    File(Arc<File>),
    /// Memory, gone with the process.
    Ram(Arc<Mapping>),
    /// Nowhere: writes are forgotten, reads bring zeros.
    Null,
}

/// Whether a file lies on a file system that has no device below it, only memory.
pub(super) fn is_in_memory(file: &File) -> bool {
    /// Numbers of tmpfs and ramfs (linux/magic.h).
    const IN_MEMORY: [i128; 2] = [0x0102_1994, 0x8584_58f6];
    // Asking for the type of a file system that can't be told is no reason not to use it.
    rustix::fs::fstatfs(file).is_ok_and(|found| IN_MEMORY.contains(&i128::from(found.f_type)))
}

/// Spans given to the kernel in one call; chains of more take several calls.
const SPANS_PER_CALL: usize = 32;

/// Zeros written at a time where the kernel can't make them by itself.
static ZEROS: [u8; 65536] = [0; 65536];

impl Store {
    /// The file or block device at `path`.
    pub(super) fn open(path: &Path, readonly: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(!readonly).open(path)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            let what = "it is neither a regular file nor a block device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(Self::File(Arc::new(file)))
    }

    /// Size in bytes, where it is not fixed: a file may have grown.
    pub(super) fn size(&self) -> Option<io::Result<u64>> {
        match self {
            // Also right for block devices, whose metadata says 0. The position is not used for
            // anything else.
            Self::File(file) => Some((&**file).seek(SeekFrom::End(0))),
            Self::Ram(_) | Self::Null => None,
        }
    }

    /// Reads from byte `offset` on into all that is left of `into`.
    pub(super) fn read(&self, mut into: Cursor<'_>, mut offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => transfer(into, offset, |spans, at| sys::read_at(file, spans, at)),
            Self::Ram(mapping) => {
                while let Some(span) = into.next_span() {
                    part(mapping, offset, span.len())?.copy_to_span(&span);
                    offset += span.len() as u64;
                }
                Ok(())
            }
            Self::Null => {
                while let Some(span) = into.next_span() {
                    span.zero();
                }
                Ok(())
            }
        }
    }

    /// Writes all that is left of `from` to byte `offset` on.
    pub(super) fn write(&self, mut from: Cursor<'_>, mut offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => transfer(from, offset, |spans, at| sys::write_at(file, spans, at)),
            Self::Ram(mapping) => {
                while let Some(span) = from.next_span() {
                    span.copy_to_span(&part(mapping, offset, span.len())?);
                    offset += span.len() as u64;
                }
                Ok(())
            }
            Self::Null => Ok(()),
        }
    }

    /// Makes all writes that have ended survive a power cut.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.sync_data(),
            Self::Ram(_) | Self::Null => Ok(()),
        }
    }

    /// Gives the bytes' room back if that is possible. What they read as afterwards is undefined
    /// (VIRTIO 1.4, 5.2.6).
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.punch(offset, len) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Makes the bytes read as zeros; their room may be given back if `unmap`.
    pub(super) fn write_zeros(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let result = match self {
            Self::File(file) if !unmap => {
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file, flags, offset, len)
            }
            _ => self.punch(offset, len),
        };
        match (result, self) {
            (Err(Errno::OPNOTSUPP | Errno::INVAL), Self::File(file)) => {
                zero_by_hand(file, offset, len)
            }
            (result, _) => Ok(result?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self {
            Self::File(file) => rustix::fs::fallocate(file, flags, offset, len),
            Self::Ram(mapping) => match mapping.file() {
                Some((file, start)) => rustix::fs::fallocate(file, flags, start + offset, len),
                None => Err(Errno::OPNOTSUPP),
            },
            Self::Null => Ok(()),
        }
    }
}

fn part(mapping: &Arc<Mapping>, offset: u64, len: usize) -> io::Result<Span<'_>> {
    let offset = usize::try_from(offset).ok();
    let span = offset.and_then(|offset| Span::of_mapping(mapping, offset, len));
    span.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Calls `call` with batches of spans until all of `cursor` has been transferred.
fn transfer(
    mut cursor: Cursor<'_>,
    mut offset: u64,
    call: impl Fn(&[Span<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    // Bounded: every round moves at least one byte, and in practice 32 spans.
    while cursor.left() > 0 {
        let mut ahead = cursor;
        let Some(first) = ahead.next_span() else { break };
        let mut spans = [first; SPANS_PER_CALL];
        let mut count = 1;
        while count < SPANS_PER_CALL
            && let Some(span) = ahead.next_span()
        {
            spans[count] = span;
            count += 1;
        }
        match call(&spans[..count], offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                cursor.skip(n as u64);
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn zero_by_hand(file: &File, mut offset: u64, len: u64) -> io::Result<()> {
    let end = offset + len;
    while offset < end {
        let piece = (end - offset).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..piece as usize], offset)?;
        offset += piece;
    }
    Ok(())
}
