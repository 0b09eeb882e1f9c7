//! Walks a request's body and notes what decides in it.
//!
//! Three kinds of places: what the request is made of (its keys decide, see `keys.rs`),
//! the user's content (only references to stored objects and definitions of tools count, and what
//! tells its size), and everything opaque (schemas, arguments, metadata: skipped).

use crate::base::json::{Flow, JsonEvent, Text};
use crate::sidecar::provider::{BodyRules, Feature, StreamBy, ToolName};
use crate::sidecar::steps::model::facts::RequestFacts;
use crate::sidecar::steps::model::facts::{MAX_MODELS, MAX_VALUES};
use crate::sidecar::steps::model::keys;
use crate::sidecar::steps::model::keys::KeyRole;

/// Keys of content whose values are content too.
const CONTENT_PARTS: &[&str] = &[
    "content",
    "contents",
    "parts",
    "source",
    "tool",
    "tool_changes",
    "file",
    "output",
    "summary",
    "environment",
    "image_url",
    "fileData",
    "inlineData",
    "inline_data",
    "functionResponse",
    "function_response",
];
/// Keys of content whose values define tools.
const CONTENT_TOOLS: &[&str] = &["definition", "tools"];
/// Types whose `file_id` repeats what the provider itself said.
const ECHOES: &[&str] = &["code_execution_output", "bash_code_execution_output"];
/// Tools of providers that read what is not in the request, by how their types begin.
const READERS: &[&str] = &[
    "web_search",
    "web_fetch",
    "file_search",
    "code_execution",
    "code_interpreter",
    "google_search",
    "url_context",
    "shell",
    "mcp",
];
/// Ids of one request's content; none that a person or a CLI made has so many.
const MAX_IDS: usize = 8_192;
/// Types of content that are pictures.
const IMAGES: &[&str] = &["image", "image_url", "input_image"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScanPlace {
    /// What the request is made of.
    Request,
    /// The user's content.
    Content,
}

/// What an object was found to be, as bits of [`Level::found`].
mod found {
    pub const SPECIAL_TOOL: u32 = 1;
    pub const IMAGE_TOOL: u32 = 1 << 1;
    pub const MODEL: u32 = 1 << 2;
    pub const SVG_FORMAT: u32 = 1 << 3;
    pub const SVG: u32 = 1 << 4;
    pub const SKILL: u32 = 1 << 5;
    pub const OWN_SKILL: u32 = 1 << 6;
    pub const TYPED: u32 = 1 << 8;
    pub const ROLE: u32 = 1 << 9;
    pub const PAYLOAD: u32 = 1 << 10;
    /// An item that refers to one at the provider.
    pub const REFERENCE: u32 = 1 << 11;
    /// An item that refers to one at the provider unless it carries its payload.
    pub const NEEDS_PAYLOAD: u32 = 1 << 12;
    /// A type that only repeats what the provider said; `OTHER_TYPE`: any other.
    pub const ECHO: u32 = 1 << 13;
    pub const OTHER_TYPE: u32 = 1 << 14;
    /// An address of content, and what a tool of the provider found at one.
    pub const ADDRESS: u32 = 1 << 15;
    pub const RESULT: u32 = 1 << 16;
}

#[derive(Debug, Clone, Copy)]
struct Level {
    place: ScanPlace,
    /// What the key of this container means for its items.
    role: KeyRole,
    top: bool,
    list: bool,
    found: u32,
    /// Which deciding keys this object has had, to find a second.
    seen: u128,
    /// Where in [`ModelScanner::parameters`] the models begin that a tool's `parameters` named.
    parameters_from: Option<usize>,
    /// Where in [`ModelScanner::ids`] the ids of this object begin.
    ids_from: usize,
}

/// An id that may refer to a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Id {
    Own(String),
    File(String),
    Container(String),
}

pub(super) struct ModelScanner {
    rules: &'static BodyRules,
    /// Does `"stream"` in the body decide anything at this endpoint?
    reads_flag: bool,
    levels: Vec<Level>,
    /// The role of the value that comes next, and the place that it opens.
    next: (KeyRole, ScanPlace),
    in_plugins: bool,
    /// Models in `parameters` of tools that are still open.
    parameters: Vec<String>,
    /// Ids of objects of the content that are still open.
    ids: Vec<Id>,
    values: usize,
    pub fault: Option<String>,
    pub facts: RequestFacts,
}

impl ModelScanner {
    pub fn new(rules: &'static BodyRules, stream: StreamBy) -> Self {
        let reads_flag = matches!(stream, StreamBy::Flag | StreamBy::UnlessFalse);
        let stream = matches!(stream, StreamBy::Always | StreamBy::UnlessFalse);
        ModelScanner {
            rules,
            reads_flag,
            levels: Vec::new(),
            next: (KeyRole::Nothing, ScanPlace::Request),
            in_plugins: false,
            parameters: Vec::new(),
            ids: Vec::new(),
            values: 0,
            fault: None,
            facts: RequestFacts {
                stream,
                ..RequestFacts::default()
            },
        }
    }

    fn fail(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }

    pub fn event(&mut self, event: JsonEvent<'_>) -> Flow {
        if self.fault.is_some() {
            return Flow::Skip;
        }
        let counts = matches!(
            event,
            JsonEvent::Key(_) | JsonEvent::OpenObject | JsonEvent::OpenArray
        );
        if counts
            && self
                .levels
                .last()
                .is_none_or(|l| l.place == ScanPlace::Request)
        {
            self.values += 1;
            if self.values > MAX_VALUES {
                self.fail(format!(
                    "more than {MAX_VALUES} keys and lists outside its content"
                ));
                return Flow::Skip;
            }
        }
        let inherited = self
            .levels
            .last()
            .map_or((KeyRole::Nothing, ScanPlace::Request), |l| {
                (KeyRole::Nothing, l.place)
            });
        let (role, place) = match event {
            // Not consumed: a key comes before its value.
            JsonEvent::Key(key) => return self.key(key),
            _ => std::mem::replace(&mut self.next, inherited),
        };
        match event {
            JsonEvent::OpenObject | JsonEvent::OpenArray => {
                self.open(role, place, event == JsonEvent::OpenObject)
            }
            JsonEvent::Close => self.close(),
            JsonEvent::String(text) => self.string(self.role_here(role), text),
            JsonEvent::Scalar(s) => self.scalar(self.role_here(role), s),
            JsonEvent::Key(_) => {}
        }
        // What stands in a list means what the list does.
        self.next = self
            .levels
            .last()
            .map_or((KeyRole::Nothing, ScanPlace::Request), |l| {
                (KeyRole::Nothing, l.place)
            });
        Flow::Visit
    }

    /// What a value means: what its key said, or what the list it stands in is.
    fn role_here(&self, role: KeyRole) -> KeyRole {
        match (role, self.levels.last()) {
            (KeyRole::Nothing, Some(level)) if level.list => level.role,
            (role, _) => role,
        }
    }

    fn open(&mut self, role: KeyRole, place: ScanPlace, object: bool) {
        let parent = self.levels.last().copied();
        if parent.is_none() && !object {
            self.fail("the body is not an object".into());
        }
        let inherited = parent.map_or(KeyRole::Nothing, |p| p.role);
        if let (KeyRole::Nothing, KeyRole::Restricted(feature)) = (role, inherited) {
            self.facts.feature(feature);
        }
        let role = match (role, inherited) {
            (KeyRole::MainModel | KeyRole::Model, _) => {
                self.fail("`model` is not a string".into());
                KeyRole::Nothing
            }
            // An item of a list of models: its own `model` key counts.
            (KeyRole::Nothing, KeyRole::Models) => {
                if !object {
                    self.fail("a list of models in a list of models".into());
                }
                KeyRole::Nothing
            }
            (KeyRole::Models, _) if object => {
                self.fail("`models` or `fallbacks` is an object".into());
                KeyRole::Nothing
            }
            (KeyRole::Nothing, KeyRole::ToolParameters | KeyRole::ParameterModel) => {
                KeyRole::ToolParameters
            }
            (KeyRole::ParameterModel, _) if object => KeyRole::ToolParameters,
            (KeyRole::Nothing, KeyRole::NetworkPolicy) => KeyRole::NetworkPolicy,
            (KeyRole::Reads, _) => {
                self.facts.cost.reads = true;
                KeyRole::Nothing
            }
            (KeyRole::Chooses, _) => {
                self.facts.any = true;
                KeyRole::Nothing
            }
            (KeyRole::Payload, _) => {
                self.found(found::PAYLOAD);
                KeyRole::Nothing
            }
            (KeyRole::Thread, _) => {
                self.facts.thread = true;
                KeyRole::Nothing
            }
            (KeyRole::StoredObject, _) => {
                self.facts.feature(Feature::StoredObjects);
                KeyRole::Nothing
            }
            (
                role @ (KeyRole::Models
                | KeyRole::AllowedModels
                | KeyRole::Restricted(_)
                | KeyRole::ToolParameters),
                _,
            ) => role,
            (
                role @ (KeyRole::NetworkPolicy
                | KeyRole::Container
                | KeyRole::ParameterModel
                | KeyRole::MultiAgent
                | KeyRole::Generation
                | KeyRole::Svg),
                _,
            ) => role,
            _ => KeyRole::Nothing,
        };
        let ids_from = self.ids.len();
        self.levels.push(Level {
            place,
            role,
            top: parent.is_none(),
            list: !object,
            found: 0,
            seen: 0,
            parameters_from: None,
            ids_from,
        });
    }

    fn close(&mut self) {
        let Some(level) = self.levels.pop() else {
            return;
        };
        let has = |bits: u32| level.found & bits != 0;
        if let Some(from) = level.parameters_from {
            let named = self.parameters.split_off(from.min(self.parameters.len()));
            if has(found::SPECIAL_TOOL) {
                named.iter().for_each(|m| self.model(m));
            }
        }
        self.facts.cost.unseen |= has(found::ADDRESS) && !has(found::RESULT);
        if level.role == KeyRole::Svg && has(found::MODEL) {
            self.found(found::SVG);
        }
        // A picture tool without a model runs the provider's default.
        self.facts.any |= has(found::IMAGE_TOOL) && !has(found::MODEL);
        self.facts.any |= has(found::IMAGE_TOOL) && has(found::SVG_FORMAT) && !has(found::SVG);
        if has(found::SKILL) && !has(found::OWN_SKILL) {
            self.facts.feature(Feature::StoredObjects);
        }
        // An item of the list of the input with an id alone is a reference, too.
        let bare = self.levels.len() == 2 && !(has(found::TYPED) || has(found::ROLE));
        let refers = self.rules.item_references
            && (bare
                || has(found::REFERENCE)
                || (has(found::NEEDS_PAYLOAD) && !has(found::PAYLOAD)));
        let echoes = has(found::ECHO) && !has(found::OTHER_TYPE);
        for id in self.ids.split_off(level.ids_from.min(self.ids.len())) {
            match id {
                Id::Own(id) if refers => self.facts.references.push(id),
                Id::File(id) if !echoes => self.facts.references.push(id),
                Id::Container(id) => self.facts.references.push(id),
                Id::Own(_) | Id::File(_) => {}
            }
        }
    }

    fn model(&mut self, model: &str) {
        if self.facts.extra.len() == MAX_MODELS {
            self.fail(format!("more than {MAX_MODELS} models"));
        } else if !self.facts.extra.iter().any(|m| m == model) {
            self.facts.extra.push(model.to_owned());
        }
    }

    fn found(&mut self, bits: u32) {
        if let Some(level) = self.levels.last_mut() {
            level.found |= bits;
        }
    }

    fn key(&mut self, key: Text<'_>) -> Flow {
        let Some(&Level {
            place, role, top, ..
        }) = self.levels.last()
        else {
            return Flow::Visit;
        };
        if let KeyRole::Restricted(feature) = role {
            self.facts.feature(feature);
        }
        let in_parameters = matches!(role, KeyRole::ToolParameters | KeyRole::ParameterModel);
        let Some(name) = key.as_str() else {
            if !in_parameters && place == ScanPlace::Request {
                self.fail("a key that is too long or not Unicode".into());
            }
            return Flow::Skip;
        };
        if in_parameters {
            let names_model = keys::deciding(name).is_some_and(|d| {
                matches!(
                    d.role,
                    KeyRole::Model | KeyRole::Models | KeyRole::AllowedModels
                )
            });
            self.next = (
                if names_model {
                    KeyRole::ParameterModel
                } else {
                    KeyRole::Nothing
                },
                place,
            );
            return Flow::Visit;
        }
        if place == ScanPlace::Content {
            return self.content_key(name);
        }
        if top {
            self.in_plugins = name == "plugins";
        }
        if let Err(flow) = self.deciding(name, top) {
            return flow;
        }
        self.request_key(name, role, top)
    }

    fn request_key(&mut self, name: &str, within: KeyRole, top: bool) -> Flow {
        let listed = |list: &[&str]| list.contains(&name);
        let followed = if top {
            listed(self.rules.content)
        } else {
            listed(keys::CONTENT)
        };
        if followed {
            self.next = (KeyRole::Nothing, ScanPlace::Content);
            return Flow::Visit;
        }
        let opaque = if top {
            listed(self.rules.opaque)
        } else {
            listed(keys::OPAQUE)
        };
        if opaque || name == "tool_choice" {
            return Flow::Skip;
        }
        if top && listed(keys::WRAPPERS) {
            self.fail(format!("`{name}` wraps another request"));
            return Flow::Skip;
        }
        let restricted = self
            .rules
            .restricted
            .iter()
            .find(|(k, _)| top && *k == name);
        let role = match (restricted, keys::deciding(name)) {
            (Some((_, feature)), _) => KeyRole::Restricted(*feature),
            (None, Some(deciding)) => self.decided(name, deciding.role, top),
            (None, None) => match name {
                "parameters" if !top => {
                    let from = self.parameters.len();
                    if let Some(level) = self.levels.last_mut() {
                        level.parameters_from.get_or_insert(from);
                    }
                    KeyRole::ToolParameters
                }
                "type" if !top => KeyRole::Type,
                "id" if self.in_plugins => KeyRole::Plugin,
                "id" if within == KeyRole::Container => KeyRole::Restricted(Feature::StoredObjects),
                "svg" => KeyRole::Svg,
                "enabled" if within == KeyRole::MultiAgent => KeyRole::Chooses,
                "allowed_domains" if within == KeyRole::NetworkPolicy => {
                    KeyRole::Restricted(Feature::McpServers)
                }
                "stream" if top && self.reads_flag => KeyRole::Stream,
                _ => self.spending(name, within, top),
            },
        };
        self.next = (role, ScanPlace::Request);
        Flow::Visit
    }

    fn decided(&mut self, name: &str, role: KeyRole, top: bool) -> KeyRole {
        match role {
            KeyRole::Model if top && name == "model" => KeyRole::MainModel,
            KeyRole::Server => KeyRole::Restricted(Feature::McpServers),
            KeyRole::Stored => KeyRole::Restricted(Feature::StoredObjects),
            KeyRole::SkillId => {
                self.found(found::SKILL);
                KeyRole::Nothing
            }
            role => role,
        }
    }

    /// A key that tells what the request can cost. Limits count only where the API has them: others
    /// limit nothing.
    fn spending(&mut self, name: &str, within: KeyRole, top: bool) -> KeyRole {
        let here = top || within == KeyRole::Generation;
        match keys::spending(name).unwrap_or(KeyRole::Nothing) {
            KeyRole::MaxOutput if !(here && self.rules.max_output.contains(&name)) => {
                KeyRole::Nothing
            }
            KeyRole::Copies if !here => KeyRole::Nothing,
            role => role,
        }
    }

    fn content_key(&mut self, name: &str) -> Flow {
        let role = match name {
            "type" => KeyRole::Type,
            "id" => KeyRole::Id,
            "file_id" => KeyRole::FileId,
            "container_id" => KeyRole::ContainerId,
            "fileUri" | "file_uri" | "uri" => KeyRole::Uri,
            "url" | "file_url" | "file_data" | "video_url" | "document_url" => KeyRole::Url,
            "media_type" | "mimeType" | "mime_type" => KeyRole::MediaType,
            "role" => KeyRole::Role,
            "encrypted_content" | "result" => KeyRole::Payload,
            // A spoken reply of before.
            "audio" => KeyRole::StoredObject,
            _ if CONTENT_TOOLS.contains(&name) => {
                self.next = (KeyRole::Nothing, ScanPlace::Request);
                return Flow::Visit;
            }
            _ if CONTENT_PARTS.contains(&name) => KeyRole::Nothing,
            _ if CONTENT_TOOLS.iter().any(|k| keys::fold(name) == *k) => {
                self.fail(format!(
                    "`{}` could be read as the definition of a tool",
                    name.escape_debug()
                ));
                return Flow::Skip;
            }
            _ => return Flow::Skip,
        };
        self.next = (role, ScanPlace::Content);
        Flow::Visit
    }

    /// Refuses a deciding key that stands twice, or one that only a lenient parser would take
    /// for it.
    fn deciding(&mut self, name: &str, top: bool) -> Result<(), Flow> {
        let own = || {
            keys::AT_THE_TOP
                .iter()
                .copied()
                .chain(self.rules.restricted.iter().map(|(k, _)| *k))
                .filter(|_| top)
        };
        let exact = match keys::deciding(name) {
            Some(deciding) => Some((deciding.index, deciding.name)),
            None => own()
                .enumerate()
                .find(|(_, k)| *k == name)
                .map(|(i, k)| (keys::COUNT + i as u32, k)),
        };
        if let Some((index, key)) = exact {
            let bit = 1u128 << index;
            let Some(level) = self.levels.last_mut() else {
                return Ok(());
            };
            if level.seen & bit != 0 {
                self.fail(format!("`{key}` stands twice"));
                return Err(Flow::Skip);
            }
            level.seen |= bit;
            return Ok(());
        }
        let twin = keys::twin(name).or_else(|| {
            let folded = keys::fold(name);
            own().find(|k| *k == folded).filter(|_| top)
        });
        match twin {
            Some(key) => {
                self.fail(format!(
                    "`{}` could be read as `{key}`",
                    name.escape_debug()
                ));
                Err(Flow::Skip)
            }
            None => Ok(()),
        }
    }

    fn string(&mut self, role: KeyRole, text: Text<'_>) {
        match role {
            KeyRole::MainModel | KeyRole::Model | KeyRole::Models => match text.as_str() {
                // Anthropic: the server picks the fallback.
                Some("default") if role == KeyRole::Models => self.facts.any = true,
                Some(s) if role == KeyRole::MainModel => self.facts.main = Some(s.to_owned()),
                Some(s) => {
                    self.found(found::MODEL);
                    self.model(s);
                }
                None => self.fail("a model id that is too long or not Unicode".into()),
            },
            KeyRole::Restricted(feature) => self.facts.feature(feature),
            KeyRole::Thread => self.facts.thread = true,
            KeyRole::StoredText | KeyRole::Container => self.facts.feature(Feature::StoredObjects),
            KeyRole::Chooses => self.facts.any = true,
            KeyRole::Type => self.typed(text.as_str().unwrap_or_default()),
            KeyRole::Plugin => {
                self.facts.any |=
                    (self.rules.chooses)(ToolName::Plugin(text.as_str().unwrap_or_default()))
            }
            // A pattern of models to choose from.
            KeyRole::AllowedModels if text.bytes.contains(&b'*') => self.facts.any = true,
            KeyRole::AllowedModels => self.string(KeyRole::Models, text),
            // What cannot be read is no model id, and is refused if the tool is not a function.
            KeyRole::ParameterModel if self.parameters.len() <= MAX_MODELS => self
                .parameters
                .push(text.as_str().unwrap_or("\0").to_owned()),
            KeyRole::Speed => self.facts.cost.fast |= text.as_str() == Some("fast"),
            KeyRole::Tier => self.facts.cost.priority |= text.as_str() == Some("priority"),
            KeyRole::Geography => self.facts.cost.us_only |= text.as_str() == Some("us"),
            // Google takes numbers as strings, too.
            KeyRole::MaxOutput | KeyRole::Copies => {
                self.scalar(role, text.as_str().unwrap_or_default())
            }
            KeyRole::Format if text.as_str() == Some("svg") => self.found(found::SVG_FORMAT),
            _ => self.content_string(role, text),
        }
    }

    fn content_string(&mut self, role: KeyRole, text: Text<'_>) {
        let id = || text.as_str().unwrap_or("\0").to_owned();
        if self.ids.len() + self.facts.references.len() > MAX_IDS {
            self.fail(format!("more than {MAX_IDS} ids in its content"));
            return;
        }
        match role {
            KeyRole::Id if !self.rules.item_references => {}
            KeyRole::Id => self.ids.push(Id::Own(id())),
            KeyRole::FileId => self.ids.push(Id::File(id())),
            KeyRole::ContainerId => self.ids.push(Id::Container(id())),
            KeyRole::Role => self.found(found::ROLE),
            KeyRole::Uri if is_stored(text.bytes) => self.facts.feature(Feature::StoredObjects),
            KeyRole::Uri => self.facts.cost.unseen = true,
            KeyRole::Url if !text.bytes.starts_with(b"data:") => self.found(found::ADDRESS),
            KeyRole::Payload => self.found(found::PAYLOAD),
            KeyRole::MediaType => {
                let kind = text.as_str().unwrap_or_default();
                self.facts.cost.unseen |= kind == "application/pdf"
                    || kind.starts_with("video/")
                    || kind.starts_with("audio/");
                self.facts.cost.images += u32::from(kind.starts_with("image/"));
            }
            _ => {}
        }
    }

    fn typed(&mut self, kind: &str) {
        let content = self
            .levels
            .last()
            .is_some_and(|l| l.place == ScanPlace::Content);
        if content {
            self.found(
                found::TYPED
                    | if ECHOES.contains(&kind) {
                        found::ECHO
                    } else {
                        found::OTHER_TYPE
                    },
            );
            self.facts.cost.images += u32::from(IMAGES.contains(&kind));
            if kind.ends_with("_result") {
                self.found(found::RESULT);
            }
            match kind {
                "item_reference" => self.found(found::REFERENCE),
                "reasoning" | "image_generation_call" => self.found(found::NEEDS_PAYLOAD),
                "container_upload" | "container_reference" => {
                    self.facts.feature(Feature::StoredObjects)
                }
                _ => {}
            }
            return;
        }
        self.facts.any |= (self.rules.chooses)(ToolName::Type(kind));
        self.facts.cost.reads |= READERS.iter().any(|tool| kind.starts_with(tool));
        match kind {
            "function" | "custom" | "tool_search" => {}
            "mcp" | "mcp_server" => self.facts.feature(Feature::McpServers),
            "container_reference" | "skill_reference" | "skill_registry" | "gcs" | "retrieval" => {
                self.facts.feature(Feature::StoredObjects)
            }
            "image_generation" => self.found(found::IMAGE_TOOL | found::SPECIAL_TOOL),
            "anthropic" => self.found(found::OWN_SKILL | found::SPECIAL_TOOL),
            _ => self.found(found::SPECIAL_TOOL),
        }
        // A second type makes a skill doubtful.
        if let Some(level) = self.levels.last_mut() {
            if level.found & found::TYPED != 0 {
                level.found &= !found::OWN_SKILL;
            }
            level.found |= found::TYPED;
        }
    }

    fn scalar(&mut self, role: KeyRole, s: &str) {
        // Zero means "no limit" to some servers.
        let number = || s.parse::<f64>().ok().filter(|n| *n > 0.0).map(|n| n as u64);
        match role {
            KeyRole::MainModel | KeyRole::Model | KeyRole::Models if s != "null" => {
                self.fail(format!("`model` is `{s}`, not a string"))
            }
            KeyRole::Restricted(feature) if s != "null" && s != "false" => {
                self.facts.feature(feature)
            }
            KeyRole::Chooses if s != "null" && s != "false" => self.facts.any = true,
            KeyRole::Stream => self.facts.stream = s == "true",
            KeyRole::MaxOutput => {
                self.facts.cost.max_output = self.facts.cost.max_output.max(number())
            }
            KeyRole::Reads => self.facts.cost.reads |= s == "true",
            KeyRole::Copies => {
                self.facts.cost.copies = self.facts.cost.copies.max(number().unwrap_or(1))
            }
            _ => {}
        }
    }
}

/// Google's files, and objects of its storage. Only an address of the web elsewhere is content.
fn is_stored(uri: &[u8]) -> bool {
    let uri = String::from_utf8_lossy(uri).to_ascii_lowercase();
    match uri
        .strip_prefix("https://")
        .or_else(|| uri.strip_prefix("http://"))
    {
        Some(rest) => rest
            .split(['/', '?', '#'])
            .next()
            .is_some_and(|host| host.contains("googleapis.com")),
        None => !uri.starts_with("data:"),
    }
}
