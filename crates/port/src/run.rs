use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use pcie::Function;
use pcie::vfio_user::{Service, Source};
use sys::StopSignal;

use crate::{Model, PORT_VARIABLE};

/// What a model's `main` returns: serves the function that `make` makes.
///
/// With [`PORT_VARIABLE`] in the environment, as `viaduct pcie --model` sets it, or a port's socket
/// after the word `--port`, the function is a model at that port. Called with the path of a socket
/// alone, it is served there by vfio-user from this very process: quicker, and good for tests, but
/// when it crashes it takes the virtual machine with it.
pub fn main(
    name: &str,
    make: impl FnOnce() -> Result<Box<dyn Function>, Box<dyn Error>>,
) -> ExitCode {
    match serve(name, make) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(
    name: &str,
    make: impl FnOnce() -> Result<Box<dyn Function>, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let port = match &words[..] {
        [word, path] if word == "--port" => Some(PathBuf::from(path)),
        _ => std::env::var_os(PORT_VARIABLE).map(PathBuf::from),
    };
    if let Some(path) = port {
        return Ok(Model::connect(Some(&path), name, make()?)?.run()?);
    }
    let [path] = &words[..] else {
        return Err("give the path of a socket, or --port and that of a port".into());
    };
    let listener = sys::listen_unix(path.as_ref())?;
    let service = Service::new(make()?, Source::Listener(listener))?;
    let mut service = service.spinning(crate::spin_limit());
    Ok(service.run(StopSignal::install()?)?)
}
