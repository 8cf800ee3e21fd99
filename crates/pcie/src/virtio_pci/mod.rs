//! A virtio device as a PCI function (VIRTIO 1.4, 4.1): modern, and transitional with the legacy
//! register file.
//!
//! ```text
//!   BAR 0  legacy register file (I/O ports, or memory by option), only if transitional
//!   BAR 1  MSI-X table and pending bits
//!   BAR 4  64 bits: common config, ISR, device config, one doorbell of 4 bytes per queue
//! ```
//!
//! The control thread runs the registers; a doorbell signals the queue's kick event and nothing
//! else. With MSI-X, a queue's notifier is the very event that the host injects as an interrupt.
//! With INTx the interrupt makes one hop through the control thread, which sets the ISR bit and
//! raises the line.

mod common;
mod control;
mod function;
mod interrupts;
mod layout;
mod legacy;
mod queue;
mod window;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use sys::{Epoll, Interest};
use virtio::{DeviceError, Features, StatusMachine, VirtioDevice};

use crate::config::{ConfigSpace, Msix};
use crate::{FunctionLayout, HostPort};
use common::Selectors;
use interrupts::Signals;
use queue::QueueRegisters;

pub use layout::{Legacy, VirtioPciOptions};

/// What the transport offers by itself, whatever the device says: resetting single queues,
/// notifications with data and with data of ours (both are taken as without), and addresses as the
/// platform's IOMMU gives them out, which they always are.
const TRANSPORT_FEATURES: Features = Features(
    Features::RING_RESET.0
        | Features::NOTIFICATION_DATA.0
        | Features::NOTIF_CONFIG_DATA.0
        | Features::ACCESS_PLATFORM.0,
);

/// Reads as "no vector" (VIRTIO_MSI_NO_VECTOR; VIRTIO 1.4, 4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// A virtio device behind PCI registers.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    layout: FunctionLayout,
    config: ConfigSpace,
    /// Offset of the PCI_CFG window's capability.
    window: usize,
    legacy: Legacy,
    host: Option<HostPort>,

    status: StatusMachine,
    selectors: Selectors,
    /// What the driver has written.
    driver_features: Features,
    generation: u8,
    queues: Vec<QueueRegisters>,
    signals: Signals,
    /// Its entries; all behind them, the pending bits among them, is zero.
    msix_table: Vec<u8>,

    /// The device has been given the driver's memory since its last reset.
    has_memory: bool,
    /// The queues are to be started when it is known how memory is reached.
    start_is_due: bool,
    /// The host went away while queues ran: they have been stopped where they were.
    is_suspended: bool,
    /// The device could not be reset.
    is_broken: bool,

    /// Holds the device's control descriptor and the event of INTx.
    events: Epoll,
    watched: Option<RawFd>,
    /// The latest reasons for NEEDS_RESET, so that one reason is logged once.
    reasons: VecDeque<String>,
}

impl VirtioPci {
    /// Puts `device` behind registers.
    ///
    /// # Errors
    /// The device has more queues than fit, or the system is out of file descriptors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        options: VirtioPciOptions,
    ) -> Result<Self, DeviceError> {
        let identity = device.identity();
        let parts = layout::build(identity, options)
            .map_err(|error| DeviceError::Refused(format!("no pci function: {error}")))?;
        let queues = identity.queue_sizes.iter().map(|&size| QueueRegisters::new(size));
        let queues = queues
            .collect::<Result<Vec<_>, _>>()
            .map_err(DeviceError::system("make doorbell eventfds"))?;
        let signals = Signals::new().map_err(DeviceError::system("make an eventfd"))?;
        let events = Epoll::new().map_err(DeviceError::system("make an epoll set"))?;
        events
            .add(signals.line_event().as_fd(), 0, Interest::Read)
            .map_err(DeviceError::system("wait for interrupts"))?;
        let end =
            |msix: Msix| msix.table as usize + (Msix::ENTRY * u32::from(msix.vectors)) as usize;
        let msix_table = vec![0; parts.layout.interrupts.msix.map_or(0, end)];
        let mut function = Self {
            device,
            layout: parts.layout,
            config: parts.config,
            window: parts.window,
            legacy: options.legacy,
            host: None,
            status: StatusMachine::new(false),
            selectors: Selectors::default(),
            driver_features: Features::NONE,
            generation: 0,
            queues,
            signals,
            msix_table,
            has_memory: false,
            start_is_due: false,
            is_suspended: false,
            is_broken: false,
            events,
            watched: None,
            reasons: VecDeque::new(),
        };
        function.watch_device();
        Ok(function)
    }

    /// Watches the device's control descriptor, which may be another one after it came back.
    fn watch_device(&mut self) {
        let fd = self.device.control_fd();
        let raw = fd.map(|fd| fd.as_raw_fd());
        if raw == self.watched {
            return;
        }
        if let Some(fd) = fd
            && let Err(error) = self.events.add(fd, 1, Interest::Read)
        {
            tracing::error!(%error, "the device's events can't be waited for");
        }
        self.watched = raw;
    }

    /// What the driver is offered.
    fn offered(&self) -> Features {
        self.device.identity().features | TRANSPORT_FEATURES
    }

    /// Whether the driver uses MSI-X.
    fn uses_msix(&self) -> bool {
        self.config.is_msix_enabled()
            || self
                .host
                .as_ref()
                .is_some_and(|host| host.interrupts.is_used(crate::InterruptKind::Msix))
    }
}
