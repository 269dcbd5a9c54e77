//! What a text names, declares and hides: read line by line and word by word, without a parser.

use super::Names;

/// The module that a file is, without `crate`.
pub(super) fn module_of(file: &str) -> Names {
    let names = file.strip_suffix(".rs").unwrap_or(file).split('/').map(str::to_owned);
    let mut names: Names = names.collect();
    if names.last().is_some_and(|last| last == "mod" || last == "lib" || last == "main") {
        names.pop();
    }
    names
}

/// A path in a text.
pub(super) struct Named {
    pub(super) names: Names,
    pub(super) renamed: Option<String>,
    pub(super) is_export: bool,
}

/// All paths in a text that begin with `crate`, `super` or `self`, and all re-exports, with groups
/// written out.
pub(super) fn paths(text: &str) -> Vec<Named> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut before = String::new();
    while let Some(start) = rest.find(|c: char| c.is_alphabetic() || c == '_') {
        before.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let word = &rest[..end];
        let line = before.rsplit(['\n', ';', '}', '{']).next().unwrap_or_default();
        let is_export = line.trim_start().starts_with("pub") && line.ends_with("use ");
        let is_root = matches!(word, "crate" | "super" | "self") && rest[end..].starts_with("::");
        if (is_root || is_export) && !before.ends_with("::") {
            let (leaves, after) = leaves(rest);
            found.extend(leaves.into_iter().map(|(names, renamed)| Named {
                names,
                renamed,
                is_export,
            }));
            before.clear();
            rest = after;
        } else {
            before.push_str(word);
            rest = &rest[end..];
        }
    }
    found
}

/// The paths of a tree such as `a::{b, c::d as e}` at the beginning of a text, and what follows it.
fn leaves(text: &str) -> (Vec<(Names, Option<String>)>, &str) {
    let text = text.trim_start();
    if let Some(star) = text.strip_prefix('*') {
        return (vec![(vec!["*".to_owned()], None)], star);
    }
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut all = Vec::new();
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if let Some(after) = rest.strip_prefix('}') {
                return (all, after);
            }
            let (some, after) = leaves(rest);
            if after.len() == rest.len() {
                return (all, after);
            }
            all.extend(some);
            rest = after;
        }
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if let Some(tail) = rest.strip_prefix("::")
        && tail.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '{' || c == '*')
    {
        let (tails, after) = leaves(tail);
        let join = |(tail, renamed): (Names, _)| {
            (std::iter::once(name.to_owned()).chain(tail).collect(), renamed)
        };
        return (tails.into_iter().map(join).collect(), after);
    }
    let renamed = rest.trim_start().strip_prefix("as ").map(|other| {
        let other = other.trim_start();
        let end = other.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(other.len());
        other.split_at(end)
    });
    match renamed {
        Some((other, after)) => (vec![(vec![name.to_owned()], Some(other.to_owned()))], after),
        None => (vec![(vec![name.to_owned()], None)], rest),
    }
}

/// Whether two words stand beside each other.
pub(super) fn has_words(text: &str, first: &str, second: &str) -> bool {
    let both = format!("{first} {second}");
    text.match_indices(&both).any(|(at, _)| {
        let after = text[at + both.len()..].chars().next();
        !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// Modules that are declared for tests only.
pub(super) fn test_modules(file: &str, module: &Names, text: &str) -> Vec<Names> {
    let mut found = Vec::new();
    let mut is_for_tests = false;
    let mut named_file = None;
    for line in text.lines().map(str::trim) {
        if line == "#[cfg(test)]" {
            is_for_tests = true;
        } else if let Some(path) = line.strip_prefix("#[path = \"") {
            named_file = path.strip_suffix("\"]");
        } else if !line.starts_with("#[") {
            let declared = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
            if let (true, Some((_, name))) = (is_for_tests, declared) {
                let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
                found.push(match named_file {
                    Some(path) if folder.is_empty() => module_of(path),
                    Some(path) => module_of(&format!("{folder}/{path}")),
                    None => module.iter().cloned().chain([name.to_owned()]).collect(),
                });
            }
            (is_for_tests, named_file) = (false, None);
        }
    }
    found
}

/// A text without its inline modules of tests: from the attribute to the brace that closes the
/// module, which stands below the `#`.
pub(super) fn without_tests(text: &str) -> String {
    let mut kept = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let opens = lines.peek().is_some_and(|next| next.ends_with('{'));
        if line.trim() != "#[cfg(test)]" || !opens {
            kept.push(line);
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", " ".repeat(indent));
        for skipped in lines.by_ref() {
            if skipped == closing {
                break;
            }
        }
    }
    kept.join("\n")
}

/// A text without its comments of lines.
pub(super) fn without_comments(text: &str) -> String {
    let code = |line: &str| {
        let mut is_string = false;
        let mut previous = ' ';
        for (at, c) in line.char_indices() {
            match c {
                '"' if previous != '\\' && previous != '\'' => is_string = !is_string,
                '/' if !is_string && line[at..].starts_with("//") => return line[..at].to_owned(),
                _ => {}
            }
            previous = if previous == '\\' { ' ' } else { c };
        }
        line.to_owned()
    };
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}
