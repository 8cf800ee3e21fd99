//! `cargo xtask tidy`: the house rules that no compiler checks. Each fault is one line,
//! `file:line: what`, and any fault fails the task.

mod crates;
mod named_tests;
mod rules;
mod source;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::check::workspace;
use crate::process::output;
use source::Source;

/// One broken rule: line (from 1; 0 = the whole file) and what is wrong.
type Fault = (usize, String);

/// `cargo xtask tidy`.
pub fn run() -> Result<()> {
    let files = tracked_files(workspace())?;
    let mut faults = Vec::new();
    for name in &files {
        let Ok(text) = fs::read_to_string(workspace().join(name)) else { continue };
        let found = if name.ends_with(".rs") {
            rules::rust(name, &Source::new(&text))
        } else if name.ends_with("Cargo.toml") {
            crates::manifest(name, &text)
        } else if name.ends_with(".md") {
            named_tests::check(workspace(), &text)
        } else {
            Vec::new()
        };
        faults.extend(
            found
                .into_iter()
                .chain(rules::text(name, &text))
                .map(|(line, what)| format!("{name}:{line}: {what}")),
        );
    }
    faults.extend(crates::all_forbid_unsafe(workspace(), &files));
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        bail!("tidy: {} faults in {} files", faults.len(), files.len());
    }
    println!("== tidy: {} files", files.len());
    Ok(())
}

/// The files git knows or would know, with paths from the workspace's folder.
fn tracked_files(folder: &Path) -> Result<Vec<String>> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let names = output(Command::new("git").current_dir(folder).args(arguments))?;
    Ok(names.lines().map(str::to_owned).collect())
}
