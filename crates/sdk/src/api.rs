//! The functions of `include/viaduct.h` by which a device is made, described and run.
//!
//! Every pointer that C hands over is used as the header says: a device comes from `viaduct_new`
//! and has not been freed; a buffer has as many bytes as is said beside it; a string ends.

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use pcie::config::Msix;
use pcie::{BarKind, BarLayout};

use crate::device::{Device, text};
use crate::handlers::RawHandlers;

const PREFETCHABLE: c_int = 0x100;

/// The device behind a pointer from C.
///
/// # Safety
/// It comes from `viaduct_new` and is not freed while the result is used.
pub unsafe fn device<'a>(dev: *const Device) -> &'a Device {
    assert!(!dev.is_null(), "libviaduct: a device is NULL");
    // SAFETY: as the caller promises; only shared references are ever made of it.
    unsafe { &*dev }
}

/// The bytes behind a pointer from C; none if it is null.
///
/// # Safety
/// `len` bytes are readable there while the result is used.
pub unsafe fn bytes<'a>(data: *const c_void, len: usize) -> &'a [u8] {
    if data.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(data.cast(), len) }
}

/// The same, to be written to.
///
/// # Safety
/// `len` bytes are the caller's alone while the result is used.
pub unsafe fn bytes_mut<'a>(data: *mut c_void, len: usize) -> &'a mut [u8] {
    if data.is_null() || len == 0 {
        return &mut [];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts_mut(data.cast(), len) }
}

/// # Safety
/// `name` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_new(name: *const c_char, vendor: u16, id: u16) -> *mut Device {
    // SAFETY: a string, as the header says.
    let name = unsafe { CStr::from_ptr(name) };
    let device = Device::new(text(name), vendor, id);
    device.map_or(std::ptr::null_mut(), |device| Box::into_raw(Box::new(device)))
}

/// # Safety
/// `dev` is not used any more, and none of its handlers runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_free(dev: *mut Device) {
    if !dev.is_null() {
        // SAFETY: made by `viaduct_new`, and nobody else has it.
        drop(unsafe { Box::from_raw(dev) });
    }
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_class(dev: *mut Device, class: u32, revision: u8) -> c_int {
    // SAFETY: a device.
    unsafe { device(dev) }.describe(|d| d.class(class & 0xff_ffff).revision(revision))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_subsystem(dev: *mut Device, vendor: u16, id: u16) -> c_int {
    // SAFETY: a device.
    unsafe { device(dev) }.describe(|d| d.subsystem(vendor, id))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_conventional(dev: *mut Device) -> c_int {
    // SAFETY: a device.
    unsafe { device(dev) }.describe(pcie::Description::conventional)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_serial(dev: *mut Device, serial: u64) -> c_int {
    // SAFETY: a device.
    unsafe { device(dev) }.describe(|d| d.serial(serial))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_bar(
    dev: *mut Device,
    index: c_uint,
    kind: c_int,
    size: u64,
) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    let prefetchable = kind & PREFETCHABLE != 0;
    let kind = match kind & !PREFETCHABLE {
        1 => BarKind::Io,
        2 => BarKind::Memory32 { prefetchable },
        3 => BarKind::Memory64 { prefetchable },
        _ => return device.core.fail(libc::EINVAL, "no such kind of bar"),
    };
    if index > 5 {
        return device.core.fail(libc::EINVAL, "there are bars 0 to 5");
    }
    device.describe(|d| d.bar(index as usize, BarLayout { kind, size, mappable: None }))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_bar_memory(
    dev: *mut Device,
    index: c_uint,
    offset: u64,
    len: u64,
) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    let mapped = device.bar_layout(index as usize).map(|bar| bar.mapped(offset, len));
    match mapped {
        Some(Ok(bar)) => device.describe(|d| d.bar(index as usize, bar)),
        Some(Err(error)) => device.core.fail(libc::EINVAL, error),
        None => device.core.fail(libc::EINVAL, "no such bar, or the device is connected already"),
    }
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_bar_memory(dev: *mut Device, index: c_uint) -> *mut c_void {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    let host = device.core.host.borrow();
    let memory = host.as_ref().and_then(|host| host.bar(index as usize));
    memory.map_or(std::ptr::null_mut(), |memory| memory.address() as *mut c_void)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_intx(dev: *mut Device) -> c_int {
    // SAFETY: a device.
    unsafe { device(dev) }.describe(pcie::Description::intx)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_msi(dev: *mut Device, vectors: c_uint) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    if !vectors.is_power_of_two() || vectors > 32 {
        return device.core.fail(libc::EINVAL, "msi has 1, 2, 4, 8, 16 or 32 vectors");
    }
    device.describe(|d| d.msi(vectors as u8))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_msix(
    dev: *mut Device,
    vectors: c_uint,
    bar: c_uint,
    table: u32,
    pending: u32,
) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    if !(1..=2048).contains(&vectors) || bar > 5 {
        return device.core.fail(libc::EINVAL, "msi-x has 1 to 2048 vectors in a bar from 0 to 5");
    }
    let msix = Msix { vectors: vectors as u16, bar: bar as u8, table, pending };
    device.describe(|d| d.msix(msix))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_add_capability(
    dev: *mut Device,
    id: u8,
    body: *const c_void,
    writable: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: `len` bytes.
    let body = unsafe { bytes(body, len) };
    // SAFETY: `len` bytes, or null.
    let writable = unsafe { bytes(writable, len) };
    // SAFETY: a device.
    unsafe { device(dev) }.describe(|d| d.capability(id, body, writable))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_add_extended_capability(
    dev: *mut Device,
    id: u16,
    version: u8,
    body: *const c_void,
    writable: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: `len` bytes.
    let body = unsafe { bytes(body, len) };
    // SAFETY: `len` bytes, or null.
    let writable = unsafe { bytes(writable, len) };
    // SAFETY: a device.
    unsafe { device(dev) }.describe(|d| d.extended(id, version, body, writable))
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_set_handlers(
    dev: *mut Device,
    handlers: *const RawHandlers,
    context: *mut c_void,
) -> c_int {
    // SAFETY: a device.
    let device = unsafe { device(dev) };
    if handlers.is_null() {
        return device.core.fail(libc::EINVAL, "no handlers");
    }
    // SAFETY: handlers, copied here; each is null or a function of its type.
    device.core.handlers.set(unsafe { handlers.read() });
    device.core.context.set(context);
    0
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_connect(dev: *mut Device, port: *const c_char) -> c_int {
    let path = (!port.is_null()).then(|| {
        // SAFETY: a string.
        let path = unsafe { CStr::from_ptr(port) };
        Path::new(OsStr::from_bytes(path.to_bytes())).to_path_buf()
    });
    // SAFETY: a device.
    unsafe { device(dev) }.connect(path.as_deref())
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_run(dev: *mut Device) -> c_int {
    // SAFETY: a device.
    unsafe { device(dev) }.run()
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_stop(dev: *mut Device) {
    // SAFETY: a device.
    unsafe { device(dev) }.core.is_stopped.set(true);
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_fd(dev: *const Device) -> c_int {
    // SAFETY: a device.
    unsafe { device(dev) }.fd()
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_process(dev: *mut Device, timeout_ms: c_int) -> c_int {
    let limit = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    // SAFETY: a device.
    unsafe { device(dev) }.process(limit)
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_pending(dev: *const Device) -> c_int {
    // SAFETY: a device.
    unsafe { device(dev) }.has_requests().into()
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_error(dev: *const Device) -> *const c_char {
    // SAFETY: a device.
    unsafe { device(dev) }.core.error()
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn viaduct_log(dev: *mut Device, is_error: c_int, line: *const c_char) {
    // SAFETY: a string.
    let line = unsafe { CStr::from_ptr(line) };
    // SAFETY: a device.
    unsafe { device(dev) }.log(is_error != 0, &text(line));
}
