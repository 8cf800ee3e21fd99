//! The function whose other side is C.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use pcie::config::ConfigSpace;
use pcie::{BarAddress, Built, Completion, Dma, Function, FunctionLayout, HostPort, ResetKind};

use crate::core::Core;

/// `struct viaduct_handlers`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct RawHandlers {
    pub read: Option<extern "C" fn(*mut c_void, c_uint, u64, *mut c_void, usize)>,
    pub read_later: Option<extern "C" fn(*mut c_void, c_uint, u64, usize, *mut Answer)>,
    pub write: Option<extern "C" fn(*mut c_void, c_uint, u64, *const c_void, usize)>,
    pub reset: Option<extern "C" fn(*mut c_void, c_int)>,
    pub config_changed: Option<extern "C" fn(*mut c_void, c_uint, usize)>,
    pub host_present: Option<extern "C" fn(*mut c_void, c_int)>,
}

/// `viaduct_answer`: a read that waits.
pub struct Answer(pub Completion);

/// A function made of C handlers.
pub struct Handlers {
    built: Built,
    core: Rc<Core>,
    data: Vec<u8>,
}

// SAFETY: a device, and so everything that its `Rc`s point to, is used by one thread at a time,
// which viaduct.h demands; the model that owns this is part of the device and never leaves it.
unsafe impl Send for Handlers {}

impl Handlers {
    pub fn new(built: Built, core: Rc<Core>) -> Self {
        Self { built, core, data: Vec::new() }
    }

    fn raw(&self) -> (RawHandlers, *mut c_void) {
        (self.core.handlers.get(), self.core.context.get())
    }
}

impl Function for Handlers {
    fn layout(&self) -> &FunctionLayout {
        &self.built.layout
    }

    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.built.config
    }

    fn connect(&mut self, host: HostPort) {
        if let Ok(dma) = Dma::new(&host) {
            let _ = self.core.events.watch_dma(dma.as_fd());
            self.core.dma.replace(Some(dma));
        }
        self.core.host.replace(Some(host));
    }

    fn read(&mut self, at: BarAddress, answer: Completion) {
        let (raw, context) = self.raw();
        let len = answer.len();
        if let Some(read_later) = raw.read_later {
            let answer = Box::into_raw(Box::new(Answer(answer)));
            return read_later(context, at.bar.into(), at.offset, len, answer);
        }
        let Some(read) = raw.read else { return answer.all_ones() };
        self.data.clear();
        self.data.resize(len, 0);
        read(context, at.bar.into(), at.offset, self.data.as_mut_ptr().cast(), len);
        answer.answer(&self.data);
    }

    fn write(&mut self, at: BarAddress, bytes: &[u8]) {
        let (raw, context) = self.raw();
        if let Some(write) = raw.write {
            write(context, at.bar.into(), at.offset, bytes.as_ptr().cast(), bytes.len());
        }
    }

    fn reset(&mut self, kind: ResetKind) {
        self.core.forget_transfers();
        let (raw, context) = self.raw();
        if let Some(reset) = raw.reset {
            reset(context, c_int::from(kind == ResetKind::Function));
        }
    }

    fn config_changed(&mut self, at: u64, len: usize) {
        self.core.config.replace(self.built.config.bytes());
        let (raw, context) = self.raw();
        if let Some(config_changed) = raw.config_changed {
            config_changed(context, at as c_uint, len);
        }
    }

    fn host_present(&mut self, present: bool) {
        let (raw, context) = self.raw();
        if let Some(host_present) = raw.host_present {
            host_present(context, present.into());
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.core.events.fd())
    }

    fn events_ready(&mut self) {
        if self.core.events.turn() {
            self.core.call_back();
        }
    }
}
