//! The program: reads what people type, opens ends, and runs bridges between them.

#![forbid(unsafe_code)]

mod address;
mod cli;
mod commands;
mod ends;
mod monitor;
mod supervisor;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command};
use tracing_subscriber::EnvFilter;

/// Something failed while running.
const FAILED: u8 = 1;
/// What was typed, or stands in a file, can't be meant.
const USAGE: u8 = 2;
/// An end could not be opened: wrong settings, nobody listening, socket in use.
const NOT_OPENED: u8 = 3;
/// `doctor` found something missing.
const INCOMPLETE: u8 = 4;

fn main() -> ExitCode {
    let cli = Cli::parse_from(arguments(std::env::args_os()));
    // The demo's table is not to be torn apart by what its bridges have to say.
    let usual = if matches!(cli.command, Command::Demo(_)) { "error" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    sys::end_on_closed_pipe();
    sys::raise_file_limit();
    if let Err(error) = supervisor::Wishes::install() {
        tracing::warn!("{error:#}");
    }
    match run(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            let text = format!("{error:#}");
            eprintln!("viaduct: {text}{}", advice(&text));
            ExitCode::from(status(&error))
        }
    }
}

/// What to do about an error that is about this process and not about what it attempted.
fn advice(error: &str) -> &'static str {
    // As the system puts EMFILE, wherever in the chain of reasons it stands.
    if error.contains("Too many open files") {
        "; allow more: 'ulimit -Hn' in the shell, LimitNOFILE= in a unit (a bridge has up to 20)"
    } else {
        ""
    }
}

/// The exit status that goes with an error.
fn status(error: &anyhow::Error) -> u8 {
    let is_refused = || matches!(error.downcast_ref(), Some(virtio::DeviceError::Refused(_)));
    if error.is::<address::Usage>() || error.is::<virtio::ParameterError>() || is_refused() {
        USAGE
    } else if error.is::<ends::NotOpened>() {
        NOT_OPENED
    } else {
        FAILED
    }
}

/// Called as `viaduct-blk`, as the conventions for vhost-user back-end programs want it, the
/// program is `viaduct device blk`.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    let kind = name.and_then(|name| name.strip_prefix("viaduct-")).map(OsString::from);
    if let Some(kind) = kind.filter(|kind| devices::DEVICES.iter().any(|d| *kind == d.scheme)) {
        arguments.splice(1..1, ["device".into(), kind]);
    }
    arguments
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Bridge(options) => commands::bridge::run(options)?,
        Command::Attach(options) => commands::attach::run(options)?,
        Command::Device(options) => commands::device::run(options)?,
        Command::Run(options) => commands::run::run(options)?,
        Command::Pcie(options) => commands::pcie::run(options)?,
        Command::Cosim(options) => commands::cosim::run(options)?,
        Command::Doctor => {
            if !commands::doctor::run() {
                return Ok(ExitCode::from(INCOMPLETE));
            }
        }
        Command::Probe(options) => commands::probe::run(options)?,
        Command::Demo(options) => commands::demo::run(options)?,
        Command::Completions { shell } => commands::generate::completions(*shell),
        Command::Man { folder } => commands::generate::man(folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_a_device_when_called_by_its_name() {
        let parsed = |words: &[&str]| arguments(words.iter().map(OsString::from));
        assert_eq!(
            parsed(&["/usr/libexec/viaduct-blk", "--fd=3"]),
            ["/usr/libexec/viaduct-blk", "device", "blk", "--fd=3"]
        );
        assert_eq!(parsed(&["viaduct", "demo"]), ["viaduct", "demo"]);
        assert_eq!(parsed(&["viaduct-1.0", "demo"]), ["viaduct-1.0", "demo"]);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
