//! Programs of other people.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::CosimError;

/// A program to be run to its end.
#[derive(Debug)]
pub struct Tool {
    name: String,
    advice: &'static str,
    command: Command,
}

impl Tool {
    /// The program `name`, found by PATH, or what `$VIADUCT_NAME` says instead (in capitals); with
    /// `advice` for people who don't have it.
    #[must_use]
    pub fn new(name: &str, advice: &'static str) -> Self {
        let variable = format!("VIADUCT_{}", name.to_uppercase().replace(['-', '+'], "_"));
        let program = std::env::var_os(variable).filter(|value| !value.is_empty());
        let command = Command::new(program.unwrap_or_else(|| name.into()));
        Self { name: name.to_owned(), advice, command }
    }

    /// A program that was built here.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        let name = path.display().to_string();
        Self { name, advice: "it has just been built", command: Command::new(path) }
    }

    /// What is run.
    #[must_use]
    pub fn program(&self) -> std::path::PathBuf {
        self.command.get_program().into()
    }

    /// With this word behind it.
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    /// With these words behind it.
    #[must_use]
    pub fn args(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(words);
        self
    }

    /// In this folder.
    #[must_use]
    pub fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it; what it printed.
    ///
    /// # Errors
    /// It is not there, or it failed: then the error has all that it printed.
    pub fn run(self) -> Result<String, CosimError> {
        let (output, errors) = self.finish()?;
        Ok(output + &errors)
    }

    /// Runs it; what it printed, without messages.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn output(self) -> Result<String, CosimError> {
        let (output, messages) = self.finish()?;
        if !messages.is_empty() {
            tracing::debug!("{}", messages.trim_end());
        }
        Ok(output)
    }

    fn finish(mut self) -> Result<(String, String), CosimError> {
        tracing::debug!("{:?}", self.command);
        let output =
            self.command.stdin(Stdio::null()).output().map_err(|error| self.lacks(error))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return Ok((text, errors));
        }
        Err(CosimError::Failed { tool: self.name, output: (text + &errors).trim_end().to_owned() })
    }

    fn lacks(&self, error: io::Error) -> CosimError {
        if error.kind() == io::ErrorKind::NotFound {
            let advice = self.advice.to_owned();
            return CosimError::Missing { tool: self.name.clone(), advice };
        }
        let path = self.command.get_program().into();
        CosimError::File { attempt: "can't run", path, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_is_not_there_comes_with_advice() {
        let error = Tool::new("no-such-tool-here", "apt install it").run().unwrap_err();
        assert_eq!(error.to_string(), "no-such-tool-here is not on PATH: apt install it");
    }

    #[test]
    fn what_a_tool_says_when_it_fails_is_shown() {
        let tool = Tool::new("sh", "").args(["-c", "echo one; echo two >&2; exit 3"]);
        assert_eq!(tool.run().unwrap_err().to_string(), "sh failed:\none\ntwo");
    }
}
