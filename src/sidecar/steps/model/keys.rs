//! Which keys of a request decide something, wherever they stand outside the user's content.
//!
//! The tables are checked against the request types of the official libraries
//! (`tests/clients/fields.test.mjs`).

use std::collections::HashMap;
use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization;

/// What the value of a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyRole {
    Nothing,
    /// The model of the request: `model` at the top level.
    MainModel,
    /// A further model: a string.
    Model,
    /// Further models: strings, or objects with a `model` each.
    Models,
    /// Models to choose from, or patterns of them.
    AllowedModels,
    /// Agents that the provider runs, where they are enabled.
    MultiAgent,
    /// Lets the provider choose a model, unless the value is null or false.
    Chooses,
    /// A server that the provider would connect to.
    Server,
    /// Hosts that a container at the provider may connect to.
    NetworkPolicy,
    /// An object that is stored at the provider.
    Stored,
    /// A stored object where the value is a string; otherwise its keys decide.
    StoredText,
    /// A stored object where the value is not a string.
    StoredObject,
    /// A new container, or a stored one: a string, or an object with an `id`.
    Container,
    /// A thread that is kept at the provider.
    Thread,
    /// The id of a skill: stored, unless it is one of the provider's own.
    SkillId,
    /// What an object is.
    Type,
    /// The id of an entry of `plugins`.
    Plugin,
    /// A tool's `parameters`: a schema, unless the tool's `type` says that it is not a function.
    ToolParameters,
    /// A value within a schema under a key that would name a model.
    ParameterModel,
    /// Needs a grant's `allow`, whatever the value.
    Restricted(crate::sidecar::provider::Feature),
    Stream,
    /// How replies are made: their limits stand in it.
    Generation,
    /// A picture of its own kind, with a model of its own.
    Svg,
    /// A tool of the provider's own that reads what is not in the request.
    Reads,
    MaxOutput,
    Copies,
    Speed,
    Tier,
    Geography,
    Format,
    /// Within content.
    Id,
    FileId,
    ContainerId,
    Uri,
    Url,
    MediaType,
    Payload,
    Role,
}

use KeyRole::{
    AllowedModels, Chooses, Container, Copies, Format, Generation, Geography, MaxOutput, Model,
    Models, MultiAgent, NetworkPolicy, Reads, Server, SkillId, Speed, Stored, StoredObject,
    StoredText, Thread, Tier,
};

/// Keys that decide at any depth. A second one in the same object, or one that only a lenient
/// parser would take for it, is refused.
#[rustfmt::skip]
const DECIDING: &[(&str, KeyRole)] = &[
    ("model", Model), ("model_id", Model), ("modelId", Model), ("modelName", Model), ("model_name", Model), ("deployment", Model), ("safety_model", Model),
    ("models", Models), ("fallbacks", Models), ("fallback_models", Models), ("analysis_models", Models), ("allowed_models", AllowedModels),
    ("modelSelectionConfig", Chooses), ("model_selection_config", Chooses), ("autoMode", Chooses), ("auto_mode", Chooses), ("multi_agent", MultiAgent),
    ("server_url", Server), ("connector_id", Server), ("tunnel_id", Server), ("mcpServers", Server), ("mcp_servers", Server),
    ("webhook_config", Server), ("webhookConfig", Server), ("allowlist", Server), ("externalApi", Server), ("external_api", Server),
    ("network_policy", NetworkPolicy), ("networkPolicy", NetworkPolicy),
    ("container_id", Stored), ("file_id", Stored), ("file_ids", Stored), ("vector_store_ids", Stored),
    ("fileSearchStoreNames", Stored), ("file_search_store_names", Stored), ("cachedContent", Stored), ("cached_content", Stored),
    ("environment_id", Stored), ("retrieval", Stored), ("authConfig", Stored), ("auth_config", Stored),
    ("modelArmorConfig", Stored), ("model_armor_config", Stored), ("generationOutputConfig", Stored), ("generation_output_config", Stored),
    ("gcsUri", Stored), ("gcs_uri", Stored), ("fileUri", Stored), ("file_uri", Stored),
    ("environment", StoredText), ("voice", StoredObject), ("container", Container), ("thread", Thread), ("skill_id", SkillId),
];

/// Keys that say how much a request can cost. They decide nothing else.
#[rustfmt::skip]
const SPENDING: &[(&str, KeyRole)] = &[
    ("max_tokens", MaxOutput), ("max_completion_tokens", MaxOutput), ("max_output_tokens", MaxOutput), ("maxOutputTokens", MaxOutput),
    ("n", Copies), ("best_of", Copies), ("candidateCount", Copies), ("candidate_count", Copies),
    ("speed", Speed), ("service_tier", Tier), ("serviceTier", Tier), ("inference_geo", Geography), ("output_format", Format),
    ("generationConfig", Generation), ("generation_config", Generation),
    ("urlContext", Reads), ("url_context", Reads), ("googleSearch", Reads), ("google_search", Reads), ("googleSearchRetrieval", Reads),
    ("codeExecution", Reads), ("code_execution", Reads), ("fileSearch", Reads), ("file_search", Reads),
];

/// Keys that decide at the top level only.
pub(super) const AT_THE_TOP: &[&str] = &["stream", "tools"];

/// Wrappers that some proxies unwrap; no API that we speak to has them.
pub(super) const WRAPPERS: &[&str] = &["extra_body", "body", "request", "response"];

/// Schemas, examples and the like below the top level: they can say `model` as they like.
pub(super) const OPAQUE: &[&str] = &[
    "input_schema",
    "inputSchema",
    "output_schema",
    "outputSchema",
    "parametersJsonSchema",
    "parameters_json_schema",
    "schema",
    "json_schema",
    "responseSchema",
    "response_schema",
    "responseJsonSchema",
    "response_json_schema",
    "_responseJsonSchema",
    "response",
    "description",
    "annotations",
    "examples",
    "input_examples",
    "metadata",
    "user_metadata",
    "userMetadata",
    "labels",
    "headers",
    "env",
    "transform",
    // Settings of a tool server's tools, by the tool's name.
    "configs",
    "format",
];

/// The user's content below the top level.
pub(super) const CONTENT: &[&str] = &[
    "content",
    "contents",
    "systemInstruction",
    "system_instruction",
];

/// A key that decides: where it stands in the table, and what it means.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deciding {
    pub index: u32,
    pub name: &'static str,
    pub role: KeyRole,
}

/// Most keys are none of ours: their length and first letter tell.
#[derive(Default)]
struct Possible([u32; 32]);

impl Possible {
    fn place(name: &str) -> Option<(usize, u32)> {
        let first = name.bytes().next()?.to_ascii_lowercase();
        first
            .is_ascii_lowercase()
            .then(|| (name.len(), 1 << (first - b'a')))
    }

    fn add(&mut self, name: &str) {
        if let Some((slot, bit)) =
            Possible::place(name).and_then(|(len, bit)| Some((self.0.get_mut(len)?, bit)))
        {
            *slot |= bit;
        }
    }

    fn holds(&self, name: &str) -> bool {
        Possible::place(name)
            .is_some_and(|(len, bit)| self.0.get(len).is_some_and(|slot| slot & bit != 0))
    }
}

struct Tables {
    possible: Possible,
    exact: HashMap<&'static str, Deciding>,
    /// By the key in lower case.
    folded: HashMap<String, Deciding>,
    spending: HashMap<&'static str, KeyRole>,
    longest: usize,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let deciding = || {
        DECIDING
            .iter()
            .enumerate()
            .map(|(i, (name, role))| Deciding {
                index: i as u32,
                name,
                role: *role,
            })
    };
    let mut possible = Possible::default();
    DECIDING
        .iter()
        .chain(SPENDING)
        .for_each(|(name, _)| possible.add(name));
    Tables {
        possible,
        exact: deciding().map(|d| (d.name, d)).collect(),
        folded: deciding()
            .map(|d| (d.name.to_ascii_lowercase(), d))
            .collect(),
        spending: SPENDING.iter().copied().collect(),
        longest: DECIDING
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0),
    }
});

/// How many keys decide at any depth; further ones of an endpoint are numbered after them.
pub(super) const COUNT: u32 = DECIDING.len() as u32;

pub(super) fn deciding(name: &str) -> Option<Deciding> {
    TABLES
        .possible
        .holds(name)
        .then(|| TABLES.exact.get(name).copied())
        .flatten()
}

pub(super) fn spending(name: &str) -> Option<KeyRole> {
    TABLES
        .possible
        .holds(name)
        .then(|| TABLES.spending.get(name).copied())
        .flatten()
}

/// The key that a lenient parser would take `name` for, if `name` is not that key itself.
pub(super) fn twin(name: &str) -> Option<&'static str> {
    if name.is_ascii() && (!TABLES.possible.holds(name) || TABLES.exact.contains_key(name)) {
        return None;
    }
    if !name.is_ascii() {
        return folds_to_ascii(name)
            .then(|| TABLES.folded.get(&fold(name)))
            .flatten()
            .map(|d| d.name);
    }
    let mut lower = [0u8; 32];
    let lower = lower
        .get_mut(..name.len())
        .filter(|_| name.len() <= TABLES.longest)?;
    lower.copy_from_slice(name.as_bytes());
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower)
        .ok()
        .and_then(|lower| TABLES.folded.get(lower))
        .map(|d| d.name)
}

/// Could the name be one of our keys without case and compatibility characters? Most names in
/// other scripts are told by their first letter.
fn folds_to_ascii(name: &str) -> bool {
    let ascii = |c: char| {
        c.is_ascii()
            || std::iter::once(c)
                .nfkc()
                .flat_map(char::to_uppercase)
                .flat_map(char::to_lowercase)
                .all(|c| c.is_ascii())
    };
    name.len() <= 8 * TABLES.longest && name.chars().all(ascii)
}

/// A key as a lenient parser would compare it: compatibility characters decomposed (full width,
/// mathematical, circled), and without case (a long s, a Kelvin sign).
pub(super) fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    name.nfkc()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .nfkc()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_one_meaning_and_a_bit() {
        const { assert!(COUNT + 32 < 128, "the bits of an object's keys") };
        assert_eq!(TABLES.exact.len(), DECIDING.len());
        assert!(TABLES.longest < TABLES.possible.0.len());
        for (name, _) in DECIDING {
            assert!(
                spending(name).is_none() && !OPAQUE.contains(name) && !CONTENT.contains(name),
                "{name}"
            );
            assert!(
                deciding(name).is_some() && twin(&name.to_uppercase()).is_some(),
                "{name}"
            );
        }
    }

    #[test]
    fn keys_that_only_a_lenient_parser_equates_are_found() {
        for odd in [
            "Model",
            "MODEL",
            "ⓜodel",
            "ℳodel",
            "MODEℓ",
            "𝐦odel",
            "ｍodel",
            "fallback\u{17f}",
            "mcpservers",
            "MCPSERVERS",
            "server_URL",
            "FileUri",
        ] {
            assert!(twin(odd).is_some(), "{odd}");
        }
        for plain in ["tool", "modeling", "temperature", "naïve", "größe"] {
            assert!(twin(plain).is_none(), "{plain}");
        }
    }
}
