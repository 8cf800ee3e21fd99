use std::cell::RefCell;
use std::ffi::c_int;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use pcie::{BarLayout, Built, Description};
use port::{Model, ModelError};

use crate::core::{Core, Link};
use crate::handlers::Handlers;

/// `viaduct_device`.
pub struct Device {
    pub core: Rc<Core>,
    name: String,
    description: RefCell<Option<Description>>,
    /// Bytes of the configuration space that the author sets before there is one.
    patches: RefCell<Vec<(usize, Vec<u8>)>>,
    model: RefCell<Option<Model>>,
}

impl Device {
    pub fn new(name: String, vendor: u16, device: u16) -> io::Result<Self> {
        Ok(Self {
            core: Rc::new(Core::new()?),
            name,
            description: RefCell::new(Some(Description::new(vendor, device))),
            patches: RefCell::default(),
            model: RefCell::new(None),
        })
    }

    /// Changes what the device is.
    pub fn describe(&self, change: impl FnOnce(Description) -> Description) -> c_int {
        let mut description = self.description.borrow_mut();
        match description.take() {
            Some(old) => {
                *description = Some(change(old));
                0
            }
            None => self.core.fail(libc::EISCONN, "the device is connected: it is what it is"),
        }
    }

    /// What a BAR is, while that can be changed.
    pub fn bar_layout(&self, index: usize) -> Option<BarLayout> {
        self.description.borrow().as_ref()?.bar_layout(index).cloned()
    }

    /// Sets bytes of the configuration space.
    pub fn put_config(&self, at: usize, bytes: &[u8]) -> c_int {
        if let Some(link) = &*self.core.link.borrow() {
            link.outbound.put_config(at as u64, bytes);
            let mut config = self.core.config.borrow_mut();
            if let Some(place) = config.get_mut(at..at.saturating_add(bytes.len())) {
                place.copy_from_slice(bytes);
            }
            return 0;
        }
        self.patches.borrow_mut().push((at, bytes.to_vec()));
        0
    }

    fn build(&self) -> Result<Built, String> {
        let description = self.description.borrow();
        let description = description.as_ref().ok_or("the device is connected already")?;
        let mut built = description.build().map_err(|error| error.to_string())?;
        for (at, bytes) in &*self.patches.borrow() {
            if at.saturating_add(bytes.len()) > built.config.len() {
                return Err(format!("there is no byte {at:#x} in the configuration space"));
            }
            built.config.put(*at, bytes);
        }
        built.config.settle();
        Ok(built)
    }

    pub fn connect(&self, path: Option<&Path>) -> c_int {
        let built = match self.build() {
            Ok(built) => built,
            Err(why) => return self.core.fail(libc::EINVAL, why),
        };
        self.core.config.replace(built.config.bytes());
        let function = Box::new(Handlers::new(built, Rc::clone(&self.core)));
        match Model::connect(path, &self.name, function) {
            Ok(model) => {
                let (outbound, wait) = (model.outbound().clone(), model.wait());
                self.core.link.replace(Some(Link { outbound, wait }));
                self.description.replace(None);
                self.model.replace(Some(model));
                0
            }
            Err(error @ ModelError::NoPort) => self.core.fail(libc::EDESTADDRREQ, error),
            Err(error @ ModelError::Refused(_)) => self.core.fail(libc::ECONNREFUSED, error),
            Err(error @ ModelError::Connect { .. }) => self.core.fail(libc::ENOTCONN, error),
            Err(error) => self.core.fail(libc::EIO, error),
        }
    }

    /// Does what there is to do, or waits for something for at most `limit`.
    pub fn process(&self, limit: Option<Duration>) -> c_int {
        let Ok(mut model) = self.model.try_borrow_mut() else {
            return self.core.fail(libc::EBUSY, "called from a handler");
        };
        let Some(model) = &mut *model else {
            return self.core.fail(libc::ENOTCONN, "not connected to a port");
        };
        match model.turn(limit) {
            Ok(()) => 0,
            Err(error @ ModelError::Gone) => self.core.fail(libc::EPIPE, error),
            Err(error) => self.core.fail(libc::EIO, error),
        }
    }

    /// Whether the port has asked for something that was not done yet.
    pub fn has_requests(&self) -> bool {
        self.core.link.borrow().as_ref().is_some_and(|link| link.wait.has_requests())
    }

    pub fn run(&self) -> c_int {
        self.core.is_stopped.set(false);
        while !self.core.is_stopped.get() {
            match self.process(None) {
                0 => {}
                gone if gone == -libc::EPIPE => return 0,
                error => return error,
            }
        }
        0
    }

    pub fn fd(&self) -> c_int {
        use std::os::fd::{AsFd, AsRawFd};
        let Ok(model) = self.model.try_borrow() else { return -libc::EBUSY };
        model.as_ref().map_or(-libc::ENOTCONN, |model| model.as_fd().as_raw_fd())
    }

    pub fn log(&self, is_error: bool, line: &str) {
        if let Some(link) = &*self.core.link.borrow() {
            link.outbound.log(is_error, line);
        }
    }
}

/// A C string from the outside, for people.
pub fn text(line: &std::ffi::CStr) -> String {
    line.to_string_lossy().into_owned()
}
