//! Just enough of Rust's lexical structure for the rules: what is code and what is comment or
//! string, what is test code, where functions begin and end.

/// A Rust file, read for the rules.
pub struct Source {
    /// The lines as written.
    pub lines: Vec<String>,
    /// The same lines with comments, strings and character literals blanked.
    pub code: Vec<String>,
    /// Which lines belong to an item under `#[cfg(test)]` or `#[test]`.
    pub is_test: Vec<bool>,
}

/// A function: its name, its first and its last line, from 0.
pub struct Function {
    /// Name.
    pub name: String,
    /// Line of the word `fn`.
    pub first: usize,
    /// Line of the closing brace.
    pub last: usize,
}

impl Source {
    /// Reads `text`.
    pub fn new(text: &str) -> Source {
        let blank = blanked(text);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let code: Vec<String> = blank.lines().map(str::to_owned).collect();
        let mut is_test = vec![false; lines.len()];
        for (first, line) in code.iter().enumerate() {
            if line.contains("#[cfg(test)]") || line.contains("#[test]") {
                let last = end_of_item(&code, first, line.find("#[").unwrap_or(0));
                is_test[first..=last].fill(true);
            }
        }
        Source { lines, code, is_test }
    }

    /// The functions with a body, nested ones too.
    pub fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for (first, line) in self.code.iter().enumerate() {
            let Some(at) = word(line, "fn") else { continue };
            let name: String =
                line[at + 2..].trim_start().chars().take_while(|c| is_word(*c)).collect();
            // No name: a pointer to a function, `fn(u8)`.
            if !name.is_empty() {
                found.push(Function { name, first, last: end_of_item(&self.code, first, at) });
            }
        }
        found
    }
}

/// Where `wanted` stands in `line` as a whole word.
pub fn word(line: &str, wanted: &str) -> Option<usize> {
    line.match_indices(wanted).map(|(at, _)| at).find(|&at| {
        !line[..at].ends_with(is_word) && !line[at + wanted.len()..].starts_with(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The line on which the item that starts at (`line`, `column`) ends: at the brace that closes its
/// first one, or at a semicolon before any brace. Attributes and signatures hold `;` only in
/// brackets or parentheses.
fn end_of_item(code: &[String], line: usize, column: usize) -> usize {
    let (mut braces, mut nested) = (0_usize, 0_usize);
    for (number, text) in code.iter().enumerate().skip(line) {
        let from = if number == line { column } else { 0 };
        for c in text[from..].chars() {
            match c {
                '(' | '[' => nested += 1,
                ')' | ']' => nested = nested.saturating_sub(1),
                '{' => braces += 1,
                '}' if braces <= 1 => return number,
                '}' => braces -= 1,
                ';' if braces == 0 && nested == 0 => return number,
                _ => {}
            }
        }
    }
    code.len().saturating_sub(1)
}

/// `text` with every character of comments, strings and character literals replaced by a space,
/// line breaks kept.
fn blanked(text: &str) -> String {
    let mut rest = text;
    let mut out = String::with_capacity(text.len());
    while let Some(c) = rest.chars().next() {
        let length = literal_or_comment(rest, out.ends_with(is_word));
        let taken = length.unwrap_or(c.len_utf8());
        let (now, later) = rest.split_at(taken);
        if length.is_some() {
            out.extend(now.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            out.push_str(now);
        }
        rest = later;
    }
    out
}

/// The length of the comment or literal that starts here, in bytes.
fn literal_or_comment(rest: &str, after_word: bool) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(rest.find("*/").map_or(rest.len(), |at| at + 2));
    }
    if rest.starts_with('"') {
        return Some(quoted(rest, '"'));
    }
    if !after_word && rest.starts_with(['r', 'b', 'c']) {
        let prefix = rest.find(|c| !matches!(c, 'r' | 'b' | 'c')).unwrap_or(rest.len());
        let hashes = rest[prefix..].find(|c| c != '#').unwrap_or(0);
        if prefix <= 2 && rest[prefix + hashes..].starts_with('"') {
            if !rest[..prefix].contains('r') {
                return Some(prefix + quoted(&rest[prefix..], '"'));
            }
            let end = format!("\"{}", "#".repeat(hashes));
            let body = prefix + hashes + 1;
            return Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()));
        }
    }
    if let Some(after) = rest.strip_prefix('\'') {
        // A lifetime has no closing quote right after one (possibly escaped) character.
        let mut inside = after.chars();
        let first = inside.next()?;
        if first == '\\' {
            return Some(quoted(rest, '\''));
        }
        return inside.as_str().starts_with('\'').then(|| 2 + first.len_utf8());
    }
    None
}

/// The length of a literal that starts and ends with `quote` and may hold escapes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_not_code() {
        let source =
            Source::new("let a = \"un{safe\\\"\"; // {\nlet b = '{'; let c: &'static u8;\n");
        assert_eq!(source.code[0].trim_end(), "let a =            ;");
        assert!(source.code[1].contains("&'static u8;") && !source.code[1].contains('{'));
        assert!(!Source::new("r#\"fn x() { \"# ;").code[0].contains("fn"));
    }

    #[test]
    fn functions_end_at_their_brace() {
        let text = "fn a(x: [u8; 2]) -> u8\n{\n  if x { 1 }\n}\ntrait T { fn b(); }\n";
        let functions = Source::new(text).functions();
        let ends: Vec<_> = functions.iter().map(|f| (f.name.as_str(), f.first, f.last)).collect();
        assert_eq!(ends, [("a", 0, 3), ("b", 4, 4)]);
    }

    #[test]
    fn test_code_is_known() {
        let source = Source::new("fn a() {}\n#[cfg(test)]\nmod tests {\n  x\n}\nfn b() {}\n");
        assert_eq!(source.is_test, [false, true, true, true, true, false]);
    }
}
