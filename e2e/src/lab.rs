//! One test's place and time: a folder that vanishes with it, a deadline, the programs it starts.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::daemon::{Daemon, Streams};
use crate::root::Root;

/// One test's place and time.
pub struct Lab {
    root: Root,
    folder: TempDir,
    deadline: Instant,
}

impl Lab {
    /// A fresh one, for a test that may last `limit`.
    pub fn new(root: &Root, limit: Duration) -> Result<Lab> {
        // A short name: the path of a socket holds 107 bytes.
        let folder = tempfile::Builder::new().prefix("vd-").tempdir().context("make a folder")?;
        Ok(Lab { root: root.clone(), folder, deadline: Instant::now() + limit })
    }

    /// Where the software is.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// When the test has failed if it is not over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A program of the root, ready to be given arguments.
    pub fn program(&self, name: &str) -> Result<Command> {
        self.root.program(name, self.folder.path())
    }

    /// Where the program under test is: `$VIADUCT`, else beside this program.
    pub fn viaduct_path(&self) -> Result<PathBuf> {
        let beside = std::env::current_exe()?.with_file_name("viaduct");
        let program = std::env::var_os("VIADUCT").map_or(beside, PathBuf::from);
        ensure!(program.exists(), "no {}: cargo build --release -p viaduct", program.display());
        Ok(program)
    }

    /// The program under test.
    pub fn viaduct(&self) -> Result<Command> {
        let program = self.viaduct_path()?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).current_dir("/");
        Ok(command)
    }

    /// The program under test with libviaduct, inside the root: it finds the root's simulators and
    /// compilers. What it keeps for the next time is beside the root.
    pub fn viaduct_in_root(&self) -> Result<Command> {
        let program = self.viaduct_path()?;
        for name in ["viaduct", "libviaduct.so"] {
            let (from, to) = (program.with_file_name(name), self.path(name));
            if !to.exists() {
                fs::copy(&from, &to).with_context(|| {
                    format!("no {}: cargo build --release --workspace", from.display())
                })?;
            }
        }
        let mut command = self.root.guest_program(&self.path("viaduct"), self.folder.path());
        command.env("VIADUCT_CACHE", self.root.cache());
        Ok(command)
    }

    /// The program under test, in the network namespace of another process.
    pub fn viaduct_in_network_of(&self, process: u32) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nsenter"]);
        command.arg(format!("--net=/proc/{process}/ns/net")).arg(self.viaduct_path()?);
        command.current_dir("/");
        Ok(command)
    }

    /// Starts a program whose output goes to `NAME.log`.
    pub fn start(&self, name: &str, command: Command) -> Result<Daemon> {
        self.spawn(name, command, Streams::Log)
    }

    /// Starts a program that is talked to through pipes.
    pub fn start_with_pipes(&self, name: &str, command: Command) -> Result<Daemon> {
        self.spawn(name, command, Streams::Pipes)
    }

    /// Starts a program on a terminal, which tells it when its size changes. The kernel does that
    /// for the terminal that controls a session, so the program gets one of its own.
    pub fn start_on_terminal(
        &self,
        name: &str,
        command: &Command,
        terminal: &OwnedFd,
    ) -> Result<Daemon> {
        let mut session = Command::new("setsid");
        session.args(["--wait", "--ctty"]).arg(command.get_program()).args(command.get_args());
        session.current_dir("/");
        self.spawn(name, session, Streams::Terminal(terminal.try_clone()?))
    }

    fn spawn(&self, name: &str, command: Command, streams: Streams) -> Result<Daemon> {
        let log = self.path(&format!("{name}.log"));
        let mut file = fs::File::options().create(true).append(true).open(&log)?;
        writeln!(file, "$ {}", shown(&command))?;
        Daemon::start(name, command, streams, log, self.deadline)
    }

    /// Runs a program to its end, which must be a success, and gives what it printed.
    pub fn run(&self, name: &str, command: Command) -> Result<String> {
        let mut program = self.start(name, command)?;
        program.succeeds().with_context(|| last_lines(&program.printed(), 5))?;
        Ok(program.printed())
    }

    /// A file of `len_bytes` bytes that no compression or accident reproduces: a fixed
    /// pseudo-random sequence that `seed` chooses.
    pub fn image(&self, name: &str, len_bytes: usize, seed: u64) -> Result<PathBuf> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(len_bytes + 8);
        while bytes.len() < len_bytes {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(len_bytes);
        self.write(name, &bytes)
    }

    /// A file with this content.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// The ends of all logs, for the report of a failed test.
    pub fn logs(&self) -> String {
        const LINES: usize = 25;
        let mut logs: Vec<PathBuf> = fs::read_dir(self.folder.path())
            .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
            .unwrap_or_default();
        logs.retain(|path| path.extension().is_some_and(|e| e == "log"));
        logs.sort();
        logs.iter()
            .map(|path| format!("--- {}\n{}\n", file_name(path), tail(path, LINES)))
            .collect()
    }

    /// Leaves the folder behind for a person to look at; where it is.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn tail(path: &Path, lines: usize) -> String {
    last_lines(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()), lines)
}

/// The last `count` lines of `text`.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A command line for a log, without the words that only bring it into the root.
fn shown(command: &Command) -> String {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let begin = words.iter().rposition(|word| word.contains('\n')).map_or(0, |at| at + 1);
    words[begin..].join(" ")
}
