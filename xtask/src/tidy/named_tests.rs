//! Documents name the tests that show what they claim, as `crate/path/file.rs::function` in
//! backticks: each must be there, and be a test that runs.

use std::fs;
use std::path::Path;

use super::Fault;
use super::source::word;

/// The names in a document, with their lines from 1.
fn names(text: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    text.lines().enumerate().flat_map(|(number, line)| {
        let spans = line.split('`').skip(1).step_by(2);
        spans.filter_map(move |span| {
            let (file, function) = span.split_once(".rs::")?;
            Some((number + 1, file, function))
        })
    })
}

/// The faults of a document: tests that it names and that are not there.
pub fn check(folder: &Path, text: &str) -> Vec<Fault> {
    let missing = names(text).filter_map(|(line, file, function)| {
        let path = folder.join("crates").join(file).with_extension("rs");
        let Ok(code) = fs::read_to_string(&path) else {
            return Some((line, format!("there is no file crates/{file}.rs")));
        };
        let why = fault(&code, function)?;
        Some((line, format!("crates/{file}.rs: {function} {why}")))
    });
    missing.collect()
}

/// What is wrong with `code` as the home of a test.
fn fault(code: &str, function: &str) -> Option<&'static str> {
    let lines: Vec<&str> = code.lines().collect();
    let is_it = |line: &&str| line.contains("fn ") && word(line, function).is_some();
    let Some(at) = lines.iter().position(is_it) else {
        return Some("is not there");
    };
    // Attributes stand right above, comments between them.
    let above = lines[..at].iter().rev().map(|line| line.trim());
    let mut attributes = above.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let mut is_test = false;
    let is_ignored = attributes.any(|line| {
        is_test |= line == "#[test]";
        line.starts_with("#[ignore")
    });
    match (is_test, is_ignored) {
        (_, true) => Some("is ignored"),
        (false, _) => Some("is no test"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_backticks_only() {
        let text = "a `b/c.rs::d`, `e/f.rs::g` and h/i.rs::j\n\n`k` | `l.rs::m` |";
        let found: Vec<_> = names(text).collect();
        assert_eq!(found, [(1, "b/c", "d"), (1, "e/f", "g"), (3, "l", "m")]);
    }

    #[test]
    fn each_way_of_not_being_a_test_is_a_fault() {
        let code = "#[test]\n// why\n#[cfg(unix)]\nfn good() {}\nfn helper() {}\n\
                    #[test]\n#[ignore]\nfn later() {}\n";
        assert_eq!(fault(code, "good"), None);
        assert_eq!(fault(code, "goo"), Some("is not there"));
        assert_eq!(fault(code, "helper"), Some("is no test"));
        assert_eq!(fault(code, "later"), Some("is ignored"));
    }

    #[test]
    fn a_document_that_names_what_is_gone_is_found_out() {
        let folder = crate::check::workspace();
        assert_eq!(check(folder, "`wire/tests/any_bytes.rs::noise_does_no_harm`").len(), 0);
        assert_eq!(check(folder, "`wire/tests/any_bytes.rs::noise_does_harm`")[0].0, 1);
        assert_eq!(check(folder, "\n`wire/tests/no_bytes.rs::noise`")[0].0, 2);
    }
}
