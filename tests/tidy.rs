//! The rules of the house: the size of files and functions, the direction of imports, and lists
//! that agree with their directories. `cargo test --test tidy -- --nocapture` prints the figures.
//!
//! It reads the text of `src` as rustfmt lays it out: an item ends with a brace that stands in the
//! column in which the item began.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const MAX_FILE: usize = 400;
const MAX_FUNCTION: usize = 70;

/// Files that may be longer, and why.
#[rustfmt::skip]
const LONG_FILES: &[(&str, &str)] = &[
    ("event/payload", "a list of payloads"),
    ("base/json", "one parser"),
];

/// Functions that may be longer, and why.
#[rustfmt::skip]
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[
    ("adapter/assembly", "new", "one step after the other of one start"),
    ("adapter/config/project", "project", "one statement per key of the file"),
    ("adapter/config/read", "config", "one statement per key of the file"),
    ("adapter/journal/writer/open", "look_through", "not split yet"),
    ("adapter/journal/writer/open", "open", "not split yet"),
    ("adapter/lifecycle", "admit", "one arm per event"),
    ("adapter/port/openapi", "document", "data"),
    ("adapter/protocol/mod", "translate", "one arm per event"),
    ("adapter/runtime/claude/launch", "launch", "one step after the other of one start"),
    ("adapter/runtime/claude/messages", "system", "one arm per message of the CLI"),
    ("adapter/runtime/codex/launch", "configuration", "the text of the configuration"),
    ("adapter/runtime/codex/messages", "answered", "one arm per answer of the CLI"),
    ("adapter/runtime/codex/messages", "notified", "one arm per notification of the CLI"),
    ("adapter/runtime/gemini/one_shot", "one_shot", "one arm per line of the CLI"),
    ("adapter/runtime/opencode/parts", "tool", "not split yet"),
    ("adapter/runtime/pi/messages", "message", "one arm per message of the CLI"),
    ("adapter/server", "start", "one step after the other of one start"),
    ("adapter/session/cli/mod", "launch", "one step after the other of one start"),
    ("command/run", "serve", "one step after the other of one start"),
    ("command/up/mod", "start", "one step after the other of one start"),
    ("command/up/mod", "adapter", "one step after the other of one start"),
    ("rehearsal/google", "read", "not split yet"),
    ("rehearsal/openai", "response_events", "not split yet"),
    ("sidecar/audit/verify", "verify", "not split yet"),
    ("sidecar/config/grants", "grant", "one statement per key of the file"),
    ("sidecar/config/providers", "provider", "one statement per key of the file"),
    ("sidecar/config/read", "config", "one statement per key of the file"),
    ("sidecar/metrics", "new", "one statement per metric"),
    ("sidecar/server", "start", "one step after the other of one start"),
    ("sidecar/steps/model/scanner/mod", "open", "not split yet"),
];

/// Who may import whom: a room may import those with a higher number, and itself.
const ROOMS: &[(&str, u32)] = &[
    ("main", 0),
    ("lib", 0),
    ("command", 1),
    ("cli", 2),
    ("sidecar", 3),
    ("adapter", 3),
    ("rehearsal", 3),
    ("event", 4),
    ("catalogue", 4),
    ("base", 5),
];

struct Source {
    /// Below `src`, without `.rs`: `sidecar/steps/mod`.
    name: String,
    /// Without the module `tests`.
    lines: Vec<String>,
}

impl Source {
    /// The segments of its module.
    fn module(&self) -> Vec<&str> {
        let mut parts: Vec<&str> = self.name.split('/').collect();
        if parts.last() == Some(&"mod") {
            parts.pop();
        }
        parts
    }

    fn is_test(&self) -> bool {
        self.name.ends_with("/tests")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(source(&path));
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn source(path: &Path) -> Source {
    let name = path
        .strip_prefix(root().join("src"))
        .unwrap()
        .with_extension("");
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some(tests) = lines.iter().position(|l| l.starts_with("mod tests {")) {
        lines.truncate(tests - 1);
    }
    Source {
        name: name.to_string_lossy().into_owned(),
        lines,
    }
}

/// Every function with its length, from its first line to the brace that ends it.
fn functions(source: &Source) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, line) in source.lines.iter().enumerate() {
        let text = line.trim_start();
        let indent = &line[..line.len() - text.len()];
        let words: Vec<&str> = text.split([' ', '(', '<']).take(5).collect();
        let Some(word) = words.iter().position(|w| *w == "fn") else {
            continue;
        };
        let is_head = words[..word].iter().all(|w| {
            matches!(*w, "pub" | "async" | "const" | "crate)" | "super)") || w.starts_with("pub(")
        });
        let name = words.get(word + 1).copied().unwrap_or_default();
        if !is_head || name.is_empty() {
            continue;
        }
        let end = format!("{indent}}}");
        // A declaration without a body ends with a semicolon before any brace opens.
        let rest = &source.lines[at..];
        let ends = rest.iter().position(|l| l.trim_end().ends_with(';'));
        let opens = rest.iter().position(|l| l.trim_end().ends_with(['{', '}']));
        let (Some(opens), ends) = (opens, ends.unwrap_or(usize::MAX)) else {
            continue;
        };
        if ends < opens {
            continue;
        }
        let body = if rest[opens].trim_end().ends_with('}') {
            Some(opens)
        } else {
            rest.iter().position(|l| *l == end)
        };
        found.push((name.to_owned(), body.unwrap_or(0) + 1));
    }
    found
}

/// The paths that a file names, from the root of the crate, without those of its own tests.
fn paths(source: &Source) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    let code: Vec<&str> = source
        .lines
        .iter()
        .map(|l| l.split("//").next().unwrap())
        .collect();
    let code = code.join("\n");
    let mut rest = code.as_str();
    while let Some(at) = rest
        .find("crate::")
        .into_iter()
        .chain(rest.find("super::"))
        .min()
    {
        let is_word = rest[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        let tree = &rest[at..];
        rest = &rest[at + 7..];
        if is_word {
            continue;
        }
        let mut out = Vec::new();
        expand(tree, &[], &mut out);
        for path in out {
            let supers = path.iter().take_while(|p| *p == "super").count();
            let absolute: Vec<String> = if supers > 0 {
                let module = source.module();
                let base = &module[..module.len().saturating_sub(supers)];
                base.iter()
                    .map(|s| (*s).to_owned())
                    .chain(path[supers..].iter().cloned())
                    .collect()
            } else {
                path[1..].to_vec()
            };
            found.insert(absolute);
        }
    }
    found
}

/// Reads one path, or a tree of them in braces, from the head of `text`. Returns what is left.
fn expand<'a>(text: &'a str, prefix: &[String], out: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = prefix.to_vec();
    let mut text = text;
    loop {
        let end = text
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(text.len());
        if end > 0 {
            path.push(text[..end].to_owned());
        }
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(more) if more.starts_with('{') => {
                let mut more = &more[1..];
                loop {
                    more = more.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
                    if more.is_empty() || more.starts_with('}') {
                        return more.get(1..).unwrap_or_default();
                    }
                    let before = more.len();
                    more = expand(more, &path, out);
                    // ` as name`, `*` and the like.
                    let next = more.find([',', '}']).unwrap_or(more.len());
                    more = &more[next..];
                    assert!(
                        more.len() < before,
                        "a tree of imports that is not understood: {more}"
                    );
                }
            }
            Some(more) if more.starts_with(|c: char| c.is_alphabetic() || c == '_') => text = more,
            _ => {
                out.push(path);
                return text;
            }
        }
    }
}

/// Which files a file imports.
fn imports<'a>(source: &'a Source, files: &BTreeMap<Vec<&str>, &'a Source>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for path in paths(source) {
        let target = (1..=path.len()).rev().find_map(|n| {
            let module: Vec<&str> = path[..n].iter().map(String::as_str).collect();
            files.get(&module)
        });
        // A module and the files below it are one unit: the children continue their parent.
        let is_apart = |t: &&&Source| {
            let (from, to) = (source.module(), t.module());
            !from.starts_with(&to) && !to.starts_with(&from)
        };
        if let Some(target) = target.filter(is_apart) {
            found.insert(target.name.as_str());
        }
    }
    found
}

/// The files that each file imports, without the files of tests.
fn graph(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let files: BTreeMap<Vec<&str>, &Source> = sources.iter().map(|s| (s.module(), s)).collect();
    let real = sources.iter().filter(|s| !s.is_test());
    real.map(|s| (s.name.as_str(), imports(s, &files)))
        .collect()
}

/// Groups of files that reach each other.
fn circles<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reach = |from: &'a str| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(file) = todo.pop() {
            for next in graph.get(file).into_iter().flatten() {
                if seen.insert(*next) {
                    todo.push(next);
                }
            }
        }
        seen
    };
    let all: BTreeMap<&str, BTreeSet<&str>> = graph.keys().map(|f| (*f, reach(f))).collect();
    let mut found: Vec<Vec<&str>> = Vec::new();
    for file in graph.keys() {
        let group: Vec<&str> = all[file]
            .iter()
            .filter(|other| all.get(*other).is_some_and(|r| r.contains(file)))
            .copied()
            .collect();
        if !group.is_empty() && !found.contains(&group) {
            found.push(group);
        }
    }
    found
}

fn rank(room: &str) -> u32 {
    let found = ROOMS.iter().find(|(name, _)| *name == room);
    found
        .unwrap_or_else(|| panic!("`src/{room}` has no place in ROOMS"))
        .1
}

#[test]
fn files_and_functions_are_short() {
    let sources = sources();
    let mut lengths: Vec<(usize, &str)> = sources
        .iter()
        .filter(|s| !s.is_test())
        .map(|s| (s.lines.len(), s.name.as_str()))
        .collect();
    lengths.sort_unstable();
    let p90 = lengths[lengths.len() * 9 / 10].0;
    let functions: Vec<(&Source, String, usize)> = sources
        .iter()
        .flat_map(|s| functions(s).into_iter().map(move |(name, n)| (s, name, n)))
        .collect();
    let longer = |n: usize| functions.iter().filter(|f| f.2 > n).count();
    println!(
        "files: {}, p90: {p90} lines, largest: {:?}",
        lengths.len(),
        lengths.last().unwrap()
    );
    println!(
        "functions: {}, over 60 lines: {}, over 70: {}",
        functions.len(),
        longer(60),
        longer(MAX_FUNCTION)
    );
    let mut wrong = Vec::new();
    for (n, name) in lengths.iter().filter(|(n, _)| *n > MAX_FILE) {
        match LONG_FILES.iter().find(|(file, _)| file == name) {
            Some((_, why)) => println!("exception: {name}.rs has {n} lines: {why}"),
            None => wrong.push(format!(
                "{name}.rs has {n} lines, and at most {MAX_FILE} are allowed"
            )),
        }
    }
    for (source, name, n) in functions.iter().filter(|f| f.2 > MAX_FUNCTION) {
        match LONG_FUNCTIONS
            .iter()
            .find(|(f, function, _)| *f == source.name && function == name)
        {
            Some((_, _, why)) => {
                println!("exception: {}::{name} has {n} lines: {why}", source.name)
            }
            None => wrong.push(format!(
                "{}::{name} has {n} lines, and at most {MAX_FUNCTION} are allowed",
                source.name
            )),
        }
    }
    for (file, _) in LONG_FILES {
        assert!(
            lengths
                .iter()
                .any(|(n, name)| name == file && *n > MAX_FILE),
            "{file} needs no exception"
        );
    }
    for (file, function, _) in LONG_FUNCTIONS {
        let needed = functions
            .iter()
            .any(|(s, name, n)| s.name == *file && name == function && *n > MAX_FUNCTION);
        assert!(needed, "{file}::{function} needs no exception");
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn imports_go_one_way() {
    let sources = sources();
    let graph = graph(&sources);
    let circles = circles(&graph);
    let mut back = Vec::new();
    for (file, targets) in &graph {
        let from = file.split('/').next().unwrap();
        for target in targets {
            let to = target.split('/').next().unwrap();
            let is_sibling = from != to && rank(from) == rank(to);
            if *target != "lib" && (rank(to) < rank(from) || is_sibling) {
                back.push(format!("{file} imports {target}"));
            }
        }
    }
    println!("circles: {}, back arrows: {}", circles.len(), back.len());
    assert!(
        circles.is_empty(),
        "files that import each other: {circles:#?}"
    );
    assert!(back.is_empty(), "imports against the direction: {back:#?}");
}

/// A step may demand the proof that another made, and holds constants of it, but never calls it.
#[test]
fn a_step_calls_no_other_step() {
    let sources = sources();
    let steps: BTreeSet<&str> = sources.iter().filter_map(|s| step(&s.name)).collect();
    assert!(steps.len() > 8, "{steps:?}");
    for source in sources.iter().filter(|s| !s.is_test()) {
        let Some(from) = step(&source.name) else {
            continue;
        };
        for path in paths(source) {
            let [sidecar, dir, to, item @ ..] = path.as_slice() else {
                continue;
            };
            let is_other = sidecar == "sidecar" && dir == "steps" && to != from;
            let is_type = item
                .last()
                .is_some_and(|i| i.starts_with(char::is_uppercase));
            assert!(
                !is_other || is_type,
                "{} uses {}",
                source.name,
                path.join("::")
            );
        }
    }
}

fn step(file: &str) -> Option<&str> {
    let below = file.strip_prefix("sidecar/steps/")?;
    below.split('/').next().filter(|s| *s != "mod")
}

#[test]
fn translators_are_pure() {
    for source in sources() {
        let is_translator = source.name.starts_with("adapter/runtime/")
            && !source.name.ends_with("/launch")
            && source.name.matches('/').count() > 2;
        for line in source.lines.iter().filter(|_| is_translator) {
            for banned in ["std::fs", "std::process", "tokio::"] {
                assert!(!line.contains(banned), "{}.rs: {line}", source.name);
            }
        }
    }
}

#[test]
fn registries_list_what_their_directories_hold() {
    let names = |dir: &str, shared: &[&str]| {
        let entries = std::fs::read_dir(root().join("src").join(dir)).unwrap();
        let mut found: Vec<String> = entries
            .map(|e| e.unwrap().file_name().to_string_lossy().replace(".rs", ""))
            .filter(|name| !shared.contains(&name.as_str()))
            .collect();
        found.sort();
        found
    };
    let listed = |file: &str, entry: &str| {
        let text = std::fs::read_to_string(root().join("src").join(file)).unwrap();
        let mut found: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
            .filter_map(|word| Some(word.strip_suffix(entry)?.rsplit("::").next()?.to_owned()))
            .collect();
        found.sort();
        found.dedup();
        found
    };
    let shared = [
        "mod",
        "registry",
        "action",
        "capabilities",
        "error_code",
        "in_flight",
        "items",
        "native",
    ];
    assert_eq!(
        names("adapter/runtime", &shared),
        listed("adapter/runtime/registry.rs", "::RUNTIME")
    );
    let shared = ["mod", "registry", "compatible"];
    assert_eq!(
        names("sidecar/provider", &shared),
        listed("sidecar/provider/registry.rs", "::PROVIDER")
    );
}

#[test]
fn the_map_names_files_that_exist() {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let rows: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("//! | "))
        .skip(1)
        .collect();
    assert!(rows.len() > 20, "the map has {} rows", rows.len());
    for row in rows {
        let place = row.rsplit('|').nth(1).unwrap();
        for path in place
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|p| !p.contains('<'))
        {
            let exists = root().join("src").join(path).exists() || root().join(path).exists();
            assert!(exists, "the map names `{path}`, which does not exist");
        }
    }
}
