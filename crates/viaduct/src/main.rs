//! The program: reads what people type, opens ends, and runs bridges between them.

#![forbid(unsafe_code)]

mod address;
mod cli;
mod commands;
mod ends;
mod monitor;
mod supervisor;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command};
use tracing_subscriber::EnvFilter;

/// Something failed while running.
const FAILED: u8 = 1;
/// An end could not be opened: wrong settings, nobody listening, socket in use.
const NOT_OPENED: u8 = 3;
/// `doctor` found something missing.
const INCOMPLETE: u8 = 4;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The demo's table is not to be torn apart by what its bridges have to say.
    let usual = if matches!(cli.command, Command::Demo(_)) { "error" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    sys::raise_file_limit();
    match run(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("viaduct: {error:#}");
            ExitCode::from(if error.is::<ends::NotOpened>() { NOT_OPENED } else { FAILED })
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Bridge(options) => commands::bridge::run(options)?,
        Command::Device(options) => commands::device::run(options)?,
        Command::Run(options) => commands::run::run(options)?,
        Command::Doctor => {
            if !commands::doctor::run() {
                return Ok(ExitCode::from(INCOMPLETE));
            }
        }
        Command::Demo(options) => commands::demo::run(options)?,
        Command::Completions { shell } => commands::generate::completions(*shell),
        Command::Man { folder } => commands::generate::man(folder)?,
    }
    Ok(ExitCode::SUCCESS)
}
