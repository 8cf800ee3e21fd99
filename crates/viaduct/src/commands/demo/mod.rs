//! `viaduct demo`: the whole path in one process, without root, QEMU or network.
//!
//! ```text
//!   driver (crate `driver`)  ==virtio-pci==>  vfio-user end | bridge | vhost-user end
//!                                                                          |
//!                                         built-in device  |  vhost-user end
//! ```
//!
//! Every arrow is a real socket or a real ring in shared memory; only the processes are threads.

mod disk;
mod net;
mod path;
mod report;

use anyhow::Result;
use bridge::Mode;
use virtqueue::RingFormat;

use crate::cli::Demo;
use path::Path;
use report::Table;

/// What is shown: mode, ring format towards the driver, ring format towards the device.
const ROWS: [(Mode, RingFormat, RingFormat); 6] = [
    (Mode::Copy, RingFormat::Split, RingFormat::Split),
    (Mode::Copy, RingFormat::Packed, RingFormat::Split),
    (Mode::Translate, RingFormat::Split, RingFormat::Packed),
    (Mode::Translate, RingFormat::Packed, RingFormat::Packed),
    (Mode::Pass, RingFormat::Split, RingFormat::Split),
    (Mode::Pass, RingFormat::Packed, RingFormat::Packed),
];

/// Runs every row and prints one table.
pub fn run(options: &Demo) -> Result<()> {
    println!(
        "driver -> virtio-pci over vfio-user -> bridge -> vhost-user -> built-in device\n\
         blk: {} MiB written and read back with checksums, 4 KiB requests, 32 in flight\n\
         net: {} frames there and back\n",
        options.mib,
        net::FRAMES
    );
    let mut table = Table::new();
    for (mode, driver, device) in ROWS {
        let path = Path::open(|folder| disk::device(folder, options.mib), mode, driver, device)?;
        table.add(disk::run(path, options.mib)?);
    }
    for (mode, driver, device) in ROWS {
        let path = Path::open(|_| Ok(net::device()), mode, driver, device)?;
        table.add(net::run(path)?);
    }
    table.finish();
    let program = std::env::args().next().unwrap_or_else(|| "viaduct".into());
    print!("{}", NEXT.replace("PROGRAM", &program));
    Ok(())
}

const NEXT: &str = "
Next, with a guest of your own (QEMU 10.1 or later), each in a terminal of its own:

  1. a device:   truncate -s 1G /tmp/disk.img
                 PROGRAM device blk --socket-path=/tmp/blk.sock path=/tmp/disk.img
  2. a bridge:   PROGRAM bridge vfio-user:/tmp/disk.sock vhost-user:/tmp/blk.sock
  3. a guest:    qemu-system-x86_64 -M q35,memory-backend=mem -m 1G \\
                   -object memory-backend-memfd,id=mem,size=1G,share=on \\
                   -device '{\"driver\":\"vfio-user-pci\",\"socket\":
                             {\"type\":\"unix\",\"path\":\"/tmp/disk.sock\"}}' \\
                   ... and whatever your guest boots from

Any vhost-user daemon can stand in the place of 1, as qemu-storage-daemon, virtiofsd or passt.
";
