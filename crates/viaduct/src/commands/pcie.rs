//! `viaduct pcie`: a PCIe device in a virtual machine, whose model is another process.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use pcie::vfio_user::{Service, Source};
use port::{Port, PortOptions};
use sys::StopSignal;

use super::keeper::Keeper;
use crate::cli;
use crate::ends::NotOpened;

/// Serves until stopped.
pub fn run(options: &cli::Pcie) -> Result<()> {
    serve(&options.socket, options.model.as_deref(), &options.service, |_| Ok(()))
}

/// Serves a card at `socket` until stopped, with `model` started here if it is given; `begin` is
/// called with its keeper when that runs.
pub fn serve(
    socket: &Path,
    model: Option<&str>,
    options: &cli::CardService,
    begin: impl FnOnce(Option<&Keeper>) -> Result<()>,
) -> Result<()> {
    let signal = StopSignal::install().context("can't take over SIGTERM")?;
    let models = options.model_socket.clone().unwrap_or_else(|| beside(socket));
    let machine = listen("driver", socket)?;
    let gate = listen("model", &models)?;
    // A model may be started in another folder.
    let models = std::path::absolute(&models).unwrap_or(models);
    println!("{}", transports::qemu_options(socket, options.conventional));
    let keeper = model.map(|command| Keeper::start(command, &models));
    let keeper = keeper.transpose()?;
    begin(keeper.as_ref())?;
    if keeper.is_none() {
        println!("VIADUCT_PORT={}", models.display());
    }
    let patience = Duration::from_millis(options.patience);
    let port_options = PortOptions {
        deadline: Duration::from_millis(options.deadline),
        backlog_bytes: options.backlog << 10,
        // Only a model of our own can be ended and started again.
        patience: keeper.as_ref().map(|_| patience),
        on_given_up: keeper.as_ref().map(Keeper::killer),
        on_attached: keeper.as_ref().map(Keeper::praiser),
        ..PortOptions::default()
    };
    let Some(port) = Port::await_model(gate, port_options, signal.as_fd())? else {
        return Ok(());
    };
    let mut service = Service::new(Box::new(port), Source::Listener(machine))?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    service.run(signal.as_fd())?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

fn beside(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".model");
    name.into()
}

fn listen(role: &'static str, path: &Path) -> Result<sys::Listener, NotOpened> {
    sys::listen_unix(path).map_err(|error| NotOpened::path(role, path, error))
}
