//! User Mode Linux: a kernel that is an ordinary process, with a vhost-user driver of its own that
//! shares no line with QEMU's.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::initrd::Initrd;
use crate::lab::Lab;
use crate::shell::Shell;

/// A running User Mode Linux. Dropping it kills it.
pub struct Uml {
    /// The line to it.
    pub shell: Shell,
    /// The kernel's process.
    pub kernel: Daemon,
}

/// One to be.
pub struct Plan<'l> {
    lab: &'l Lab,
    initrd: Initrd,
    arguments: Vec<String>,
}

impl Uml {
    /// Plans one.
    pub fn plan(lab: &Lab) -> Plan<'_> {
        let names = ["virtio_blk", "virtio_net", "virtio_console", "virtiofs", "ext4"];
        let initrd = names.into_iter().fold(Initrd::default(), Initrd::module);
        Plan { lab, initrd, arguments: Vec::new() }
    }
}

impl Plan<'_> {
    /// A program of the root inside.
    pub fn program(mut self, name: &str) -> Self {
        self.initrd = self.initrd.program(name);
        self
    }

    /// A vhost-user device of virtio type `device_id` at `socket`.
    pub fn device(self, socket: &Path, device_id: u32) -> Self {
        self.option(&format!("virtio_uml.device={}:{device_id}", socket.display()))
    }

    /// A word for the kernel's command line.
    pub fn option(mut self, word: &str) -> Self {
        self.arguments.push(word.into());
        self
    }

    /// Starts the kernel and waits until it takes commands.
    pub fn boot(self) -> Result<Uml> {
        let lab = self.lab;
        let initrd = self.initrd.make(lab, &modules(lab)?)?;
        let mut linux = lab.program("linux.uml")?;
        // Its memory is a file in here, which it shares with the daemons.
        linux.env("TMPDIR", "/dev/shm");
        linux.arg("mem=384M").arg(format!("initrd={}", initrd.display()));
        linux.arg(format!("uml_dir={}", lab.path("uml").display())).arg("umid=uml");
        linux.args(["con=null", "ssl0=fd:0,fd:1", "shell_port=/dev/ttyS0"]);
        linux.args(["panic=-1", "random.trust_cpu=on"]).args(&self.arguments);
        let mut kernel = lab.start_with_pipes("uml", linux)?;
        let (input, output) = kernel.pipes()?;
        let (input, output) = (OwnedFd::from(input), OwnedFd::from(output));
        let shell = Shell::new(File::from(output), File::from(input), lab.deadline());
        let shell = shell.or_else(|error| kernel.is_alive().and(Err(error)))?;
        Ok(Uml { shell, kernel })
    }
}

/// The folder of the modules, which is named after the kernel's own version.
fn modules(lab: &Lab) -> Result<PathBuf> {
    let all = lab.root().file("/usr/lib/uml/modules");
    let mut entries = fs::read_dir(&all).with_context(|| format!("no {}", all.display()))?;
    Ok(entries.next().context("no modules of User Mode Linux")??.path())
}
