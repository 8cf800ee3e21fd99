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

/// A model's keeper; dropping it ends the model.
pub struct Keeper {
    stop: Arc<EventFd>,
    kill: Arc<EventFd>,
    praise: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts `command`, as a shell would, with the port's socket in its environment, and keeps it
    /// running.
    ///
    /// # Errors
    /// The system is out of descriptors or threads; a command that can't be run is told in the log.
    pub fn start(command: &str, port: &Path) -> Result<Self> {
        let [stop, kill, praise] =
            [Arc::new(EventFd::new()?), Arc::new(EventFd::new()?), Arc::new(EventFd::new()?)];
        let charge = Charge {
            command: command.to_owned(),
            port: port.to_owned(),
            stop: Arc::clone(&stop),
            kill: Arc::clone(&kill),
            praise: Arc::clone(&praise),
        };
        let thread = std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || {
                if let Err(error) = charge.keep() {
                    tracing::error!("the model can't be kept running: {error:#}");
                }
            })
            .context("can't start a thread")?;
        Ok(Self { stop, kill, praise, thread: Some(thread) })
    }

    /// Ends the model that runs now, when called; it is started again.
    pub fn killer(&self) -> Box<dyn FnMut() + Send> {
        let kill = Arc::clone(&self.kill);
        Box::new(move || kill.signal())
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
}

/// Why a wait is over.
#[derive(PartialEq, Eq)]
enum Over {
    Stop,
    Time,
    Ended,
}

impl Charge {
    fn keep(&self) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut child = self.spawn()?;
            let over = self.watch(&mut child);
            let _ = child.kill();
            let status = child.wait().context("can't wait for the model")?;
            if over? == Over::Stop {
                return Ok(());
            }
            tracing::warn!("the model ended ({status})");
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

    /// Waits until the model has ended, is to be ended, or all is to end.
    fn watch(&self, child: &mut Child) -> Result<Over> {
        let epoll = Epoll::new()?;
        let ended = sys::process_fd(child)?;
        epoll.add(self.stop.as_fd(), STOP, Interest::Read)?;
        epoll.add(self.kill.as_fd(), KILL, Interest::Read)?;
        epoll.add(&ended, ENDED, Interest::Read)?;
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
