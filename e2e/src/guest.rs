//! A virtual machine with an unmodified Debian kernel, emulated by QEMU.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::architecture::Architecture;
use crate::daemon::Daemon;
use crate::initrd::Initrd;
use crate::lab::Lab;
use crate::monitor::Monitor;
use crate::shell::Shell;

/// A running guest. Dropping it kills the machine.
pub struct Guest {
    /// The line to it.
    pub shell: Shell,
    /// The machine itself.
    pub qemu: Daemon,
    /// The socket of QEMU's monitor (QMP).
    pub monitor: PathBuf,
}

/// A guest to be.
pub struct Plan<'l> {
    lab: &'l Lab,
    name: String,
    architecture: Architecture,
    kernel: String,
    memory_mib: u32,
    processors: u32,
    is_shared: bool,
    is_direct: bool,
    machine: String,
    initrd: Initrd,
    append: Vec<String>,
    arguments: Vec<String>,
}

impl Guest {
    /// Plans a guest with kernel `kernel`: a version such as 6.12, `newest`, or `arm64` for a guest
    /// with another processor.
    pub fn plan<'l>(lab: &'l Lab, kernel: &str) -> Plan<'l> {
        let architecture = Architecture::of(kernel);
        let initrd = Initrd::of(architecture).module("virtio_blk").module("virtio_net");
        Plan {
            lab,
            name: "guest".into(),
            architecture,
            kernel: kernel.into(),
            memory_mib: 384,
            processors: 1,
            is_shared: true,
            is_direct: true,
            machine: architecture.machine().into(),
            initrd: initrd.module("virtio_rng"),
            append: Vec::new(),
            arguments: Vec::new(),
        }
    }
}

impl Plan<'_> {
    /// A name other than `guest`, where a test has two.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Memory that no other process can map: a device must ask for it by messages.
    pub fn without_shared_memory(mut self) -> Self {
        self.is_shared = false;
        self
    }

    /// Another machine or options of it, such as `q35,kernel-irqchip=off`.
    pub fn machine(mut self, machine: &str) -> Self {
        self.machine = machine.into();
        self
    }

    /// Size of memory.
    pub fn memory_mib(mut self, size: u32) -> Self {
        self.memory_mib = size;
        self
    }

    /// How many processors.
    pub fn processors(mut self, count: u32) -> Self {
        self.processors = count;
        self
    }

    /// A program of the root inside the guest.
    pub fn program(mut self, name: &str) -> Self {
        self.initrd = self.initrd.program(name);
        self
    }

    /// The program at this path of ours inside the guest.
    pub fn own_program(mut self, path: &Path) -> Result<Self> {
        self.initrd = self.initrd.own_program(path)?;
        Ok(self)
    }

    /// A kernel module, loaded at boot.
    pub fn module(mut self, name: &str) -> Self {
        self.initrd = self.initrd.module(name);
        self
    }

    /// Words for the kernel's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(words.into());
        self
    }

    /// An option of QEMU and its value.
    pub fn option(mut self, name: &str, value: impl Into<String>) -> Self {
        self.arguments.extend([format!("-{name}"), value.into()]);
        self
    }

    /// A device, in either of QEMU's notations.
    pub fn device(self, description: impl Into<String>) -> Self {
        self.option("device", description)
    }

    /// Leaves it to the firmware to find something to start, with its text on the serial line.
    pub fn by_firmware(mut self) -> Self {
        self.is_direct = false;
        self.machine += ",graphics=off";
        self
    }

    /// The files that a boot loader needs: kernel, initrd, command line.
    pub fn boot_files(&self) -> Result<(PathBuf, PathBuf, String)> {
        let kernel = self.lab.root().kernel(&self.kernel)?;
        let initrd = self.initrd.make(self.lab, &kernel.join("modules"))?;
        let words = format!("{} {QUICK_BOOT} {}", self.architecture.lines(), self.append.join(" "));
        Ok((kernel.join("vmlinuz"), initrd, words))
    }

    /// Starts the machine and waits until the guest takes commands.
    pub fn boot(self) -> Result<Guest> {
        let deadline = self.lab.deadline();
        let (mut qemu, line, monitor) = self.on_the_line()?;
        let shell = Shell::new(line.try_clone()?, line, deadline);
        let shell = shell.or_else(|error| qemu.is_alive().and(Err(error)))?;
        Ok(Guest { shell, qemu, monitor })
    }

    /// Starts the machine with the state that another one has left in `file`; the guest goes on
    /// where it was, and takes commands where `before` has stopped to give them.
    pub fn resume(self, file: &Path, before: &Shell) -> Result<Guest> {
        let incoming = format!("file:{}", file.display());
        let deadline = self.lab.deadline();
        let (mut qemu, line, monitor) = self.option("incoming", incoming).on_the_line()?;
        // What is written to the line before would be lost.
        let running = Monitor::connect(&monitor, deadline).and_then(|mut it| it.until_it_runs());
        running.or_else(|error| qemu.is_alive().and(Err(error)))?;
        let shell = before.elsewhere(line.try_clone()?, line);
        Ok(Guest { shell, qemu, monitor })
    }

    /// Starts the machine; the line to it and the path of its monitor.
    fn on_the_line(self) -> Result<(Daemon, File, PathBuf)> {
        let monitor = self.lab.path(&format!("{}.qmp", self.name));
        let line = self.lab.path(&format!("{}.line", self.name));
        let mut qemu = self.power_on()?;
        qemu.listens_at(&line)?;
        qemu.listens_at(&monitor)?;
        let stream = UnixStream::connect(&line).context("connect to the guest's serial line")?;
        Ok((qemu, File::from(OwnedFd::from(stream)), monitor))
    }

    /// Starts the machine and waits for nothing. What its firmware and kernel say goes to
    /// `NAME.kernel.log`.
    pub fn power_on(self) -> Result<Daemon> {
        let lab = self.lab;
        let line = lab.path(&format!("{}.line", self.name));
        let monitor = lab.path(&format!("{}.qmp", self.name));
        let size = self.memory_mib;
        let mut qemu = lab.program(self.architecture.emulator())?;
        qemu.args(["-accel", "tcg", "-cpu", self.architecture.processor(), "-smp"]);
        qemu.arg(with_room_for_two(self.processors));
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-m"]).arg(format!("{size}M"));
        if self.is_shared {
            qemu.arg("-machine").arg(format!("{},memory-backend=mem", self.machine));
            let memory = format!("memory-backend-memfd,id=mem,size={size}M,share=on");
            qemu.arg("-object").arg(memory);
        } else {
            qemu.arg("-machine").arg(&self.machine);
        }
        // One serial line for the kernel's log, one for commands.
        let log = lab.path(&format!("{}.kernel.log", self.name));
        qemu.arg("-serial").arg(format!("file:{}", log.display()));
        let socket = format!("socket,id=line,path={},server=on,wait=off", line.display());
        qemu.arg("-chardev").arg(socket).args(["-serial", "chardev:line"]);
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        if self.is_direct {
            let (kernel, initrd, words) = self.boot_files()?;
            qemu.arg("-kernel").arg(self.architecture.kernel(&kernel));
            qemu.arg("-initrd").arg(initrd).arg("-append").arg(words);
        }
        qemu.args(&self.arguments);
        lab.start(&self.name, qemu)
    }
}

/// Options that shorten a boot on an emulated processor.
const QUICK_BOOT: &str = "panic=-1 nokaslr mitigations=off \
    tsc=reliable no_timer_check rcupdate.rcu_expedited=1 random.trust_cpu=on quiet";

/// The machine has room for a second processor even where it has one. Linux's barrier on x86 is an
/// addition with a lock prefix, and where there can't be a second processor QEMU makes a plain load
/// and store of it: the driver's look at the device's event word may come before its own index is
/// seen, no notification is sent, and the queue stands still for good. A disk of
/// qemu-storage-daemon did, with nothing between it and the guest, after 59,000 and after 197,000
/// reads; with room for two none did in 1,700,000.
fn with_room_for_two(processors: u32) -> String {
    format!("{processors},maxcpus={}", processors.max(2))
}
