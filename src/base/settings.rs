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
/// The parser's own words, with line and column; a repeated key is an error.
pub fn parse_yaml(text: &str) -> Result<Value, String> {
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        return Ok(Value::Object(Map::new()));
    }
    serde_saphyr::from_str::<Value>(text).map_err(|e| e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
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
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
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
                self.add(key, format!("expected a text, found {}", kind(&other)));
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
                self.add(key, format!("`{value}` is not a whole number from {low} to {high}"));
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
        let s = self.string(key)?;
        let found = choices.iter().find(|(name, _)| *name == s).map(|(_, t)| *t);
        if found.is_none() {
            let names: Vec<String> = choices.iter().map(|(n, _)| format!("`{n}`")).collect();
            self.add(key, format!("`{s}` is not one of {}", names.join(", ")));
        }
        found
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        for key in self.map.keys() {
            let known: Vec<String> = self.known.iter().map(|k| format!("`{k}`")).collect();
            self.problems.add(&self.path(key), format!("unknown key; known here: {}", known.join(", ")));
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
    fn broken_yaml_is_one_problem() {
        for bad in ["a: [", "a: 1\na: 2\n", "a: {b: 1, b: 2}"] {
            assert!(parse_yaml(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_yaml("# nothing\n").unwrap(), Value::Object(Map::new()));
    }
}
