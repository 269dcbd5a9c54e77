//! Which file of a crate names which other: the arrows between them, read from the text.
//!
//! Paths that begin with `crate`, `super` or `self` are followed through `pub use` to the file that
//! defines what they name. A declaration (`mod x;`) and a re-export are no arrows: they are how a
//! folder shows what is in it. Test modules are left out.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::files;
use text::{has_words, module_of, paths, test_modules, without_comments, without_tests};

/// A path of modules or names, without `crate`.
type Names = Vec<String>;

/// A file of a crate.
#[derive(Debug)]
struct Source {
    /// Its text without comments, tests and the contents of strings.
    text: String,
    /// What it re-exports: the new name, and the path behind it. `*` stands for every name.
    exports: Vec<(String, Names)>,
}

/// The product files of a crate.
#[derive(Debug)]
pub struct Sources {
    by_module: BTreeMap<Names, Source>,
    /// Path of each module's file, below `src`.
    files: BTreeMap<Names, String>,
}

/// One file names something of another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    /// The file that names, below `src`.
    pub from: String,
    /// The file that is named.
    pub to: String,
}

impl std::fmt::Display for Arrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}

impl Sources {
    /// Reads all product files below `src`.
    pub fn read(src: &Path) -> Self {
        let mut texts = BTreeMap::new();
        for (path, _) in files::walk(src) {
            if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(src).expect("a file below src");
                texts.insert(file.to_str().expect("UTF-8").to_owned(), files::read(&path));
            }
        }
        Self::of(texts)
    }

    /// Takes texts by the path of their file below `src`.
    pub fn of(texts: BTreeMap<String, String>) -> Self {
        let (mut by_module, mut files) = (BTreeMap::new(), BTreeMap::new());
        let mut tests = BTreeSet::new();
        for (file, text) in texts {
            let module = module_of(&file);
            let text = without_comments(&text);
            tests.extend(test_modules(&file, &module, &text));
            let text = without_tests(&text);
            files.insert(module.clone(), file);
            by_module.insert(module, Source { text, exports: Vec::new() });
        }
        let is_test = |module: &Names| tests.iter().any(|test| module.starts_with(test));
        by_module.retain(|module, _| !is_test(module));
        files.retain(|module, _| !is_test(module));
        let mut sources = Self { by_module, files };
        let exports = sources.by_module.iter();
        let exports = exports
            .map(|(module, source)| (module.clone(), sources.exports_of(module, &source.text)));
        let exports: Vec<_> = exports.collect();
        for (module, exports) in exports {
            if let Some(source) = sources.by_module.get_mut(&module) {
                source.exports = exports;
            }
        }
        sources
    }

    /// The files, below `src`, with their texts.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_module
            .iter()
            .map(|(module, source)| (self.files[module].as_str(), source.text.as_str()))
    }

    /// The arrows between files.
    pub fn arrows(&self) -> BTreeSet<Arrow> {
        let mut arrows = BTreeSet::new();
        for (module, source) in &self.by_module {
            let from = &self.files[module];
            for named in paths(&source.text) {
                if named.is_export {
                    continue;
                }
                let target =
                    absolute(module, &named.names).and_then(|names| self.defined_in(&names));
                if let Some(to) = target.filter(|to| *to != module) {
                    arrows.insert(Arrow { from: from.clone(), to: self.files[to].clone() });
                }
            }
        }
        arrows
    }

    /// Paths of `pub use`, made absolute. One without `crate`, `super` or `self` names a child.
    fn exports_of(&self, module: &Names, text: &str) -> Vec<(String, Names)> {
        let mut exports = Vec::new();
        for named in paths(text).into_iter().filter(|named| named.is_export) {
            let first = named.names[0].as_str();
            let names = if matches!(first, "crate" | "super" | "self") {
                absolute(module, &named.names)
            } else {
                Some(module.iter().chain(&named.names).cloned().collect())
            };
            let Some(names) = names.filter(|names: &Names| !names.is_empty()) else { continue };
            let own = named.renamed.or_else(|| names.last().cloned()).unwrap_or_default();
            exports.push((own, names));
        }
        exports
    }

    /// The module whose file defines what a path names.
    fn defined_in(&self, names: &[String]) -> Option<&Names> {
        let mut names = names.to_vec();
        // Each turn follows one re-export; a chain of them is short.
        for _ in 0..8 {
            let length =
                (0..=names.len()).rev().find(|end| self.by_module.contains_key(&names[..*end]))?;
            let (module, source) = self.by_module.get_key_value(&names[..length])?;
            let Some(item) = names.get(length) else { return Some(module) };
            let by_name = source.exports.iter().find(|(own, _)| own == item);
            let by_star = || {
                source.exports.iter().find(|(own, behind)| {
                    own == "*" && self.defines(&behind[..behind.len() - 1], item)
                })
            };
            match (by_name, by_star()) {
                (Some((_, behind)), _) => {
                    names = behind.iter().chain(&names[length + 1..]).cloned().collect();
                }
                (None, Some((_, behind))) => {
                    let of = &behind[..behind.len() - 1];
                    names = of.iter().chain(&names[length..]).cloned().collect();
                }
                (None, None) => return Some(module),
            }
        }
        None
    }

    fn defines(&self, module: &[String], item: &str) -> bool {
        self.by_module.get(module).is_some_and(|source| {
            let kinds = ["fn", "struct", "enum", "trait", "type", "const", "static", "union"];
            kinds.iter().any(|kind| has_words(&source.text, kind, item))
        })
    }
}

/// The folder of a file, below `src`; a file beside a folder of its own name belongs to that.
pub fn folder<'a>(file: &'a str, all: &BTreeSet<&str>) -> &'a str {
    let own = file.strip_suffix(".rs").unwrap_or(file);
    if all.iter().any(|other| other.strip_prefix(own).is_some_and(|rest| rest.starts_with('/'))) {
        return own;
    }
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The circles of files: sets of files each of which reaches all others of its set.
pub fn circles(arrows: &BTreeSet<Arrow>) -> Vec<BTreeSet<&str>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for arrow in arrows {
        next.entry(&arrow.from).or_default().insert(&arrow.to);
    }
    let reached = |start: &str| {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&str> = next.get(start).into_iter().flatten().copied().collect();
        while let Some(file) = open.pop() {
            if seen.insert(file) {
                open.extend(next.get(file).into_iter().flatten());
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        next.keys().map(|file| (*file, reached(file))).collect();
    let mut circles = Vec::new();
    for (file, others) in &reached {
        let circle = others.iter().copied();
        let circle =
            circle.filter(|other| reached.get(other).is_some_and(|back| back.contains(file)));
        let circle: BTreeSet<&str> = circle.collect();
        if circle.len() > 1 && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

/// A path that begins with `crate`, `super` or `self`, from the root of the crate. `None` for one
/// that leads out of it.
fn absolute(module: &[String], path: &[String]) -> Option<Names> {
    let mut base: Names = Vec::new();
    let mut rest = path;
    match path.first().map(String::as_str) {
        Some("crate") => rest = &path[1..],
        Some("self") => {
            base = module.to_vec();
            rest = &path[1..];
        }
        Some("super") => {
            base = module.to_vec();
            while rest.first().is_some_and(|name| name == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
        }
        _ => return None,
    }
    base.extend(rest.iter().filter(|name| *name != "self").cloned());
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(texts: &[(&str, &str)]) -> Vec<String> {
        let texts = texts.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
        Sources::of(texts.collect()).arrows().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn paths_are_followed_to_the_file_that_defines() {
        let found = arrows(&[
            ("lib.rs", "pub mod low;\npub mod high;\n"),
            ("low/mod.rs", "mod a;\nmod b;\npub use a::{A, Other as Renamed};\npub use b::*;\n"),
            ("low/a.rs", "pub struct A;\npub struct Other;\n"),
            ("low/b.rs", "pub fn b() {}\nuse super::A;\n"),
            (
                "high.rs",
                "use crate::low::{self, A, Renamed};\n// crate::low::b()\nfn f() { low::b(); crate::low::b() }",
            ),
        ]);
        let expected = [
            "high.rs -> low/a.rs",
            "high.rs -> low/b.rs",
            "high.rs -> low/mod.rs",
            "low/b.rs -> low/a.rs",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn tests_have_no_arrows() {
        let found = arrows(&[
            ("a.rs", "#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}\nfn f() {}\n"),
            ("b.rs", "#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod tests;\npub struct B;\n"),
            ("b_tests.rs", "use crate::a::A;\n"),
            ("c.rs", "#[cfg(test)]\npub(crate) mod fakes;\n"),
            ("c/fakes.rs", "use crate::a::A;\n"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_circle_is_found_over_several_files() {
        let arrow = |from: &str, to: &str| Arrow { from: from.to_owned(), to: to.to_owned() };
        let arrows =
            BTreeSet::from([arrow("a", "b"), arrow("b", "c"), arrow("c", "a"), arrow("c", "d")]);
        assert_eq!(circles(&arrows), [BTreeSet::from(["a", "b", "c"])]);
    }
}
