//! Reads what people type: addresses of ends, `key=value` settings, sizes. The only place that
//! does.
//!
//! ```text
//! vhost-user:/run/qsd.sock            scheme, path
//! vfio-user:/run/disk.sock,legacy=io  scheme, path, settings
//! blk:path=disk.img,readonly=on       scheme, settings
//! rng:                                scheme alone
//! ```

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use virtio::{Parameters, Value};

/// What was typed can't be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// An end of a bridge as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// What stands before the colon.
    pub scheme: String,
    /// The settings; a bare first word is `path`.
    pub values: BTreeMap<String, Value>,
}

impl Address {
    /// Reads `SCHEME:[PATH][,key=value]...`.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once(':') else {
            bail!(Usage(format!(
                "'{text}' is no address: expected SCHEME:PATH[,key=value]..., \
                 as vhost-user:/run/disk.sock"
            )));
        };
        let mut values = BTreeMap::new();
        for (index, part) in rest.split(',').filter(|part| !part.is_empty()).enumerate() {
            let (key, value) = match part.split_once('=') {
                Some(pair) => pair,
                None if index == 0 => ("path", part),
                None => (part, "on"),
            };
            insert(&mut values, key, value)?;
        }
        Ok(Self { scheme: scheme.to_owned(), values })
    }

    /// The settings, for whoever opens the end.
    pub fn parameters(&self) -> Parameters {
        Parameters::new(self.values.clone())
    }
}

impl std::fmt::Display for Address {
    /// As one would write it, the path first.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.scheme)?;
        let path = self.values.get("path").map(|path| path.text.clone());
        let others = self.values.iter().filter(|(key, _)| *key != "path");
        let others = others.map(|(key, value)| format!("{key}={}", value.text));
        f.write_str(&path.into_iter().chain(others).collect::<Vec<_>>().join(","))
    }
}

/// Reads `key=value` words into settings.
pub fn settings(words: &[String]) -> Result<BTreeMap<String, Value>> {
    let mut values = BTreeMap::new();
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            bail!(Usage(format!("'{word}' is no setting: expected key=value, as mode=copy")));
        };
        insert(&mut values, key, value)?;
    }
    Ok(values)
}

fn insert(values: &mut BTreeMap<String, Value>, key: &str, text: &str) -> Result<()> {
    if values.insert(key.to_owned(), value(text)).is_some() {
        bail!(Usage(format!("{key}= is given twice")));
    }
    Ok(())
}

/// A value with every meaning its text can have.
pub fn value(text: &str) -> Value {
    let flag = match text {
        "on" | "yes" | "true" | "1" => Some(true),
        "off" | "no" | "false" | "0" => Some(false),
        _ => None,
    };
    Value { text: text.to_owned(), number: number(text), flag }
}

/// A whole number with an optional binary suffix: `4096`, `0x1000`, `64K`, `1G`, `2MiB`.
fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_scheme_a_path_and_settings() {
        let address = Address::parse("vfio-user:/run/a.sock,legacy=io,poll").unwrap();
        assert_eq!(address.scheme, "vfio-user");
        assert_eq!(address.values["path"].text, "/run/a.sock");
        assert_eq!(address.values["legacy"].text, "io");
        assert_eq!(address.values["poll"].flag, Some(true));
        assert_eq!(address.to_string(), "vfio-user:/run/a.sock,legacy=io,poll=on");
        assert!(Address::parse("rng:").unwrap().values.is_empty());
        assert_eq!(Address::parse("blk:ram=64M").unwrap().values["ram"].number, Some(64 << 20));
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        assert!(Address::parse("/run/a.sock").unwrap_err().to_string().contains("vhost-user:/run"));
        assert!(Address::parse("a:x,y=1,y=2").unwrap_err().to_string().contains("twice"));
        assert!(settings(&["mode".into()]).is_err());
    }

    #[test]
    fn sizes_have_binary_suffixes() {
        assert_eq!(number("512"), Some(512));
        assert_eq!(number("0x200"), Some(512));
        assert_eq!(number("2MiB"), Some(2 << 20));
        assert_eq!(number("18446744073709551615"), Some(u64::MAX));
        assert_eq!(number("99999999999T"), None);
        assert_eq!(number("12parsecs"), None);
        assert_eq!(number(""), None);
    }
}
