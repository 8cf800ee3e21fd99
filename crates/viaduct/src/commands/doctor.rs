//! `viaduct doctor`: what this machine can do, and why not.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::ends;

/// The oldest QEMU with a `vfio-user-pci` device.
const VFIO_USER_QEMU: (u32, u32) = (10, 1);

/// What a check found.
enum Finding {
    Good(String),
    /// Something that only some uses need.
    Missing(String),
}

/// Prints the findings; returns whether all is there.
pub fn run() -> bool {
    println!("viaduct {}\n", env!("CARGO_PKG_VERSION"));
    let checks: [(&str, Finding); 7] = [
        ("processors", processors()),
        ("memfd", memfd()),
        ("io_uring", io_uring()),
        (
            "tap",
            openable("/dev/net/tun", "network devices with tap=", "modprobe tun, and run as root"),
        ),
        ("QEMU", qemu()),
        (
            "vduse",
            openable(
                "/dev/vduse/control",
                "the host's own drivers",
                "modprobe vduse (Linux 5.15 or later)",
            ),
        ),
        ("vhost-vdpa", vhost_vdpa()),
    ];
    let mut all = true;
    for (name, finding) in &checks {
        match finding {
            Finding::Good(what) => println!("  ok       {name:<11} {what}"),
            Finding::Missing(what) => {
                all = false;
                println!("  missing  {name:<11} {what}");
            }
        }
    }
    println!("\n{}", ends::help());
    all
}

fn processors() -> Finding {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let idle = if cpus == 1 {
        "workers sleep as soon as they are idle"
    } else {
        "workers poll a little before they sleep"
    };
    Finding::Good(format!("{cpus}: {idle}"))
}

fn memfd() -> Finding {
    match mem::Mapping::new_memfd("doctor", 4096) {
        Ok(_) => Finding::Good("shared memory with seals".into()),
        Err(error) => Finding::Missing(format!(
            "shared memory can't be made ({error}); nothing works without it"
        )),
    }
}

fn io_uring() -> Finding {
    let ring = File::open("/dev/null").and_then(|file| sys::Uring::new(Arc::new(file), 1));
    if ring.is_ok() {
        Finding::Good("blk: keeps many requests in flight".into())
    } else {
        Finding::Missing(
            "blk: does one request at a time (the kernel refuses io_uring_setup)".into(),
        )
    }
}

fn openable(path: &str, needed_for: &str, mend: &str) -> Finding {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Finding::Good(format!("{path}: {needed_for}")),
        Err(error) => Finding::Missing(format!("{path}: {error}; needed for {needed_for}: {mend}")),
    }
}

fn vhost_vdpa() -> Finding {
    let found = std::fs::read_dir("/dev")
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vhost-vdpa-"));
    match found {
        Some(entry) => Finding::Good(format!("{}", entry.path().display())),
        None => Finding::Missing(
            "no /dev/vhost-vdpa-*; needed to use a vDPA device: modprobe vhost_vdpa".into(),
        ),
    }
}

fn qemu() -> Finding {
    let name = "qemu-system-x86_64";
    let Some(path) = find_program(name) else {
        return Finding::Missing(format!(
            "{name} is not on PATH; needed to attach a virtual machine"
        ));
    };
    match qemu_version(&path) {
        Some((major, minor)) if (major, minor) >= VFIO_USER_QEMU => {
            Finding::Good(format!("{major}.{minor}: vfio-user and vhost-user"))
        }
        Some((major, minor)) => {
            let (need_major, need_minor) = VFIO_USER_QEMU;
            Finding::Missing(format!(
                "{major}.{minor}: vhost-user only; vfio-user-pci needs {need_major}.{need_minor} \
                 or later"
            ))
        }
        None => Finding::Missing(format!("{} does not say its version", path.display())),
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn qemu_version(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split("version ").nth(1)?;
    let mut numbers =
        version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
