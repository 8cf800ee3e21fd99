//! The socket on which a running port is told things: a line in, lines out, an empty one at the
//! end.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use port::fault::{Command, Control, FaultKind, Reply};

use super::spec;
use crate::ends::NotOpened;

/// Longest line.
const MAX_LINE: u64 = 4096;
/// How long somebody may take for a line: the next one waits meanwhile.
const LINE_LIMIT: Duration = Duration::from_secs(2);

/// A thread that hears and answers; dropping it ends it.
pub struct Server {
    path: PathBuf,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path` for what `control`'s port is to do.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn start(path: &Path, control: Control) -> Result<Self> {
        if UnixStream::connect(path).is_err() {
            // Left behind by somebody who ended.
            let _ = std::fs::remove_file(path);
        }
        let listener =
            UnixListener::bind(path).map_err(|error| NotOpened::path("control", path, error))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_over);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming() {
                    if asked.load(Ordering::Acquire) {
                        return;
                    }
                    if let Some(Err(error)) = stream.ok().map(|stream| attend(&stream, &control)) {
                        tracing::debug!("whoever asked has gone: {error}");
                    }
                }
            })
            .context("can't start a thread")?;
        Ok(Self { path: path.to_owned(), is_over, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        // Wakes the thread; if nobody listens any more there is nothing to wake.
        let is_woken = UnixStream::connect(&self.path).is_ok();
        let _ = std::fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take().filter(|_| is_woken) {
            let _ = thread.join();
        }
    }
}

fn attend(stream: &UnixStream, control: &Control) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LINE_LIMIT))?;
    stream.set_write_timeout(Some(LINE_LIMIT))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    let answer = obey(line.trim(), control);
    let mut stream = stream;
    stream.write_all(answer.as_bytes())
}

/// Does what a line says; the first word of the answer is `ok` or `error`.
fn obey(line: &str, control: &Control) -> String {
    let command = match line.split_once(' ').unwrap_or((line, "")) {
        ("list", "") => Command::List,
        ("clear", "") => Command::Clear(None),
        ("clear", name) => match FaultKind::from_name(name) {
            Some(kind) => Command::Clear(Some(kind)),
            None => return format!("error {}\n", spec::unknown(name)),
        },
        ("add", text) => match spec::parse(text) {
            Ok(fault) => Command::Add(fault),
            Err(error) => return format!("error {error}\n"),
        },
        _ => return "error expected add FAULT, clear [FAULT] or list\n".into(),
    };
    match control.tell(command) {
        Ok(Reply::Done(count)) => format!("ok {count}\n"),
        Ok(Reply::TooMany) => "error there are as many faults as there can be\n".into(),
        Ok(Reply::Faults(faults)) => {
            let lines = faults.iter().map(|status| {
                let word = if status.is_on { "on" } else { "later" };
                format!("{word} {}, {} times\n", spec::shown(&status.fault), status.happened)
            });
            "ok\n".to_owned() + &lines.collect::<String>()
        }
        Err(error) => format!("error {error}\n"),
    }
}

/// Says `line` to the port whose control socket is at `path`; what it answers.
///
/// # Errors
/// Nobody is there, or it says no.
pub fn ask(path: &Path, line: &str) -> Result<String> {
    let mut stream = UnixStream::connect(path)
        .map_err(|error| NotOpened::path("control", path, describe(&error)))?;
    stream.write_all(format!("{line}\n").as_bytes()).context("the port has gone")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the port has gone")?;
    match answer.split_once(['\n', ' ']).unwrap_or((&answer, "")) {
        ("ok", rest) => Ok(rest.to_owned()),
        ("error", why) => anyhow::bail!("{}", why.trim()),
        _ => anyhow::bail!("the port has gone"),
    }
}

fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => "no port runs there".into(),
        _ => error.to_string(),
    }
}
