use std::collections::BTreeMap;
use std::path::PathBuf;

/// A setting's value, already understood by whoever read it from a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Value {
    /// As it was written.
    pub text: String,
    /// As a number, if it is one; sizes are in bytes.
    pub number: Option<u64>,
    /// As yes or no, if it is that.
    pub flag: Option<bool>,
}

/// Why a setting can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// It is needed and not there.
    #[error("{0}= is missing")]
    Missing(&'static str),
    /// It is not of the right kind.
    #[error("{key}={text}: expected {expected}")]
    Expected {
        /// The setting.
        key: String,
        /// What was written.
        text: String,
        /// What would be right, with an example.
        expected: String,
    },
    /// Nobody knows it.
    #[error("unknown setting {unknown}=; {}known here: {known}", meant(unknown, known))]
    Unknown {
        /// The setting.
        unknown: String,
        /// All settings that were asked for.
        known: String,
    },
    /// Several that don't go together, or none of several of which one is needed.
    #[error("{0}")]
    Together(&'static str),
}

fn meant(unknown: &str, known: &str) -> String {
    closest(unknown, known.split(", "))
        .map(|word| format!("did you mean {word}=? "))
        .unwrap_or_default()
}

/// The word that was probably meant by one that nobody knows: at most a third of it is wrong.
#[must_use]
pub fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated = known.map(|candidate| (distance(word, candidate), candidate));
    let near = |(wrong, candidate): &(usize, &str)| wrong * 3 <= candidate.len().max(3);
    rated.min_by_key(|(wrong, _)| *wrong).filter(near).map(|(_, candidate)| candidate)
}

/// Letters to add, leave out or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

/// The settings of one end: `path` and whatever else, by name. Whoever builds the end takes what it
/// knows and calls [`Parameters::finish`], which refuses what is left over.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    values: BTreeMap<String, Value>,
    asked: Vec<&'static str>,
}

impl Parameters {
    /// Settings by name.
    #[must_use]
    pub fn new(values: BTreeMap<String, Value>) -> Self {
        Self { values, asked: Vec::new() }
    }

    /// The setting as written.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.asked.push(key);
        self.values.remove(key).map(|value| value.text)
    }

    /// The setting as a path.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// The setting as a path that must be there.
    ///
    /// # Errors
    /// [`ParameterError::Missing`].
    pub fn required_path(&mut self, key: &'static str) -> Result<PathBuf, ParameterError> {
        self.path(key).ok_or(ParameterError::Missing(key))
    }

    /// The setting as a number within `range`; sizes are in bytes.
    ///
    /// # Errors
    /// [`ParameterError::Expected`].
    pub fn number(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, ParameterError> {
        self.asked.push(key);
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        match value.number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(ParameterError::Expected {
                key: key.to_owned(),
                text: value.text,
                expected: format!(
                    "a number from {} to {}, sizes as 64K, 16M, 1G",
                    range.start(),
                    range.end()
                ),
            }),
        }
    }

    /// The setting as yes or no; `default` if it is not there.
    ///
    /// # Errors
    /// [`ParameterError::Expected`].
    pub fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, ParameterError> {
        self.asked.push(key);
        let Some(value) = self.values.remove(key) else { return Ok(default) };
        let expected = "on or off".to_owned();
        value.flag.ok_or(ParameterError::Expected {
            key: key.to_owned(),
            text: value.text,
            expected,
        })
    }

    /// The setting as one of `choices`, each a word and what it stands for.
    ///
    /// # Errors
    /// [`ParameterError::Expected`].
    pub fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, ParameterError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                let expected = format!("one of {}", words.join(", "));
                Err(ParameterError::Expected { key: key.to_owned(), text, expected })
            }
        }
    }

    /// Makes sure that every setting was asked for.
    ///
    /// # Errors
    /// [`ParameterError::Unknown`].
    pub fn finish(self) -> Result<(), ParameterError> {
        match self.values.into_keys().next() {
            None => Ok(()),
            Some(unknown) => Err(ParameterError::Unknown { unknown, known: self.asked.join(", ") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, Option<u64>, Option<bool>)]) -> Parameters {
        let value = |number, flag| Value { text: "t".into(), number, flag };
        Parameters::new(pairs.iter().map(|(key, n, f)| ((*key).into(), value(*n, *f))).collect())
    }

    #[test]
    fn settings_are_taken_by_kind_and_leftovers_refused() {
        let mut all =
            parameters(&[("size", Some(64), None), ("ro", None, Some(true)), ("typo", None, None)]);
        assert_eq!(all.number("size", 1..=100), Ok(Some(64)));
        assert_eq!(all.flag("ro", false), Ok(true));
        assert_eq!(all.flag("flush", true), Ok(true));
        let error = all.finish().unwrap_err().to_string();
        assert_eq!(error, "unknown setting typo=; known here: size, ro, flush");
    }

    #[test]
    fn what_was_probably_meant_is_named() {
        let known = || ["mode", "pool", "requests-per-second"].into_iter();
        assert_eq!(closest("mod", known()), Some("mode"));
        assert_eq!(closest("polo", known()), None);
        assert_eq!(closest("request-per-secnd", known()), Some("requests-per-second"));
        assert_eq!(closest("x", known()), None);
        let error = ParameterError::Unknown { unknown: "mod".into(), known: "mode, pool".into() };
        let text = "unknown setting mod=; did you mean mode=? known here: mode, pool";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn the_wrong_kind_says_what_would_be_right() {
        let mut all = parameters(&[("size", Some(64), None), ("mode", None, None)]);
        let error = all.number("size", 1..=10).unwrap_err().to_string();
        assert_eq!(error, "size=t: expected a number from 1 to 10, sizes as 64K, 16M, 1G");
        let error = all.choice("mode", &[("a", 1), ("b", 2)]).unwrap_err().to_string();
        assert_eq!(error, "mode=t: expected one of a, b");
        assert_eq!(all.required_path("path"), Err(ParameterError::Missing("path")));
    }
}
