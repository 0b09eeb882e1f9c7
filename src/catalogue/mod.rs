//! What models cost.
//!
//! The table is a trimmed snapshot (source, date and licence in its head; `update.py` makes
//! it), sorted, and searched as text: nothing is parsed at start, nothing is kept in memory.
//! An operator's file in the same format overrides it line by line.

use std::path::Path;

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
};

/// Token counts of one inference; `None` is unknown and costs nothing here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokens {
    pub input: u64,
    pub cache_read: u64,
    /// All cache writes, the 1 h ones included.
    pub cache_write: u64,
    pub cache_write_1h: u64,
    pub output: u64,
}

impl Price {
    /// USD for these tokens at this service tier (`priority`, `flex`, else the standard).
    pub fn cost(&self, t: Tokens, tier: Option<&str>) -> f64 {
        let long = self.above.filter(|a| t.input + t.cache_read + t.cache_write > a.tokens);
        let (input, output, read, write) = match long {
            Some(a) => (a.input, a.output, a.cache_read.or(self.cache_read), a.cache_write.or(self.cache_write)),
            None => (self.input, self.output, self.cache_read, self.cache_write),
        };
        let write = write.unwrap_or(input);
        let hour = t.cache_write_1h.min(t.cache_write);
        let usd = t.input as f64 * input
            + t.cache_read as f64 * read.unwrap_or(input)
            + (t.cache_write - hour) as f64 * write
            + hour as f64 * self.cache_write_1h.unwrap_or(write)
            + t.output as f64 * output;
        let factor = match tier {
            Some("priority") => self.priority_factor.unwrap_or(1.0),
            Some("flex") => self.flex_factor.unwrap_or(1.0),
            _ => 1.0,
        };
        usd * factor / 1e6
    }
}

/// The operator's own prices, before the built-in ones.
#[derive(Debug, Default, Clone)]
pub struct Overrides(Vec<(String, Price)>);

impl Overrides {
    /// Reads a file in the format of `prices.tsv`: tab-separated, `#` begins a comment.
    ///
    /// # Errors
    /// One text per broken line, with its number.
    pub fn load(path: &Path) -> Result<Self, Vec<String>> {
        let text = std::fs::read_to_string(path).map_err(|e| vec![format!("cannot read `{}`: {e}", path.display())])?;
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#')) {
            match parse(line) {
                Some(row) => rows.push(row),
                None => problems.push(format!("line {}: `{line}` is not `provider<TAB>model<TAB>input<TAB>output…` in USD per 1,000,000 tokens", i + 1)),
            }
        }
        if problems.is_empty() { Ok(Overrides(rows)) } else { Err(problems) }
    }

    /// The price of a model, or of the model that its dated id is a snapshot of.
    pub fn price(&self, provider: &str, model: &str) -> Option<Price> {
        let mut model = model;
        loop {
            let key = format!("{provider}\t{model}");
            if let Some(p) = self.0.iter().find(|(k, _)| *k == key).map(|(_, p)| *p).or_else(|| built_in(&key)) {
                return Some(p);
            }
            model = undated(model)?;
        }
    }
}

/// `claude-x-20250929` and `gpt-x-2026-04-23` without their date.
fn undated(model: &str) -> Option<&str> {
    let date = model.rfind(|c: char| !c.is_ascii_digit() && c != '-')? + 1;
    let tail = &model[date..];
    let digits = tail.bytes().filter(u8::is_ascii_digit).count();
    (tail.starts_with('-') && digits == 8).then(|| &model[..date])
}

fn built_in(key: &str) -> Option<Price> {
    let start = TABLE.find("\nanthropic\t")? + 1;
    let rows = &TABLE[start..];
    let (mut low, mut high) = (0, rows.len());
    while low < high {
        let mid = low + (high - low) / 2;
        let begin = rows[..mid].rfind('\n').map_or(0, |i| i + 1);
        let line = rows[begin..].split('\n').next()?;
        // Only the row that is found is parsed.
        let row_key = &line[..line.match_indices('\t').nth(1)?.0];
        match row_key.cmp(key) {
            std::cmp::Ordering::Equal => return parse(line).map(|(_, price)| price),
            std::cmp::Ordering::Less => low = begin + line.len() + 1,
            std::cmp::Ordering::Greater => high = begin,
        }
    }
    None
}

fn parse(line: &str) -> Option<(String, Price)> {
    let f: Vec<&str> = line.split('\t').collect();
    if f.len() < 4 || f[0].is_empty() || f[1].is_empty() {
        return None;
    }
    let number = |i: usize| -> Option<Option<f64>> {
        match f.get(i).map(|s| s.trim()) {
            None | Some("") => Some(None),
            Some(s) => s.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0).map(Some),
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
    };
    Some((format!("{}\t{}", f[0], f[1]), price))
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
    fn long_prompts_tiers_and_dates_have_their_price() {
        let none = Overrides::default();
        let p = none.price("openai", "gpt-5.5-2026-04-23").unwrap();
        let t = |input| Tokens { input, output: 1_000_000, ..Tokens::default() };
        assert!((p.cost(t(0), None) - 30.0).abs() < 1e-9);
        assert!((p.cost(t(1_000_000), None) - 55.0).abs() < 1e-9, "10 in, 45 out above 272k");
        assert!((p.cost(t(0), Some("priority")) - 75.0).abs() < 1e-9);
        let c = none.price("anthropic", "claude-sonnet-4-5-20250929").unwrap();
        let cost = c.cost(Tokens { cache_write: 2_000_000, cache_write_1h: 1_000_000, cache_read: 1_000_000, ..Tokens::default() }, None);
        assert!((cost - (3.75 + 6.0 + 0.3)).abs() < 1e-9, "{cost}");
    }

    #[test]
    fn an_operators_file_wins_and_its_mistakes_are_all_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prices.tsv");
        std::fs::write(&file, "# ours\nopenai\tgpt-5.5\t1\t2\n").unwrap();
        assert_eq!(Overrides::load(&file).unwrap().price("openai", "gpt-5.5").unwrap().input, 1.0);
        std::fs::write(&file, "openai\tgpt-5.5\tx\t2\nopenai\n").unwrap();
        assert_eq!(Overrides::load(&file).unwrap_err().len(), 2);
    }
}
