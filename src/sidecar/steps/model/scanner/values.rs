//! What the values of a body say.

use super::found;
use crate::base::json::Text;
use crate::sidecar::provider::{Feature, ToolName};
use crate::sidecar::steps::model::facts::MAX_MODELS;
use crate::sidecar::steps::model::keys::KeyRole;
use crate::sidecar::steps::model::scanner::{
    ECHOES, IMAGES, Id, MAX_IDS, ModelScanner, READERS, ScanPlace,
};

/// Google's files, and objects of its storage. Only an address of the web elsewhere is content.
pub(crate) fn is_stored(uri: &[u8]) -> bool {
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

impl ModelScanner {
    pub(crate) fn string(&mut self, role: KeyRole, text: Text<'_>) {
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

    pub(crate) fn content_string(&mut self, role: KeyRole, text: Text<'_>) {
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

    pub(crate) fn typed(&mut self, kind: &str) {
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

    pub(crate) fn scalar(&mut self, role: KeyRole, s: &str) {
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
