//! QEMU's monitor, as far as a migration needs it: one line of JSON each way (QMP).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A connection to a machine's monitor.
pub struct Monitor {
    from: BufReader<UnixStream>,
    to: UnixStream,
    deadline: Instant,
}

impl Monitor {
    /// Connects to the monitor at `socket`; no answer is waited for beyond `deadline`.
    pub fn connect(socket: &Path, deadline: Instant) -> Result<Monitor> {
        let to = UnixStream::connect(socket).context("connect to QEMU's monitor")?;
        to.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut monitor = Monitor { from: BufReader::new(to.try_clone()?), to, deadline };
        monitor.line_with(&["\"QMP\""])?;
        monitor.execute("qmp_capabilities", "{}")?;
        Ok(monitor)
    }

    /// Waits until the machine has taken over its state and runs.
    pub fn until_it_runs(&mut self) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(20);
        while !self.execute("query-status", "{}")?.contains("\"running\": true") {
            // The event of it may have gone by before we were here.
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Runs a command with its arguments as JSON; the answer.
    pub fn execute(&mut self, command: &str, arguments: &str) -> Result<String> {
        let request = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}\n");
        self.to.write_all(request.as_bytes()).context("the monitor is gone")?;
        let answer = self.line_with(&["\"return\"", "\"error\""])?;
        if answer.contains("\"error\"") {
            bail!("QEMU refuses {command}: {answer}");
        }
        Ok(answer)
    }

    /// Waits for an event that comes after what was executed last.
    pub fn event(&mut self, name: &str) -> Result<()> {
        self.line_with(&[&format!("\"{name}\"")]).map(drop)
    }

    /// Writes all of the machine's state to `file`, at `bytes_per_second` while it runs on, and
    /// stops it.
    pub fn migrate_to(&mut self, file: &Path, bytes_per_second: u64) -> Result<()> {
        self.execute(
            "migrate-set-capabilities",
            r#"{"capabilities":[{"capability":"events","state":true}]}"#,
        )?;
        let limit = format!("{{\"max-bandwidth\":{bytes_per_second}}}");
        self.execute("migrate-set-parameters", &limit)?;
        self.execute("migrate", &format!("{{\"uri\":\"file:{}\"}}", file.display()))?;
        let ends = ["\"completed\"", "\"failed\"", "\"cancelled\""];
        let end = self.line_with(&ends).context("the migration")?;
        if !end.contains(ends[0]) {
            bail!("the migration did not succeed: {end}");
        }
        Ok(())
    }

    /// The next line that holds one of `words`.
    fn line_with(&mut self, words: &[&str]) -> Result<String> {
        let mut line = String::new();
        loop {
            match self.from.read_line(&mut line) {
                Ok(0) => bail!("the monitor is gone"),
                Ok(_) if words.iter().any(|word| line.contains(word)) => return Ok(line),
                Ok(_) => line.clear(),
                // Half a line stays until the rest comes.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read from the monitor"),
            }
            if Instant::now() > self.deadline {
                bail!("the monitor says nothing of {}", words.join(" or "));
            }
        }
    }
}
