//! How often a Linux guest reaches for the registers of a virtio device behind vfio-user: until its
//! disk is there, and for some requests.

use anyhow::{Context, Result};
use e2e::Guest;
use wire::vfio_user::region_index;

use crate::lab::Lab;
use crate::placement::Label;
use crate::programs;
use crate::raw::{Access, AccessCounter, Counts, Offer};
use crate::report::{Bound, Report, Target};

/// Requests after the boot.
const REQUESTS: u64 = 100;

/// Region of the virtio registers, and the size in bytes of the pages that they are spread over.
const REGISTERS: u32 = 4;
const PAGE: u64 = 0x1000;

/// Runs all measurements of this group.
pub fn run(_lab: &Lab, report: &mut Report) -> Result<()> {
    report.line(&format!(
        "{:14}  {:39}  {:>5}  {:>12}  {:>12}  {:>6}  {:>9}",
        "", "", "all", "config space", "common, ISR", "device", "doorbells"
    ));
    let whole = boot(report, "express", "", Offer::Everything)?;
    let trapped = boot(report, "express", "", Offer::Nothing)?;
    boot(report, "conventional", ",bus=pci", Offer::Everything)?;
    let to =
        Target { row: "19", label: Label::Counted, bound: Bound::AtMost, floor: 0.6, aim: 0.4 };
    let ratio = whole as f64 / trapped.max(1) as f64;
    report.value("accesses of a boot, as offered / with everything trapped", ratio, to);
    Ok(())
}

/// Boots a guest with a disk, and has it read from there; returns the accesses until the disk was
/// there.
fn boot(report: &mut Report, name: &str, settings: &str, offer: Offer) -> Result<u64> {
    let place = programs::lab()?;
    let (device, socket) = (place.path("device"), place.path("counted"));
    let end = format!("vfio-user:{}{settings}", device.display());
    let words = ["bridge".to_owned(), end, "blk:null=1M".to_owned()];
    let _bridge = programs::viaduct(&place, "bridge", &words, &device)?;
    let counter = AccessCounter::start(&socket, device, offer)?;
    let path = socket.display();
    let mut guest = Guest::plan(&place, "6.12")
        .device(format!(
            r#"{{"driver":"vfio-user-pci","addr":"0x11",
                "socket":{{"type":"unix","path":"{path}"}}}}"#
        ))
        .boot()
        .with_context(|| place.logs())?;
    guest.shell.run("until [ -b /dev/vda ]; do sleep 0.1; done")?;
    let booted = counter.counts();
    guest
        .shell
        .run(&format!("dd if=/dev/vda of=/dev/null bs=4096 count={REQUESTS} iflag=direct"))?;
    let after = counter.counts();
    drop(guest);
    let offered = match offer {
        Offer::Everything => "as offered",
        Offer::Nothing => "everything trapped",
    };
    row(report, name, &format!("{offered}, until the disk is there"), &booted);
    row(report, "", &format!("{REQUESTS} reads, one at a time"), &since(&after, &booted));
    Ok(booted.values().sum())
}

fn since(after: &Counts, before: &Counts) -> Counts {
    let less = |access| before.get(access).copied().unwrap_or_default();
    after.iter().map(|(access, count)| (*access, count - less(access))).collect()
}

fn row(report: &mut Report, name: &str, what: &str, counts: &Counts) {
    let sum = |wanted: &dyn Fn(&Access) -> bool| -> u64 {
        counts.iter().filter(|(access, _)| wanted(access)).map(|(_, count)| count).sum()
    };
    let pages = |first: u64, end: u64| {
        let wanted = first * PAGE..end * PAGE;
        sum(&|access| access.region == REGISTERS && wanted.contains(&access.offset))
    };
    let config = sum(&|access| access.region == region_index::CONFIG);
    report.line(&format!(
        "{name:14}  {what:39}  {:5}  {config:12}  {:12}  {:6}  {:9}",
        sum(&|_| true),
        pages(0, 2),
        pages(2, 3),
        pages(3, 4),
    ));
}
