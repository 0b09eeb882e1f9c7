//! What models cost, and how much they can read and write.
//!
//! The table is a trimmed snapshot (source, date and licence in its head; `update.py` makes
//! it). It is read once, when the first price is asked for. An operator's file in the same
//! format overrides it line by line.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use crate::base::settings::shown;

static TABLE: &str = include_str!("prices.tsv");

/// Prices of one model in USD per 1,000,000 tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Price {
    pub input: f64,
    pub output: f64,
    pub cache_read: Option<f64>,
    pub cache_write: Option<f64>,
    pub cache_write_1h: Option<f64>,
    /// Beyond so many prompt tokens, these prices hold for the whole request.
    pub above: Option<Above>,
    pub priority_factor: Option<f64>,
    pub flex_factor: Option<f64>,
    /// The most input tokens that fit its context.
    pub max_input: Option<u64>,
    /// The most tokens of one reply.
    pub max_output: Option<u64>,
    /// What fast mode costs, as a factor of everything.
    pub fast_factor: Option<f64>,
    /// What processing in the United States only costs, as a factor of everything.
    pub us_factor: Option<f64>,
    /// USD per search that the provider makes for the model.
    pub search: Option<f64>,
    pub image_input: Option<f64>,
    pub image_output: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Above {
    pub tokens: u64,
    pub input: f64,
    pub output: f64,
    pub cache_read: Option<f64>,
    pub cache_write: Option<f64>,
}

/// What a model without a price counts for in budgets: as much as the dearest in common use.
pub const UNKNOWN: Price = Price {
    input: 15.0,
    output: 75.0,
    cache_read: Some(1.5),
    cache_write: Some(18.75),
    cache_write_1h: None,
    above: None,
    priority_factor: None,
    flex_factor: None,
    max_input: None,
    max_output: None,
    fast_factor: None,
    us_factor: None,
    search: None,
    image_input: None,
    image_output: None,
};

/// The day on which the provider stops serving this model, as far as it was known when the table
/// was made: `2026-11-30`.
pub fn end_of(provider: &str, model: &str) -> Option<&'static str> {
    let mut rows = TABLE
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>());
    let row = rows.find(|row| row.first() == Some(&provider) && row.get(1) == Some(&model))?;
    row.get(ENDS).copied().filter(|date| !date.is_empty())
}

/// A provider that serves a model of this name.
pub fn provider_of(model: &str) -> Option<&'static str> {
    let mut rows = TABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').collect::<Vec<_>>());
    rows.find(|row| row.get(1) == Some(&model))
        .and_then(|row| row.first().copied())
}

/// The column of [`end_of`].
const ENDS: usize = 21;
/// The factor of fast mode for a model whose own is not known: the dearest there has been.
const FAST_FACTOR: f64 = 6.0;
const US_FACTOR: f64 = 1.1;
/// A search whose price is not known costs as much as the dearest.
const SEARCH: f64 = 0.035;
/// An image that a provider's tool makes, where its tokens are not reported: the dearest of
/// OpenAI's at high quality.
const IMAGE: f64 = 0.25;

/// Token counts of one inference; `None` is unknown and costs nothing here.
#[derive(Debug, Clone, Copy, Default)]
pub struct PricedTokens {
    pub input: u64,
    pub cache_read: u64,
    /// All cache writes, the 1 h ones included.
    pub cache_write: u64,
    pub cache_write_1h: u64,
    pub output: u64,
    /// Of `output`, those of images.
    pub image_output: u64,
    /// Searches that the provider made.
    pub searches: u64,
    /// Images that a tool of the provider made.
    pub images: u64,
}

/// What makes the same tokens cost more or less.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mode<'a> {
    /// The service tier (`priority`, `flex`, else the standard).
    pub tier: Option<&'a str>,
    pub fast: bool,
    pub us_only: bool,
}

impl Price {
    /// USD for these tokens.
    pub fn cost(&self, t: PricedTokens, mode: Mode<'_>) -> f64 {
        let long = self
            .above
            .filter(|a| t.input + t.cache_read + t.cache_write > a.tokens);
        let (input, output, read, write) = match long {
            Some(a) => (
                a.input,
                a.output,
                a.cache_read.or(self.cache_read),
                a.cache_write.or(self.cache_write),
            ),
            None => (self.input, self.output, self.cache_read, self.cache_write),
        };
        let write = write.unwrap_or(input);
        let hour = t.cache_write_1h.min(t.cache_write);
        let images = t.image_output.min(t.output);
        let usd = t.input as f64 * input
            + t.cache_read as f64 * read.unwrap_or(input)
            + (t.cache_write - hour) as f64 * write
            + hour as f64 * self.cache_write_1h.unwrap_or(write)
            + (t.output - images) as f64 * output
            + images as f64 * self.image_output.unwrap_or(output);
        let apart = t.searches as f64 * self.search.unwrap_or(SEARCH) + t.images as f64 * IMAGE;
        usd * self.factor(mode) / 1e6 + apart
    }

    /// The most that a request can cost: all input at the dearest input price.
    pub fn most(&self, input: u64, output: u64, mode: Mode<'_>) -> f64 {
        let dear = |a: f64, b: Option<f64>| a.max(b.unwrap_or(a));
        let above = self.above.filter(|a| input > a.tokens);
        let per_input = dear(
            dear(dear(self.input, self.cache_write), self.cache_write_1h),
            above.map(|a| dear(a.input, a.cache_write)),
        );
        let per_output = dear(
            dear(self.output, self.image_output),
            above.map(|a| a.output),
        );
        (input as f64 * per_input + output as f64 * per_output) * self.factor(mode).max(1.0) / 1e6
    }

    fn factor(&self, mode: Mode<'_>) -> f64 {
        let tier = match mode.tier {
            Some("priority") => self.priority_factor.unwrap_or(1.0),
            Some("flex") => self.flex_factor.unwrap_or(1.0),
            _ => 1.0,
        };
        let fast = if mode.fast {
            self.fast_factor.unwrap_or(FAST_FACTOR)
        } else {
            1.0
        };
        let us = if mode.us_only {
            self.us_factor.unwrap_or(US_FACTOR)
        } else {
            1.0
        };
        tier * fast * us
    }
}

/// The operator's own prices, before the built-in ones.
#[derive(Debug, Default, Clone)]
pub struct Overrides(Table<String>);

impl Overrides {
    /// Reads a file in the format of `prices.tsv`: tab-separated, `#` begins a comment.
    ///
    /// # Errors
    /// One text per broken line, with its number.
    pub fn load(path: &Path) -> Result<Self, Vec<String>> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            vec![format!(
                "cannot read {}: {e}",
                shown(&path.to_string_lossy())
            )]
        })?;
        let (mut rows, mut problems) = (Table::default(), Vec::new());
        for (i, line) in text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'))
        {
            match parse(line) {
                Some((provider, model, price)) => {
                    let models: &mut HashMap<String, Price> = rows.entry(provider.to_owned()).or_default();
                    models.insert(model.to_owned(), price);
                }
                None => problems.push(format!("line {} of the file is not `provider<TAB>model<TAB>input<TAB>output…` in USD per 1,000,000 tokens", i + 1)),
            }
        }
        if problems.is_empty() {
            Ok(Overrides(rows))
        } else {
            Err(problems)
        }
    }

    /// The price of a model, or of the model that its dated id is a snapshot of.
    pub fn price(&self, provider: &str, model: &str) -> Option<Price> {
        let (ours, built_in) = (self.0.get(provider), BUILT_IN.get(provider));
        let mut model = model;
        loop {
            if let Some(p) = ours
                .and_then(|m| m.get(model))
                .or_else(|| built_in?.get(model))
            {
                return Some(*p);
            }
            model = undated(model)?;
        }
    }
}

/// Prices by provider and model.
type Table<K> = HashMap<K, HashMap<K, Price>>;

static BUILT_IN: LazyLock<Table<&'static str>> = LazyLock::new(|| {
    let mut table = Table::default();
    for (provider, model, price) in TABLE
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(parse)
    {
        let models: &mut HashMap<&'static str, Price> = table.entry(provider).or_default();
        models.insert(model, price);
    }
    table
});

/// `claude-x-20250929` and `gpt-x-2026-04-23` without their date.
fn undated(model: &str) -> Option<&str> {
    let date = model.rfind(|c: char| !c.is_ascii_digit() && c != '-')? + 1;
    let tail = &model[date..];
    let digits = tail.bytes().filter(u8::is_ascii_digit).count();
    (tail.starts_with('-') && digits == 8).then(|| &model[..date])
}

fn parse(line: &str) -> Option<(&str, &str, Price)> {
    let f: Vec<&str> = line.split('\t').collect();
    if f.len() < 4 || f[0].is_empty() || f[1].is_empty() {
        return None;
    }
    let number = |i: usize| -> Option<Option<f64>> {
        match f.get(i).map(|s| s.trim()) {
            None | Some("") => Some(None),
            Some(s) => s
                .parse()
                .ok()
                .filter(|n: &f64| n.is_finite() && *n >= 0.0)
                .map(Some),
        }
    };
    let (input, output) = (number(2)??, number(3)??);
    let above = match number(7)? {
        Some(tokens) => Some(Above {
            tokens: tokens as u64,
            input: number(8)?.unwrap_or(input),
            output: number(9)?.unwrap_or(output),
            cache_read: number(10)?,
            cache_write: number(11)?,
        }),
        None => None,
    };
    let price = Price {
        input,
        output,
        cache_read: number(4)?,
        cache_write: number(5)?,
        cache_write_1h: number(6)?,
        above,
        priority_factor: number(12)?,
        flex_factor: number(13)?,
        max_input: number(14)?.map(|n| n as u64),
        max_output: number(15)?.map(|n| n as u64),
        fast_factor: number(16)?,
        us_factor: number(17)?,
        search: number(18)?,
        image_input: number(19)?,
        image_output: number(20)?,
    };
    Some((f[0], f[1], price))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_can_be_found() {
        let none = Overrides::default();
        let mut n = 0;
        for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
            let f: Vec<&str> = line.split('\t').collect();
            assert!(none.price(f[0], f[1]).is_some(), "{line}");
            n += 1;
        }
        assert!(n > 300, "{n}");
        assert_eq!(none.price("openai", "no-such-model"), None);
    }

    #[test]
    fn models_say_when_they_end_and_no_example_has_ended() {
        assert_eq!(
            (
                end_of("anthropic", "claude-sonnet-4-5"),
                end_of("anthropic", "claude-sonnet-5-5")
            ),
            (Some("2026-11-30"), None)
        );
        let today = jiff::Timestamp::now().to_string();
        let examples = [
            include_str!("../../README.md"),
            include_str!("../../config/sidecar.yaml"),
            include_str!("../../config/adapter.yaml"),
            include_str!("../../docs/operators.md"),
            include_str!("../../docs/image-builders.md"),
            include_str!("../../docs/ui-developers.md"),
            include_str!("../cli.rs"),
        ];
        let defaults: Vec<&str> = crate::adapter::runtime::registry::ALL
            .iter()
            .map(|r| r.default_model)
            .collect();
        let text = examples.join("\n") + &defaults.join("\n");
        for row in TABLE
            .lines()
            .map(|line| line.split('\t').collect::<Vec<_>>())
            .filter(|row| row.len() > ENDS && !row[ENDS].is_empty())
        {
            let named = text.match_indices(row[1]).any(|(at, name)| {
                let around =
                    |c: Option<char>| c.is_none_or(|c| !(c.is_alphanumeric() || "-.:".contains(c)));
                around(text[..at].chars().next_back())
                    && around(text[at + name.len()..].chars().next())
            });
            assert!(
                !named || row[ENDS] > today.as_str(),
                "an example names `{}`, which ended on {}",
                row[1],
                row[ENDS]
            );
        }
    }

    #[test]
    fn long_prompts_tiers_and_dates_have_their_price() {
        let none = Overrides::default();
        let p = none.price("openai", "gpt-5.5-2026-04-23").unwrap();
        let t = |input| PricedTokens {
            input,
            output: 1_000_000,
            ..PricedTokens::default()
        };
        assert!((p.cost(t(0), Mode::default()) - 30.0).abs() < 1e-9);
        assert!(
            (p.cost(t(1_000_000), Mode::default()) - 55.0).abs() < 1e-9,
            "10 in, 45 out above 272k"
        );
        assert!(
            (p.cost(
                t(0),
                Mode {
                    tier: Some("priority"),
                    ..Mode::default()
                }
            ) - 75.0)
                .abs()
                < 1e-9
        );
        let c = none
            .price("anthropic", "claude-sonnet-4-5-20250929")
            .unwrap();
        let cost = c.cost(
            PricedTokens {
                cache_write: 2_000_000,
                cache_write_1h: 1_000_000,
                cache_read: 1_000_000,
                ..PricedTokens::default()
            },
            Mode::default(),
        );
        assert!((cost - (3.75 + 6.0 + 0.3)).abs() < 1e-9, "{cost}");
    }

    #[test]
    fn fast_modes_searches_and_images_have_their_price() {
        let p = Overrides::default()
            .price("anthropic", "claude-opus-5-5")
            .unwrap();
        let t = PricedTokens {
            output: 1_000_000,
            searches: 100,
            ..PricedTokens::default()
        };
        assert!(
            (p.cost(t, Mode::default()) - 21.0).abs() < 1e-9,
            "20 for the tokens and 1 for the searches"
        );
        let fast = Mode {
            fast: true,
            us_only: true,
            ..Mode::default()
        };
        assert!(
            (p.cost(t, fast) - (20.0 * 2.0 * 1.1 + 1.0)).abs() < 1e-9,
            "twice, and a tenth more within the US"
        );
        assert!(
            p.most(1_000_000, 0, Mode::default())
                >= p.cost(
                    PricedTokens {
                        cache_write: 1_000_000,
                        cache_write_1h: 1_000_000,
                        ..PricedTokens::default()
                    },
                    Mode::default()
                )
        );
        assert_eq!(
            (p.max_input, p.max_output),
            (Some(1_000_000), Some(128_000))
        );
    }

    #[test]
    fn an_operators_file_wins_and_its_mistakes_are_all_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prices.tsv");
        std::fs::write(&file, "# ours\nopenai\tgpt-5.5\t1\t2\n").unwrap();
        assert_eq!(
            Overrides::load(&file)
                .unwrap()
                .price("openai", "gpt-5.5")
                .unwrap()
                .input,
            1.0
        );
        std::fs::write(&file, "openai\tgpt-5.5\tx\t2\nopenai\n").unwrap();
        assert_eq!(Overrides::load(&file).unwrap_err().len(), 2);
    }
}
