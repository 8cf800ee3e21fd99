//! As much JSON as the capabilities of a VERSION message need: a reader that reports the numbers
//! and booleans inside objects and skips everything else, and a writer.
//!
//! The text comes from a peer that may be hostile: depth and size are bounded, nothing is
//! allocated, and malformed text is an error with its place.

use crate::DecodeError;

/// Deepest nesting accepted. The known capabilities need 3.
const MAX_DEPTH: usize = 8;

/// Longest key that is reported; no known one comes near, longer ones are skipped.
const MAX_KEY_LEN: usize = 64;

/// A value that is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A number that is whole, not negative and fits.
    Whole(u64),
    /// Any other number.
    OtherNumber,
    /// `true` or `false`.
    Bool(bool),
}

/// Path to a value: the keys of the objects it is in, outermost first, without array indices.
pub(super) type Path<'p> = &'p [&'p [u8]];

/// Reads one JSON value that is the whole text and calls `report` for each number and boolean that
/// is inside objects only.
pub(super) fn read(
    text: &[u8],
    report: &mut dyn FnMut(Path<'_>, Value),
) -> Result<(), DecodeError> {
    let mut reader = Reader { text, at: 0 };
    let mut path = [&b""[..]; MAX_DEPTH];
    reader.value(&mut path, 0, true, report)?;
    reader.space();
    if reader.at < text.len() {
        return Err(reader.error("more text after the value"));
    }
    Ok(())
}

struct Reader<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Reader<'t> {
    /// Reads a value at `depth`, which is also how many entries of `path` are in use.
    fn value(
        &mut self,
        path: &mut [&'t [u8]; MAX_DEPTH],
        depth: usize,
        wanted: bool,
        report: &mut dyn FnMut(Path<'_>, Value),
    ) -> Result<(), DecodeError> {
        self.space();
        let scalar = match self.peek() {
            Some(b'{') => return self.object(path, depth, wanted, report),
            Some(b'[') => return self.array(path, depth, report),
            Some(b'"') => return self.string().map(|_| ()),
            Some(b't') => self.word(b"true").map(|()| Some(Value::Bool(true))),
            Some(b'f') => self.word(b"false").map(|()| Some(Value::Bool(false))),
            Some(b'n') => self.word(b"null").map(|()| None),
            Some(b'-' | b'0'..=b'9') => self.number().map(Some),
            _ => Err(self.error("no value")),
        }?;
        if let (Some(value), true) = (scalar, wanted) {
            report(&path[..depth], value);
        }
        Ok(())
    }

    fn object(
        &mut self,
        path: &mut [&'t [u8]; MAX_DEPTH],
        depth: usize,
        wanted: bool,
        report: &mut dyn FnMut(Path<'_>, Value),
    ) -> Result<(), DecodeError> {
        self.descend(depth)?;
        if self.take(b'}') {
            return Ok(());
        }
        // Bounded by the text, of which each turn takes at least a key.
        loop {
            self.space();
            let key = self.string()?;
            self.space();
            if !self.take(b':') {
                return Err(self.error("no colon after a key"));
            }
            path[depth] = key;
            self.value(path, depth + 1, wanted && key.len() <= MAX_KEY_LEN, report)?;
            self.space();
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.error("no comma in an object"));
            }
        }
    }

    fn array(
        &mut self,
        path: &mut [&'t [u8]; MAX_DEPTH],
        depth: usize,
        report: &mut dyn FnMut(Path<'_>, Value),
    ) -> Result<(), DecodeError> {
        self.descend(depth)?;
        if self.take(b']') {
            return Ok(());
        }
        // Bounded by the text, of which each turn takes at least a value.
        loop {
            self.value(path, depth + 1, false, report)?;
            self.space();
            if self.take(b']') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.error("no comma in an array"));
            }
        }
    }

    /// Passes the opening bracket of something at `depth`.
    fn descend(&mut self, depth: usize) -> Result<(), DecodeError> {
        if depth == MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        self.at += 1;
        self.space();
        Ok(())
    }

    /// The bytes between the quotes, escapes as they are: no known key contains one.
    fn string(&mut self) -> Result<&'t [u8], DecodeError> {
        if !self.take(b'"') {
            return Err(self.error("no string"));
        }
        let start = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.at += 1;
                    return Ok(&self.text[start..self.at - 1]);
                }
                b'\\' => self.at += 2,
                0..=0x1f => return Err(self.error("control character in a string")),
                _ => self.at += 1,
            }
        }
        Err(self.error("string without end"))
    }

    fn number(&mut self) -> Result<Value, DecodeError> {
        let negative = self.take(b'-');
        let mut whole = Some(0u64);
        let start = self.at;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let digit = u64::from(digit - b'0');
            whole = whole.and_then(|w| w.checked_mul(10)).and_then(|w| w.checked_add(digit));
            self.at += 1;
        }
        if self.at == start {
            return Err(self.error("number without digits"));
        }
        let integer_end = self.at;
        while let Some(b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-') = self.peek() {
            self.at += 1;
        }
        let is_whole = !negative && self.at == integer_end;
        Ok(whole.filter(|_| is_whole).map_or(Value::OtherNumber, Value::Whole))
    }

    fn word(&mut self, word: &[u8]) -> Result<(), DecodeError> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.error("unknown word"))
        }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn error(&self, problem: &'static str) -> DecodeError {
        DecodeError::Json { at: self.at.min(self.text.len()), problem }
    }
}

/// Writes nested objects without white space.
pub(super) struct Writer<'o> {
    out: &'o mut Vec<u8>,
    first: bool,
}

impl<'o> Writer<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, first: true }
    }

    /// Writes the braces of an object, the outermost with an empty key, and what `body` writes.
    pub(super) fn object(&mut self, key: &str, body: impl FnOnce(&mut Writer<'_>)) {
        self.key(key);
        self.out.push(b'{');
        body(&mut Writer { out: self.out, first: true });
        self.out.push(b'}');
    }

    pub(super) fn whole(&mut self, key: &str, value: u64) {
        self.key(key);
        self.out.extend_from_slice(value.to_string().as_bytes());
    }

    pub(super) fn bool(&mut self, key: &str, value: bool) {
        self.key(key);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn key(&mut self, key: &str) {
        if !core::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        if !key.is_empty() {
            self.out.push(b'"');
            self.out.extend_from_slice(key.as_bytes());
            self.out.extend_from_slice(b"\":");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Result<Vec<(String, Value)>, DecodeError> {
        let mut found = Vec::new();
        read(text.as_bytes(), &mut |path, value| {
            let path = path.iter().map(|key| String::from_utf8_lossy(key)).collect::<Vec<_>>();
            found.push((path.join("."), value));
        })?;
        Ok(found)
    }

    #[test]
    fn values_are_reported_with_their_path() {
        let text = r#" { "a" : { "b":1, "c" : true }, "d": [1, {"e": 2}],
            "f": "1", "g": 18446744073709551615 } "#;
        let expected = [
            ("a.b".to_string(), Value::Whole(1)),
            ("a.c".to_string(), Value::Bool(true)),
            ("g".to_string(), Value::Whole(u64::MAX)),
        ];
        assert_eq!(values(text).as_deref(), Ok(&expected[..]));
    }

    #[test]
    fn numbers_that_are_not_whole_are_marked() {
        for text in ["{\"a\":-1}", "{\"a\":1.5}", "{\"a\":1e3}", "{\"a\":18446744073709551616}"] {
            let expected = [("a".to_string(), Value::OtherNumber)];
            assert_eq!(values(text).as_deref(), Ok(&expected[..]), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(values(&nested(MAX_DEPTH)), Ok(vec![]));
        assert!(values(&nested(MAX_DEPTH + 1)).is_err());
        assert!(values(&"[".repeat(100_000)).is_err());
        assert!(values(&"{\"a\":".repeat(100_000)).is_err());
    }

    #[test]
    fn malformed_text_is_an_error() {
        let bad = [
            "",
            "{",
            "}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "[1 2]",
            "{} {}",
            "tru",
            "-",
            "\"",
            "\"\\",
            "\"\\\"",
            "{\"a\u{1}\":1}",
            "{a:1}",
            "nul",
            "{\"a\":1",
            "[",
            "[,]",
        ];
        for text in bad {
            assert!(values(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_cut_of_a_good_text_is_an_error() {
        let text = r#"{"capabilities":{"a":[1,"\"x",null],"b":{"c":false}}}"#;
        assert!(values(text).is_ok());
        for end in 0..text.len() {
            assert!(values(&text[..end]).is_err(), "{end}");
        }
    }
}
