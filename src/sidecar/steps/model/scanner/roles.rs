//! What a key of a body means where it stands.

use super::found;
use crate::base::json::{Flow, Text};
use crate::sidecar::provider::Feature;
use crate::sidecar::steps::model::keys;
use crate::sidecar::steps::model::keys::KeyRole;
use crate::sidecar::steps::model::scanner::{
    CONTENT_PARTS, CONTENT_TOOLS, Level, ModelScanner, ScanPlace,
};

impl ModelScanner {
    /// What a value means: what its key said, or what the list it stands in is.
    pub(crate) fn role_here(&self, role: KeyRole) -> KeyRole {
        match (role, self.levels.last()) {
            (KeyRole::Nothing, Some(level)) if level.list => level.role,
            (role, _) => role,
        }
    }

    pub(crate) fn key(&mut self, key: Text<'_>) -> Flow {
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

    pub(crate) fn request_key(&mut self, name: &str, within: KeyRole, top: bool) -> Flow {
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

    pub(crate) fn decided(&mut self, name: &str, role: KeyRole, top: bool) -> KeyRole {
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
    pub(crate) fn spending(&mut self, name: &str, within: KeyRole, top: bool) -> KeyRole {
        let here = top || within == KeyRole::Generation;
        match keys::spending(name).unwrap_or(KeyRole::Nothing) {
            KeyRole::MaxOutput if !(here && self.rules.max_output.contains(&name)) => {
                KeyRole::Nothing
            }
            KeyRole::Copies if !here => KeyRole::Nothing,
            role => role,
        }
    }

    pub(crate) fn content_key(&mut self, name: &str) -> Flow {
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
    pub(crate) fn deciding(&mut self, name: &str, top: bool) -> Result<(), Flow> {
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
}
