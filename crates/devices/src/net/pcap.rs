use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// A record of all frames in the format of libpcap, both directions.
#[derive(Debug)]
pub(super) struct Pcap(Mutex<Option<BufWriter<File>>>);

impl Pcap {
    /// Starts a new file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        /// Nanosecond timestamps, version 2.4, no zone and accuracy, frames of any length,
        /// Ethernet.
        const HEADER: [u32; 6] = [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, 262_144, 1];
        let mut file = BufWriter::new(File::create(path)?);
        for word in HEADER {
            file.write_all(&word.to_le_bytes())?;
        }
        file.flush()?;
        Ok(Self(Mutex::new(Some(file))))
    }

    /// Appends a frame.
    pub(super) fn record(&self, frame: &[u8]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let len = frame.len() as u32;
        let words = [now.as_secs() as u32, now.subsec_nanos(), len, len];
        self.write(|file| {
            for word in words {
                file.write_all(&word.to_le_bytes())?;
            }
            file.write_all(frame)
        });
    }

    /// Makes what was recorded visible to readers of the file.
    pub(super) fn flush(&self) {
        self.write(BufWriter::flush);
    }

    fn write(&self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = file.as_mut().map(write) {
            tracing::error!(%error, "writing the pcap file failed; nothing more is recorded");
            *file = None;
        }
    }
}
