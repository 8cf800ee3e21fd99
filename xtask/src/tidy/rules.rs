//! The rules for single files.

use super::Fault;
use super::crates;
use super::source::{Source, word};

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;
const COLUMNS: usize = 100;

/// A file of constants says so with this line and may be longer.
const TABLE_MARKER: &str = "// tidy: a table of constants";

/// Never in code that ships. Split so that this file passes its own rules.
const FORBIDDEN: &[(&str, &str)] = &[
    ("todo!", "finish it or leave it out"),
    ("unimplemented!", "finish it or leave it out"),
    ("dbg!", "a debugging aid"),
    (".unwrap()", "say why it cannot fail with expect(), or return the error"),
];

/// Folders of one person's machine; written apart because this file is checked too.
const MACHINE_PATHS: &[&str] =
    &[concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/")];

/// The rules for a Rust file.
pub fn rust(name: &str, source: &Source) -> Vec<Fault> {
    let mut faults = Vec::new();
    if source.lines.len() > FILE_LINES && !source.lines.iter().any(|l| l == TABLE_MARKER) {
        faults.push((0, format!("{} lines, at most {FILE_LINES}", source.lines.len())));
    }
    for function in source.functions() {
        let lines = function.last - function.first + 1;
        if lines > FUNCTION_LINES {
            let what = format!("fn {} has {lines} lines, at most {FUNCTION_LINES}", function.name);
            faults.push((function.first + 1, what));
        }
    }
    let all_test = name.contains("/tests/") || name.contains("/benches/");
    for (number, line) in source.code.iter().enumerate() {
        if !all_test && !source.is_test[number] {
            for (text, why) in FORBIDDEN.iter().filter(|(text, _)| line.contains(text)) {
                faults.push((number + 1, format!("{text} outside tests: {why}")));
            }
        }
        if word(line, "unsafe").is_some() && !crates::may_be_unsafe(name) {
            faults.push((number + 1, "unsafe outside mem, sys and sdk".into()));
        }
        for (text, why) in crates::foreign_words(name).filter(|(text, _)| line.contains(text)) {
            faults.push((number + 1, format!("{text}: {why}")));
        }
    }
    faults
}

/// The rules for every text file.
pub fn text(name: &str, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let is_narrow = [".rs", ".sh", ".c", ".h"].iter().any(|end| name.ends_with(end));
    for (number, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        if is_narrow && columns > COLUMNS && !line.contains("://") {
            faults.push((number + 1, format!("{columns} columns, at most {COLUMNS}")));
        }
        for path in MACHINE_PATHS.iter().filter(|path| line.contains(*path)) {
            faults.push((number + 1, format!("{path} is a path of one machine")));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(name: &str, code: &str) -> Vec<String> {
        let found = rust(name, &Source::new(code)).into_iter().chain(text(name, code));
        found.map(|(line, what)| format!("{line} {what}")).collect()
    }

    #[test]
    fn each_rule_finds_its_fault() {
        let long_function = format!("fn f() {{\n{}}}\n", "x();\n".repeat(FUNCTION_LINES));
        for (code, expected) in [
            ("fn f() { todo!() }", "1 todo!"),
            ("fn f() { x.unwrap() }", "1 .unwrap()"),
            ("\nfn f() { unsafe { x() } }", "2 unsafe outside"),
            (long_function.as_str(), "1 fn f has 72 lines"),
            (&"//\n".repeat(FILE_LINES + 1), "0 501 lines"),
            (&"/".repeat(COLUMNS + 1), "1 101 columns"),
            (concat!("// /ho", "me/me"), "1 "),
        ] {
            let found = faults("crates/wire/src/a.rs", code);
            assert!(found.iter().any(|f| f.starts_with(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn what_is_allowed_passes() {
        let table = format!("{TABLE_MARKER}\n{}", "//\n".repeat(FILE_LINES + 1));
        for (name, code) in [
            ("crates/mem/src/a.rs", "fn f() { unsafe { x() } }"),
            ("crates/wire/src/a.rs", "#[cfg(test)]\nmod t {\n fn f() { x.unwrap() }\n}"),
            ("crates/wire/tests/a.rs", "fn f() { x.unwrap() }"),
            ("crates/wire/src/a.rs", "#![forbid(unsafe_code)] // unsafe todo!"),
            ("crates/wire/src/a.rs", table.as_str()),
        ] {
            assert_eq!(faults(name, code), [""; 0], "{code}");
        }
    }
}
