//! Reads usage from a reply as it passes.

use super::{Complete, Extra, Field, Format, RawUsage, ReplyError, Report};
use crate::base::json::{Flow, JsonEvent, Parser, Text};
use crate::base::sse::{Piece, SseScanner};
use crate::sidecar::usage::framing::Framing;

/// Further inferences within one reply; none has this many.
pub(super) const MAX_EXTRAS: usize = 64;

/// Ids of one reply that are remembered.
pub(super) const MAX_IDS: usize = 256;

/// No reply has so many tokens or costs so much; what says so is broken, and sums stay sane.
pub(super) const MAX_TOKENS: u64 = 1 << 40;

pub(super) const MAX_COST: f64 = 1e6;

/// Reads one reply. Feed it the bytes as they come, in any pieces.
#[derive(Debug)]
pub struct Meter {
    pub(super) framing: Framing,
    pub(super) sse: SseScanner,
    pub(super) parser: Parser,
    pub(super) walk: Walk,
    /// The first bytes of the current document, to know `[DONE]`.
    pub(super) head: [u8; 6],
    pub(super) head_len: u8,
    pub(super) broken: bool,
}

#[derive(Debug)]
pub(super) struct Walk {
    pub(super) format: &'static Format,
    pub(super) raw: RawUsage,
    pub(super) model: Option<String>,
    pub(super) tier: Option<String>,
    pub(super) fast: bool,
    pub(super) us_only: bool,
    pub(super) ids: Vec<String>,
    pub(super) ended: bool,
    pub(super) error: ReplyError,
    /// Of the current document only.
    pub(super) doc: Doc,
    pub(super) path: String,
    pub(super) marks: Vec<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Doc {
    pub(super) kind: Option<String>,
    pub(super) object: Option<String>,
    pub(super) flat: ReplyError,
    pub(super) event: ReplyError,
    /// Counted in this document.
    pub(super) searches: u64,
    pub(super) pictures: u64,
    /// Of the entry of a list of counts by modality.
    pub(super) is_image: bool,
    pub(super) count: Option<u64>,
}

impl Meter {
    pub fn new(format: &'static Format, framing: Framing) -> Self {
        Meter {
            framing,
            sse: SseScanner::default(),
            parser: Parser::new(),
            walk: Walk {
                format,
                raw: RawUsage::default(),
                model: None,
                tier: None,
                fast: false,
                us_only: false,
                ids: Vec::new(),
                ended: false,
                error: ReplyError::default(),
                doc: Doc::default(),
                path: String::new(),
                marks: Vec::new(),
            },
            head: [0; 6],
            head_len: 0,
            broken: false,
        }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        match self.framing {
            Framing::Document => self.document(bytes),
            Framing::Sse => {
                let mut sse = std::mem::take(&mut self.sse);
                sse.feed(bytes, &mut |piece| self.piece(piece));
                self.sse = sse;
            }
            Framing::Lines => {
                for part in bytes.split_inclusive(|&b| b == b'\n') {
                    self.document(part);
                    if part.ends_with(b"\n") {
                        self.end_document();
                    }
                }
            }
        }
    }

    /// Has the stream ended as its protocol ends? A client may go then (Codex does), before
    /// HTTP has ended.
    pub fn ended(&self) -> bool {
        self.walk.ended
    }

    /// The reply is over; `clean`: its body ended as HTTP says it should.
    pub fn finish(mut self, clean: bool) -> Report {
        let mut whole = false;
        match self.framing {
            Framing::Document => {
                let walk = &mut self.walk;
                whole = !self.broken && self.parser.finish(&mut |e| walk.event(e)).is_ok();
                walk.end_document();
            }
            Framing::Sse if clean => {
                let mut sse = std::mem::take(&mut self.sse);
                sse.finish(&mut |piece| self.piece(piece));
            }
            Framing::Sse => {}
            Framing::Lines => self.end_document(),
        }
        let walk = self.walk;
        let error = (walk.error != ReplyError::default()).then(|| walk.error.clone());
        let usage = (walk.format.normal)(&walk.raw).map(|u| u.beside(&walk.raw, &walk));
        Report {
            model: walk.model,
            usage,
            tier: walk.tier,
            complete: walk.ended || (clean && whole),
            error,
            ids: walk.ids,
        }
    }

    fn piece(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Data(bytes) => {
                if usize::from(self.head_len) < self.head.len() {
                    for &b in bytes
                        .iter()
                        .take(self.head.len() - usize::from(self.head_len))
                    {
                        self.head[usize::from(self.head_len)] = b;
                        self.head_len += 1;
                    }
                }
                self.document(bytes);
            }
            Piece::NextLine => self.document(b"\n"),
            Piece::End => {
                if matches!(self.walk.format.complete, Complete::Done) && &self.head == b"[DONE]" {
                    self.walk.ended = true;
                }
                self.end_document();
            }
        }
    }

    fn document(&mut self, bytes: &[u8]) {
        if !self.broken {
            let walk = &mut self.walk;
            self.broken = self.parser.feed(bytes, &mut |e| walk.event(e)).is_err();
        }
    }

    fn end_document(&mut self) {
        let walk = &mut self.walk;
        if !self.broken {
            let _ = self.parser.finish(&mut |e| walk.event(e));
        }
        walk.end_document();
        self.parser.reset();
        self.broken = false;
        self.head = [0; 6];
        self.head_len = 0;
    }
}

impl Walk {
    fn event(&mut self, event: JsonEvent<'_>) -> Flow {
        match event {
            JsonEvent::Key(key) => return self.enter(key),
            JsonEvent::OpenObject => {
                self.marks.push(self.path.len());
                (self.doc.is_image, self.doc.count) = (false, None);
                if self
                    .path
                    .strip_suffix("[]")
                    .is_some_and(|list| self.is(list, Field::Extras))
                    && self.raw.extras.len() < MAX_EXTRAS
                {
                    self.raw.extras.push(Extra::default());
                }
            }
            JsonEvent::OpenArray => {
                self.marks.push(self.path.len());
                if self.is(&self.path, Field::Extras) {
                    self.raw.extras.clear();
                }
                self.path.push_str("[]");
            }
            JsonEvent::Close => {
                let mark = self.marks.pop().unwrap_or(0);
                self.path.truncate(mark);
            }
            JsonEvent::String(text) => self.text(text),
            JsonEvent::Scalar(s) => self.scalar(s),
        }
        Flow::Visit
    }

    fn enter(&mut self, key: Text<'_>) -> Flow {
        let Some(key) = key.as_str() else {
            return Flow::Skip;
        };
        self.path.truncate(self.marks.last().copied().unwrap_or(0));
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(key);
        let path = self.path.as_str();
        let leads = |field: &str| {
            field
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        if self.format.fields.iter().any(|(f, _)| leads(f)) || SERVICE_TIER.contains(&path) {
            Flow::Visit
        } else {
            Flow::Skip
        }
    }

    fn is(&self, path: &str, field: Field) -> bool {
        self.format
            .fields
            .iter()
            .any(|(p, f)| *f == field && *p == path)
    }

    fn field(&self) -> Option<Field> {
        if SERVICE_TIER.contains(&self.path.as_str()) {
            return Some(Field::Tier);
        }
        self.format
            .fields
            .iter()
            .find(|(p, _)| *p == self.path)
            .map(|(_, f)| *f)
    }

    fn text(&mut self, text: Text<'_>) {
        let (Some(field), Some(s)) = (self.field(), std::str::from_utf8(text.bytes).ok()) else {
            return;
        };
        let set = |slot: &mut Option<String>| *slot = Some(s.to_owned());
        match field {
            Field::Model if !s.is_empty() => set(&mut self.model),
            Field::Tier => set(&mut self.tier),
            Field::Speed => self.fast |= s == "fast",
            Field::Geography => self.us_only |= s == "us",
            Field::Search => self.doc.searches += 1,
            Field::OutputItem => {
                self.doc.searches += u64::from(s == "web_search_call");
                self.doc.pictures += u64::from(s == "image_generation_call");
            }
            Field::Modality => {
                self.doc.is_image = s == "IMAGE";
                self.modality();
            }
            Field::ObjectId if self.ids.len() < MAX_IDS && !self.ids.iter().any(|id| id == s) => {
                self.ids.push(s.to_owned())
            }
            Field::Type => set(&mut self.doc.kind),
            Field::Object => set(&mut self.doc.object),
            Field::Finished => self.ended |= matches!(self.format.complete, Complete::Finished),
            Field::ErrorType => set(&mut self.error.kind),
            Field::ErrorCode => self.error_code(s),
            Field::ErrorMessage => set(&mut self.error.message),
            Field::FlatErrorType => set(&mut self.doc.flat.kind),
            Field::FlatErrorMessage => set(&mut self.doc.flat.message),
            Field::EventErrorType => set(&mut self.doc.event.kind),
            Field::EventErrorMessage => set(&mut self.doc.event.message),
            Field::ExtraKind => self.extra(|e| s.clone_into(&mut e.kind)),
            Field::ExtraModel => self.extra(|e| e.model = Some(s.to_owned())),
            _ => {}
        }
    }

    /// An entry of a list by modality is known when both of its parts are.
    fn modality(&mut self) {
        if let (true, Some(n)) = (self.doc.is_image, self.doc.count) {
            self.raw.image_output = Some(n);
        }
    }

    fn error_code(&mut self, code: &str) {
        if self.error.kind.is_none() {
            self.error.kind = Some(code.to_owned());
        }
    }

    fn scalar(&mut self, s: &str) {
        let Some(field) = self.field() else { return };
        if field == Field::Finished && s == "true" {
            self.ended |= matches!(self.format.complete, Complete::Finished);
        }
        if field == Field::Cost {
            self.raw.cost_usd = s
                .parse()
                .ok()
                .filter(|c: &f64| (0.0..=MAX_COST).contains(c))
                .or(self.raw.cost_usd);
            return;
        }
        // Counts are integers; a client library of another language may print them as 12.0.
        let Some(n) = s.parse::<u64>().ok().or_else(|| {
            s.parse::<f64>()
                .ok()
                .filter(|f| (0.0..1e15).contains(f))
                .map(|f| f as u64)
        }) else {
            return;
        };
        let n = n.min(MAX_TOKENS);
        let raw = &mut self.raw;
        match field {
            Field::Input => raw.input = Some(n),
            Field::CacheRead => raw.cache_read = Some(n),
            Field::CacheWrite => raw.cache_write = Some(n),
            Field::CacheWrite1h => raw.cache_write_1h = Some(n),
            Field::Output => raw.output = Some(n),
            Field::Reasoning => raw.reasoning = Some(n),
            Field::ToolPrompt => raw.tool_prompt = Some(n),
            Field::Searches => raw.searches = Some(n),
            Field::PictureInput => raw.picture_input = Some(n),
            Field::PictureOutput => raw.picture_output = Some(n),
            Field::ModalityCount => {
                self.doc.count = Some(n);
                self.modality();
            }
            Field::ErrorCode => self.error_code(s),
            Field::ExtraInput => self.extra(|e| e.input = Some(n)),
            Field::ExtraCacheRead => self.extra(|e| e.cache_read = Some(n)),
            Field::ExtraCacheWrite => self.extra(|e| e.cache_write = Some(n)),
            Field::ExtraOutput => self.extra(|e| e.output = Some(n)),
            _ => {}
        }
    }

    pub(super) fn extra(&mut self, set: impl FnOnce(&mut Extra)) {
        if let Some(e) = self.raw.extras.last_mut() {
            set(e);
        }
    }

    fn end_document(&mut self) {
        let doc = std::mem::take(&mut self.doc);
        // A later document repeats what an earlier one said.
        if doc.searches > 0 {
            self.raw.searches = self.raw.searches.max(Some(doc.searches));
        }
        self.raw.pictures = self.raw.pictures.max(doc.pictures);
        if let (Complete::Type(ends), Some(kind)) = (self.format.complete, &doc.kind) {
            self.ended |= ends.contains(&kind.as_str());
        }
        let own = if doc.object.as_deref() == Some("error") {
            doc.flat
        } else if doc.kind.as_deref() == Some("error") {
            doc.event
        } else {
            ReplyError::default()
        };
        if own != ReplyError::default() {
            self.error = own;
        }
        self.path.clear();
        self.marks.clear();
    }
}

/// The tier that was billed stands beside the usage in every API that has tiers.
pub(super) const SERVICE_TIER: [&str; 4] = [
    "service_tier",
    "response.service_tier",
    "usage.service_tier",
    "message.usage.service_tier",
];
