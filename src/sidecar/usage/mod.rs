//! Tokens of a reply, read as it passes: streaming or not, cut anywhere, constant memory.
//!
//! A provider's file says in a [`Format`] at which paths its API reports what; this file
//! walks the reply. Normal form: `input` is uncached input, `output` includes reasoning;
//! what was not reported is `None`, never 0.

pub mod framing;
pub mod meter;

use self::meter::Walk;

/// Where one API reports usage.
#[derive(Debug)]
pub struct Format {
    /// Paths into each document of the reply: keys joined by `.`, `[]` for array items.
    pub fields: &'static [(&'static str, Field)],
    pub complete: Complete,
    /// The API's meaning of its numbers.
    pub normal: fn(&RawUsage) -> Option<ReplyUsage>,
}

/// How a *stream* of this API ends when it ends well.
#[derive(Debug, Clone, Copy)]
pub enum Complete {
    /// An event of one of these `type`s.
    Type(&'static [&'static str]),
    /// `data: [DONE]`.
    Done,
    /// A document with a finish reason (or `done: true`).
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Model,
    Input,
    CacheRead,
    CacheWrite,
    CacheWrite1h,
    Output,
    Reasoning,
    ToolPrompt,
    Cost,
    Tier,
    /// `fast` where the reply was made in a fast mode.
    Speed,
    /// `us` where it was made in the United States only.
    Geography,
    /// How many searches the provider made.
    Searches,
    /// A search; they are counted.
    Search,
    /// The type of an item of the output: searches and pictures are billed apart.
    OutputItem,
    /// Tokens of pictures that a tool of the provider made.
    PictureInput,
    PictureOutput,
    /// Of a list of counts by modality: which, and how many.
    Modality,
    ModalityCount,
    /// The id of an object that the provider keeps, which later requests may refer to.
    ObjectId,
    Type,
    Finished,
    Object,
    ErrorType,
    ErrorCode,
    ErrorMessage,
    /// An error only when the document's `object` is `error`.
    FlatErrorType,
    FlatErrorMessage,
    /// An error only when the event's `type` is `error`.
    EventErrorType,
    EventErrorMessage,
    /// An array of further inferences; a later one replaces an earlier one.
    Extras,
    ExtraKind,
    ExtraModel,
    ExtraInput,
    ExtraCacheRead,
    ExtraCacheWrite,
    ExtraOutput,
}

/// The numbers as the API gave them; a later value replaces an earlier one.
#[derive(Debug, Default, Clone)]
pub struct RawUsage {
    pub input: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub cache_write_1h: Option<u64>,
    pub output: Option<u64>,
    pub reasoning: Option<u64>,
    pub tool_prompt: Option<u64>,
    pub cost_usd: Option<f64>,
    pub extras: Vec<Extra>,
    pub searches: Option<u64>,
    /// Pictures that a tool made, and their tokens where they are told.
    pub pictures: u64,
    pub picture_input: Option<u64>,
    pub picture_output: Option<u64>,
    /// Of `output`, the tokens of pictures.
    pub image_output: Option<u64>,
}

/// An inference on another model within the same request, billed apart.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Extra {
    pub kind: String,
    pub model: Option<String>,
    pub input: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub output: Option<u64>,
}

#[derive(Debug, Default, Clone, PartialEq)]
pub struct ReplyUsage {
    pub input: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub cache_write_1h: Option<u64>,
    pub output: Option<u64>,
    pub reasoning: Option<u64>,
    /// What the provider itself says it bills, in USD.
    pub cost_usd: Option<f64>,
    pub extra: Vec<Extra>,
    /// Of `output`, the tokens of pictures.
    pub image_output: Option<u64>,
    /// Searches that the provider made, and pictures whose tokens it does not tell.
    pub searches: u64,
    pub pictures: u64,
    pub fast: bool,
    pub us_only: bool,
}

impl ReplyUsage {
    /// What is billed beside the tokens, as every API tells it.
    fn beside(mut self, raw: &RawUsage, walk: &Walk) -> ReplyUsage {
        self.searches = raw.searches.unwrap_or(0);
        self.image_output = raw.image_output;
        (self.fast, self.us_only) = (walk.fast, walk.us_only);
        match (raw.picture_input, raw.picture_output) {
            (None, None) => self.pictures = raw.pictures,
            (input, output) => {
                self.extra.push(Extra {
                    kind: PICTURES.into(),
                    input,
                    output,
                    ..Extra::default()
                });
            }
        }
        self
    }

    pub fn known(self) -> Option<ReplyUsage> {
        let any = [self.input, self.cache_read, self.cache_write, self.output]
            .iter()
            .any(Option::is_some);
        any.then_some(self)
    }

    /// Every token that counts against a budget, those of extra inferences included.
    pub fn total(&self) -> u64 {
        let sum = |parts: [Option<u64>; 4]| parts.iter().flatten().sum::<u64>();
        sum([self.input, self.cache_read, self.cache_write, self.output])
            + self
                .extra
                .iter()
                .map(|e| sum([e.input, e.cache_read, e.cache_write, e.output]))
                .sum::<u64>()
    }
}

/// What a reply said about itself.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Report {
    pub model: Option<String>,
    pub usage: Option<ReplyUsage>,
    pub tier: Option<String>,
    /// The reply ended as its protocol ends.
    pub complete: bool,
    pub error: Option<ReplyError>,
    /// Ids of objects that the provider keeps.
    pub ids: Vec<String>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ReplyError {
    pub kind: Option<String>,
    pub message: Option<String>,
}

/// The kind of the further inference that makes pictures.
pub const PICTURES: &str = "image_generation";
