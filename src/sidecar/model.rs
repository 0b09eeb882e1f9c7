//! Step 3 of a request: the whole body, and every place in it that can name a model.
//!
//! Invariants:
//! - The body is held whole (under a cap, a deadline and a share of the memory that all
//!   requests have) before anything is decided, and what was checked is what is forwarded:
//!   the client's own bytes, or, where they were compressed, what they decode to.
//! - All of it is strict JSON. Where several parsers could disagree about a key that decides
//!   (twice, escaped, in another case), the request is refused.
//! - A model that cannot be determined is a refusal, never a skipped check.
//! - The user's content (messages, schemas, tool results) is never looked into.

use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::provider::registry::{Body, Feature, Model, Named, Stream};
use super::refusal::{Code, Denial};
use super::route::Route;
use crate::base::json::{Event, Flow, Parser, Text};

/// Largest body, compressed or decoded; Anthropic's own limit.
pub const MAX_BODY: usize = 32 * 1024 * 1024;
/// What all bodies in flight may hold together.
pub const BODY_MEMORY: usize = 128 * 1024 * 1024;
/// A client has so long, and a second more for every KiB that it has sent.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Pieces below this are joined.
const SMALL: usize = 8 * 1024;
/// JSON compresses well below this; a bomb does not.
const MAX_RATIO: usize = 100;
/// 8 MiB: what `zstd` itself decodes without being asked to.
const ZSTD_WINDOW_LOG: u32 = 23;

/// What a request asks for, read from every place that can say so.
#[derive(Debug, Default, PartialEq)]
pub struct Asked {
    main: Option<String>,
    extra: Vec<String>,
    any: bool,
    features: Vec<Feature>,
    stream: bool,
}

impl Asked {
    /// The main model first.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.main.iter().chain(&self.extra).map(String::as_str)
    }

    pub fn main_model(&self) -> Option<&str> {
        self.main.as_deref()
    }

    /// The provider may choose a model that the request does not name.
    pub fn any_model(&self) -> bool {
        self.any
    }

    pub fn features(&self) -> impl Iterator<Item = Feature> {
        self.features.iter().copied()
    }

    pub fn stream(&self) -> bool {
        self.stream
    }
}

pub fn is_id_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"._:/@+-~".contains(&b)
}

/// The ids that providers use; nothing that could be read as a path, a list or a glob.
pub fn is_id(s: &str) -> bool {
    (1..=256).contains(&s.len()) && s.bytes().all(is_id_byte) && !s.contains("..") && !s.contains("//")
}

/// A body held whole, in the pieces in which it came.
#[derive(Debug, Clone, Default)]
pub struct Held {
    pieces: Vec<Bytes>,
    len: usize,
    /// Its share of the memory of all bodies; given back when the last copy is gone.
    _memory: Option<Arc<OwnedSemaphorePermit>>,
}

impl Held {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The body of the upstream request.
    pub fn into_outgoing(self) -> Outgoing {
        Outgoing { left: self.len as u64, pieces: self.pieces.into_iter(), _memory: self._memory }
    }
}

/// Sends a [`Held`] body piece by piece, without joining them.
#[derive(Debug)]
pub struct Outgoing {
    pieces: std::vec::IntoIter<Bytes>,
    left: u64,
    _memory: Option<Arc<OwnedSemaphorePermit>>,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = self.pieces.next();
        if let Some(piece) = &next {
            self.left -= piece.len() as u64;
        }
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Takes the whole body in.
///
/// # Errors
/// `body_too_large`, `body_timeout`, `busy`, `unsupported_encoding`, `bad_request`.
pub async fn collect(body: Incoming, headers: &HeaderMap, memory: &Arc<Semaphore>) -> Result<Held, Denial> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|n| n > MAX_BODY as u64) {
        return Err(too_large());
    }
    let encoding = encoding(headers)?;
    let held = gather(body, memory).await?;
    match encoding {
        None => Ok(held),
        Some(encoding) => decode(held, encoding, memory),
    }
}

async fn gather(mut body: Incoming, memory: &Arc<Semaphore>) -> Result<Held, Denial> {
    let started = Instant::now();
    let mut permit = reserve(memory, 0)?;
    let (mut pieces, mut small, mut len) = (Vec::new(), BytesMut::new(), 0usize);
    loop {
        // Late is who has brought less than a KiB a second, after a while.
        let deadline = started + BODY_TIME + Duration::from_secs(len as u64 / 1024);
        let frame = match tokio::time::timeout_at(deadline.into(), body.frame()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(_) => {
                return Err(Denial::new(Code::BodyTimeout, format!("only {len} bytes of the request body arrived within {} s", started.elapsed().as_secs())));
            }
        };
        let frame = frame.map_err(|e| Denial::new(Code::BadRequest, "the request body is incomplete or malformed").cause(e))?;
        let Ok(piece) = frame.into_data() else { continue };
        permit.merge(reserve(memory, piece.len())?);
        // A piece keeps the whole buffer alive that it was read into: many small ones are joined.
        if piece.len() >= SMALL || len == 0 {
            if !small.is_empty() {
                pieces.push(small.split().freeze());
            }
            pieces.extend((!piece.is_empty()).then_some(piece.clone()));
        } else {
            small.extend_from_slice(&piece);
        }
        len += piece.len();
        if len > MAX_BODY {
            return Err(too_large());
        }
    }
    pieces.extend((!small.is_empty()).then(|| small.freeze()));
    Ok(Held { pieces, len, _memory: Some(Arc::new(permit)) })
}

fn reserve(memory: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Denial> {
    memory.clone().try_acquire_many_owned(bytes as u32).map_err(|_| {
        let mut busy = Denial::new(Code::Busy, "the bodies of other requests hold all the memory set aside for them").hint("send it again in a second");
        busy.retry_after = Some(Duration::from_secs(1));
        busy
    })
}

fn too_large() -> Denial {
    Denial::new(Code::BodyTooLarge, format!("the request body is larger than {} MiB", MAX_BODY >> 20))
}

#[derive(Debug, Clone, Copy)]
enum Encoding {
    Gzip,
    Zstd,
}

fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Denial> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
    match value.as_bytes() {
        b"identity" => Ok(None),
        b"gzip" => Ok(Some(Encoding::Gzip)),
        b"zstd" => Ok(Some(Encoding::Zstd)),
        other => Err(Denial::new(Code::UnsupportedEncoding, format!("content-encoding `{}` is not one of `gzip`, `zstd`, `identity`", other.escape_ascii()))
            .hint("send the body uncompressed")),
    }
}

/// Decodes one gzip member or one zstd frame, with nothing before or after it.
fn decode(held: Held, encoding: Encoding, memory: &Arc<Semaphore>) -> Result<Held, Denial> {
    let broken = |e: &dyn std::fmt::Display| Denial::new(Code::BadRequest, "the compressed request body is broken").cause(e);
    let input = held.pieces.concat();
    let cap = MAX_BODY.min((input.len() * MAX_RATIO).max(1 << 20));
    let mut out = Vec::new();
    let rest = match encoding {
        Encoding::Gzip => {
            let mut decoder = flate2::bufread::GzDecoder::new(input.as_slice());
            decoder.by_ref().take(cap as u64 + 1).read_to_end(&mut out).map_err(|e| broken(&e))?;
            decoder.into_inner().len()
        }
        Encoding::Zstd => {
            // A skippable frame or a dictionary is nothing that a client of an API sends.
            if !input.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
                return Err(broken(&"no zstd frame"));
            }
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input.as_slice()).map_err(|e| broken(&e))?.single_frame();
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|e| broken(&e))?;
            decoder.by_ref().take(cap as u64 + 1).read_to_end(&mut out).map_err(|e| broken(&e))?;
            decoder.finish().len()
        }
    };
    if out.len() > cap {
        return Err(too_large());
    }
    if rest > 0 {
        return Err(broken(&"bytes after the compressed data"));
    }
    drop(held);
    let permit = reserve(memory, out.len())?;
    Ok(Held { len: out.len(), pieces: vec![out.into()], _memory: Some(Arc::new(permit)) })
}

/// Reads what the request asks for.
///
/// # Errors
/// `bad_request` where the body is no JSON object, or leaves a doubt about the model.
pub fn read(route: &Route, body: &Held) -> Result<Asked, Denial> {
    let endpoint = route.endpoint();
    let mut asked = match endpoint.body.model {
        Model::NoBody => Asked::default(),
        _ => walk(endpoint.body, body, endpoint.stream)?,
    };
    match endpoint.body.model {
        Model::NoBody => asked.main = route.model().map(str::to_owned),
        Model::Path => {
            let path = route.model().unwrap_or_default();
            let strip = |m: String| m.strip_prefix("models/").map(str::to_owned).unwrap_or(m);
            if let Some(main) = asked.main.take().map(strip).filter(|m| m != path) {
                return Err(doubt(format!("the path names model `{path}`, the body `{main}`")));
            }
            asked.extra = asked.extra.into_iter().map(strip).collect();
            asked.main = Some(path.to_owned());
        }
        Model::BodyOrFirst if asked.main.is_none() && !asked.extra.is_empty() => asked.main = Some(asked.extra.remove(0)),
        Model::Body | Model::BodyOrFirst if asked.main.is_none() => return Err(doubt("`model` is missing".into())),
        Model::Body | Model::BodyOrFirst => {}
    }
    if let Some(odd) = asked.models().find(|m| !is_id(m)) {
        return Err(doubt(format!("`{}` is not a model id", odd.escape_debug())));
    }
    Ok(asked)
}

fn doubt(what: String) -> Denial {
    Denial::new(Code::BadRequest, format!("cannot determine the model of this request: {what}"))
}

fn walk(rules: &'static Body, body: &Held, stream: Stream) -> Result<Asked, Denial> {
    let mut finder = Finder::new(rules, stream);
    let mut parser = Parser::new();
    let mut visit = |e: Event<'_>| finder.event(e);
    let mut parsed = Ok(());
    for piece in &body.pieces {
        parsed = parser.feed(piece, &mut visit);
        if parsed.is_err() {
            break;
        }
    }
    let parsed = parsed.and_then(|()| parser.finish(&mut visit));
    if let Err(e) = parsed {
        return Err(Denial::new(Code::BadRequest, format!("the request body is not JSON: {e}")));
    }
    match finder.fault {
        Some(fault) => Err(doubt(fault)),
        None => Ok(finder.asked),
    }
}

/// Keys that name models wherever they stand outside the user's content.
const MODEL_KEYS: &[&str] = &["model", "model_id", "modelId", "deployment", "models", "fallbacks", "fallback_models", "analysis_models", "allowed_models"];
/// More models than this name nothing that a person meant.
const MAX_MODELS: usize = 64;
/// Keys that decide at the top level only.
const TOP_KEYS: &[&str] = &["stream", "tools"];
/// Wrappers that some proxies unwrap; no API that we speak to has them.
const WRAPPERS: &[&str] = &["extra_body", "body", "request", "response"];
/// Content below the top level: schemas and examples can say `model` as they like.
const NESTED_CONTENT: &[&str] = &[
    "input_schema",
    "parametersJsonSchema",
    "parameters_json_schema",
    "schema",
    "json_schema",
    "responseSchema",
    "response_schema",
    "responseJsonSchema",
    "response_json_schema",
    "response",
    "description",
    "examples",
    "input_examples",
    "content",
    "contents",
    "systemInstruction",
    "system_instruction",
    "metadata",
    "format",
];
/// A server that the provider would connect to, at any place in a tool.
const SERVER_KEYS: &[&str] = &["server_url", "connector_id"];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Means {
    Nothing,
    MainModel,
    Model,
    Models,
    Restricted(Feature),
    Stream,
    /// Content, but for this key of its items …
    But(&'static str),
    /// … whose value is no content.
    NoContent,
    /// What a tool or a plugin is.
    Type,
    Plugin,
    /// Models to choose from, or patterns of them.
    Allowed,
    /// A tool's `parameters`: a schema, unless its `type` says that it is no function.
    Loose,
    LooseModel,
    /// An id of a stored object, where it is a string.
    Stored,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    means: Means,
    top: bool,
    /// Which deciding keys this object has had, to find a second.
    seen: u32,
    /// A tool whose `type` says that it is no function.
    special_tool: bool,
    /// Where in [`Finder::loose`] the models begin that its `parameters` named.
    loose_from: Option<usize>,
}

struct Finder {
    rules: &'static Body,
    /// Does `"stream"` in the body decide anything at this endpoint?
    reads_flag: bool,
    levels: Vec<Level>,
    next: Means,
    in_plugins: bool,
    /// Models in `parameters` of tools that are still open.
    loose: Vec<String>,
    fault: Option<String>,
    asked: Asked,
}

impl Finder {
    fn new(rules: &'static Body, stream: Stream) -> Self {
        let reads_flag = matches!(stream, Stream::Flag | Stream::UnlessFalse);
        let stream = matches!(stream, Stream::Always | Stream::UnlessFalse);
        Finder {
            rules,
            reads_flag,
            levels: Vec::new(),
            next: Means::Nothing,
            in_plugins: false,
            loose: Vec::new(),
            fault: None,
            asked: Asked { stream, ..Asked::default() },
        }
    }

    fn fail(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }

    fn event(&mut self, event: Event<'_>) -> Flow {
        if self.fault.is_some() {
            return Flow::Skip;
        }
        let means = std::mem::replace(&mut self.next, Means::Nothing);
        match event {
            Event::Key(key) => return self.key(key),
            Event::OpenObject | Event::OpenArray => self.open(means, event == Event::OpenObject),
            Event::Close => self.close(),
            Event::String(text) => self.string(self.means_here(means), text),
            Event::Scalar(s) => self.scalar(self.means_here(means), s),
        }
        Flow::Visit
    }

    /// What a value means: what its key said, or what the list it stands in is.
    fn means_here(&self, means: Means) -> Means {
        match (means, self.levels.last()) {
            (Means::Nothing, Some(level)) => level.means,
            (means, _) => means,
        }
    }

    fn open(&mut self, means: Means, object: bool) {
        let parent = self.levels.last().copied();
        let top = parent.is_none();
        if top && !object {
            self.fail("the body is not an object".into());
        }
        if let Some(Level { means: Means::Restricted(feature), .. }) = parent {
            self.feature(feature);
        }
        let means = match (means, parent.map(|p| p.means)) {
            (Means::MainModel | Means::Model, _) => {
                self.fail("`model` is not a string".into());
                Means::Nothing
            }
            // An item of a list of models: its own `model` key counts.
            (Means::Nothing, Some(Means::Models)) => {
                if !object {
                    self.fail("a list of models in a list of models".into());
                }
                Means::Nothing
            }
            (Means::Nothing, Some(Means::But(key))) => Means::But(key),
            (Means::Models, _) if object => {
                self.fail("`models` or `fallbacks` is an object".into());
                Means::Nothing
            }
            (Means::Nothing, Some(Means::Loose | Means::LooseModel)) => Means::Loose,
            (Means::LooseModel, _) if object => Means::Loose,
            (Means::Stream | Means::NoContent | Means::Type | Means::Plugin | Means::Stored, _) => Means::Nothing,
            (Means::Nothing, Some(Means::Allowed)) => Means::Nothing,
            (means, _) => means,
        };
        self.levels.push(Level { means, top, seen: 0, special_tool: false, loose_from: None });
    }

    fn close(&mut self) {
        let Some(level) = self.levels.pop() else { return };
        if let Some(from) = level.loose_from {
            let named = self.loose.split_off(from.min(self.loose.len()));
            if level.special_tool {
                named.iter().for_each(|m| self.model(m));
            }
        }
    }

    fn model(&mut self, model: &str) {
        if self.asked.extra.len() == MAX_MODELS {
            self.fail(format!("more than {MAX_MODELS} models"));
        } else if !self.asked.extra.iter().any(|m| m == model) {
            self.asked.extra.push(model.to_owned());
        }
    }

    fn key(&mut self, key: Text<'_>) -> Flow {
        let Some(&Level { means, top, .. }) = self.levels.last() else { return Flow::Visit };
        if let Means::Restricted(feature) = means {
            self.feature(feature);
        }
        let Some(name) = key.as_str() else {
            if matches!(means, Means::Loose | Means::LooseModel) {
                return Flow::Skip;
            }
            self.fail("a key that is too long or not Unicode".into());
            return Flow::Skip;
        };
        if let Means::Loose | Means::LooseModel = means {
            self.next = if MODEL_KEYS.contains(&name) { Means::LooseModel } else { Means::Nothing };
            return Flow::Visit;
        }
        if let Means::But(but) = means {
            if name != but {
                return self.unless_twin(name, but);
            }
            self.next = Means::NoContent;
            return Flow::Visit;
        }
        if top {
            self.in_plugins = name == "plugins";
        }
        if let Err(flow) = self.deciding(name, top) {
            return flow;
        }
        self.next = match name {
            "model" if top => Means::MainModel,
            "model" | "model_id" | "modelId" | "deployment" => Means::Model,
            "models" | "fallbacks" | "fallback_models" | "analysis_models" => Means::Models,
            "parameters" if !top => {
                let from = self.loose.len();
                if let Some(level) = self.levels.last_mut() {
                    level.loose_from.get_or_insert(from);
                }
                Means::Loose
            }
            "type" if !top => Means::Type,
            "id" if self.in_plugins => Means::Plugin,
            "allowed_models" => Means::Allowed,
            "container_id" | "file_ids" | "vector_store_ids" if !top => Means::Restricted(Feature::StoredObjects),
            "container" if !top => Means::Stored,
            _ if SERVER_KEYS.contains(&name) => Means::Restricted(Feature::McpServers),
            "stream" if top && self.reads_flag => Means::Stream,
            _ if top && WRAPPERS.contains(&name) => {
                self.fail(format!("`{name}` wraps another request"));
                Means::Nothing
            }
            _ if top && self.rules.content.contains(&name) => return Flow::Skip,
            _ if !top && NESTED_CONTENT.contains(&name) => return Flow::Skip,
            _ if top => match (self.rules.restricted.iter().find(|(k, _)| *k == name), self.rules.content_but.iter().find(|(k, _)| *k == name)) {
                (Some((_, feature)), _) => Means::Restricted(*feature),
                (_, Some((_, but))) => Means::But(but),
                _ => Means::Nothing,
            },
            _ => Means::Nothing,
        };
        Flow::Visit
    }

    /// Refuses a deciding key that stands twice, or one that only a lenient parser would
    /// take for it: another case, a long s, a Kelvin sign, full-width letters.
    fn deciding(&mut self, name: &str, top: bool) -> Result<(), Flow> {
        let rules = self.rules;
        let listed = MODEL_KEYS.iter().chain(SERVER_KEYS).copied();
        let at_top = TOP_KEYS.iter().copied().chain(rules.restricted.iter().map(|(k, _)| *k)).chain(rules.content_but.iter().map(|(k, _)| *k)).filter(|_| top);
        let folded = fold(name);
        let mut twin = None;
        let exact = listed.chain(at_top).enumerate().find(|(_, k)| {
            if *k == name {
                return true;
            }
            if twin.is_none() && folds_to(&folded, k) {
                twin = Some(*k);
            }
            false
        });
        match (exact, twin) {
            (Some((i, key)), _) => {
                let bit = 1u32 << i;
                let Some(level) = self.levels.last_mut() else { return Ok(()) };
                if level.seen & bit != 0 {
                    self.fail(format!("`{key}` stands twice"));
                    return Err(Flow::Skip);
                }
                level.seen |= bit;
                Ok(())
            }
            (None, Some(key)) => {
                self.fail(format!("`{}` could be read as `{key}`", name.escape_debug()));
                Err(Flow::Skip)
            }
            (None, None) => Ok(()),
        }
    }

    fn unless_twin(&mut self, name: &str, key: &str) -> Flow {
        if folds_to(&fold(name), key) {
            self.fail(format!("`{}` could be read as `{key}`", name.escape_debug()));
        }
        Flow::Skip
    }

    fn string(&mut self, means: Means, text: Text<'_>) {
        match means {
            Means::MainModel | Means::Model | Means::Models => match text.as_str() {
                // Anthropic: the server picks the fallback.
                Some("default") if means == Means::Models => self.asked.any = true,
                Some(s) if means == Means::MainModel => self.asked.main = Some(s.to_owned()),
                Some(s) => self.model(s),
                None => self.fail("a model id that is too long or not Unicode".into()),
            },
            Means::Restricted(feature) => self.feature(feature),
            Means::Stored => self.feature(Feature::StoredObjects),
            Means::Type => {
                let kind = text.as_str().unwrap_or_default();
                self.asked.any |= (self.rules.chooses)(Named::Type(kind));
                if let Some(level) = self.levels.last_mut() {
                    level.special_tool |= !matches!(kind, "function" | "custom");
                }
            }
            Means::Plugin => self.asked.any |= (self.rules.chooses)(Named::Plugin(text.as_str().unwrap_or_default())),
            // A pattern of models to choose from.
            Means::Allowed if text.bytes.contains(&b'*') => self.asked.any = true,
            Means::Allowed => self.string(Means::Models, text),
            Means::LooseModel if self.loose.len() < MAX_MODELS => self.loose.extend(text.as_str().map(str::to_owned)),
            Means::LooseModel => self.fail(format!("more than {MAX_MODELS} models")),
            Means::Nothing | Means::Stream | Means::But(_) | Means::NoContent | Means::Loose => {}
        }
    }

    fn scalar(&mut self, means: Means, s: &str) {
        match means {
            Means::MainModel | Means::Model | Means::Models if s != "null" => self.fail(format!("`model` is `{s}`, not a string")),
            Means::Restricted(feature) if s != "null" && s != "false" => self.feature(feature),
            Means::Stream => self.asked.stream = s == "true",
            _ => {}
        }
    }

    fn feature(&mut self, feature: Feature) {
        if !self.asked.features.contains(&feature) {
            self.asked.features.push(feature);
        }
    }
}

/// A key as a case-folding parser (Go's `encoding/json` among them) would compare it, also
/// without the full width that some normalise away.
fn fold(name: &str) -> Folded<'_> {
    if name.is_ascii() {
        return Folded::Ascii(name);
    }
    let narrow = |c: char| match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
        c => c,
    };
    Folded::Text(name.chars().map(narrow).flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect())
}

enum Folded<'a> {
    Ascii(&'a str),
    Text(String),
}

fn folds_to(name: &Folded<'_>, key: &str) -> bool {
    match name {
        Folded::Ascii(name) => name.eq_ignore_ascii_case(key),
        Folded::Text(name) => name.eq_ignore_ascii_case(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidecar::provider::{anthropic, google, openai};

    fn walk_in(body: &str, rules: &'static Body) -> Result<Asked, Denial> {
        let whole = walk(rules, &Held { pieces: vec![Bytes::from(body.to_owned())], len: body.len(), _memory: None }, Stream::Flag);
        let bytes: Vec<Bytes> = body.as_bytes().chunks(1).map(Bytes::copy_from_slice).collect();
        let split = walk(rules, &Held { pieces: bytes, len: body.len(), _memory: None }, Stream::Flag);
        assert_eq!(whole.as_ref().ok(), split.as_ref().ok());
        whole
    }

    fn body_of(provider: &'static crate::sidecar::provider::registry::Provider, endpoint: &str) -> &'static Body {
        provider.endpoints.iter().find(|e| e.name == endpoint).unwrap().body
    }

    #[test]
    fn models_are_found_wherever_they_can_stand() {
        let messages = body_of(&anthropic::PROVIDER, "messages");
        let asked = walk_in(
            r#"{"model":"a","fallbacks":[{"model":"b","speed":"fast"},"c"],"tools":[{"type":"advisor_20260301","model":"d","input_schema":{"model":"not"}}],
                "messages":[{"role":"user","content":"{\"model\":\"not\"}","model":"not"}],"metadata":{"model":"not"},"stream":true}"#,
            messages,
        )
        .unwrap();
        assert_eq!(asked.models().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert!(asked.stream && !asked.any);
        assert!(walk_in(r#"{"model":"a","fallbacks":"default"}"#, messages).unwrap().any);
        let responses = body_of(&openai::PROVIDER, "responses");
        let asked = walk_in(r#"{"model":"a","input":[{"type":"additional_tools","tools":[{"type":"image_generation","model":"b"}]},{"model":"not","content":[{"model":"not"}]}]}"#, responses).unwrap();
        assert_eq!(asked.models().collect::<Vec<_>>(), ["a", "b"]);
        let generate = body_of(&google::PROVIDER, "generateContent");
        let asked = walk_in(r#"{"generateContentRequest":{"model":"models/b","contents":[{"model":"not"}]},"generationConfig":{"responseSchema":{"properties":{"model":{"type":"STRING"}}}}}"#, generate).unwrap();
        assert_eq!(asked.models().collect::<Vec<_>>(), ["models/b"]);
    }

    #[test]
    fn doubt_is_a_refusal() {
        let messages = body_of(&anthropic::PROVIDER, "messages");
        for bad in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","\u006dodel":"b"}"#,
            r#"{"model":"a","Model":"b"}"#,
            r#"{"model":"a","MODEL":"b"}"#,
            "{\"model\":\"a\",\"\u{ff4d}odel\":\"b\"}",
            "{\"model\":\"a\",\"fallback\u{17f}\":[]}",
            r#"{"model":1}"#,
            r#"{"model":["a"]}"#,
            r#"{"model":{"id":"a"}}"#,
            r#"{"model":"a","fallbacks":[["b"]]}"#,
            r#"{"model":"a","fallbacks":{"x":"b"}}"#,
            r#"{"model":"a","tools":[{"model":true}]}"#,
            r#"{"model":"a","stream":false,"Stream":true}"#,
            r#"{"model":"a","tools":[],"tools":[{"model":"b"}]}"#,
            r#"{"model":"a","extra_body":{"model":"b"}}"#,
            r#"["a"]"#,
            r#"{"model":"a"}{"model":"b"}"#,
            r#"{"model":"a\ud800"}"#,
        ] {
            assert!(walk_in(bad, messages).is_err(), "{bad}");
        }
    }

    #[test]
    fn restricted_features_count_only_when_used() {
        let messages = body_of(&anthropic::PROVIDER, "messages");
        let features = |b: &str| walk_in(b, messages).unwrap().features;
        assert_eq!(features(r#"{"model":"a","mcp_servers":[],"container":null}"#), []);
        assert_eq!(features(r#"{"model":"a","mcp_servers":[{"url":"x"}],"container":"c"}"#), [Feature::McpServers, Feature::StoredObjects]);
        let responses = body_of(&openai::PROVIDER, "responses");
        let features = |b: &str| walk_in(b, responses).unwrap().features;
        assert_eq!(features(r#"{"model":"a","background":false,"previous_response_id":null}"#), []);
        assert_eq!(
            features(r#"{"model":"a","background":true,"tools":[{"type":"mcp","server_url":"https://x"}]}"#),
            [Feature::Background, Feature::McpServers]
        );
    }

    #[test]
    fn a_bomb_stops_at_its_cap() {
        let memory = Arc::new(Semaphore::new(BODY_MEMORY));
        let zeros = vec![b' '; 30 << 20];
        let zstd = zstd::encode_all(zeros.as_slice(), 19).unwrap();
        let held = |b: Vec<u8>| Held { len: b.len(), pieces: vec![b.into()], _memory: None };
        assert!(zstd.len() < 10_000);
        assert_eq!(decode(held(zstd.clone()), Encoding::Zstd, &memory).unwrap_err().code, Code::BodyTooLarge);
        let mut small = zstd::encode_all(&b"{}"[..], 3).unwrap();
        assert_eq!(decode(held(small.clone()), Encoding::Zstd, &memory).unwrap().pieces.concat(), b"{}");
        small.extend(zstd::encode_all(&b"{}"[..], 3).unwrap());
        assert_eq!(decode(held(small), Encoding::Zstd, &memory).unwrap_err().code, Code::BadRequest);
        assert_eq!(memory.available_permits(), BODY_MEMORY);
    }
}
