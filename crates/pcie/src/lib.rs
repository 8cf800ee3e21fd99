//! PCIe functions as ordinary processes: the trait, config space, interrupts, virtio-pci, and the
//! vfio-user service.
//!
//! ```text
//!   virtual machine == vfio-user ==> Service -> dyn Function     read, write, reset
//!                                       ^          |
//!                                       +- HostPort +            memory, interrupts
//! ```
//!
//! A [`Function`] is any PCIe device; [`virtio_pci::VirtioPci`] makes one from a virtio device. A
//! [`vfio_user::Service`] puts a function behind a socket that a virtual machine monitor connects
//! to.
//!
//! What it deliberately lacks: the reading of text from people, PCIe links and packets, and any
//! knowledge of a device type.
#![forbid(unsafe_code)]

mod completion;
pub mod config;
mod description;
mod dma;
mod function;
mod host;
mod interrupts;
mod layout;
pub mod vfio_user;
pub mod virtio_pci;

pub use completion::{Completion, CompletionQueue, Ticket};
pub use description::{Built, Description};
pub use dma::{Dma, DmaError, MAX_DMA_BYTES};
pub use function::{BarAddress, Doorbell, Function, ResetKind};
pub use host::HostPort;
pub use interrupts::{InterruptKind, InterruptSink, Interrupts, IrqError};
pub use layout::{
    BarKind, BarLayout, FunctionLayout, InterruptLayout, LayoutError, MAX_BAR_BYTES, MAX_MAPPABLE,
    Mappable,
};
