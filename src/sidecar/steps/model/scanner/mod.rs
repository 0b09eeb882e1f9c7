//! Walks a request's body and notes what decides in it.
//!
//! Three kinds of places: what the request is made of (its keys decide, see `keys.rs`),
//! the user's content (only references to stored objects and definitions of tools count, and what
//! tells its size), and everything opaque (schemas, arguments, metadata: skipped).

mod roles;
mod values;

use crate::base::json::{Flow, JsonEvent};
use crate::sidecar::provider::{BodyRules, Feature, StreamBy};
use crate::sidecar::steps::model::facts::{MAX_MODELS, MAX_VALUES, RequestFacts};
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
    /// What the key before this object or list means for its items.
    role: KeyRole,
    top: bool,
    list: bool,
    found: u32,
    /// The deciding keys that this object has had so far, as bits: one that stands twice is refused.
    seen: u128,
    /// The index in [`ModelScanner::parameters`] of the first model that this tool's `parameters`
    /// name.
    parameters_from: Option<usize>,
    /// The index in [`ModelScanner::ids`] of the first id of this object.
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
}
