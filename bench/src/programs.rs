//! Programs that are measured from outside: where they run, what they use.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::{Daemon, Lab, Root};
use virtio::{Parameters, Value};

use crate::threads::Cpu;

/// How long the programs of one group may take altogether.
pub const LIMIT: std::time::Duration = std::time::Duration::from_secs(1800);

/// A folder and programs for one group of measurements.
pub fn lab() -> Result<Lab> {
    Lab::new(&Root::find()?, LIMIT)
}

/// What a program has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on a processor, in nanoseconds.
    pub cpu_ns: u64,
    /// The same as the kernel accounts it, in ticks of 10 ms.
    pub ticks: u64,
    /// How often one of its threads was put on a processor: for a program that sleeps most of the
    /// time, how often it was woken.
    pub wakes: u64,
}

impl Usage {
    /// Of all threads of a process.
    pub fn of(process: u32) -> Result<Self> {
        let mut usage = Self::default();
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            usage.add_thread(&task?.path())?;
        }
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name in brackets may hold anything; behind it come state (3) ... utime (14), stime.
        let rest = stat.rsplit_once(')').context("a process has a name")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        usage.ticks = fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(usage)
    }

    /// Of the calling thread; without the ticks, which are kept for whole processes.
    pub fn of_this_thread() -> Result<Self> {
        let mut usage = Self::default();
        usage.add_thread(Path::new("/proc/thread-self"))?;
        Ok(usage)
    }

    fn add_thread(&mut self, task: &Path) -> Result<()> {
        // Time running, time waiting to run, number of times it ran.
        let text = match fs::read_to_string(task.join("schedstat")) {
            // It ended since the folder was read.
            Err(_) if !task.exists() => return Ok(()),
            text => text?,
        };
        let mut fields = text.split_whitespace().filter_map(|field| field.parse::<u64>().ok());
        self.cpu_ns += fields.next().context("no scheduler statistics")?;
        self.wakes += fields.nth(1).context("no scheduler statistics")?;
        Ok(())
    }

    /// What was used since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            ticks: self.ticks.saturating_sub(before.ticks),
            wakes: self.wakes.saturating_sub(before.wakes),
        }
    }
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// All pages it has in use.
    pub resident: u64,
    /// The same, with pages that others use too counted in parts.
    pub proportional: u64,
    /// Pages of no file: heap, stacks, and its own tables.
    pub anonymous: u64,
}

impl Memory {
    /// Of a process.
    pub fn of(process: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        let field = |name: &str| -> Result<u64> {
            let line = text.lines().find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            number.with_context(|| format!("no {name} in smaps_rollup"))
        };
        Ok(Self {
            resident: field("Rss:")?,
            proportional: field("Pss:")?,
            anonymous: field("Anonymous:")?,
        })
    }
}

/// Keeps a program on processor `cpu`, before every ordinary thread there, as the measured threads
/// of this program are in their windows. A program that polls without end must not get this.
pub fn own(program: &Daemon, cpu: Cpu) -> Result<()> {
    own_process(program.id(), cpu)
}

/// As [`own`], for a process that another program has started.
pub fn own_process(id: u32, cpu: Cpu) -> Result<()> {
    let id = id.to_string();
    let pinned = quietly("taskset", &["-a", "-c", "-p", &cpu.0.to_string(), &id])?;
    ensure!(pinned, "can't keep a program on processor {}", cpu.0);
    // Not a failure: without the right to do that the figures are noisier.
    let _ = quietly("chrt", &["-a", "-f", "-p", "10", &id])?;
    Ok(())
}

fn quietly(program: &str, arguments: &[&str]) -> Result<bool> {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status().with_context(|| format!("run {program}"))?.success())
}

/// viaduct with these arguments, waited for until it listens at `socket`.
pub fn viaduct(lab: &Lab, name: &str, arguments: &[String], socket: &Path) -> Result<Daemon> {
    let mut command = lab.viaduct()?;
    command.args(arguments);
    let mut program = lab.start(name, command)?;
    program.listens_at(socket).with_context(|| lab.logs())?;
    Ok(program)
}

/// A qemu-storage-daemon with the disk `blockdev`, exported at each of `sockets` by one thread with
/// the options `thread`.
pub fn storage_daemon(
    lab: &Lab,
    name: &str,
    blockdev: &str,
    thread: &str,
    sockets: &[&Path],
) -> Result<Daemon> {
    let mut command = lab.program("qemu-storage-daemon")?;
    command.arg("--object").arg(format!("iothread,id=thread{thread}"));
    command.arg("--blockdev").arg(format!("{blockdev},node-name=disk"));
    for (number, socket) in sockets.iter().enumerate() {
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=e{number},node-name=disk,writable=on,num-queues=1,\
             iothread=thread,addr.type=unix,addr.path={}",
            socket.display()
        ));
    }
    let mut daemon = lab.start(name, command)?;
    for socket in sockets {
        daemon.listens_at(socket).with_context(|| lab.logs())?;
    }
    Ok(daemon)
}

/// Settings of an end, as a person would write them.
pub fn settings(pairs: &[(&str, &str)]) -> Parameters {
    let value = |text: &str| Value {
        text: text.to_owned(),
        number: text.parse().ok(),
        flag: match text {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        },
    };
    let pair = |(key, text): &(&str, &str)| ((*key).to_owned(), value(text));
    Parameters::new(pairs.iter().map(pair).collect::<BTreeMap<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_time_and_memory() -> Result<()> {
        let before = Usage::of(std::process::id())?;
        while Usage::of(std::process::id())?.since(before).cpu_ns < 30_000_000 {}
        let used = Usage::of(std::process::id())?.since(before);
        assert!(used.ticks >= 1 && used.wakes < 1000, "{used:?}");
        let memory = Memory::of(std::process::id())?;
        assert!(memory.resident >= memory.proportional, "{memory:?}");
        assert!(memory.anonymous > 0, "{memory:?}");
        Ok(())
    }
}
