//! `viaduct completions` and `viaduct man`: from the command line's own description.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};

use crate::cli::Cli;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "viaduct", &mut io::stdout());
}

/// Writes `viaduct.1` and one page per subcommand into `folder`.
pub fn man(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    let mut command = Cli::command();
    command.build();
    write_pages(folder, &command, "viaduct")
}

/// The page of a command, and those of what can follow it.
fn write_pages(folder: &Path, command: &Command, name: &str) -> Result<()> {
    write_page(folder, command, name)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help")
    {
        write_pages(folder, subcommand, &format!("{name}-{}", subcommand.get_name()))?;
    }
    Ok(())
}

fn write_page(folder: &Path, command: &Command, name: &str) -> Result<()> {
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name).render(&mut page)?;
    fs::write(&path, page).with_context(|| format!("can't write {}", path.display()))
}
