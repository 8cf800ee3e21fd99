//! DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sys::EventFd;
use wire::vfio_user::{IrqAction, IrqData, IrqInfo, Reply, SetIrqs, irq_flags, irq_index};

use super::service::Plug;
use super::session::{EINVAL, Refusal};
use crate::{InterruptKind, Interrupts};

pub fn info(plug: &Plug, index: u32) -> Result<Reply<'static>, Refusal> {
    let info = |flags, count| Ok(Reply::IrqInfo(IrqInfo { flags, index, count }));
    match (kind(index), index) {
        (Some(InterruptKind::Intx), _) => {
            let flags = irq_flags::EVENTFD | irq_flags::MASKABLE | irq_flags::AUTOMASKED;
            info(flags, plug.host.interrupts.count(InterruptKind::Intx))
        }
        (Some(kind), _) => info(irq_flags::EVENTFD, plug.host.interrupts.count(kind)),
        // ERR would stop the machine, REQ is ignored by QEMU: neither is there.
        (None, irq_index::ERR | irq_index::REQ) => info(irq_flags::EVENTFD, 0),
        _ => Err(EINVAL),
    }
}

fn kind(index: u32) -> Option<InterruptKind> {
    match index {
        irq_index::INTX => Some(InterruptKind::Intx),
        irq_index::MSI => Some(InterruptKind::Msi),
        irq_index::MSIX => Some(InterruptKind::Msix),
        _ => None,
    }
}

pub fn set(plug: &mut Plug, request: &SetIrqs<'_>, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
    let Some(kind) = kind(request.index) else {
        // Taking away what is not there is no error.
        return if request.count == 0 { Ok(()) } else { Err(EINVAL) };
    };
    let interrupts = Arc::clone(&plug.host.interrupts);
    interrupts.check(kind, request.start, request.count).map_err(|_| EINVAL)?;
    match request.action {
        IrqAction::Trigger => trigger(&interrupts, kind, request, fds)?,
        IrqAction::Mask | IrqAction::Unmask => mask(&interrupts, kind, request, fds)?,
    }
    plug.function.interrupts_changed();
    Ok(())
}

fn trigger(
    interrupts: &Interrupts,
    kind: InterruptKind,
    request: &SetIrqs<'_>,
    fds: Vec<OwnedFd>,
) -> Result<(), Refusal> {
    let range = request.start..request.start + request.count;
    match request.data {
        IrqData::None if request.count == 0 => interrupts.disconnect(kind),
        IrqData::None => range.for_each(|vector| interrupts.signal(kind, vector as u16)),
        IrqData::Bool(bools) => {
            for (vector, _) in range.zip(bools).filter(|(_, on)| **on != 0) {
                interrupts.signal(kind, vector as u16);
            }
        }
        IrqData::Eventfd => {
            // With fewer descriptors than vectors there are none at all: the events are taken away.
            let mut fds = fds.into_iter();
            for vector in range {
                let event = fds.next().map(event).transpose()?;
                interrupts.connect(kind, vector, event).map_err(|_| EINVAL)?;
            }
        }
    }
    Ok(())
}

fn mask(
    interrupts: &Interrupts,
    kind: InterruptKind,
    request: &SetIrqs<'_>,
    fds: Vec<OwnedFd>,
) -> Result<(), Refusal> {
    let masked = request.action == IrqAction::Mask;
    let range = request.start..request.start + request.count;
    let is_chosen = |vector: u32| match request.data {
        IrqData::Bool(bools) => bools.get((vector - request.start) as usize) != Some(&0),
        _ => true,
    };
    if request.data == IrqData::Eventfd {
        // Only the line is unmasked by an event, and nothing is masked by one.
        if kind != InterruptKind::Intx || masked {
            return Err(EINVAL);
        }
        interrupts.set_unmask_event(fds.into_iter().next().map(event).transpose()?);
        return Ok(());
    }
    for vector in range.filter(|vector| is_chosen(*vector)) {
        interrupts.mask(kind, vector, masked).map_err(|_| EINVAL)?;
    }
    Ok(())
}

fn event(fd: OwnedFd) -> Result<Arc<EventFd>, Refusal> {
    EventFd::from_fd(fd).map(Arc::new).map_err(|_| EINVAL)
}
