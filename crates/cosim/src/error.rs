use std::io;
use std::path::{Path, PathBuf};

use crate::card::CardError;

/// Why there is no simulation.
#[derive(Debug, thiserror::Error)]
pub enum CosimError {
    /// A program that is needed is not there.
    #[error("{tool} is not on PATH: {advice}")]
    Missing {
        /// The program.
        tool: String,
        /// How to get it.
        advice: String,
    },
    /// A program found a mistake, which it has printed.
    #[error("{tool} failed:\n{output}")]
    Failed {
        /// The program.
        tool: String,
        /// What it said.
        output: String,
    },
    /// A file or folder could not be used.
    #[error("{attempt} {path}: {error}")]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// There is no libviaduct to link with.
    #[error("no libviaduct.so in {0}: name its folder in VIADUCT_LIB")]
    NoLibrary(String),
    /// The design's ports fit no way of wiring, or what is said of the card can't be.
    #[error("{0}")]
    Design(String),
    /// What is said of the card can't be.
    #[error(transparent)]
    Card(#[from] CardError),
}

/// For `map_err`: what was attempted, on what.
pub(crate) fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CosimError {
    let path = path.to_path_buf();
    move |error| CosimError::File { attempt, path, error }
}
