//! Entropy device (VIRTIO 1.4, 5.4): one queue, and each chain comes back with random bytes in it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use virtio::{DeviceError, DeviceType, Identity, Parameters, VirtioDevice};

use crate::queue::{BuiltIn, Fault, Model, Outcome, QueueAccess, RINGS, Serve, Writer};
use crate::rate::Bucket;
use crate::{DeviceKind, OpenError};

pub(crate) static DEVICE: DeviceKind = DeviceKind {
    scheme: "rng",
    help: "entropy source: random bytes from the system or a file",
    settings: &[
        "path=FILE  where the bytes come from, again and again (/dev/urandom)",
        "rate=SIZE  bytes a second at most (no limit)",
    ],
    open,
};

/// Most bytes for one request, so that its length does not decide how much work we do; a driver
/// that gets fewer bytes than it has room for asks again. The same number as Firecracker's.
const MAX_REQUEST_BYTES: u64 = 64 * 1024;

/// Bytes fetched from the source at a time.
const PIECE_BYTES: usize = 4096;

/// When to ask a source again that had nothing.
const RETRY: Duration = Duration::from_millis(10);

const QUEUE_SIZE: u16 = 256;

fn open(mut parameters: Parameters) -> Result<Box<dyn VirtioDevice>, OpenError> {
    let path = parameters.path("path").unwrap_or_else(|| PathBuf::from("/dev/urandom"));
    let rate = parameters.number("rate", 1..=u64::from(u32::MAX))?;
    parameters.finish()?;
    let attempt = || DeviceError::system(format!("opening the random source {}", path.display()));
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let mut source = options.open(&path).map_err(attempt())?;
    if source.metadata().map_err(attempt())?.is_file() && source.read(&mut [0]).ok() != Some(1) {
        let what = format!("the random source {} has no bytes", path.display());
        return Err(DeviceError::Refused(what).into());
    }
    let identity = Identity {
        device: DeviceType::ENTROPY,
        features: RINGS,
        queue_sizes: vec![QUEUE_SIZE],
        config_len: 0,
    };
    Ok(Box::new(BuiltIn::new(Entropy { identity, source, rate })?))
}

struct Entropy {
    identity: Identity,
    source: File,
    rate: Option<u64>,
}

impl Model for Entropy {
    type Queue = EntropyQueue;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, _offset: u32, into: &mut [u8]) {
        into.fill(0);
    }

    fn make_queue(&mut self, _index: u16) -> Result<EntropyQueue, DeviceError> {
        let source =
            self.source.try_clone().map_err(DeviceError::system("copying a descriptor"))?;
        let piece = Box::new([0; PIECE_BYTES]);
        Ok(EntropyQueue { source, rate: self.rate.map(Bucket::new), piece, retry_at: None })
    }
}

struct EntropyQueue {
    source: File,
    rate: Option<Bucket>,
    piece: Box<[u8; PIECE_BYTES]>,
    /// Set while the source or the bucket is empty.
    retry_at: Option<Instant>,
}

impl EntropyQueue {
    fn serve(&mut self, mut writer: Writer<'_>) -> Outcome {
        let room = writer.left().min(MAX_REQUEST_BYTES);
        if room == 0 {
            return Outcome::Done(0);
        }
        let allowed = match &mut self.rate {
            Some(bucket) => bucket.take(room, Instant::now()),
            None => room,
        };
        let mut written = 0;
        while written < allowed {
            let len = (allowed - written).min(PIECE_BYTES as u64) as usize;
            let got = fetch(&mut self.source, &mut self.piece[..len]);
            writer.write(&self.piece[..got]);
            written += got as u64;
            if got == 0 {
                break;
            }
        }
        if written == 0 {
            let pause = match &self.rate {
                Some(bucket) if allowed == 0 => bucket.pause(),
                _ => RETRY,
            };
            self.retry_at = Some(Instant::now() + pause);
            return Outcome::Later;
        }
        Outcome::Done(written as u32)
    }
}

/// Reads from the source, from its beginning again if it has ended; returns 0 if it has nothing
/// now.
fn fetch(source: &mut File, into: &mut [u8]) -> usize {
    for _ in 0..2 {
        match source.read(into) {
            Ok(0) => {
                if source.rewind().is_err() {
                    return 0;
                }
            }
            Ok(n) => return n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return 0,
        }
    }
    0
}

impl Serve for EntropyQueue {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        self.retry_at = None;
        queue.each(budget, |buffers| Ok(self.serve(buffers.writer())))
    }

    fn arm(&mut self, available: bool) -> bool {
        available && self.retry_at.is_none()
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }
}
