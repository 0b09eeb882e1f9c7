//! Reading a configuration file so that *all* its mistakes are reported, each with its path.
//!
//! YAML is parsed into JSON values; a [`Section`] takes the keys it knows, under their
//! camelCase or snake_case spelling, and notes every key that nobody took.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, Value};

/// Every mistake found so far, as `path: what is wrong`.
#[derive(Debug, Clone, Default)]
pub struct Problems(Rc<RefCell<Vec<String>>>);

impl Problems {
    pub fn add(&self, path: &str, what: impl std::fmt::Display) {
        self.0.borrow_mut().push(if path.is_empty() { what.to_string() } else { format!("`{path}`: {what}") });
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.borrow_mut())
    }
}

/// Parses YAML (or JSON). An empty file is an empty mapping.
///
/// # Errors
/// What is wrong, with line and column; a repeated key is an error.
pub fn parse_yaml(text: &str) -> Result<Value, String> {
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        return Ok(Value::Object(Map::new()));
    }
    serde_saphyr::from_str::<Value>(text).map_err(|e| plain(e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ")))
}

/// The parser's words without its advice to programmers.
fn plain(said: &str) -> String {
    let (place, what) = said.split_once(": ").filter(|(place, _)| place.starts_with("line ")).unwrap_or(("", said));
    let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
    if let Some(key) = what.strip_prefix("duplicate mapping key: ") {
        return format!("{place}the key `{}` stands twice", key.split(", set ").next().unwrap_or(key));
    }
    if what.contains("from_str_multiple") {
        return format!("{place}the file holds more than one document; one is allowed");
    }
    format!("{place}not YAML: {what}")
}

/// Adds to each problem the line that its path leads to, as far as that can be found.
pub fn placed(text: &str, problems: Vec<String>) -> Vec<String> {
    let with_line = |problem: String| {
        let Some((path, what)) = problem.strip_prefix('`').and_then(|p| p.split_once("`: ")) else { return problem };
        match line_of(text, path) {
            Some(line) => format!("`{path}` (line {line}): {what}"),
            None => problem,
        }
    };
    problems.into_iter().map(with_line).collect()
}

/// The line of `a.b[1].c`: of the deepest part that stands on a line of its own.
fn line_of(text: &str, path: &str) -> Option<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let (mut from, mut found) = (0, None);
    for part in path.replace('[', ".[").split('.').filter(|p| !p.is_empty()) {
        let here = match part.strip_prefix('[').and_then(|p| p.strip_suffix(']')).and_then(|p| p.parse::<usize>().ok()) {
            Some(item) => {
                let first = lines[from..].iter().position(|l| l.trim_start().starts_with("- ")).map(|i| i + from);
                let depth = first.map(|i| indent(lines[i]));
                let items = (from..lines.len()).filter(|i| lines[*i].trim_start().starts_with("- ") && Some(indent(lines[*i])) == depth);
                items.into_iter().nth(item)
            }
            None => (from..lines.len()).find(|i| {
                let line = lines[*i].trim_start().trim_start_matches("- ").trim_start();
                line.split_once(':').is_some_and(|(key, _)| camel_case(key.trim().trim_matches(['"', '\''])) == camel_case(part))
            }),
        };
        let Some(here) = here else { break };
        (from, found) = (here, Some(here + 1));
        if part.starts_with('[') {
            continue;
        }
        // The next part is on this line, or below it.
        from = here + usize::from(lines[here].trim_end().ends_with(':'));
    }
    found
}

/// The one of these that somebody may have meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|k| (strsim::jaro_winkler(&word.to_lowercase(), &k.to_lowercase()), k));
    scored.filter(|(score, _)| *score > 0.85).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}

/// `; did you mean …?` with the known word that is nearest; empty where none is near.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |k| format!("; did you mean `{k}`?"))
}

/// A mapping whose keys are taken one by one. Dropped, it reports those left over.
#[derive(Debug)]
pub struct Section {
    path: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
    problems: Problems,
}

impl Section {
    pub fn new(path: &str, value: Value, problems: &Problems) -> Self {
        let map = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => {
                problems.add(path, format!("expected a mapping, found {}", kind(&other)));
                Map::new()
            }
        };
        let mut camel = Map::new();
        for (key, value) in map {
            let name = camel_case(&key);
            if camel.insert(name, value).is_some() {
                problems.add(path, format!("`{key}` stands in both spellings"));
            }
        }
        Section { path: path.to_owned(), map: camel, known: Vec::new(), problems: problems.clone() }
    }

    pub fn path(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    pub fn add(&self, key: &str, what: impl std::fmt::Display) {
        self.problems.add(&self.path(key), what);
    }

    /// The raw value; `null` counts as absent.
    pub fn value(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.map.remove(key).filter(|v| !v.is_null())
    }

    pub fn section(&mut self, key: &'static str) -> Option<Section> {
        let path = self.path(key);
        self.value(key).map(|v| Section::new(&path, v, &self.problems))
    }

    /// The entries of a mapping with free keys, in the file's order.
    pub fn entries(&mut self, key: &'static str) -> Vec<(String, Section)> {
        let path = self.path(key);
        match self.value(key) {
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(name, v)| {
                    let s = Section::new(&format!("{path}.{name}"), v, &self.problems);
                    (name, s)
                })
                .collect(),
            Some(other) => {
                self.add(key, format!("expected a mapping, found {}", kind(&other)));
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// The items of a list of mappings.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section> {
        let path = self.path(key);
        match self.value(key) {
            Some(Value::Array(items)) => items.into_iter().enumerate().map(|(i, v)| Section::new(&format!("{path}[{i}]"), v, &self.problems)).collect(),
            Some(other) => {
                self.add(key, format!("expected a list, found {}", kind(&other)));
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    pub fn string(&mut self, key: &'static str) -> Option<String> {
        match self.value(key)? {
            Value::String(s) => Some(s),
            other => {
                self.add(key, format!("expected a text (in quotes), found {}", kind(&other)));
                None
            }
        }
    }

    /// A list of texts; `None` when absent.
    pub fn strings(&mut self, key: &'static str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let Value::Array(items) = value else {
            self.add(key, format!("expected a list of texts, found {}", kind(&value)));
            return None;
        };
        let mut texts = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            match item {
                Value::String(s) => texts.push(s),
                other => self.add(&format!("{key}[{i}]"), format!("expected a text, found {}", kind(&other))),
            }
        }
        Some(texts)
    }

    /// A mapping with free keys to texts; numbers and truth values count as their text.
    pub fn texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        match self.value(key) {
            Some(Value::Object(map)) => {
                for (name, value) in map {
                    match value {
                        Value::String(s) => _ = texts.insert(name, s),
                        Value::Number(_) | Value::Bool(_) => _ = texts.insert(name, value.to_string()),
                        other => self.add(&format!("{key}.{name}"), format!("expected a text, found {}", kind(&other))),
                    }
                }
            }
            Some(other) => self.add(key, format!("expected a mapping, found {}", kind(&other))),
            None => {}
        }
        texts
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(b) => Some(b),
            other => {
                self.add(key, format!("expected `true` or `false`, found {}", kind(&other)));
                None
            }
        }
    }

    /// A whole number from `low` to `high`.
    pub fn integer(&mut self, key: &'static str, low: u64, high: u64) -> Option<u64> {
        let value = self.value(key)?;
        match value.as_u64().filter(|n| (low..=high).contains(n)) {
            Some(n) => Some(n),
            None => {
                let range = if high == u64::MAX { format!("of at least {low}") } else { format!("from {low} to {high}") };
                self.add(key, format!("`{value}` is not a whole number {range}"));
                None
            }
        }
    }

    /// A number above 0.
    pub fn positive(&mut self, key: &'static str) -> Option<f64> {
        let value = self.value(key)?;
        match value.as_f64().filter(|n| n.is_finite() && *n > 0.0) {
            Some(n) => Some(n),
            None => {
                self.add(key, format!("`{value}` is not a number above 0"));
                None
            }
        }
    }

    /// `500ms`, `60s`, `15m`, `1h`, or a number of seconds.
    pub fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let value = self.value(key)?;
        let parsed = match &value {
            Value::String(s) => parse_duration(s),
            Value::Number(n) => n.as_u64().map(Duration::from_secs),
            _ => None,
        };
        match parsed.filter(|d| !d.is_zero() && *d <= Duration::from_secs(7 * 86_400)) {
            Some(d) => Some(d),
            None => {
                self.add(key, format!("`{}` is not a time such as `500ms`, `60s`, `15m` or `1h`", value.as_str().unwrap_or(&value.to_string())));
                None
            }
        }
    }

    /// One of a few texts.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let s = match self.value(key)? {
            Value::String(s) => s,
            other => other.to_string(),
        };
        let found = choices.iter().find(|(name, _)| *name == s).map(|(_, t)| *t);
        if found.is_none() {
            let names: Vec<String> = choices.iter().map(|(n, _)| format!("`{n}`")).collect();
            let meant = did_you_mean(&s, choices.iter().map(|(name, _)| *name));
            self.add(key, format!("`{s}` is not one of {}{meant}", names.join(", ")));
        }
        found
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        for key in self.map.keys() {
            let known: Vec<String> = self.known.iter().map(|k| format!("`{k}`")).collect();
            let meant = did_you_mean(key, self.known.iter().copied());
            self.problems.add(&self.path(key), format!("unknown key{meant}; known here: {}", known.join(", ")));
        }
    }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("`{n}`"),
        Value::String(s) => format!("`{s}`"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}

fn camel_case(key: &str) -> String {
    let mut out = String::new();
    let mut up = false;
    for c in key.chars() {
        match c {
            '_' if !out.is_empty() => up = true,
            c if up => {
                out.extend(c.to_uppercase());
                up = false;
            }
            c => out.push(c),
        }
    }
    out
}

pub fn parse_duration(s: &str) -> Option<Duration> {
    let unit = s.find(|c: char| !c.is_ascii_digit())?;
    let n: u64 = s[..unit].parse().ok()?;
    Some(match &s[unit..] {
        "ms" => Duration::from_millis(n),
        "s" => Duration::from_secs(n),
        "m" => Duration::from_secs(n.checked_mul(60)?),
        "h" => Duration::from_secs(n.checked_mul(3600)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_with_their_paths() {
        let problems = Problems::default();
        let yaml = "a_b: x\nlist: [{n: 0}, {n: 7, z: 1}]\nt: 5x\n";
        {
            let mut s = Section::new("", parse_yaml(yaml).unwrap(), &problems);
            assert_eq!(s.string("aB").as_deref(), Some("x"));
            for mut item in s.sections("list") {
                item.integer("n", 1, 9);
            }
            s.duration("t");
        }
        let all = problems.take();
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(all[0].starts_with("`list[0].n`") && all[1].contains("`list[1].z`: unknown key") && all[2].starts_with("`t`: `5x`"), "{all:?}");
    }

    #[test]
    fn mistakes_are_told_with_their_lines_and_what_was_meant() {
        let text = "listen: x\npermission_grants:\n  - scope: a\n    limits: { concurrent: 0 }\n  - scoop: b\naudit:\n  fiel: y\n";
        let lines = |path: &str| line_of(text, path);
        assert_eq!(lines("permissionGrants[0].limits.concurrent"), Some(4));
        assert_eq!(lines("permissionGrants[1].scoop"), Some(5));
        assert_eq!((lines("audit.fiel"), lines("none")), (Some(7), None));
        assert_eq!(placed(text, vec!["`audit.fiel`: unknown key".into(), "other".into()]), ["`audit.fiel` (line 7): unknown key", "other"]);
        assert_eq!((nearest("auditt", ["audit", "admin"]), nearest("zzz", ["audit"])), (Some("audit"), None));
        assert_eq!(parse_yaml("a: 1\na: 2\n").unwrap_err(), "line 2 column 1: the key `a` stands twice");
    }

    #[test]
    fn broken_yaml_is_one_problem() {
        for bad in ["a: [", "a: 1\na: 2\n", "a: {b: 1, b: 2}"] {
            assert!(parse_yaml(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_yaml("# nothing\n").unwrap(), Value::Object(Map::new()));
    }
}
