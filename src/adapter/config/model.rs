//! Which model a session uses.

use std::collections::BTreeMap;

use super::{AdapterConfig, Flags};
use crate::adapter::runtime::{Env, Runtime};
use crate::base::settings::{Problems, did_you_mean, shown};

/// A model is warned of when it ends within so many days.
pub(super) const ENDS_SOON: i64 = 60;

/// What there is to say of a model that the provider will not serve for long, or not any more.
pub(super) fn ends_soon(model: &str) -> Option<String> {
    let (provider, name) = model.split_once('/')?;
    let end = crate::catalogue::end_of(provider, name)?;
    let left = format!("{end}T00:00:00Z")
        .parse::<jiff::Timestamp>()
        .ok()?
        .as_second()
        - jiff::Timestamp::now().as_second();
    let days = left.div_euclid(86_400);
    match days {
        ..0 => Some(format!(
            "model `{model}` has ended on {end}: choose another"
        )),
        0..=ENDS_SOON => Some(format!(
            "model `{model}` ends on {end}, in {days} days: choose another before that"
        )),
        _ => None,
    }
}

/// Flag, environment, tier, the runtime's, its default: the first that says something.
pub(super) fn with_model(
    mut config: AdapterConfig,
    agent: &Agent,
    flags: &Flags,
    env: Env<'_>,
    problems: &Problems,
) -> Option<AdapterConfig> {
    let runtime = config.runtime;
    let tier = tier_model(runtime, agent, flags, problems);
    let of_agent = format!("agents.agentRuntimes.{}.model", runtime.id);
    let said = [
        ("--model", flags.model.clone()),
        ("the environment's model", (runtime.model_in_env)(env)),
        ("--tier", tier),
        (of_agent.as_str(), agent.model.clone()),
    ];
    let (place, model) = said
        .into_iter()
        .find_map(|(place, model)| Some((place, model?)))
        .unwrap_or_else(|| ("the runtime's model", runtime.default_model.to_owned()));
    config.native_model = agent
        .map
        .get(&model)
        .cloned()
        .unwrap_or_else(|| model.clone());
    let reachable = config
        .native_model
        .split_once('/')
        .is_some_and(|(provider, name)| runtime.providers.contains(&provider) && !name.is_empty());
    if !reachable {
        let what = unreachable_model(runtime, &model, &config.native_model);
        problems.add(place, what);
        return None;
    }
    config.warnings.extend(ends_soon(&config.native_model));
    config.model = model;
    Some(config)
}

/// The model of the tier that `--tier` names.
fn tier_model(
    runtime: &Runtime,
    agent: &Agent,
    flags: &Flags,
    problems: &Problems,
) -> Option<String> {
    let tier = flags.tier.as_ref()?;
    let model = agent.tiers.get(tier);
    if model.is_none() {
        let id = runtime.id;
        let known: Vec<_> = agent.tiers.keys().map(|t| format!("`{t}`")).collect();
        let known = match known.as_slice() {
            [] => format!("none; tiers stand in `agents.agentRuntimes.{id}.modelTiers`"),
            known => known.join(", "),
        };
        let what = format!("{} is not a tier of `{id}`; known: {known}", shown(tier));
        problems.add("--tier", what);
    }
    model.cloned()
}

/// The message for a model whose provider the runtime cannot reach.
fn unreachable_model(runtime: &Runtime, model: &str, native: &str) -> String {
    let provider = native.split_once('/').map_or("", |(provider, _)| provider);
    let known = crate::catalogue::provider_of(model);
    let meant = match known.filter(|provider| runtime.providers.contains(provider)) {
        Some(provider) => format!("; did you mean `{provider}/{model}`?"),
        None => did_you_mean(provider, runtime.providers.iter().copied()),
    };
    let some = match runtime.providers {
        [_] => "the provider",
        _ => "one of the providers",
    };
    format!(
        "{} is not a model that `{}` can reach: it is `<provider>/<model>`, with {some} `{}`{meant}",
        shown(model),
        runtime.id,
        runtime.providers.join("`, `")
    )
}

/// What `agents` says of one runtime.
#[derive(Debug, Default)]
pub(super) struct Agent {
    pub(super) adapter: Option<String>,
    pub(super) model: Option<String>,
    pub(super) tiers: BTreeMap<String, String>,
    pub(super) map: BTreeMap<String, String>,
    /// As they stand in the file.
    pub(super) env: BTreeMap<String, String>,
    pub(super) program: Option<String>,
}
