//! Everything that authorises a request: providers, grants, globs and limits. Immutable;
//! replaced as a whole by each reload.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::http::uri::{Authority, Scheme};

use crate::base::intern;
use crate::base::settings::shown;
use crate::sidecar::provider::{Feature, Provider};
use crate::sidecar::record::{AuditRecord, Describe};
use crate::sidecar::{credential, id};

/// Everything that authorises a request. Immutable; replaced as a whole by each reload.
#[derive(Debug)]
pub struct Policy {
    /// Changes when the file's meaning may have; stands in every audit record.
    pub revision: Arc<str>,
    pub providers: BTreeMap<String, Arc<ProviderConfig>>,
    pub grants: Vec<Grant>,
}

impl Describe for Policy {
    fn describe(&self, record: &mut AuditRecord) {
        record.policy_revision = Some(self.revision.clone());
    }
}

#[derive(Debug)]
pub struct ProviderConfig {
    /// Its mount and its name in scopes.
    pub name: String,
    /// The same, to label metrics with.
    pub label: &'static str,
    pub def: &'static Provider,
    pub base: BaseUrl,
    pub secret: Option<credential::Source>,
    /// Optional endpoints that the operator switched on.
    pub endpoints: Vec<String>,
    /// Headers that the operator pins (`openai-organization`).
    pub headers: Vec<(&'static str, hyper::header::HeaderValue)>,
}

/// `https://host[:port][/path]`, taken apart once.
#[derive(Debug, Clone)]
pub struct BaseUrl {
    pub scheme: Scheme,
    pub authority: Authority,
    /// Without a trailing slash; empty for the root.
    pub path: String,
    /// The operator wrote it: it may lead into a private network.
    pub operator_defined: bool,
}

/// The literal addresses (and the one name) that need no look-up to be this machine.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `claude-*`: literal text with `*` for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    pub(crate) text: String,
    /// The same, to label metrics with.
    pub(crate) label: &'static str,
}

impl Glob {
    /// # Errors
    /// When it is empty or holds what no model id can hold.
    pub fn parse(text: &str) -> Result<Glob, String> {
        let fine = |b: u8| b"*#".contains(&b) || id::is_id_byte(b);
        if text.is_empty() || text.len() > 256 || !text.bytes().all(fine) {
            return Err(format!(
                "{} is not a model glob of letters, digits, `._:/@+-~#` and `*`",
                shown(text)
            ));
        }
        Ok(Glob {
            text: text.to_owned(),
            label: intern::label(text),
        })
    }

    /// Linear in the model's length for every pattern: only the last `*` is ever retried.
    pub fn matches(&self, model: &str) -> bool {
        let (p, s) = (self.text.as_bytes(), model.as_bytes());
        let (mut i, mut j, mut star) = (0, 0, None);
        while j < s.len() {
            if p.get(i) == Some(&b'*') {
                star = Some((i, j));
                i += 1;
            } else if p.get(i) == Some(&s[j]) {
                i += 1;
                j += 1;
            } else if let Some((at, from)) = star {
                star = Some((at, from + 1));
                i = at + 1;
                j = from + 1;
            } else {
                return false;
            }
        }
        p[i..].iter().all(|&b| b == b'*')
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_any(&self) -> bool {
        self.text.bytes().all(|b| b == b'*')
    }
}

/// One line of `permissionGrants`.
#[derive(Debug)]
pub struct Grant {
    /// As the operator wrote it.
    pub scope: String,
    pub provider: String,
    /// The scope's own glob; a model must match it and, where there are any, one of `models`.
    pub glob: Option<Glob>,
    pub models: Vec<Glob>,
    pub allow: Vec<Feature>,
    pub expires: Option<jiff::Timestamp>,
    pub limits: Limits,
    /// Under which the ledger counts what it has spent.
    pub ledger_id: Arc<str>,
}

/// Splits a scope into its provider and glob.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn parse_scope(scope: &str) -> Result<(String, Option<Glob>), String> {
    let wrong = || {
        format!(
            "{} is not `ai.<provider>` or `ai.<provider>:<model glob>`",
            shown(scope)
        )
    };
    let rest = scope.strip_prefix("ai.").ok_or_else(wrong)?;
    let (provider, glob) = match rest.split_once(':') {
        Some((provider, glob)) => (provider, Some(glob)),
        None => (rest, None),
    };
    if !is_provider_name(provider) {
        return Err(wrong());
    }
    Ok((provider.to_owned(), glob.map(Glob::parse).transpose()?))
}

/// A provider's name is a path segment, a label and a scope part: lower-case and plain.
pub fn is_provider_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

impl Grant {
    pub fn covers(&self, model: &str) -> bool {
        self.glob.as_ref().is_none_or(|g| g.matches(model))
            && (self.models.is_empty() || self.models.iter().any(|g| g.matches(model)))
    }

    /// Does it cover every model there is?
    pub(crate) fn is_unlimited(&self) -> bool {
        self.glob.as_ref().is_none_or(Glob::is_any)
            && (self.models.is_empty() || self.models.iter().any(Glob::is_any))
    }

    pub(crate) fn names(&self, model: &str) -> bool {
        self.glob
            .iter()
            .chain(&self.models)
            .any(|g| g.as_str() == model)
    }

    pub(crate) fn is_live(&self, now: jiff::Timestamp) -> bool {
        self.expires.is_none_or(|e| now < e)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.models.is_empty() {
            return f.write_str(&self.scope);
        }
        let names: Vec<&str> = self.models.iter().map(Glob::as_str).collect();
        write!(f, "{} ({})", self.scope, names.join(", "))
    }
}

impl Policy {
    pub(crate) fn live_grants<'a>(
        &'a self,
        provider: &'a str,
    ) -> impl Iterator<Item = (usize, &'a Grant)> {
        let now = jiff::Timestamp::now();
        self.grants
            .iter()
            .enumerate()
            .filter(move |(_, g)| g.provider == provider && g.is_live(now))
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    pub requests_per_minute: Option<u32>,
    /// Requests in flight, their streams included.
    pub concurrent: Option<u32>,
    /// Tokens of every kind in one UTC day.
    pub tokens_per_day: Option<u64>,
    pub usd_per_session: Option<f64>,
}

impl Limits {
    pub fn has_budget(&self) -> bool {
        self.tokens_per_day.is_some() || self.usd_per_session.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, by trying every way to fill each `*`.
    fn naive(p: &[u8], s: &[u8]) -> bool {
        match p.split_first() {
            None => s.is_empty(),
            Some((b'*', rest)) => (0..=s.len()).any(|n| naive(rest, &s[n..])),
            Some((c, rest)) => s.first() == Some(c) && naive(rest, &s[1..]),
        }
    }

    fn words(alphabet: &[u8], longest: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut from = 0;
        for _ in 0..longest {
            let end = all.len();
            for i in from..end {
                for &c in alphabet {
                    all.push(format!("{}{}", all[i], c as char));
                }
            }
            from = end;
        }
        all
    }

    #[test]
    fn globs_agree_with_their_definition() {
        let mut pairs = 0;
        for p in words(b"ab*", 6).iter().filter(|p| !p.is_empty()) {
            let glob = Glob::parse(p).unwrap();
            for s in words(b"ab", 7) {
                assert_eq!(
                    glob.matches(&s),
                    naive(p.as_bytes(), s.as_bytes()),
                    "{p} {s}"
                );
                pairs += 1;
            }
        }
        assert!(pairs > 200_000);
    }

    #[test]
    fn globs_are_linear_anchored_and_case_sensitive() {
        let g = |p: &str, s: &str| Glob::parse(p).unwrap().matches(s);
        assert!(
            g("claude-*", "claude-sonnet-5")
                && !g("claude-*", "xclaude-5")
                && !g("claude-*", "Claude-5")
        );
        assert!(!g("gpt-4", "gpt-4o") && !g("gpt-4o", "gpt-4"));
        let long = "a".repeat(256);
        assert!(!g(
            &"*a"
                .repeat(100)
                .chars()
                .chain("b".chars())
                .collect::<String>(),
            &long
        ));
    }

    #[test]
    fn widening_typos_are_no_scopes() {
        let cases = [
            "ai.*",
            "ai.",
            "ai",
            "anthropic",
            "ai.anthropic:",
            "ai.Anthropic",
            "ai.openai:gpt-*,gpt-5",
            "ai.openai: gpt",
            "ai.openai:gpt\n",
            "ai.openai:[ab]",
            "ai.a/b",
            " ai.openai",
            "ai.openai:gpt?",
        ];
        for bad in cases {
            assert!(parse_scope(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse_scope("ai.openai:gpt-*").unwrap(),
            ("openai".into(), Some(Glob::parse("gpt-*").unwrap()))
        );
        assert_eq!(parse_scope("ai.my-own").unwrap(), ("my-own".into(), None));
    }
}
