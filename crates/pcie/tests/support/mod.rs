//! What the tests of the service share: a small virtio device, a service in a thread, a client that
//! says anything.
#![allow(dead_code, unused_imports, missing_docs, clippy::unwrap_used)]

pub mod client;
pub mod direct;
pub mod engine;
pub mod pattern;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use pcie::Function;
use pcie::vfio_user::{Service, Source};
use pcie::virtio_pci::{VirtioPci, VirtioPciOptions};
use sys::EventFd;

pub use client::Raw;
pub use direct::Direct;
pub use engine::Engine;
pub use pattern::Pattern;

/// A service in a thread; stopped and joined when dropped.
pub struct Served {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new(function: Box<dyn Function>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = sys::listen_unix(&path).unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut service = Service::new(function, Source::Listener(listener)).unwrap();
            service.run(asked.as_fd()).unwrap();
        });
        Self { _folder: folder, path, stop, thread: Some(thread) }
    }

    pub fn virtio(device: Pattern, options: VirtioPciOptions) -> Self {
        Self::new(Box::new(VirtioPci::new(Box::new(device), options).unwrap()))
    }

    pub fn raw(&self) -> Raw {
        Raw::connect(&self.path)
    }

    pub fn stop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the service panicked");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}
