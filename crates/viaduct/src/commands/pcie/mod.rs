//! `viaduct pcie`: a PCIe device in a virtual machine, whose model is another process.

mod control;
mod far;
mod fault;
mod spec;
mod trace;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use pcie::vfio_user::{Service, Source};
use port::fault::Control;
use port::trace::Recorder;
use port::{Port, PortOptions};
use sys::StopSignal;

use super::keeper::Keeper;
use crate::cli;
use crate::ends::NotOpened;

/// Serves until stopped, or does what the words after `pcie` say.
pub fn run(options: &cli::Pcie) -> Result<()> {
    match &options.action {
        None => {}
        Some(cli::PcieAction::Fault(options)) => return fault::run(options),
        Some(cli::PcieAction::Replay(options)) => return trace::replay(options),
        Some(cli::PcieAction::Diff(options)) => return trace::diff(options),
        Some(cli::PcieAction::Show(options)) => return trace::show(options),
    }
    if let Some(address) = &options.far.connect {
        return far::connect(address, options);
    }
    let socket = options.socket();
    let models = models(socket, &options.service);
    let mut server = None;
    let served = serve(socket, options.model.as_deref(), &options.service, |_| {
        server = far::Server::start(&options.far, models)?;
        Ok(())
    });
    drop(server);
    served
}

/// Serves a card at `socket` until stopped, with `model` started here if it is given; `begin` is
/// called with its keeper when that runs.
pub fn serve(
    socket: &Path,
    model: Option<&str>,
    options: &cli::CardService,
    begin: impl FnOnce(Option<&Keeper>) -> Result<()>,
) -> Result<()> {
    let opened = Opened::open(socket, model, options)?;
    begin(opened.keeper.as_ref())?;
    opened.serve(|| {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    })?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

/// A port whose sockets are there.
pub struct Opened {
    signal: StopSignal,
    machine: sys::Listener,
    gate: sys::Listener,
    // Before the keeper: a model that is ended must not be started again.
    options: PortOptions,
    keeper: Option<Keeper>,
    _control: control::Server,
}

impl Opened {
    /// Opens the sockets and starts the model.
    ///
    /// # Errors
    /// A socket is in use, or the system is out of something.
    pub fn open(socket: &Path, model: Option<&str>, options: &cli::CardService) -> Result<Self> {
        let faults = options.faults.iter().map(|text| spec::parse(text)).collect::<Result<_>>()?;
        let record = |path: &PathBuf| {
            Recorder::create(path, options.record_limit << 20)
                .with_context(|| format!("can't record into {}", path.display()))
        };
        let recorder = options.record.as_ref().map(record).transpose()?;
        let signal = StopSignal::install().context("can't take over SIGTERM")?;
        let models = models(socket, options);
        let machine = listen("driver", socket)?;
        let gate = listen("model", &models)?;
        // A model may be started in another folder.
        let models = std::path::absolute(&models).unwrap_or(models);
        println!("{}", transports::qemu_options(socket, options.conventional));
        let keeper = model.map(|command| Keeper::start(command, &models));
        let keeper = keeper.transpose()?;
        if keeper.is_none() {
            println!("VIADUCT_PORT={}", models.display());
        }
        let patience = Duration::from_millis(options.patience);
        let control = Control::new().context("can't make an eventfd")?;
        let server = control::Server::start(&beside(socket, ".control"), control.clone())?;
        let port_options = PortOptions {
            deadline: Duration::from_millis(options.deadline),
            backlog_bytes: options.backlog << 10,
            // Only a model of our own can be ended and started again.
            patience: keeper.as_ref().map(|_| patience),
            on_given_up: keeper.as_ref().map(Keeper::killer),
            on_attached: keeper.as_ref().map(Keeper::praiser),
            faults,
            control: Some(control),
            recorder,
            ..PortOptions::default()
        };
        let (options, _control) = (port_options, server);
        Ok(Self { signal, machine, gate, options, keeper, _control })
    }

    /// Serves until stopped; calls `ready` when there is a device to be served.
    ///
    /// # Errors
    /// The model can't be a function, or the system failed.
    pub fn serve(self, ready: impl FnOnce()) -> Result<()> {
        let stop = self.signal.as_fd();
        let Some(port) = Port::await_model(self.gate, self.options, stop)? else {
            return Ok(());
        };
        let service = Service::new(Box::new(port), Source::Listener(self.machine))?;
        let mut service = service.spinning(port::spin_limit());
        ready();
        Ok(service.run(stop)?)
    }
}

/// Where models connect.
fn models(socket: &Path, options: &cli::CardService) -> PathBuf {
    options.model_socket.clone().unwrap_or_else(|| beside(socket, ".model"))
}

fn beside(socket: &Path, end: &str) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn listen(role: &'static str, path: &Path) -> Result<sys::Listener, NotOpened> {
    sys::listen_unix(path).map_err(|error| NotOpened::path(role, path, error))
}
