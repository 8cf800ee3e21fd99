//! What a person asks for, and what comes of it.

use std::ffi::OsString;
use std::path::PathBuf;

/// When a clock runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Clock {
    /// As fast as it goes while something happens; it stands still when the design is quiet.
    #[default]
    Free,
    /// This many cycles a second of real time.
    Paced(u64),
    /// This many cycles for each access and no others: every run is the same.
    Locked(u64),
}

/// A simulation to be built.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The module or entity that is the card.
    pub top: String,
    /// The sources, in the order in which they are to be read.
    pub sources: Vec<PathBuf>,
    /// Folders of included files.
    pub includes: Vec<PathBuf>,
    /// Macros, as NAME or NAME=VALUE.
    pub defines: Vec<String>,
    /// Parameters or generics of the top, as NAME=VALUE.
    pub parameters: Vec<String>,
    /// Words for the simulator's own command line.
    pub options: Vec<String>,
    /// Settings of the card, as key=value, which come before those in the sources.
    pub settings: Vec<String>,
    /// When the clock runs.
    pub clock: Clock,
    /// The waveform; the ending says which kind.
    pub wave: Option<PathBuf>,
    /// Where everything is built.
    pub folder: PathBuf,
}

/// A simulation that is ready to be started.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// What its environment must have.
    pub settings: Vec<(String, OsString)>,
    /// Files it was made from: when one changes it is out of date.
    pub made_from: Vec<PathBuf>,
}

impl Program {
    /// As a line for a shell.
    #[must_use]
    pub fn command_line(&self) -> String {
        let settings =
            self.settings.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let words = self.words.iter().map(quoted);
        let env = (!self.settings.is_empty()).then(|| "env".to_owned());
        env.into_iter().chain(settings).chain(words).collect::<Vec<_>>().join(" ")
    }
}

fn quoted(word: &OsString) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_each_word_as_it_is() {
        let program = Program {
            words: vec!["/tmp/my dir/sim".into(), "it's".into()],
            settings: vec![("WAVE".into(), "a b".into())],
            ..Program::default()
        };
        let line = program.command_line();
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("set -- {line}; for w; do echo \"[$w]\"; done")])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "[env]\n[WAVE=a b]\n[/tmp/my dir/sim]\n[it's]\n");
    }
}
