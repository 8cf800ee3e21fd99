//! Writes a recording.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use wire::cosim::{Hello, Kind, Record};

use super::{Entry, head};

/// How much is gathered before it is written even in the middle of a turn.
const BATCH_BYTES: usize = 64 << 10;

/// Writes what happens into a file. What has been written is there whatever becomes of this
/// process: it is written at the end of each of the port's turns. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// `None` when it is full, or could not be written.
    file: Option<File>,
    room: u64,
    buffer: Vec<u8>,
    begin: Instant,
    last_ns: u64,
    has_head: bool,
}

impl Recorder {
    /// Records into the file at `path`, at most `limit_bytes`: the beginning is what a replay
    /// needs, so it is what stays.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn create(path: &Path, limit_bytes: u64) -> io::Result<Self> {
        let inner = Inner {
            file: Some(File::create(path)?),
            room: limit_bytes,
            buffer: Vec::new(),
            begin: Instant::now(),
            last_ns: 0,
            has_head: false,
        };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the model is; the first time it begins the file.
    pub(crate) fn begin(&self, hello: &Hello) {
        let mut inner = self.lock();
        if !inner.has_head {
            inner.has_head = true;
            let bytes = head(hello);
            inner.buffer.extend_from_slice(&bytes);
        }
    }

    /// Something that is in no ring.
    pub(crate) fn event(&self, kind: u8, address: u64, data: &[u8]) {
        self.put(Entry { kind, address, data: data.to_vec(), ..Entry::default() });
    }

    /// A record of a ring.
    pub(crate) fn record<K: Kind>(&self, record: &Record<K>, data: &[u8]) {
        self.put(Entry::of(record, data));
    }

    fn put(&self, entry: Entry) {
        let mut inner = self.lock();
        if inner.file.is_none() {
            return;
        }
        let now = inner.begin.elapsed().as_nanos() as u64;
        let delta = now - inner.last_ns;
        inner.last_ns = now;
        entry.encode(delta, &mut inner.buffer);
        if inner.buffer.len() >= BATCH_BYTES {
            inner.flush();
        }
    }

    /// Writes what has been gathered.
    pub(crate) fn flush(&self) {
        let mut inner = self.lock();
        if !inner.buffer.is_empty() {
            inner.flush();
        }
    }
}

impl Inner {
    fn flush(&mut self) {
        let bytes = std::mem::take(&mut self.buffer);
        let Some(file) = &mut self.file else { return };
        if bytes.len() as u64 > self.room {
            tracing::warn!("the recording is as long as it may be: nothing more is recorded");
            self.file = None;
            return;
        }
        self.room -= bytes.len() as u64;
        if let Err(error) = file.write_all(&bytes) {
            tracing::warn!("the recording can't be written: {error}; nothing more is recorded");
            self.file = None;
        }
        self.buffer = bytes;
        self.buffer.clear();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.flush();
    }
}
