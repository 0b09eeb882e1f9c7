//! One mapping of a configuration file, read key by key.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::shown::shown;
use super::{Problems, did_you_mean, nearest};
use crate::base::settings::values::{
    camel_case, check_session_id, kind, parse_duration, unquoted, written,
};

/// A mapping whose keys are taken one by one. Dropped, it reports those left over.
#[derive(Debug)]
pub struct Section {
    pub(super) path: String,
    pub(super) map: Map<String, Value>,
    pub(super) known: Vec<&'static str>,
    pub(super) problems: Problems,
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
                let place = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                problems.add(&place, "stands in both spellings");
            }
        }
        Section {
            path: path.to_owned(),
            map: camel,
            known: Vec::new(),
            problems: problems.clone(),
        }
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

    /// Whether something is already wrong in this mapping: an unknown key, or a reported problem. A
    /// further problem that only follows from it is not reported.
    pub fn is_troubled(&self) -> bool {
        !self.map.is_empty() || self.problems.are_at(&self.path)
    }

    /// Whether something is wrong at this key or below it.
    pub fn is_wrong(&self, key: &str) -> bool {
        self.problems.are_at(&self.path(key))
    }

    /// Whether the value of this key is of another kind than it should be.
    pub fn is_mistyped(&self, key: &str) -> bool {
        self.problems.are_exactly_at(&self.path(key))
    }

    /// Whether something other than a mapping stands here, which is reported already.
    pub fn is_no_mapping(&self) -> bool {
        self.problems.are_exactly_at(&self.path)
    }

    /// Whether the mapping has an unknown key that is spelled like `key`.
    fn has_near(&self, key: &str) -> bool {
        self.map.keys().any(|other| nearest(other, [key]).is_some())
    }

    /// A string that must be there. `example` is shown where it is missing.
    pub fn required(&mut self, key: &'static str, example: &str) -> Option<String> {
        let found = self.string(key);
        if found.is_none() && !self.has_near(key) && !self.is_wrong(key) && !self.is_no_mapping() {
            self.add(key, format!("is needed, such as {example}"));
        }
        found
    }

    pub fn section(&mut self, key: &'static str) -> Option<Section> {
        let path = self.path(key);
        self.value(key)
            .map(|v| Section::new(&path, v, &self.problems))
    }

    /// The mapping at this key. It is empty where there is none, and where something else stands,
    /// which is reported.
    pub(super) fn mapping(&mut self, key: &'static str) -> Map<String, Value> {
        match self.value(key) {
            Some(Value::Object(map)) => map,
            Some(other) => {
                self.add(key, format!("expected a mapping, found {}", kind(&other)));
                Map::new()
            }
            None => Map::new(),
        }
    }

    /// The entries of a mapping with free keys, in the file's order.
    pub fn entries(&mut self, key: &'static str) -> Vec<(String, Section)> {
        let (path, map) = (self.path(key), self.mapping(key));
        let entry = |(name, value): (String, Value)| {
            let section = Section::new(&format!("{path}.{name}"), value, &self.problems);
            (name, section)
        };
        map.into_iter().map(entry).collect()
    }

    /// The items of a list of mappings.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section> {
        let path = self.path(key);
        match self.value(key) {
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(i, v)| Section::new(&format!("{path}[{i}]"), v, &self.problems))
                .collect(),
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
                self.add(key, format!("expected a string, found {}", kind(&other)));
                None
            }
        }
    }

    /// A list of strings; `None` when absent.
    pub fn strings(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.items(key)
            .map(|items| items.into_iter().map(|(_, text)| text).collect())
    }

    /// A list of strings, each with its place (`key[2]`); `None` when absent.
    pub fn items(&mut self, key: &'static str) -> Option<Vec<(String, String)>> {
        let value = self.value(key)?;
        let Value::Array(items) = value else {
            self.add(
                key,
                format!("expected a list of strings, found {}", kind(&value)),
            );
            return None;
        };
        let mut texts = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            let place = format!("{key}[{i}]");
            match item {
                Value::String(s) => texts.push((place, s)),
                other => self.add(&place, format!("expected a string, found {}", kind(&other))),
            }
        }
        Some(texts)
    }

    /// Names that `Host` may say, in lower case.
    pub fn hosts(&mut self, key: &'static str) -> Vec<String> {
        let items = self.items(key).unwrap_or_default();
        for (place, host) in &items {
            let plain = host.split('.').all(|label| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            });
            if !plain {
                self.add(
                    place,
                    format!(
                        "{} is not a name such as `agent.example`, without scheme and port",
                        shown(host)
                    ),
                );
            }
        }
        items
            .into_iter()
            .map(|(_, host)| host.to_ascii_lowercase())
            .collect()
    }

    /// The id of a session.
    pub fn session_id(&mut self, key: &'static str) -> Option<String> {
        let id = self.string(key)?;
        if let Err(why) = check_session_id(&id) {
            self.add(key, why);
        }
        Some(id)
    }

    /// A mapping with free keys to strings; numbers and truth values count as their text.
    pub fn texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for (name, value) in self.mapping(key) {
            match value {
                Value::String(s) => _ = texts.insert(name, s),
                Value::Number(_) | Value::Bool(_) => _ = texts.insert(name, value.to_string()),
                other => self.add(
                    &format!("{key}.{name}"),
                    format!("expected a string, found {}", kind(&other)),
                ),
            }
        }
        texts
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(b) => Some(b),
            other => {
                self.add(
                    key,
                    format!("expected `true` or `false`, found {}", kind(&other)),
                );
                None
            }
        }
    }

    /// A whole number from `low` to `high`.
    pub fn integer(&mut self, key: &'static str, low: u64, high: u64) -> Option<u64> {
        let value = self.value(key)?;
        let found = value.as_u64().filter(|n| (low..=high).contains(n));
        if found.is_none() {
            let range = if high == u64::MAX {
                format!("of at least {low}")
            } else {
                format!("from {low} to {high}")
            };
            self.add(
                key,
                format!(
                    "{} is not a whole number {range}{}",
                    written(&value),
                    unquoted(&value)
                ),
            );
        }
        found
    }

    /// A number above 0.
    pub fn positive(&mut self, key: &'static str) -> Option<f64> {
        let value = self.value(key)?;
        let found = value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        if found.is_none() {
            self.add(
                key,
                format!(
                    "{} is not a number above 0{}",
                    written(&value),
                    unquoted(&value)
                ),
            );
        }
        found
    }

    /// `500ms`, `60s`, `15m` or `1h`; a week at most.
    pub fn duration(&mut self, key: &'static str) -> Option<Duration> {
        const FORM: &str = "a whole number with one unit: `500ms`, `60s`, `15m` or `1h`";
        let value = self.value(key)?;
        let wrong = match value.as_str().map(parse_duration) {
            Some(Some(time)) if !time.is_zero() && time <= Duration::from_secs(7 * 86_400) => {
                return Some(time);
            }
            Some(Some(_)) => "is not between `1ms` and `168h`".to_owned(),
            None if value.is_u64() => format!("has no unit; expected {FORM}"),
            _ => format!("is not a time; expected {FORM}"),
        };
        self.add(key, format!("{} {wrong}", written(&value)));
        None
    }

    /// One of a few texts.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let value = self.value(key)?;
        let s = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        let found = choices.iter().find(|(name, _)| *name == s).map(|(_, t)| *t);
        if found.is_none() {
            let names: Vec<String> = choices.iter().map(|(n, _)| format!("`{n}`")).collect();
            let meant = did_you_mean(&s, choices.iter().map(|(name, _)| *name));
            let read = if value.is_boolean() {
                " (YAML reads `yes`, `no`, `on` and `off` as `true` and `false`)"
            } else {
                ""
            };
            self.add(
                key,
                format!(
                    "{} is not one of {}{meant}{read}",
                    written(&value),
                    names.join(", ")
                ),
            );
        }
        found
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        for key in self.map.keys() {
            let known: Vec<String> = self.known.iter().map(|k| format!("`{k}`")).collect();
            let meant = did_you_mean(key, self.known.iter().copied());
            self.problems.add(
                &self.path(key),
                format!("unknown key{meant}; known here: {}", known.join(", ")),
            );
        }
    }
}
