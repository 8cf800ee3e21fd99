//! Keeps a model running: starts it, starts it again when it ends, ends it when it hangs.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sys::{Epoll, EventFd, Interest, Ready};

/// First pause before a model is started again, doubled each time that it ends before the port has
/// let it in.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a model that is asked to end may take for it.
const FAREWELL: Duration = Duration::from_secs(1);

/// A model's keeper; dropping it ends the model.
pub struct Keeper {
    stop: Arc<EventFd>,
    kill: Arc<EventFd>,
    praise: Arc<EventFd>,
    replace: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts `command`, as a shell would, with the port's socket in its environment, and keeps it
    /// running.
    ///
    /// # Errors
    /// The system is out of descriptors or threads; a command that can't be run is told in the log.
    pub fn start(command: &str, port: &Path) -> Result<Self> {
        let event = || EventFd::new().map(Arc::new);
        let (stop, kill, praise, replace) = (event()?, event()?, event()?, event()?);
        let charge = Charge {
            command: command.to_owned(),
            port: port.to_owned(),
            stop: Arc::clone(&stop),
            kill: Arc::clone(&kill),
            praise: Arc::clone(&praise),
            replace: Arc::clone(&replace),
        };
        let thread = std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || {
                if let Err(error) = charge.keep() {
                    tracing::error!("the model can't be kept running: {error:#}");
                }
            })
            .context("can't start a thread")?;
        Ok(Self { stop, kill, praise, replace, thread: Some(thread) })
    }

    /// Ends the model that runs now, when called; it is started again.
    pub fn killer(&self) -> Box<dyn FnMut() + Send> {
        let kill = Arc::clone(&self.kill);
        Box::new(move || kill.signal())
    }

    /// Starts the command anew, when called: there is another program behind it now.
    pub fn replacer(&self) -> Box<dyn FnMut() + Send> {
        let replace = Arc::clone(&self.replace);
        Box::new(move || replace.signal())
    }

    /// To be called when the port has let the model in.
    pub fn praiser(&self) -> Box<dyn FnMut() + Send> {
        let praise = Arc::clone(&self.praise);
        Box::new(move || praise.signal())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Charge {
    command: String,
    port: PathBuf,
    stop: Arc<EventFd>,
    kill: Arc<EventFd>,
    praise: Arc<EventFd>,
    replace: Arc<EventFd>,
}

/// Why a wait is over.
#[derive(PartialEq, Eq)]
enum Over {
    Stop,
    Time,
    Ended,
    Replace,
}

impl Charge {
    fn keep(&self) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut child = self.spawn()?;
            let over = self.watch(&mut child);
            if matches!(over, Ok(Over::Stop | Over::Replace)) {
                self.ask(&child);
            }
            let _ = child.kill();
            let status = child.wait().context("can't wait for the model")?;
            match over? {
                Over::Stop => return Ok(()),
                Over::Replace => {
                    tracing::info!("the model is replaced");
                    pause = FIRST_PAUSE;
                    continue;
                }
                Over::Ended | Over::Time => tracing::warn!("the model ended ({status})"),
            }
            if self.praise.drain() {
                pause = FIRST_PAUSE;
            }
            let epoll = Epoll::new()?;
            epoll.add(self.stop.as_fd(), STOP, Interest::Read)?;
            if self.wait(&epoll, Some(pause))? == Over::Stop {
                return Ok(());
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {}", self.command)]).stdin(Stdio::null());
        command.env(port::PORT_VARIABLE, &self.port);
        command.spawn().with_context(|| format!("can't start '{}'", self.command))
    }

    /// Lets the model end in good order: it may have files to finish.
    fn ask(&self, child: &Child) {
        sys::ask_to_end(child);
        let end = sys::process_fd(child).and_then(|ended| {
            let epoll = Epoll::new()?;
            epoll.add(&ended, ENDED, Interest::Read)?;
            epoll.wait(&mut Vec::new(), Some(FAREWELL))
        });
        if let Err(error) = end {
            tracing::debug!(%error, "the model is not waited for");
        }
    }

    /// Waits until the model has ended, is to be ended, or all is to end.
    fn watch(&self, child: &mut Child) -> Result<Over> {
        let epoll = Epoll::new()?;
        let ended = sys::process_fd(child)?;
        epoll.add(self.stop.as_fd(), STOP, Interest::Read)?;
        epoll.add(self.kill.as_fd(), KILL, Interest::Read)?;
        epoll.add(&ended, ENDED, Interest::Read)?;
        epoll.add(self.replace.as_fd(), REPLACE, Interest::Read)?;
        self.wait(&epoll, None)
    }

    fn wait(&self, epoll: &Epoll, limit: Option<Duration>) -> Result<Over> {
        let mut ready: Vec<Ready> = Vec::new();
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            epoll.wait(&mut ready, left)?;
            if ready.iter().any(|event| event.key == STOP) {
                return Ok(Over::Stop);
            }
            if ready.iter().any(|event| event.key == REPLACE) {
                self.replace.drain();
                return Ok(Over::Replace);
            }
            if !ready.is_empty() {
                self.kill.drain();
                return Ok(Over::Ended);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Over::Time);
            }
        }
    }
}

const STOP: u64 = 0;
const KILL: u64 = 1;
const ENDED: u64 = 2;
const REPLACE: u64 = 3;
