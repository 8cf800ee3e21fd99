//! The command line.

mod far;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

pub use far::{Far, FarTls};

/// Connects any virtio driver to any virtio device.
#[derive(Parser, Debug)]
#[command(name = "viaduct", version, about, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  viaduct demo
  viaduct bridge vfio-user:/tmp/disk.sock vhost-user:/tmp/qsd.sock
  viaduct bridge vhost-user:/tmp/net.sock net:echo mode=copy
  viaduct attach vhost-user:/tmp/qsd.sock
  viaduct device blk --socket-path=/tmp/blk.sock path=disk.img
  viaduct probe vhost-user:/tmp/qsd.sock

Logging: RUST_LOG=debug (or info, warn, error, or bridge=trace,transports=debug).

Signals: SIGTERM and SIGINT end in good order, SIGUSR1 prints the counters of all queues, SIGUSR2
has built-in disks look at the size of their files and tell their guests.

Exit status: 0 done or stopped by a signal, 1 failed while running, 2 wrong usage or settings,
3 an end could not be opened, 4 doctor found something missing.";

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Joins a driver end and a device end until stopped
    Bridge(Bridge),
    /// Makes a device this machine's own: /dev/vdX, a network interface, a file system
    Attach(Attach),
    /// Runs a built-in device as a vhost-user daemon
    Device(Device),
    /// Runs the bridges and devices of a TOML file in one process
    Run(Run),
    /// Serves a PCIe device to a virtual machine; its model is another process
    Pcie(Box<Pcie>),
    /// Serves a PCIe device written in Verilog or VHDL: builds a simulation, and runs it as a model
    Cosim(Box<Cosim>),
    /// Tells what this machine can do, and why not
    Doctor,
    /// Shows what is really offered at a socket: features, queues, config by name
    Probe(Probe),
    /// Shows the whole path at work, without root, QEMU or network
    Demo(Demo),
    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Writes the man pages into a folder
    Man {
        /// The folder; it is made if needed
        folder: PathBuf,
    },
}

/// `viaduct bridge`.
#[derive(Args, Debug)]
#[command(after_help = BRIDGE_HELP)]
pub struct Bridge {
    /// Where the driver is, as vfio-user:/run/disk.sock
    pub driver_end: String,
    /// Where the device is, as vhost-user:/run/qsd.sock or blk:path=disk.img
    pub device_end: String,
    /// Settings of the bridge
    #[arg(value_name = "key=value")]
    pub settings: Vec<String>,
}

const BRIDGE_HELP: &str = "\
Settings of the bridge:
  mode=auto|pass|translate|copy|remote
                   pass hands memory and events on and gets out of the way; translate relays
                   descriptors; copy moves bytes through a pool, the only memory the device sees;
                   remote reaches the driver's memory by messages; auto takes the first that works
                   and says why
  ring=auto|split|packed   layout of the rings towards the device
  driver-ring=auto|split|packed   layout of the rings towards the driver: auto offers it both
  indirect=auto|on|off   whether the driver may use indirect descriptors: auto offers them except in
                   remote mode, where more requests fit the ring with them and each takes longer
  pool=SIZE        bounce memory of a queue in copy and remote mode
  bytes-per-second=SIZE, requests-per-second=N   limits of each queue
  workers=N        threads that move requests
  spin=US          microseconds, 50 at most, that a thread polls before it sleeps while that saves
                   wake-ups (50 with processors to spare, 20 without, 0 with only one;
                   less than 3 is a second look of 3)
  queue-size=N     largest queue offered to the driver
  type=TYPE        what the device is, as net, for a daemon that does not say
  stats=SECONDS    print each queue's counters that often

A running bridge prints the counters of its queues when it is sent SIGUSR1, and its built-in disks
look at the size of their files when it is sent SIGUSR2.

The settings of each end are listed by 'viaduct doctor'.

Examples:
  viaduct bridge vfio-user:/tmp/disk.sock vhost-user:/tmp/qsd.sock
  viaduct bridge vhost-user:/tmp/front.sock vhost-user:/tmp/back.sock mode=copy pool=16M
  viaduct bridge vfio-user:/tmp/net.sock vhost-user:/tmp/passt.sock,type=net";

/// `viaduct attach`.
#[derive(Args, Debug)]
#[command(after_help = ATTACH_HELP)]
pub struct Attach {
    /// Where the device is, as vhost-user:/run/qsd.sock or blk:path=disk.img
    pub device_end: String,
    /// Its name on this machine's vDPA bus; by default after its socket, with a number if taken
    #[arg(long)]
    pub name: Option<String>,
    /// Settings of the bridge, and of the driver end 'vduse:'
    #[arg(value_name = "key=value")]
    pub settings: Vec<String>,
}

const ATTACH_HELP: &str = "\
Prints what appears, as /dev/vda, one a line, and serves it until stopped: Ctrl-C takes the device
away and leaves nothing behind. Unmount it before. With --name it goes on with a device that a
killed process has left.

Needs the modules vduse and virtio_vdpa and, until it runs, the rights of root; then it keeps
CAP_NET_ADMIN, and CAP_DAC_OVERRIDE if the daemon's socket is another user's.

Settings: those of 'viaduct bridge', and bounce-size=, message-timeout=, api=, state=,
release-timeout=, replace= as 'viaduct doctor' lists them for vduse:.

Examples:
  viaduct attach vhost-user:/run/qsd.sock
  viaduct attach --name disk0 blk:path=disk.img bounce-size=8M";

/// `viaduct device`.
#[derive(Args, Debug)]
#[command(after_help = DEVICE_HELP)]
pub struct Device {
    /// The kind of device: blk, net, console, rng
    pub kind: String,
    /// Listen at this path
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,
    /// Serve the connection on this inherited descriptor
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<i32>,
    /// Print what the program can do as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
    /// The image, for blk (the same as path=)
    #[arg(long, value_name = "FILE")]
    pub blk_file: Option<PathBuf>,
    /// Microseconds of polling before sleep, while that saves wake-ups (50 with processors to
    /// spare, 20 without, 0 with only one; less than 3 is a second look of 3)
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(..=50))]
    pub spin: Option<u64>,
    /// Refuse writes, for blk (the same as readonly=on)
    #[arg(long)]
    pub read_only: bool,
    /// Settings of the device
    #[arg(value_name = "key=value")]
    pub settings: Vec<String>,
}

const DEVICE_HELP: &str = "\
Follows the conventions for vhost-user back-end programs of QEMU's documentation.

Examples:
  viaduct device blk --socket-path=/tmp/blk.sock path=disk.img
  viaduct device rng --socket-path=/tmp/rng.sock
  viaduct device net --fd=3 tap=tap0";

/// `viaduct run`.
#[derive(Args, Debug)]
#[command(after_help = RUN_HELP)]
pub struct Run {
    /// The file
    pub file: PathBuf,
}

const RUN_HELP: &str = "\
The file:
  workers = 1
  spin = 0

  [bridge.disk]
  driver = \"vfio-user:/run/disk.sock\"
  device = \"vhost-user:/run/qsd.sock\"
  mode = \"copy\"
  pool = \"16M\"

  [bridge.entropy]
  driver = \"vhost-user:/run/rng.sock\"
  device = \"rng:\"

  [pcie.card]
  socket = \"/run/card.sock\"
  model = \"./my-device\"
  faults = [\"slow,delay=1ms\", \"link-down,after=10s,for=2s\"]

The settings of a bridge are those of 'viaduct bridge'; a PCIe device has model-socket, deadline and
patience too, as 'viaduct pcie' has them. SIGUSR1 prints the counters of all queues.";

/// How much is recorded.
const RECORD_MIB: u64 = 256;
/// How long a model may take for an answer.
const DEADLINE_MS: u64 = 100;
/// How long it may take nothing.
const PATIENCE_MS: u64 = 2000;
/// How much may wait for it.
const BACKLOG_KIB: usize = 4096;

/// `viaduct pcie`.
#[derive(Args, Debug)]
#[command(after_help = PCIE_HELP, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
pub struct Pcie {
    /// What else to do
    #[command(subcommand)]
    pub action: Option<PcieAction>,
    /// Listen here for the virtual machine (vfio-user)
    #[arg(long, value_name = "PATH", required_unless_present = "connect")]
    socket: Option<PathBuf>,
    /// Start this command as the model, and again whenever it ends
    #[arg(long, value_name = "COMMAND")]
    pub model: Option<String>,
    #[command(flatten)]
    pub far: Far,
    #[command(flatten)]
    pub service: CardService,
}

/// How a card is served, whatever its model is.
#[derive(Args, Debug, Clone)]
pub struct CardService {
    /// Listen here for the model; by default the path of the socket with '.model' behind it
    #[arg(long, value_name = "PATH")]
    pub model_socket: Option<PathBuf>,
    /// Milliseconds the model may take for an answer, before the driver gets all ones
    #[arg(long, value_name = "MS", default_value_t = DEADLINE_MS)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=4000))]
    pub deadline: u64,
    /// Milliseconds a model that was started here may take nothing, before it is ended
    #[arg(long, value_name = "MS", default_value_t = PATIENCE_MS)]
    pub patience: u64,
    /// KiB of writes that may wait for the model, before it is given up
    #[arg(long, value_name = "KIB", default_value_t = BACKLOG_KIB)]
    pub backlog: usize,
    /// Print QEMU's options for a conventional PCI device
    #[arg(long)]
    pub conventional: bool,
    /// Misbehave from the beginning on, as 'viaduct pcie fault' has it
    #[arg(long = "fault", value_name = "FAULT")]
    pub faults: Vec<String>,
    /// Keep every access, transfer and interrupt in this file, for 'viaduct pcie replay' and 'show'
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// MiB that the recording may have; the beginning is kept
    #[arg(long, value_name = "MIB", default_value_t = RECORD_MIB)]
    pub record_limit: u64,
}

impl Default for CardService {
    fn default() -> Self {
        Self {
            model_socket: None,
            deadline: DEADLINE_MS,
            patience: PATIENCE_MS,
            backlog: BACKLOG_KIB,
            conventional: false,
            faults: Vec::new(),
            record: None,
            record_limit: RECORD_MIB,
        }
    }
}

impl Pcie {
    /// Where the virtual machine connects.
    pub fn socket(&self) -> &Path {
        // Required unless there is an action.
        self.socket.as_deref().unwrap_or(Path::new(""))
    }
}

/// What follows `viaduct pcie`.
#[derive(Subcommand, Debug)]
pub enum PcieAction {
    /// Makes a running port misbehave, as a broken device would
    Fault(PcieFault),
    /// Plays a recording's machine to a model, and tells the first thing that it does otherwise
    Replay(PcieReplay),
    /// Compares two recordings of the same driver; where memory was is no difference
    Diff(PcieDiff),
    /// Prints a recording
    Show(PcieShow),
}

/// `viaduct pcie replay`.
#[derive(Args, Debug)]
pub struct PcieReplay {
    /// The recording
    pub file: PathBuf,
    /// Start this command as the model; without it one is waited for
    #[arg(long, value_name = "COMMAND")]
    pub model: Option<String>,
    /// Milliseconds the model may take for what it did then
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    pub deadline: u64,
}

/// `viaduct pcie diff`.
#[derive(Args, Debug)]
pub struct PcieDiff {
    /// A recording
    pub first: PathBuf,
    /// Another
    pub second: PathBuf,
}

/// `viaduct pcie show`.
#[derive(Args, Debug)]
pub struct PcieShow {
    /// The recording
    pub file: PathBuf,
    /// An array of JSON objects
    #[arg(long, conflicts_with = "vcd")]
    pub json: bool,
    /// A waveform, to be looked at beside a simulator's
    #[arg(long)]
    pub vcd: bool,
}

/// `viaduct pcie fault`.
#[derive(Args, Debug)]
#[command(after_help = FAULT_HELP)]
pub struct PcieFault {
    /// The port's socket for the virtual machine; without it all faults are listed
    pub socket: Option<PathBuf>,
    /// Faults, or 'clear', 'clear NAME...', 'list'
    #[arg(value_name = "FAULT")]
    pub words: Vec<String>,
}

const FAULT_HELP: &str = "\
A fault is NAME,key=value,...
  bar=N, at=OFFSET, len=BYTES   only accesses to these bytes (4 from 'at' on unless told otherwise);
                   for dma-* 'at' is an address in the machine's memory, for interrupt-* a vector
  value=N          what the fault's line in the list says
  delay=TIME, jitter=TIME   how late, and up to how much more, as 5ms; at most 4s
  count=N, skip=N  how many times, and how many times not before the first
  after=TIME, for=TIME      when it begins, how long it lasts

Examples:
  viaduct pcie fault
  viaduct pcie fault /tmp/dev.sock timeout,bar=0,at=0x20,count=1
  viaduct pcie fault /tmp/dev.sock link-down,for=2s
  viaduct pcie fault /tmp/dev.sock slow,delay=1ms,jitter=5ms interrupt-lost,count=3
  viaduct pcie fault /tmp/dev.sock clear";

const PCIE_HELP: &str = "\
The model is any program that links libviaduct, or a Rust program with the crate 'port': it finds
the port by VIADUCT_PORT in its environment. When it crashes, hangs or is built anew, the virtual
machine goes on: the driver reads all ones, and finds a function that was reset when the model is
back.

Examples:
  viaduct pcie --socket /tmp/dev.sock --model ./my-device
  viaduct pcie --socket /tmp/dev.sock --model-socket /tmp/model.sock

The model on another machine; both know a token (head -c 32 /dev/urandom | base64 > token):
  viaduct pcie --socket /tmp/dev.sock --listen 192.0.2.1:4711 --token-file token
  viaduct pcie --connect 192.0.2.1:4711 --token-file token --model ./my-device
With TLS, where the first prints the second's --tls-pin:
  viaduct pcie --socket /tmp/dev.sock --listen 192.0.2.1:4711 --token-file token \\
      --tls-self-signed tls.pem
  viaduct pcie --connect 192.0.2.1:4711 --token-file token --model ./my-device \\
      --tls-pin sha256:...";

/// `viaduct cosim`.
#[derive(Args, Debug)]
#[command(after_help = cosim_help())]
pub struct Cosim {
    /// The sources, in the order in which they are to be read
    #[arg(required = true)]
    pub sources: Vec<PathBuf>,
    /// Listen here for the virtual machine (vfio-user)
    #[arg(long, value_name = "PATH", required_unless_present = "build_only")]
    pub socket: Option<PathBuf>,
    /// The module or entity that is the card
    #[arg(long, value_name = "NAME")]
    pub top: String,
    /// The simulator
    #[arg(long, value_name = "NAME", default_value = "verilator")]
    pub sim: String,
    /// What the card is, before what the sources say of it
    #[arg(long = "set", value_name = "key=value")]
    pub settings: Vec<String>,
    /// When the clock runs: free, paced:FREQUENCY as paced:10M, or locked:CYCLES for each access
    #[arg(long, value_name = "POLICY", default_value = "free")]
    pub clock: String,
    /// Write the waveform into this file: .fst or .vcd
    #[arg(long, value_name = "FILE")]
    pub wave: Option<PathBuf>,
    /// Build anew whenever a source changes; the virtual machine finds a device that was reset
    #[arg(long)]
    pub watch: bool,
    /// Build here; by default in a folder of the cache
    #[arg(long, value_name = "DIR")]
    pub build: Option<PathBuf>,
    /// Build, print the model's command line, and exit
    #[arg(long)]
    pub build_only: bool,
    /// A folder of included files
    #[arg(short = 'I', long = "include", value_name = "DIR")]
    pub includes: Vec<PathBuf>,
    /// A macro
    #[arg(short = 'D', long = "define", value_name = "NAME[=VALUE]")]
    pub defines: Vec<String>,
    /// A parameter or generic of the top
    #[arg(short = 'G', long = "parameter", value_name = "NAME=VALUE")]
    pub parameters: Vec<String>,
    /// A word for the simulator's own command line, as --option=--x-initial=unique
    #[arg(long = "option", value_name = "WORD", allow_hyphen_values = true)]
    pub options: Vec<String>,
    #[command(flatten)]
    pub service: CardService,
}

fn cosim_help() -> String {
    let simulators = cosim::SIMULATORS.iter().map(|s| format!("  {:<12} {}\n", s.name(), s.help()));
    let simulators: String = simulators.collect();
    format!("Simulators:\n{simulators}\n{COSIM_CARD}:\n{}\n\n{COSIM_HELP}", cosim::CARD_SETTINGS)
}

const COSIM_CARD: &str = "\
The card, in comments of the sources as '// viaduct: id=1234:0da7 msix=1', or by --set";

const COSIM_HELP: &str = "\
Examples:
  viaduct cosim --top dma rtl/dma.sv --socket /tmp/dma.sock --watch
  viaduct cosim --top dma rtl/*.sv --socket /tmp/dma.sock --wave /tmp/dma.fst
  viaduct cosim --top dma rtl/dma.sv --socket /tmp/dma.sock -G WIDTH=512 --clock paced:1M";

/// `viaduct probe`.
#[derive(Args, Debug)]
#[command(after_help = PROBE_HELP)]
pub struct Probe {
    /// The socket: vhost-user:PATH of a daemon, or vfio-user:PATH of a virtio PCI device
    pub end: String,
}

const PROBE_HELP: &str = "\
Some daemons serve one connection and end, as virtiofsd does: a probe is that one.

Examples:
  viaduct probe vhost-user:/tmp/qsd.sock
  viaduct probe vhost-user:/tmp/fs.sock,type=fs
  viaduct probe vfio-user:/tmp/disk.sock";

/// `viaduct demo`.
#[derive(Args, Debug)]
pub struct Demo {
    /// MiB to write and read back in each mode
    #[arg(long, default_value_t = 256)]
    pub mib: u32,
}
