//! The functions of `include/viaduct.h` that a device uses while it runs: answers, interrupts,
//! configuration, host memory, time. Pointers are as in [`crate::api`].

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use pcie::InterruptKind;

use crate::api::{bytes, bytes_mut, device};
use crate::device::Device;
use crate::events::{Fire, Ready};
use crate::handlers::Answer;
use crate::memory::{Done, Way};

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_answer_read(answer: *mut Answer, data: *const c_void, len: usize) {
    // SAFETY: given to read_later by us, and answered once.
    let answer = unsafe { Box::from_raw(answer) };
    if data.is_null() {
        return answer.0.all_ones();
    }
    // SAFETY: `len` bytes.
    answer.0.answer(unsafe { bytes(data, len) });
}

fn no_function(device: &Device) -> c_int {
    device.core.fail(libc::EINVAL, "no function to call")
}

fn signal(device: &Device, kind: Option<InterruptKind>, vector: c_uint) -> c_int {
    let Ok(vector) = u16::try_from(vector) else {
        return device.core.fail(libc::EINVAL, "no such vector");
    };
    let host = device.core.host.borrow();
    let Some(host) = &*host else {
        return device.core.fail(libc::ENOTCONN, "not connected to a port");
    };
    match kind {
        Some(kind) if host.interrupts.check(kind, vector.into(), 1).is_err() => {
            return device.core.fail(libc::EINVAL, "no such vector");
        }
        Some(kind) => host.interrupts.signal(kind, vector),
        None => host.interrupts.signal_any(vector),
    }
    0
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_interrupt(dev: *mut Device, vector: c_uint) -> c_int {
    // SAFETY: a device.
    signal(unsafe { device(dev) }, None, vector)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_msi(dev: *mut Device, vector: c_uint) -> c_int {
    // SAFETY: a device.
    signal(unsafe { device(dev) }, Some(InterruptKind::Msi), vector)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_msix(dev: *mut Device, vector: c_uint) -> c_int {
    // SAFETY: a device.
    signal(unsafe { device(dev) }, Some(InterruptKind::Msix), vector)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_line(dev: *mut Device, raised: c_int) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    match &*device.core.host.borrow() {
        Some(host) => {
            host.interrupts.set_intx(raised != 0);
            0
        }
        None => device.core.fail(libc::ENOTCONN, "not connected to a port"),
    }
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_get_config(
    dev: *mut Device,
    offset: c_uint,
    data: *mut c_void,
    len: usize,
) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    let config = device.core.config.borrow();
    let at = offset as usize;
    let Some(found) = config.get(at..at.saturating_add(len)) else {
        return device.core.fail(libc::EINVAL, "beyond the configuration space");
    };
    // SAFETY: `len` bytes may be written at `data`, which is the caller's and can't overlap.
    unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), data.cast(), len) };
    0
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_put_config(
    dev: *mut Device,
    offset: c_uint,
    data: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: `len` bytes.
    let data = unsafe { bytes(data, len) };
    // SAFETY: a device.
    unsafe { device(dev) }.put_config(offset as usize, data)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_host_read(
    dev: *mut Device,
    address: u64,
    data: *mut c_void,
    len: usize,
) -> c_int {
    // SAFETY: a device.
    let core = &unsafe { device(dev) }.core;
    // SAFETY: `len` bytes that are the caller's.
    if core.read_now(address, unsafe { bytes_mut(data, len) }) {
        return 0;
    }
    match core.transfer(address, &Way::Read(len)) {
        Ok(found) => {
            let len = len.min(found.len());
            // SAFETY: `len` bytes may be written at `data`, which is the caller's.
            unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), data.cast(), len) };
            0
        }
        Err(errno) => errno,
    }
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_host_write(
    dev: *mut Device,
    address: u64,
    data: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: `len` bytes.
    let data = unsafe { bytes(data, len) };
    // SAFETY: a device.
    let core = &unsafe { device(dev) }.core;
    if core.write_now(address, data) {
        return 0;
    }
    core.transfer(address, &Way::Write(data)).map_or_else(|e| e, |_| 0)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_host_read_start(
    dev: *mut Device,
    address: u64,
    data: *mut c_void,
    len: usize,
    done: Option<Done>,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    let Some(done) = done else { return no_function(device) };
    // SAFETY: `len` bytes that are the caller's.
    if device.core.read_now(address, unsafe { bytes_mut(data, len) }) {
        done(arg, 0);
        return 0;
    }
    device.core.start_transfer(address, &Way::Read(len), data.cast(), done, arg)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_host_write_start(
    dev: *mut Device,
    address: u64,
    data: *const c_void,
    len: usize,
    done: Option<Done>,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: `len` bytes.
    let data = unsafe { bytes(data, len) };
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    let Some(done) = done else { return no_function(device) };
    if device.core.write_now(address, data) {
        done(arg, 0);
        return 0;
    }
    device.core.start_transfer(address, &Way::Write(data), std::ptr::null_mut(), done, arg)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_add_timer(
    dev: *mut Device,
    delay_us: u64,
    period_us: u64,
    fire: Option<Fire>,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    let Some(fire) = fire else { return no_function(device) };
    let core = &device.core;
    let (delay, period) = (Duration::from_micros(delay_us), Duration::from_micros(period_us));
    let number = core.events.add_timer(delay, period, fire, arg);
    number.unwrap_or_else(|error| core.fail(libc::ENOMEM, error))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_add_fd(
    dev: *mut Device,
    fd: c_int,
    ready: Option<Ready>,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    let Some(ready) = ready else { return no_function(device) };
    let core = &device.core;
    if fd < 0 {
        return core.fail(libc::EBADF, "no descriptor");
    }
    // SAFETY: open for the time of this call, which makes a duplicate of its own.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let number = core.events.add_fd(borrowed, fd, ready, arg);
    number.unwrap_or_else(|error| core.fail(libc::EBADF, error))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_remove(dev: *mut Device, number: c_int) -> c_int {
    // SAFETY: a device.
    let core = &unsafe { device(dev) }.core;
    if core.events.remove(number) { 0 } else { core.fail(libc::ENOENT, "there is no such number") }
}
