//! Faults as people write them: `NAME,key=value,...`.

use std::time::Duration;

use anyhow::Result;
use port::fault::{Fault, FaultKind, KINDS, MAX_DELAY};

use crate::address::Usage;

/// Reads a fault.
///
/// # Errors
/// What is written can't be meant.
pub fn parse(text: &str) -> Result<Fault> {
    let mut words = text.split(',');
    let name = words.next().unwrap_or_default().trim();
    let kind = FaultKind::from_name(name).ok_or_else(|| unknown(name))?;
    let mut fault = Fault::new(kind);
    for word in words {
        let Some((key, value)) = word.trim().split_once('=') else {
            return Err(Usage(format!("{word}: expected key=value")).into());
        };
        match key {
            "bar" => fault.bar = Some(number(key, value, 5)? as u8),
            "at" => {
                fault.at = number(key, value, u64::MAX)?;
                // One register, unless told otherwise.
                fault.len = if fault.len == u64::MAX { 4 } else { fault.len };
            }
            "len" => fault.len = number(key, value, u64::MAX)?,
            "value" => fault.value = number(key, value, u64::MAX)?,
            "count" => fault.count = Some(number(key, value, u64::MAX)?),
            "skip" => fault.skip = number(key, value, u64::MAX)?,
            "delay" => fault.delay = bounded(key, value)?,
            "jitter" => fault.jitter = bounded(key, value)?,
            "after" => fault.begins = duration(key, value)?,
            "for" => fault.lasts = Some(duration(key, value)?),
            _ => {
                let known = "bar, at, len, value, count, skip, delay, jitter, after, for";
                return Err(Usage(format!("{key}: a fault has {known}")).into());
            }
        }
    }
    Ok(fault)
}

/// The error for a fault that there is not.
pub fn unknown(name: &str) -> Usage {
    let names: Vec<&str> = KINDS.iter().map(|info| info.name).collect();
    let guess = virtio::closest(name, names.iter().copied());
    let guess = guess.map(|guess| format!("; did you mean {guess}?")).unwrap_or_default();
    Usage(format!("no fault is called '{name}'{guess} There are: {}", names.join(", ")))
}

/// A fault as [`parse`] reads it.
pub fn shown(fault: &Fault) -> String {
    let usual = Fault::new(fault.kind);
    let mut text = fault.kind.info().name.to_owned();
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!(",{key}={value}");
        }
    };
    let hex = |value: u64, usual: u64| (value != usual).then(|| format!("{value:#x}"));
    let time = |value: Duration, usual: Duration| {
        (value != usual).then(|| format!("{}us", value.as_micros()))
    };
    add("bar", fault.bar.map(|bar| bar.to_string()));
    add("at", hex(fault.at, usual.at));
    add("len", hex(fault.len, usual.len));
    add("value", hex(fault.value, usual.value));
    add("count", fault.count.map(|count| count.to_string()));
    add("skip", (fault.skip > 0).then(|| fault.skip.to_string()));
    add("delay", time(fault.delay, usual.delay));
    add("jitter", time(fault.jitter, usual.jitter));
    add("after", time(fault.begins, usual.begins));
    add("for", fault.lasts.and_then(|lasts| time(lasts, Duration::MAX)));
    text
}

fn number(key: &str, text: &str, most: u64) -> Result<u64> {
    let hex = text.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16));
    match hex.unwrap_or_else(|| text.parse()) {
        Ok(value) if value <= most => Ok(value),
        _ => Err(Usage(format!("{key}={text}: expected a number, at most {most}")).into()),
    }
}

fn bounded(key: &str, text: &str) -> Result<Duration> {
    let value = duration(key, text)?;
    if value > MAX_DELAY {
        return Err(Usage(format!("{key}={text}: at most {MAX_DELAY:?}")).into());
    }
    Ok(value)
}

fn duration(key: &str, text: &str) -> Result<Duration> {
    let units = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
    let found = units.iter().find_map(|(unit, us)| {
        let count: u64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(Duration::from_micros(count.checked_mul(*us)?))
    });
    found.ok_or_else(|| Usage(format!("{key}={text}: expected a time, as 5ms, 2s, 100us")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_read_and_shown() {
        let text = "slow,bar=2,at=0x20,len=0x8,count=3,skip=1,delay=5000us,jitter=1000us,\
                    after=2000000us,for=100us";
        let fault = parse(text).unwrap();
        assert_eq!((fault.bar, fault.at, fault.len), (Some(2), 0x20, 8));
        assert_eq!((fault.delay, fault.begins), (Duration::from_millis(5), Duration::from_secs(2)));
        assert_eq!(shown(&fault), text);
        assert_eq!(parse("stuck,at=16").unwrap().len, 4);
        for info in KINDS {
            let fault = parse(info.name).unwrap();
            assert_eq!((fault.kind, shown(&fault)), (info.kind, info.name.to_owned()));
        }
    }

    #[test]
    fn what_is_no_fault_is_refused_with_what_there_is() {
        for (text, hint) in [
            ("remove", "removed"),
            ("slow,delay=5", "5ms"),
            ("slow,delay=5s", "at most 4s"),
            ("stuck,bar=6", "at most 5"),
            ("stuck,where=1", "bar, at, len"),
            ("stuck,1", "key=value"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
