//! Interrupts by eventfd: the INTx line and vectors of MSI and MSI-X.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::EventFd;

use crate::InterruptLayout;

/// A type of interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// The INTx line.
    Intx,
    /// Message signalled.
    Msi,
    /// Message signalled, with a table.
    Msix,
}

/// Why interrupts can't be set up like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IrqError {
    /// The range goes beyond the vectors there are.
    #[error("interrupt vectors out of range")]
    OutOfRange,
    /// This kind of interrupt can't be masked here.
    #[error("this type of interrupt can't be masked")]
    NotMaskable,
}

/// The line: level-triggered for the driver, edges for the eventfd behind it.
#[derive(Debug, Default)]
struct Line {
    event: Option<Arc<EventFd>>,
    asserted: bool,
    /// The driver has set Interrupt Disable in the command register.
    disabled: bool,
    /// The host takes one edge and then wants to unmask before the next one
    /// (`VFIO_IRQ_INFO_AUTOMASKED`).
    masked: bool,
    /// Signalled by the host when the driver has served the line.
    unmask: Option<Arc<EventFd>>,
}

impl Line {
    fn offer(&mut self) {
        if self.asserted
            && !self.disabled
            && !self.masked
            && let Some(event) = &self.event
        {
            event.signal();
            self.masked = true;
        }
    }
}

/// Where interrupts go that have no events behind them: to another process, say.
pub trait InterruptSink: Send + Sync + std::fmt::Debug {
    /// Signals a vector of MSI or MSI-X once.
    fn signal(&self, kind: InterruptKind, vector: u16);

    /// Raises or lowers the INTx line.
    fn set_intx(&self, asserted: bool);

    /// Whether the host uses this kind.
    fn is_used(&self, kind: InterruptKind) -> bool;
}

/// A function's interrupts and the events that the host has put behind them.
#[derive(Debug)]
pub struct Interrupts {
    layout: InterruptLayout,
    line: Mutex<Line>,
    msi: Mutex<Vec<Option<Arc<EventFd>>>>,
    msix: Mutex<Vec<Option<Arc<EventFd>>>>,
    /// Takes everything instead of the events.
    sink: Option<Arc<dyn InterruptSink>>,
}

impl Interrupts {
    /// Interrupts with nothing behind them.
    #[must_use]
    pub fn new(layout: InterruptLayout) -> Self {
        let vectors = |count: usize| Mutex::new(vec![None; count]);
        Self {
            layout,
            line: Mutex::default(),
            msi: vectors(layout.msi.into()),
            msix: vectors(layout.msix.map_or(0, |msix| msix.vectors.into())),
            sink: None,
        }
    }

    /// Interrupts that all go to `sink`.
    #[must_use]
    pub fn towards(layout: InterruptLayout, sink: Arc<dyn InterruptSink>) -> Self {
        Self { sink: Some(sink), ..Self::new(layout) }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vectors(&self, kind: InterruptKind) -> MutexGuard<'_, Vec<Option<Arc<EventFd>>>> {
        let vectors = if kind == InterruptKind::Msi { &self.msi } else { &self.msix };
        vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many interrupts of this kind there are.
    #[must_use]
    pub fn count(&self, kind: InterruptKind) -> u32 {
        match kind {
            InterruptKind::Intx => self.layout.intx.into(),
            InterruptKind::Msi => self.layout.msi.into(),
            InterruptKind::Msix => self.layout.msix.map_or(0, |msix| msix.vectors.into()),
        }
    }

    /// Raises or lowers the INTx line.
    pub fn set_intx(&self, asserted: bool) {
        if let Some(sink) = &self.sink {
            return sink.set_intx(asserted);
        }
        let mut line = self.line();
        line.asserted = asserted;
        line.offer();
    }

    /// Whether the line is raised, though the driver may have disabled it: Interrupt Status in the
    /// status register (PCIe 7.5.1.1.4).
    #[must_use]
    pub fn is_intx_asserted(&self) -> bool {
        self.line().asserted
    }

    /// The driver disables or enables the line by its bit in the command register.
    pub fn disable_intx(&self, disabled: bool) {
        let mut line = self.line();
        line.disabled = disabled;
        line.offer();
    }

    /// Signals a vector once; nothing happens if the host has put no event behind it.
    pub fn signal(&self, kind: InterruptKind, vector: u16) {
        if kind == InterruptKind::Intx {
            return self.set_intx(true);
        }
        if let Some(sink) = &self.sink {
            return sink.signal(kind, vector);
        }
        if let Some(event) = self.event(kind, vector) {
            event.signal();
        }
    }

    /// Interrupts by whatever the host has enabled: MSI-X `vector`, else MSI `vector` (or 0 if the
    /// host gave it fewer), else the line, which stays raised until [`Interrupts::set_intx`] lowers
    /// it.
    pub fn signal_any(&self, vector: u16) {
        if self.is_used(InterruptKind::Msix) {
            return self.signal(InterruptKind::Msix, vector);
        }
        if self.is_used(InterruptKind::Msi) {
            let known = self.sink.is_some() || self.event(InterruptKind::Msi, vector).is_some();
            return self.signal(InterruptKind::Msi, if known { vector } else { 0 });
        }
        self.set_intx(true);
    }

    /// The event behind a vector, to be signalled without asking here again until
    /// [`Function::interrupts_changed`].
    ///
    /// [`Function::interrupts_changed`]: crate::Function::interrupts_changed
    #[must_use]
    pub fn event(&self, kind: InterruptKind, vector: u16) -> Option<Arc<EventFd>> {
        match kind {
            InterruptKind::Intx => self.line().event.clone(),
            _ => self.vectors(kind).get(usize::from(vector)).cloned().flatten(),
        }
    }

    /// Whether the host uses this kind: some event is behind it.
    #[must_use]
    pub fn is_used(&self, kind: InterruptKind) -> bool {
        if let Some(sink) = &self.sink {
            return sink.is_used(kind);
        }
        match kind {
            InterruptKind::Intx => self.line().event.is_some(),
            _ => self.vectors(kind).iter().any(Option::is_some),
        }
    }

    /// The host puts an event behind a vector, or takes it away.
    ///
    /// # Errors
    /// [`IrqError::OutOfRange`].
    pub fn connect(
        &self,
        kind: InterruptKind,
        vector: u32,
        event: Option<Arc<EventFd>>,
    ) -> Result<(), IrqError> {
        self.check(kind, vector, 1)?;
        if kind == InterruptKind::Intx {
            let mut line = self.line();
            line.event = event;
            line.masked = false;
            line.offer();
        } else {
            self.vectors(kind)[vector as usize] = event;
        }
        Ok(())
    }

    /// The host takes every event of this kind away.
    pub fn disconnect(&self, kind: InterruptKind) {
        match kind {
            InterruptKind::Intx => {
                let mut line = self.line();
                let Line { asserted, disabled, .. } = *line;
                *line = Line { asserted, disabled, ..Line::default() };
            }
            _ => self.vectors(kind).fill(None),
        }
    }

    /// The host masks or unmasks the line.
    ///
    /// # Errors
    /// [`IrqError::OutOfRange`], [`IrqError::NotMaskable`].
    pub fn mask(&self, kind: InterruptKind, vector: u32, masked: bool) -> Result<(), IrqError> {
        self.check(kind, vector, 1)?;
        if kind != InterruptKind::Intx {
            return Err(IrqError::NotMaskable);
        }
        let mut line = self.line();
        line.masked = masked;
        line.offer();
        Ok(())
    }

    /// The host will unmask the line by this event; whoever serves the function watches it and
    /// calls
    /// [`Interrupts::mask`].
    pub fn set_unmask_event(&self, event: Option<Arc<EventFd>>) {
        self.line().unmask = event;
    }

    /// The event set by [`Interrupts::set_unmask_event`].
    #[must_use]
    pub fn unmask_event(&self) -> Option<Arc<EventFd>> {
        self.line().unmask.clone()
    }

    /// Whether `count` interrupts from `start` on exist.
    ///
    /// # Errors
    /// [`IrqError::OutOfRange`].
    pub fn check(&self, kind: InterruptKind, start: u32, count: u32) -> Result<(), IrqError> {
        match start.checked_add(count) {
            Some(end) if end <= self.count(kind) => Ok(()),
            _ => Err(IrqError::OutOfRange),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_one_edge_per_unmask() {
        let interrupts = Interrupts::new(InterruptLayout { intx: true, ..Default::default() });
        let event = Arc::new(EventFd::new().unwrap());
        interrupts.set_intx(true);
        interrupts.connect(InterruptKind::Intx, 0, Some(Arc::clone(&event))).unwrap();
        assert!(event.drain(), "a line raised before there was an event");
        interrupts.set_intx(true);
        assert!(!event.drain(), "masked until the host has served it");
        interrupts.mask(InterruptKind::Intx, 0, false).unwrap();
        assert!(event.drain(), "still raised");
        interrupts.set_intx(false);
        interrupts.mask(InterruptKind::Intx, 0, false).unwrap();
        assert!(!event.drain(), "lowered");
    }

    #[test]
    fn a_line_that_the_driver_disabled_waits() {
        let interrupts = Interrupts::new(InterruptLayout { intx: true, ..Default::default() });
        let event = Arc::new(EventFd::new().unwrap());
        interrupts.connect(InterruptKind::Intx, 0, Some(Arc::clone(&event))).unwrap();
        interrupts.disable_intx(true);
        interrupts.set_intx(true);
        assert!(!event.drain() && interrupts.is_intx_asserted());
        interrupts.disable_intx(false);
        assert!(event.drain(), "it was pending");
    }

    #[test]
    fn vectors_out_of_range_are_refused() {
        let interrupts = Interrupts::new(InterruptLayout { msi: 4, ..Default::default() });
        assert_eq!(interrupts.connect(InterruptKind::Msi, 4, None), Err(IrqError::OutOfRange));
        let range = interrupts.check(InterruptKind::Msi, u32::MAX, 2);
        assert_eq!(range, Err(IrqError::OutOfRange));
        assert_eq!(interrupts.mask(InterruptKind::Intx, 0, true), Err(IrqError::OutOfRange));
        interrupts.signal(InterruptKind::Msi, 9);
    }
}
