//! The built-in disk in a guest, against QEMU's own virtio disk in the same guest: reads by fio,
//! with an emulated processor, on which the driver's own work takes most of the time.

use anyhow::{Context, Result};
use e2e::{Daemon, Guest, Shell};

use crate::contest::{Outcome, Sample};
use crate::lab::Lab;
use crate::placement::Label;
use crate::programs::{self, Usage};
use crate::report::{Bound, Measure, Report, Target};

/// The disk that all three are: 1 GiB of zeros.
const OURS: &str = "null=1073741824";
const PEERS: &str = "driver=null-co,size=1073741824,read-zeroes=on,node-name=own";

const NAMES: [&str; 3] = ["built-in disk, vhost-user", "built-in disk, vfio-user", "QEMU's own"];
/// The one that the others are held against.
const PEER: usize = 2;

/// The slots they are in, by which the guest's own numbers are found.
const SLOTS: [&str; 3] = ["10", "11", "12"];

/// Of a whole program, its main loop included.
const MEASURES: [Measure; 6] = [
    Measure { name: "reads/s", digits: 0 },
    Measure { name: "interrupts/read", digits: 3 },
    Measure { name: "viaduct's wake-ups", digits: 3 },
    Measure { name: "viaduct's us", digits: 2 },
    Measure { name: "QEMU's wake-ups", digits: 3 },
    Measure { name: "QEMU's us", digits: 2 },
];

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let (vhost, vfio) = (place.path("vhost"), place.path("vfio"));
    let socket = format!("--socket-path={}", vhost.display());
    let words = ["device".to_owned(), "blk".to_owned(), socket, OURS.to_owned()];
    let daemon = programs::viaduct(&place, "daemon", &words, &vhost)?;
    let driver = format!("vfio-user:{}", vfio.display());
    let words = ["bridge".to_owned(), driver, format!("blk:{OURS}")];
    let bridge = programs::viaduct(&place, "bridge", &words, &vfio)?;

    let path = vfio.display();
    let mut guest = Guest::plan(&place, "6.12")
        .program("fio")
        .option("chardev", format!("socket,id=ours,path={}", vhost.display()))
        .device("vhost-user-blk-pci,chardev=ours,num-queues=1,addr=0x10")
        .device(format!(
            r#"{{"driver":"vfio-user-pci","addr":"0x11",
                "socket":{{"type":"unix","path":"{path}"}}}}"#
        ))
        .option("blockdev", PEERS)
        .option("object", "iothread,id=thread")
        .device("virtio-blk-pci,drive=own,iothread=thread,num-queues=1,addr=0x12")
        .boot()
        .with_context(|| place.logs())?;

    // The slots say which is which, however the guest numbers them.
    let disks = guest.shell.run(
        "for slot in 10 11 12; do until ls /sys/bus/pci/devices/0000:00:$slot.0/virtio*/block \
         2>/dev/null; do sleep 0.1; done; done",
    )?;
    let disks: Vec<&str> = disks.split_whitespace().collect();
    let seconds = if lab.is_quick() { 1 } else { 3 };
    let own = [Some(&daemon), Some(&bridge), None];
    for depth in [1, 32] {
        let mut outcome = Outcome::new(NAMES.iter().map(|name| (*name).to_owned()).collect());
        for _ in 0..lab.rounds(5) {
            for (entrant, disk) in disks.iter().enumerate() {
                let fio = format!(
                    "/bin/fio --name=reads --filename=/dev/{disk} --direct=1 --rw=randread --bs=4k \
                     --iodepth={depth} --ioengine=libaio --runtime={seconds} --time_based --minimal"
                );
                let sample = window(&mut guest, own[entrant], SLOTS[entrant], &fio, seconds)?;
                outcome.add(Some(Label::Counted), entrant, sample);
            }
        }
        report.table(&format!("4 KiB reads, {depth} under way"), &outcome, &MEASURES);
        for entrant in 0..PEER {
            let label = Label::Counted;
            let to = Target { row: "b-g", label, bound: Bound::AtLeast, floor: 0.9, aim: 1.0 };
            report.ratio(&outcome, 0, (entrant, PEER), to);
        }
    }
    Ok(())
}

/// Runs `fio` for `seconds` and counts what that takes: of the device in `slot`, of the viaduct
/// behind it, and of QEMU.
fn window(
    guest: &mut Guest,
    own: Option<&Daemon>,
    slot: &str,
    fio: &str,
    seconds: u32,
) -> Result<Sample> {
    let usage = |of: Option<&Daemon>| of.map_or(Ok(Usage::default()), |of| Usage::of(of.id()));
    let before = (usage(own)?, usage(Some(&guest.qemu))?);
    let interrupts_before = interrupts(&mut guest.shell, slot)?;
    let line = guest.shell.run(fio)?;
    let interrupts = interrupts(&mut guest.shell, slot)? - interrupts_before;
    let (own, qemu) = (usage(own)?.since(before.0), usage(Some(&guest.qemu))?.since(before.1));
    let rate = reads_per_second(&line)?;
    let per_read = |all: u64| all as f64 / (rate * f64::from(seconds));
    Ok(vec![
        rate,
        per_read(interrupts),
        per_read(own.wakes),
        per_read(own.cpu_ns) / 1e3,
        per_read(qemu.wakes),
        per_read(qemu.cpu_ns) / 1e3,
    ])
}

/// Interrupts of the device in slot `slot` so far.
fn interrupts(shell: &mut Shell, slot: &str) -> Result<u64> {
    let text = shell.run(&format!("grep 0000:00:{slot}.0 /proc/interrupts"))?;
    // Number of the interrupt, its count on the one processor, and names.
    let counts =
        text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// From fio's short form, version 3: fields between semicolons, the eighth is reads per second.
fn reads_per_second(text: &str) -> Result<f64> {
    let line = text.lines().find(|line| line.starts_with("3;")).context("fio said nothing")?;
    let field = line.split(';').nth(7).context("fio said too little")?;
    field.parse().with_context(|| format!("{field} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eighth_field_counts() -> Result<()> {
        assert_eq!(reads_per_second("x\n3;fio-3.39;reads;0;0;81920;27306;6826;3000;0\n")?, 6826.0);
        assert!(reads_per_second("3;fio-3.39;reads").is_err());
        Ok(())
    }
}
