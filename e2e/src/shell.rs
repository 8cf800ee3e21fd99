//! Commands inside a guest: a script goes in, what it printed and its exit status come out.
//!
//! The channel is a serial line or a pair of pipes. A request is one line, `NUMBER LIMIT SCRIPT`
//! with the script in base64; what the script prints comes back as it is, followed by the line
//! `@@@ NUMBER STATUS`. The guest's side of this is in `guest/init`.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lab::last_lines;

/// The line to a guest.
pub struct Shell {
    from_guest: File,
    to_guest: File,
    read: Vec<u8>,
    number: u32,
    deadline: Instant,
}

/// How a script ended.
#[derive(Debug)]
pub struct Answer {
    /// Exit status; 137 if it took too long.
    pub status: i32,
    /// What it printed, errors included.
    pub printed: String,
}

/// The time a script has unless told otherwise. An emulated processor is some twenty times slower
/// than the machine, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// What a guest may need beyond a script's own limit to say that it is over.
const GRACE: Duration = Duration::from_secs(5);

impl Shell {
    /// Waits until the guest is ready for commands, at most until `deadline`.
    pub fn new(from_guest: File, to_guest: File, deadline: Instant) -> Result<Shell> {
        let mut shell = Shell { from_guest, to_guest, read: Vec::new(), number: 0, deadline };
        shell.answer(deadline).context("the guest did not come up")?;
        Ok(shell)
    }

    /// The line to the same guest on another machine.
    pub fn elsewhere(&self, from_guest: File, to_guest: File) -> Shell {
        let (number, deadline) = (self.number, self.deadline);
        Shell { from_guest, to_guest, read: Vec::new(), number, deadline }
    }

    /// Runs a script that must succeed; what it printed.
    pub fn run(&mut self, script: &str) -> Result<String> {
        self.run_within(LIMIT, script)
    }

    /// The same with a limit of its own.
    pub fn run_within(&mut self, limit: Duration, script: &str) -> Result<String> {
        let answer = self.ask(limit, script)?;
        if answer.status != 0 {
            let status = answer.status;
            let why = if status == 137 { "took too long" } else { "failed" };
            let printed = last_lines(&answer.printed, 30);
            bail!("in the guest, `{}` {why} (status {status}):\n{printed}", head(script));
        }
        Ok(answer.printed)
    }

    /// Runs a script that may fail.
    pub fn ask(&mut self, limit: Duration, script: &str) -> Result<Answer> {
        self.number += 1;
        let request = format!("{} {} {}\n", self.number, limit.as_secs().max(1), base64(script));
        self.to_guest.write_all(request.as_bytes()).context("the guest is gone")?;
        let deadline = self.deadline.min(Instant::now() + limit + GRACE);
        self.answer(deadline).with_context(|| format!("in the guest, `{}`", head(script)))
    }

    /// Reads up to the line that ends the answer to request `number`.
    fn answer(&mut self, deadline: Instant) -> Result<Answer> {
        let mark = format!("\n@@@ {} ", self.number);
        loop {
            let text = String::from_utf8_lossy(&self.read).into_owned();
            if let Some((printed, rest)) = text.split_once(&mark)
                && let Some((status, rest)) = rest.split_once('\n')
            {
                let status = status.trim().parse().context("the guest's answer has no status")?;
                self.read = rest.as_bytes().to_vec();
                return Ok(Answer { status, printed: printed.replace('\r', "") });
            }
            self.fill(deadline).with_context(|| {
                format!("no answer; printed so far:\n{}", last_lines(&text, 30))
            })?;
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<()> {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
        let ready = poll(&mut [PollFd::new(&self.from_guest, PollFlags::IN)], Some(&left));
        match ready {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            count => ensure!(count? > 0, "the time is over"),
        }
        let mut bytes = [0; 4096];
        match self.from_guest.read(&mut bytes) {
            Ok(0) => bail!("the guest has ended"),
            Ok(count) => self.read.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read from the guest"),
        }
        Ok(())
    }
}

/// The first line of a script that is not a comment, for messages.
fn head(script: &str) -> &str {
    let lines = script.lines().map(str::trim);
    lines.clone().find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default()
}

/// RFC 4648, 4.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in text.as_bytes().chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        for digit in 0..4_usize {
            let value = (bits >> (18 - 6 * digit)) & 63;
            out.push(if digit > three.len() { '=' } else { char::from(DIGITS[value as usize]) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn base64_as_in_the_rfc() {
        // RFC 4648, 10.
        for (text, code) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(text), code);
        }
    }

    /// A guest that says `answers`, one after each request, and then leaves.
    fn shell_with(answers: &'static [&'static str]) -> Result<Shell> {
        let (ours, theirs) = UnixStream::pair()?;
        std::thread::spawn(move || {
            let mut theirs = theirs;
            let _ = theirs.write_all(b"noise\r\n@@@ 0 0\r\n");
            for answer in answers {
                let mut request = [0; 512];
                let _ = theirs.read(&mut request);
                let _ = theirs.write_all(answer.as_bytes());
            }
        });
        let ours = File::from(OwnedFd::from(ours));
        let deadline = Instant::now() + Duration::from_secs(10);
        Shell::new(ours.try_clone()?, ours, deadline)
    }

    #[test]
    fn answers_are_told_apart() -> Result<()> {
        let answers = &["one\r\n\n@@@ 1 0\n", "two\n\n@@@ 2 7\n", "\n@@@ 9 0\n"];
        let mut shell = shell_with(answers)?;
        assert_eq!(shell.run("x")?, "one\n");
        let error = shell.run("# why\nx y").expect_err("status 7").to_string();
        assert!(error.contains("`x y` failed (status 7)") && error.contains("two"), "{error}");
        let error = format!("{:#}", shell.run("x").expect_err("a wrong number"));
        assert!(error.contains("the guest has ended"), "{error}");
        Ok(())
    }
}
