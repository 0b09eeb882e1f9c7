//! Shows values of a configuration in messages: on one line, shortened, and hidden where a value
//! may be a key that was written into the wrong place.

/// Longest value that is shown whole, in characters.
const LONGEST: usize = 80;
/// Shortest run of letters and digits that is taken for a key by itself: 16 bytes in hex.
const LONG_RUN: usize = 32;
/// How keys of providers and platforms begin.
const BEGINNINGS: [&str; 22] = [
    "sk-",
    "sk_",
    "rk_",
    "pk_",
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "aiza",
    "xai-",
    "gsk_",
    "hvs.",
    "akia",
    "asia",
    "eyj",
    "ya29.",
    "hf_",
    "pplx-",
    "nvapi-",
    "xoxb-",
    "fw_",
];

/// The value in backticks, or a description of a value that is empty or that may be a key.
pub fn shown(text: &str) -> String {
    if text.is_empty() {
        return "an empty string".to_owned();
    }
    let text = &without_credentials(text);
    if looks_like_a_key(text) {
        return "a string that looks like a key (it is not shown)".to_owned();
    }
    let line: String = text.chars().take(LONGEST).map(escaped).collect();
    match text.chars().count() {
        all if all > LONGEST => format!("`{line}…` ({all} characters)"),
        _ => format!("`{line}`"),
    }
}

/// Whether this could be a provider's key, a token or a private key, or holds one.
pub fn looks_like_a_key(text: &str) -> bool {
    let is_key = |word: &str| {
        let lower = word.to_ascii_lowercase();
        let (digits, letters) = (
            word.bytes().any(|b| b.is_ascii_digit()),
            word.bytes().any(|b| b.is_ascii_alphabetic()),
        );
        let begins = word.len() >= 12 && BEGINNINGS.iter().any(|b| lower.starts_with(b));
        let run = word
            .split(|c: char| !(c.is_ascii_alphanumeric() || "+=_".contains(c)))
            .any(|run| run.len() >= LONG_RUN);
        begins || run && digits && letters
    };
    let lower = text.to_ascii_lowercase();
    text.contains("-----BEGIN")
        || lower.contains("bearer ")
        || text
            .split(|c: char| c.is_whitespace() || "=:,;\"'".contains(c))
            .any(is_key)
}

/// A URL without what may be a password: the user, and the query.
fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (place, query) = rest
        .split_once('?')
        .map_or((rest, ""), |(place, _)| (place, "?***"));
    let place = place
        .split_once('@')
        .map_or_else(|| place.to_owned(), |(_, host)| format!("***@{host}"));
    format!("{scheme}://{place}{query}")
}

/// A text that may hold anything, as a part of a message.
pub(super) fn on_one_line(text: &str) -> String {
    text.chars().map(escaped).collect()
}

/// The same of one that has a hint on a line of its own.
pub(super) fn on_lines(text: &str) -> String {
    text.split('\n')
        .map(on_one_line)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Control characters and those that change how a line is read would make another message of it.
fn escaped(c: char) -> String {
    let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    if c.is_control() || turns {
        c.escape_default().to_string()
    } else {
        c.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_shown() {
        let cases = [
            "sk-ant-api03-VERYSECRET",
            "vault read -token=hvs.CAESIJ1234",
            "Authorization: Bearer abc",
            "TOKEN=ghp_abcdefghijkl",
            "-----BEGIN PRIVATE KEY-----\nMC4CAQ",
            "0123456789abcdef0123456789abcdef",
            "AIzaSyA-1234567890",
        ];
        for key in cases {
            assert_eq!(
                shown(key),
                "a string that looks like a key (it is not shown)",
                "{key}"
            );
        }
        assert_eq!(
            shown("https://user:hunter2@host/v1?key=sk-abc"),
            "`https://***@host/v1?***`"
        );
    }

    #[test]
    fn what_is_no_key_is_shown_on_one_short_line() {
        for plain in [
            "claude-sonnet-4-5-20250929",
            "ai.anthropic:claude-*",
            "/var/lib/outrigger/audit.jsonl",
            "10 s",
            "anthropic/claude-sonnet-5-5",
        ] {
            assert_eq!(shown(plain), format!("`{plain}`"));
        }
        assert_eq!(
            shown("a\n\u{1b}[31m\u{202e}b"),
            "`a\\n\\u{1b}[31m\\u{202e}b`"
        );
        assert_eq!(
            shown(&"ä ".repeat(100)),
            format!("`{}…` (200 characters)", "ä ".repeat(40))
        );
        assert_eq!(shown(""), "an empty string");
    }
}
