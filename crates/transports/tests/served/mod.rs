//! A driver end that serves a device on a thread of its own, and the settings it takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::JoinHandle;

use transports::{TRANSPORTS, Transport};
use virtio::{EndError, Parameters, Stop, Value, VirtioDevice};

pub fn parameters(settings: &[(&str, &str)]) -> Parameters {
    let value = |text: &str| Value { text: text.to_owned(), number: text.parse().ok(), flag: None };
    let values = settings.iter().map(|(key, text)| ((*key).to_owned(), value(text)));
    Parameters::new(values.collect::<BTreeMap<_, _>>())
}

pub fn transport(scheme: &str) -> &'static Transport {
    TRANSPORTS.iter().find(|transport| transport.scheme == scheme).unwrap()
}

/// A disk of a mebibyte in memory.
pub fn ram_disk() -> Box<dyn VirtioDevice> {
    let kind = devices::DEVICES.iter().find(|kind| kind.scheme == "blk").unwrap();
    (kind.open)(parameters(&[("ram", "1048576")])).unwrap()
}

/// A device behind a driver end, until this is dropped.
pub struct Served {
    stop: Stop,
    thread: Option<JoinHandle<Result<(), EndError>>>,
}

impl Served {
    pub fn new(scheme: &str, path: &Path, device: Box<dyn VirtioDevice>) -> Self {
        let text = path.display().to_string();
        let end = transport(scheme).driver_end.unwrap()(parameters(&[("path", &text)])).unwrap();
        let stop = Stop::new().unwrap();
        let asked = stop.clone();
        Self { stop, thread: Some(std::thread::spawn(move || end.serve(device, asked))) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.ask();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the end panicked").expect("and ends well");
        }
    }
}
