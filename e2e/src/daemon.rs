//! A program that runs while a test does, and dies with it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// A running program. Dropping it kills it and everything in its process group.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where its part of the log begins: another of the same name may have been there before.
    log_start: usize,
    deadline: Instant,
}

/// How a program is connected to the test.
pub enum Streams {
    /// Input is empty, output goes to the log.
    Log,
    /// Input and output are pipes; only errors go to the log.
    Pipes,
    /// Input and output are this terminal; only errors go to the log.
    Terminal(OwnedFd),
}

impl Daemon {
    /// Starts `command`; what it prints goes to `log`. No wait on it lasts beyond `deadline`.
    pub fn start(
        name: &str,
        mut command: Command,
        streams: Streams,
        log: PathBuf,
        deadline: Instant,
    ) -> Result<Daemon> {
        let file = File::options().create(true).append(true).open(&log)?;
        command.stderr(file.try_clone()?).process_group(0);
        match streams {
            Streams::Log => command.stdin(Stdio::null()).stdout(file),
            Streams::Pipes => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
            Streams::Terminal(fd) => command.stdin(fd.try_clone()?).stdout(fd),
        };
        let log_start = file_len(&log);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Daemon { name: name.to_owned(), child, log, log_start, deadline })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    /// The two pipes of a program started with [`Streams::Pipes`].
    pub fn pipes(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        let pipes = self.child.stdin.take().zip(self.child.stdout.take());
        pipes.with_context(|| format!("{} has no pipes", self.name))
    }

    /// Waits until it listens at `socket`.
    ///
    /// Not by connecting: some daemons serve one connection and leave. The kernel's table of
    /// sockets tells who listens; it is the daemon's own, which may live in another network
    /// namespace.
    pub fn listens_at(&mut self, socket: &Path) -> Result<()> {
        const LISTENING: &str = "00010000";
        let path = socket.to_string_lossy().into_owned();
        let table = format!("/proc/{}/net/unix", self.id());
        self.until(&format!("listen at {path}"), self.deadline, |_| {
            let sockets = fs::read_to_string(&table).unwrap_or_default();
            sockets.lines().any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                fields.get(3) == Some(&LISTENING) && fields.get(7) == Some(&path.as_str())
            })
        })
    }

    /// Waits until it has printed `text`.
    pub fn prints(&mut self, text: &str) -> Result<()> {
        self.until(&format!("print {text:?}"), self.deadline, |daemon| {
            daemon.printed().contains(text)
        })
    }

    /// Waits until `text` is in a file that it writes.
    pub fn writes(&mut self, file: &Path, text: &str) -> Result<()> {
        self.until(&format!("write {text:?}"), self.deadline, |_| {
            let content = fs::read(file).unwrap_or_default();
            String::from_utf8_lossy(&content).contains(text)
        })
    }

    /// Waits for something that the program brings about and no event announces.
    pub fn until(
        &mut self,
        what: &str,
        deadline: Instant,
        mut happened: impl FnMut(&Daemon) -> bool,
    ) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(5);
        while !happened(self) {
            if let Some(status) = self.ended_within(PAUSE)? {
                bail!("{} ended ({status}) before it could {what}", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} did not {what} in time", self.name);
            }
        }
        Ok(())
    }

    /// How it ended, or `None` if it still runs after `time`.
    pub fn ended_within(&mut self, time: Duration) -> Result<Option<ExitStatus>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status));
        }
        let process = pidfd_open(self.pid()?, PidfdFlags::empty())?;
        let end = Instant::now() + time;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => break outcome.map(drop)?,
            }
        }
        Ok(self.child.try_wait()?)
    }

    /// Waits for a program that ends by itself and fails if it fails.
    pub fn succeeds(&mut self) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.ended_within(left)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{} failed ({status})", self.name),
            None => bail!("{} did not end in time", self.name),
        }
    }

    /// Sends a signal to the program itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = pidfd_open(self.pid()?, PidfdFlags::empty())?;
        pidfd_send_signal(process, signal).with_context(|| format!("signal {}", self.name))
    }

    /// Ends it at once, as a crash would, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Whether it still runs; if not, that is an error saying how it ended.
    pub fn is_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => match status.signal() {
                Some(signal) => bail!("{} was killed by signal {signal}", self.name),
                None => bail!("{} ended ({status})", self.name),
            },
        }
    }

    /// Whether it runs or ended well; some daemons leave when their driver does.
    pub fn has_not_failed(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) if status.success() => Ok(()),
            _ => self.is_alive(),
        }
    }

    fn end(&mut self) {
        if let Ok(pid) = self.pid() {
            // The group is ours alone: it was made with the process.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn pid(&self) -> Result<Pid> {
        let raw = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        raw.with_context(|| format!("{} has no process id", self.name))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

fn file_len(path: &Path) -> usize {
    fs::metadata(path).map_or(0, |found| found.len() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Result<Daemon> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let deadline = Instant::now() + Duration::from_secs(20);
        Daemon::start("sh", command, Streams::Log, log.to_owned(), deadline)
    }

    #[test]
    fn an_early_end_is_told_from_a_late_word() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        assert!(shell("echo ready; sleep 60", &log)?.prints("ready").is_ok());
        // What another one printed before is not its word.
        assert!(shell("exit 0", &log)?.prints("ready").is_err());
        let error = shell("exit 3", &log)?.prints("never").expect_err("it ended").to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(shell("exit 3", &log)?.succeeds().is_err());
        shell("exit 0", &log)?.succeeds()
    }

    #[test]
    fn children_die_with_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let mut daemon = shell("sleep 600 & echo pid $!.; wait", &log)?;
        daemon.prints(".")?;
        let text = daemon.printed();
        let id = text.trim().trim_start_matches("pid ").trim_end_matches('.').to_owned();
        daemon.kill();
        if let Some(pid) = id.parse().ok().and_then(Pid::from_raw)
            && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        {
            let limit = Timespec::try_from(Duration::from_secs(20))?;
            assert_eq!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))?, 1);
        }
        Ok(())
    }
}
