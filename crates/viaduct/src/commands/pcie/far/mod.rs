//! `viaduct pcie --listen` and `--connect`: a port and its model on two machines.

mod proof;
mod tls;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proof::{NotProved, Token};
use sys::{Connection, EventFd, Listener, StopSignal};
use tls::{Ready, Security};

use super::super::keeper::Keeper;
use crate::address::Usage;
use crate::cli;

/// Names the token in the environment.
const TOKEN_VARIABLE: &str = "VIADUCT_TOKEN";
/// Most connections whose proof is waited for at once; more are closed.
const MAX_ARRIVING: usize = 8;
/// Most lines about those that are not let in, in [`COMPLAINTS_WINDOW`].
const MAX_COMPLAINTS: u32 = 10;
/// The time [`MAX_COMPLAINTS`] is for.
const COMPLAINTS_WINDOW: Duration = Duration::from_secs(5);
/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// First pause before the next connection, doubled each time that the model was not let in.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Waits for model ends at an address; dropping it ends it.
pub struct Server {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens as `options` say, for the port whose models connect to `models`.
    ///
    /// # Errors
    /// The address is no good, or needs a token.
    pub fn start(options: &cli::Far, models: PathBuf) -> Result<Option<Self>> {
        let Some(address) = &options.listen else { return Ok(None) };
        let token = token(options)?;
        let addresses = resolve(address, options, &token)?;
        let security = Security::of_listener(&options.tls)?;
        let listener = TcpListener::bind(&addresses[..]);
        let listener = listener.with_context(|| format!("can't listen at {address}"))?;
        println!("waiting for a model at {}", listener.local_addr()?);
        let listener = Listener::from_fd(listener.into())?;
        let stop = Arc::new(EventFd::new()?);
        let asked = Arc::clone(&stop);
        let complaints = Complaints::default();
        let hall = Hall { listener, token, security, models, stop: asked, complaints };
        let run = move || {
            if let Err(error) = hall.serve() {
                tracing::error!("no model on another machine can come any more: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("far".into()).spawn(run)?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where model ends come in.
struct Hall {
    listener: Listener,
    token: Token,
    security: Security,
    models: PathBuf,
    stop: Arc<EventFd>,
    complaints: Complaints,
}

/// Lines about strangers, of whom there may be thousands a second.
#[derive(Default)]
struct Complaints(Mutex<Option<(Instant, u32)>>);

impl Complaints {
    /// Whether one more may be logged now.
    fn allowed(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (since, lines) = state.get_or_insert((now, 0));
        if now.duration_since(*since) > COMPLAINTS_WINDOW {
            (*since, *lines) = (now, 0);
        }
        *lines += 1;
        *lines <= MAX_COMPLAINTS
    }
}

impl Hall {
    fn serve(&self) -> io::Result<()> {
        let (arriving, is_taken) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            loop {
                let ends = [(*self.stop).as_fd(), self.listener.as_fd()];
                if sys::wait_for_any(&ends, Duration::from_secs(3600))?[0] {
                    return Ok(());
                }
                let socket = match self.listener.accept() {
                    Ok(Some(socket)) => socket,
                    Ok(None) => continue,
                    Err(error) => {
                        // Out of descriptors, say: that passes, and costs no processor time.
                        tracing::warn!("a model end can't be let in: {error}");
                        std::thread::park_timeout(FIRST_PAUSE);
                        continue;
                    }
                };
                if arriving.fetch_add(1, Ordering::SeqCst) >= MAX_ARRIVING {
                    arriving.fetch_sub(1, Ordering::SeqCst);
                    continue;
                }
                let (arriving, is_taken) = (&arriving, &is_taken);
                let begun = std::thread::Builder::new()
                    .name("far end".into())
                    .spawn_scoped(scope, move || self.receive(socket, arriving, is_taken));
                if begun.is_err() {
                    arriving.fetch_sub(1, Ordering::SeqCst);
                }
            }
        })
    }

    /// Somebody has connected.
    fn receive(&self, socket: Connection, arriving: &AtomicUsize, is_taken: &AtomicBool) {
        // One at a time: who comes meanwhile is told by the closed connection.
        let mut proved = match is_taken.load(Ordering::SeqCst) {
            true => Err(NotProved::Busy),
            false => self.prove(socket),
        };
        arriving.fetch_sub(1, Ordering::SeqCst);
        if proved.is_ok() && is_taken.swap(true, Ordering::SeqCst) {
            proved = Err(NotProved::Busy);
        }
        let Ready { carrier, .. } = match proved {
            Ok(ready) => ready,
            Err(why) => {
                if self.complaints.allowed() {
                    tracing::warn!("a model end was not let in: {why}");
                }
                return;
            }
        };
        tracing::info!("somebody on another machine is let in");
        let ended = port::far::machine_end(carrier, &self.models, (*self.stop).as_fd());
        is_taken.store(false, Ordering::SeqCst);
        if let Err(why) = ended {
            tracing::warn!("the model end is lost: {why}");
        }
    }

    fn prove(&self, socket: Connection) -> Result<Ready, NotProved> {
        no_delay(&socket)?;
        let mut ready = self.security.over(socket)?;
        proof::to_caller(&mut ready, &self.token)?;
        Ok(ready)
    }
}

/// Serves the model to a port on another machine until stopped.
///
/// # Errors
/// The address is no good or needs a token, or the model's socket can't be made.
pub fn connect(address: &str, options: &cli::Pcie) -> Result<()> {
    let token = token(&options.far)?;
    resolve(address, &options.far, &token)?;
    let security = Security::of_caller(&options.far.tls, address)?;
    let signal = StopSignal::install().context("can't take over SIGTERM")?;
    let folder = tempfile::tempdir().context("can't make a folder for a socket")?;
    let models = match (&options.service.model_socket, &options.model) {
        (Some(path), _) => path.clone(),
        (None, Some(_)) => folder.path().join("model"),
        (None, None) => bail!(Usage("--connect needs --model or --model-socket".into())),
    };
    let gate = super::listen("model", &models)?;
    let models = std::path::absolute(&models).unwrap_or(models);
    if options.model.is_none() {
        println!("VIADUCT_PORT={}", models.display());
    }
    let end = ModelEnd { address, options, token, security, gate, models };
    let mut pause = FIRST_PAUSE;
    let mut last = String::new();
    while !signal.is_set() {
        let mut has_attached = false;
        if let Err(why) = end.session(signal.as_fd(), &mut has_attached) {
            let why = format!("{why:#}");
            // Once, not as often as it is tried.
            if has_attached || why != last {
                tracing::warn!("no port at {address}: {why}");
            }
            last = why;
        }
        pause = if has_attached { FIRST_PAUSE } else { pause };
        sys::wait_for_any(&[signal.as_fd()], pause)?;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

/// The machine of the model.
struct ModelEnd<'a> {
    address: &'a str,
    options: &'a cli::Pcie,
    token: Token,
    security: Security,
    gate: Listener,
    models: PathBuf,
}

impl ModelEnd<'_> {
    /// One connection, from the first packet to its end. The model begins and ends with it.
    fn session(&self, stop: BorrowedFd<'_>, has_attached: &mut bool) -> Result<()> {
        let socket = call(&resolve(self.address, &self.options.far, &self.token)?)?;
        let mut ready = self.security.over(socket)?;
        proof::to_listener(&mut ready, &self.token)?;
        let command = self.options.model.as_deref();
        let keeper = command.map(|command| Keeper::start(command, &self.models)).transpose()?;
        let patience =
            keeper.as_ref().map(|_| Duration::from_millis(self.options.service.patience));
        let attached = || {
            *has_attached = true;
            tracing::info!("the port at {} has the model", self.address);
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        };
        Ok(port::far::model_end(ready.carrier, &self.gate, patience, stop, attached)?)
    }
}

fn call(addresses: &[SocketAddr]) -> Result<Connection> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT_LIMIT) {
            Ok(socket) => {
                let socket = Connection::new(socket)?;
                no_delay(&socket)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// A record waits for no other.
fn no_delay(socket: &Connection) -> io::Result<()> {
    TcpStream::from(socket.as_fd().try_clone_to_owned()?).set_nodelay(true)
}

/// The addresses behind a name; off this machine they need a token.
fn resolve(address: &str, options: &cli::Far, token: &Token) -> Result<Vec<SocketAddr>> {
    let found = address.to_socket_addrs();
    let found = found.with_context(|| format!("'{address}' is no address: expected HOST:PORT"))?;
    let found: Vec<SocketAddr> = found.collect();
    let is_here = found.iter().all(|address| address.ip().is_loopback());
    if token.is_none() && !is_here && !options.no_token {
        bail!(Usage(format!(
            "{address} is not this machine: whoever connects would reach the memory of the virtual \
             machine; give both ends --token-file or {TOKEN_VARIABLE}, or --no-token"
        )));
    }
    Ok(found)
}

fn token(options: &cli::Far) -> Result<Token> {
    if options.no_token {
        return Ok(Token::default());
    }
    let text = match &options.token_file {
        Some(path) => read_token(path)?,
        None => match std::env::var_os(TOKEN_VARIABLE) {
            Some(text) => text.into_encoded_bytes(),
            None => return Ok(Token::default()),
        },
    };
    Token::new(&text).map_err(|why| Usage(why).into())
}

fn read_token(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    let shown = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("can't read {shown}"))?;
    if file.metadata().is_ok_and(|data| data.permissions().mode() & 0o004 != 0) {
        tracing::warn!("everybody on this machine can read {shown}: chmod 600 it");
    }
    let mut text = Vec::new();
    // Enough to see that it is too long.
    let limit = 2 * proof::MOST_TOKEN as u64;
    file.take(limit).read_to_end(&mut text).with_context(|| format!("can't read {shown}"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_flood_of_strangers_is_turned_away_and_hardly_heard_of() {
        let complaints = Complaints::default();
        let lines = (0..1000).filter(|_| complaints.allowed()).count();
        assert!((1..=MAX_COMPLAINTS as usize).contains(&lines), "{lines}");

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let hall = Hall {
            listener: Listener::from_fd(listener.into()).unwrap(),
            token: Token::new(b"0123456789abcdef").unwrap(),
            security: Security::None,
            models: PathBuf::from("/nowhere"),
            stop: Arc::clone(&stop),
            complaints,
        };
        let thread = std::thread::spawn(move || hall.serve().unwrap());
        // They say nothing: eight are waited for, the others are closed at once.
        let begin = Instant::now();
        let strangers: Vec<_> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut greeted = 0;
        for mut stranger in strangers {
            let mut heard = Vec::new();
            stranger.set_read_timeout(Some(10 * proof::LIMIT)).unwrap();
            let _ = stranger.read_to_end(&mut heard);
            greeted += usize::from(!heard.is_empty());
        }
        // A machine that stands still meanwhile lets a second lot in.
        assert!((1..=2 * MAX_ARRIVING).contains(&greeted), "{greeted} were listened to");
        assert!(begin.elapsed() < 5 * proof::LIMIT, "{:?}", begin.elapsed());
        // One that knows the token finds its place free.
        let mut ready = Security::None.over(call(&[address]).unwrap()).unwrap();
        proof::to_listener(&mut ready, &Token::new(b"0123456789abcdef").unwrap()).unwrap();
        stop.signal();
        thread.join().unwrap();
    }
}
