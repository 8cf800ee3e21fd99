use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_int, c_void};
use std::io;
use std::sync::Arc;

use pcie::{Dma, HostPort};
use port::{Outbound, Wait};

use crate::events::Events;
use crate::handlers::RawHandlers;
use crate::memory::Transfers;

/// What handlers may use while they run.
pub struct Core {
    pub events: Events,
    pub handlers: Cell<RawHandlers>,
    pub context: Cell<*mut c_void>,
    pub transfers: RefCell<Transfers>,
    pub dma: RefCell<Option<Dma>>,
    pub host: RefCell<Option<HostPort>>,
    /// The configuration space as the port last told it.
    pub config: RefCell<Vec<u8>>,
    pub link: RefCell<Option<Link>>,
    pub is_stopped: Cell<bool>,
    error: RefCell<CString>,
}

/// The way to the port.
pub struct Link {
    pub outbound: Arc<Outbound>,
    pub wait: Wait,
}

impl Core {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            events: Events::new()?,
            handlers: Cell::default(),
            context: Cell::new(std::ptr::null_mut()),
            transfers: RefCell::default(),
            dma: RefCell::new(None),
            host: RefCell::new(None),
            config: RefCell::default(),
            link: RefCell::new(None),
            is_stopped: Cell::new(false),
            error: RefCell::default(),
        })
    }

    /// Remembers what went wrong; the number to return.
    pub fn fail(&self, errno: c_int, why: impl ToString) -> c_int {
        let mut text = why.to_string();
        text.retain(|c| c != '\0');
        self.error.replace(CString::new(text).unwrap_or_default());
        -errno
    }

    /// What went wrong last; good until the next failure.
    pub fn error(&self) -> *const std::ffi::c_char {
        self.error.borrow().as_ptr()
    }
}
