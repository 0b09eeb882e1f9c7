//! The text of a configuration file: read, parsed, and the lines that its paths lead to.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::shown::on_one_line;
use crate::base::settings::values::camel_case;

/// Largest configuration that is read.
const MAX_FILE: u64 = 4 << 20;

/// The file's text.
///
/// # Errors
/// The file cannot be read, is too large to be a configuration, or is not UTF-8.
pub fn read(path: &Path) -> Result<String, String> {
    let cannot = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => "cannot read it: there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => {
            format!(
                "cannot read it: this process runs as user {}, who may not",
                rustix::process::geteuid().as_raw()
            )
        }
        std::io::ErrorKind::IsADirectory => "cannot read it: it is a directory".to_owned(),
        _ => format!("cannot read it: {e}"),
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!(
            "it is larger than {} MiB, which no configuration is",
            MAX_FILE >> 20
        ));
    }
    if bytes.contains(&0) {
        return Err("it is not a text in UTF-8: save it as UTF-8".to_owned());
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let (line, column) = (
            good.split(|b| *b == b'\n').count(),
            good.rsplit(|b| *b == b'\n').next().map_or(0, <[u8]>::len) + 1,
        );
        format!(
            "line {line} column {column}: the byte {:#04x} is not UTF-8: save the file as UTF-8",
            e.as_bytes()[good.len()]
        )
    })
}

/// Parses YAML (or JSON). An empty file is an empty mapping.
///
/// # Errors
/// What is wrong, with line and column; a repeated key is an error.
pub fn parse_yaml(text: &str) -> Result<Value, String> {
    if text
        .lines()
        .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
    {
        return Ok(Value::Object(Map::new()));
    }
    serde_saphyr::from_str::<Value>(text).map_err(|e| {
        on_one_line(&plain(
            e.to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: "),
        ))
    })
}

/// The parser's words without its advice to programmers.
fn plain(said: &str) -> String {
    let (place, what) = said
        .split_once(": ")
        .filter(|(place, _)| place.starts_with("line "))
        .unwrap_or(("", said));
    let place = if place.is_empty() {
        String::new()
    } else {
        format!("{place}: ")
    };
    if let Some(key) = what.strip_prefix("duplicate mapping key: ") {
        return format!(
            "{place}the key `{}` stands twice",
            key.split(", set ").next().unwrap_or(key)
        );
    }
    let told = PLAIN
        .iter()
        .find(|(words, _)| what.contains(words))
        .map(|(_, told)| *told);
    format!(
        "{place}{}",
        told.map_or_else(|| format!("not YAML: {what}"), str::to_owned)
    )
}

/// Words of the parser, each with the message that a user gets instead.
#[rustfmt::skip]
const PLAIN: [(&str, &str); 10] = [
    ("from_str_multiple", "the file holds more than one document; one is allowed"),
    ("anchor or alias", "a text that begins with `*` or `&` needs quotes, such as `\"*\"`"),
    ("unknown anchor", "a text that begins with `*` needs quotes, such as `\"*\"`"),
    ("tabs disallowed", "a tab stands where the indentation must be spaces"),
    ("deserialize null into string", "a key must be a text"),
    ("expected string scalar", "a key must be a text"),
    ("budget breached", "the file holds too many values"),
    ("recursion limit", "the values are nested too deeply"),
    ("mapping values are not allowed", "a `:` stands where none is allowed, or the space behind one is missing; texts that contain `: ` need quotes"),
    ("multiline quoted scalar", "a quote that was opened in a line above is not closed"),
];

/// The line of a path such as `a.b[1].c`: the line of its deepest part that the text has.
pub(super) fn line_of(text: &str, path: &str) -> Option<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |i: usize| lines[i].len() - lines[i].trim_start().len();
    let is_item = |i: usize| lines[i].trim_start().starts_with("- ") || lines[i].trim() == "-";
    let says_nothing =
        |i: usize| lines[i].trim().is_empty() || lines[i].trim_start().starts_with('#');
    // The lines that the part so far reaches over.
    let (mut from, mut to, mut found) = (0, lines.len(), None);
    for part in path.replace('[', ".[").split('.').filter(|p| !p.is_empty()) {
        let item = part
            .strip_prefix('[')
            .and_then(|p| p.strip_suffix(']'))
            .and_then(|p| p.parse::<usize>().ok());
        let here = match item {
            Some(item) => {
                let depth = (from..to).find(|i| is_item(*i)).map(indent);
                (from..to)
                    .filter(|i| is_item(*i) && Some(indent(*i)) == depth)
                    .nth(item)
            }
            None => (from..to).find(|i| {
                let line = lines[*i].trim_start().trim_start_matches("- ").trim_start();
                line.split_once(':').is_some_and(|(key, _)| {
                    camel_case(key.trim().trim_matches(['"', '\''])) == camel_case(part)
                })
            }),
        };
        let Some(here) = here else { break };
        found = Some(here + 1);
        // A key's list may stand as deep as the key itself.
        let ends = |i: &usize| {
            !says_nothing(*i)
                && (indent(*i) < indent(here)
                    || indent(*i) == indent(here) && (item.is_some() || !is_item(*i)))
        };
        to = (here + 1..to).find(ends).unwrap_or(to);
        // The next part is on this line, or below it.
        from = if item.is_none() && lines[here].trim_end().ends_with(':') {
            here + 1
        } else {
            here
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::settings::Problems;

    #[test]
    fn mistakes_are_told_with_their_lines() {
        let text = "listen: x\npermission_grants:\n  - scope: a\n    limits: { concurrent: 0 }\n  - scoop: b\n  - scope: c\naudit:\n  fiel: y\n";
        let lines = |path: &str| line_of(text, path);
        assert_eq!(lines("permissionGrants[0].limits.concurrent"), Some(4));
        assert_eq!(lines("permissionGrants[1].scoop"), Some(5));
        assert_eq!(
            lines("permissionGrants[1].scope"),
            Some(5),
            "what is missing is missing there, not in the next"
        );
        assert_eq!(lines("permissionGrants[2].scope"), Some(6));
        assert_eq!(
            (lines("audit.fiel"), lines("audit.file"), lines("none")),
            (Some(8), Some(7), None)
        );
        assert_eq!(
            line_of(
                "grants:\n- scope: a\n- scope: b\nother: 1\n",
                "grants[1].scope"
            ),
            Some(3)
        );
        let problems = Problems::default();
        problems.add("audit.fiel", "unknown key");
        problems.add("", "other");
        assert_eq!(
            problems.take(text),
            ["`audit.fiel` (line 8): unknown key", "other"]
        );
        assert_eq!(
            parse_yaml("a: 1\na: 2\n").unwrap_err(),
            "line 2 column 1: the key `a` stands twice"
        );
    }

    #[test]
    fn broken_yaml_is_one_problem_in_plain_words() {
        for bad in [
            "a: [",
            "a: 1\na: 2\n",
            "a: {b: 1, b: 2}",
            "a: *",
            "a:\n\t- b\n",
            "? {a: b}\n: x\n",
            "a: 'b\nc: d\n",
        ] {
            let said = parse_yaml(bad).unwrap_err();
            for talk in ["deserialize", "scalar", "Option", "scanning", "alias,"] {
                assert!(!said.contains(talk), "{bad}: {said}");
            }
        }
        assert_eq!(
            parse_yaml("# nothing\n").unwrap(),
            Value::Object(Map::new())
        );
    }

    #[test]
    fn a_file_that_is_not_utf8_is_refused_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        assert_eq!(
            read(&file).unwrap_err(),
            "cannot read it: there is no such file"
        );
        std::fs::write(&file, b"a: 1\nb: caf\xe9\n").unwrap();
        assert_eq!(
            read(&file).unwrap_err(),
            "line 2 column 7: the byte 0xe9 is not UTF-8: save the file as UTF-8"
        );
        std::fs::write(&file, b"a\0:\0").unwrap();
        assert!(read(&file).unwrap_err().contains("save it as UTF-8"));
        assert!(read(dir.path()).unwrap_err().contains("directory"));
    }
}
