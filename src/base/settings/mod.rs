//! Reading a configuration file so that *all* its mistakes are reported, each with its path.
//!
//! YAML is parsed into JSON values; a [`Section`] takes the keys it knows, under their
//! camelCase or snake_case spelling, and notes every key that nobody took.

mod shown;
mod text;
mod values;

pub mod section;

pub use shown::{looks_like_a_key, shown};

use std::cell::RefCell;
use std::rc::Rc;

use shown::{on_lines, on_one_line};
use text::line_of;

pub use text::{parse_yaml, read};
pub use values::check_session_id;

/// Every mistake found so far.
#[derive(Debug, Clone, Default)]
pub struct Problems(Rc<RefCell<Vec<ConfigProblem>>>);

#[derive(Debug, Clone)]
struct ConfigProblem {
    /// `a.b[1].c`, or the flag or variable that is wrong; empty where there is no one place.
    path: String,
    what: String,
}

/// A longer path is cut: some key in it is not meant.
const LONGEST_PATH: usize = 200;

impl Problems {
    pub fn add(&self, path: &str, what: impl std::fmt::Display) {
        self.0.borrow_mut().push(ConfigProblem {
            path: path.to_owned(),
            what: what.to_string(),
        });
    }

    /// Takes all, each with its place: the path, and the line in `text` that the path leads to, as
    /// far as it can be found.
    pub fn take(&self, text: &str) -> Vec<String> {
        self.0
            .take()
            .iter()
            .map(|problem| problem.told(text))
            .collect()
    }

    /// Whether `path` itself is wrong, and not only something below it.
    fn are_exactly_at(&self, path: &str) -> bool {
        !path.is_empty() && self.0.borrow().iter().any(|problem| problem.path == path)
    }

    /// Whether something at or below `path` is wrong.
    fn are_at(&self, path: &str) -> bool {
        let below = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.0
            .borrow()
            .iter()
            .any(|problem| problem.path.strip_prefix(path).is_some_and(below))
    }
}

impl ConfigProblem {
    fn told(&self, text: &str) -> String {
        let (path, what) = (&self.path, on_lines(&self.what));
        if path.is_empty() {
            return what;
        }
        let hidden = looks_like_a_key(path) || path.len() > LONGEST_PATH;
        let place = if hidden {
            shown(path)
        } else {
            format!("`{}`", on_one_line(path))
        };
        match line_of(text, path) {
            Some(line) => format!("{place} (line {line}): {what}"),
            None => format!("{place}: {what}"),
        }
    }
}

/// The known word that is spelled most like `word`, if any is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|k| {
        (
            strsim::jaro_winkler(&word.to_lowercase(), &k.to_lowercase()),
            k,
        )
    });
    scored
        .filter(|(score, _)| *score > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

/// The end of a message, `; did you mean …?`, with the known word nearest to `word`. It is empty
/// where no known word is near.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |k| format!("; did you mean `{k}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::settings::section::Section;

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
        let all = problems.take("");
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(
            all[0].starts_with("`list[0].n`")
                && all[1].contains("`list[1].z`: unknown key")
                && all[2].starts_with("`t`: `5x`"),
            "{all:?}"
        );
    }

    #[test]
    fn what_was_meant_is_said() {
        assert_eq!(
            (
                nearest("auditt", ["audit", "admin"]),
                nearest("zzz", ["audit"])
            ),
            (Some("audit"), None)
        );
    }

    fn said(yaml: &str, read: impl Fn(&mut Section)) -> Vec<String> {
        let problems = Problems::default();
        read(&mut Section::new("", parse_yaml(yaml).unwrap(), &problems));
        problems.take("")
    }

    #[test]
    fn one_mistake_is_one_message_that_fits_the_value() {
        let scope = |s: &mut Section| _ = s.required("scope", "`ai.anthropic`");
        assert_eq!(
            said("scop: x", scope),
            ["`scop`: unknown key; did you mean `scope`?; known here: `scope`"]
        );
        assert_eq!(
            said("scope: 5", scope),
            ["`scope`: expected a string, found the number `5`"]
        );
        assert_eq!(
            said("{}", scope),
            ["`scope`: is needed, such as `ai.anthropic`"]
        );
        let nested = |s: &mut Section| {
            _ = s
                .section("secretRef")
                .map(|mut s| s.required("name", "`x`"))
        };
        assert_eq!(
            said("secretRef: sk-ant-api03-secret", nested),
            ["`secretRef`: expected a mapping, found a string"]
        );
        let time = |s: &mut Section| _ = s.duration("t");
        assert_eq!(
            said("t: 60000", time),
            [
                "`t`: `60000` has no unit; expected a whole number with one unit: `500ms`, `60s`, `15m` or `1h`"
            ]
        );
        assert_eq!(
            said("t: 720h", time),
            ["`t`: `720h` is not between `1ms` and `168h`"]
        );
        let number = |s: &mut Section| _ = s.integer("n", 1, 9);
        assert_eq!(
            said("n: \"8\"", number),
            ["`n`: `8` is not a whole number from 1 to 9; write it without quotes"]
        );
        assert_eq!(
            said("n: 2M", number),
            ["`n`: `2M` is not a whole number from 1 to 9; write the plain number, without a unit"]
        );
        let choice = |s: &mut Section| _ = s.choice("c", &[("allow", ()), ("deny", ())]);
        assert!(
            said("c: yes", choice)[0]
                .starts_with("`c`: `true` is not one of `allow`, `deny` (YAML reads `yes`")
        );
        let items = |s: &mut Section| {
            s.items("l")
                .into_iter()
                .flatten()
                .for_each(|(place, text)| s.add(&place, text))
        };
        assert_eq!(
            said("l: [[a], 5, b]", items),
            [
                "`l[0]`: expected a string, found a list",
                "`l[1]`: expected a string, found the number `5`",
                "`l[2]`: b"
            ]
        );
    }
}
