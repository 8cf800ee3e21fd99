//! What happens to a guest's machine or disk while it works, with nobody killed.

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::lab::Lab;
use crate::monitor::Monitor;
use crate::peer::{DISK_BYTES, DISK_NAME};
use crate::row::{Bridged, Row};
use crate::work;

/// Moves the guest to another machine while it works. What the device writes into the guest's
/// memory while that is being saved must be in what is saved: a page that is missed is a wrong
/// byte, a wrong status or a lost request.
pub fn migrates(lab: &Lab, row: &Row) -> Result<()> {
    /// Slow enough that the load runs on for seconds meanwhile.
    const BYTES_PER_SECOND: u64 = 32 << 20;
    let kind = row.kind();
    let device = row.start_device(lab)?;
    let mut bridge = Bridged::start(lab, row, &device)?;
    let mut first = row.driver.guest(lab, &bridge.attach(row))?.boot()?;
    work::start_load(&mut first.shell, kind)?;
    work::start_reading(&mut first.shell, kind)?;
    let state = lab.path("state");
    let mut monitor = Monitor::connect(&first.monitor, lab.deadline())?;
    monitor.migrate_to(&state, BYTES_PER_SECOND)?;
    first.qemu.kill();
    let plan = row.driver.guest(lab, &bridge.attach(row))?.named("second");
    let mut second = plan.resume(&state, &first.shell)?;
    work::load_goes_on(&mut second.shell, kind).context("after the migration")?;
    work::end_reading(&mut second.shell, kind)?;
    work::end_load(&mut second.shell, kind)?;
    second.qemu.is_alive()?;
    bridge.has_not_failed()
}

/// Makes the image larger and has viaduct look at it; the guest sees the new size and uses it.
pub fn grows(lab: &Lab, row: &Row) -> Result<()> {
    const MORE: u64 = 32 << 20;
    let kind = row.kind();
    let device = row.start_device(lab)?;
    let mut bridge = Bridged::start(lab, row, &device)?;
    let mut guest = row.driver.guest(lab, &bridge.attach(row))?.boot()?;
    work::start_load(&mut guest.shell, kind)?;
    let bytes = DISK_BYTES as u64 + MORE;
    std::fs::File::options().write(true).open(lab.path(DISK_NAME))?.set_len(bytes)?;
    bridge.signal(Signal::USR2)?;
    let last = bytes / 4096 - 1;
    let sectors = bytes / 512;
    guest.shell.run(&format!(
        "until test $(cat /sys/block/vda/size) = {sectors}; do sleep 0.05; done
         test $(blockdev --getsize64 /dev/vda) = {bytes}
         dd if=/dev/urandom of=/tmp/block bs=4096 count=1
         dd if=/tmp/block of=/dev/vda bs=4096 seek={last} oflag=direct
         dd if=/dev/vda of=/tmp/again bs=4096 skip={last} iflag=direct
         cmp /tmp/again /tmp/block"
    ))?;
    work::end_load(&mut guest.shell, kind)?;
    bridge.has_not_failed()
}
