//! Step 4 of a request: every place in its body that can name a model, a server or a stored
//! object, and what tells how much it can cost.
//!
//! Invariants:
//! - All of the body is strict JSON. Where several parsers could disagree about a key that
//!   decides (twice, escaped, in another case), the request is refused.
//! - A model that cannot be determined is a refusal, never a skipped check.
//! - The user's words never decide: of the content, only references to stored objects and
//!   definitions of tools are looked at.

mod keys;
mod scanner;

pub mod facts;

use self::facts::RequestFacts;
use crate::base::json::{JsonEvent, Parser};
use crate::sidecar::id::is_id;
use crate::sidecar::provider::{BodyRules, Feature, ModelPlace, StreamBy};
use crate::sidecar::record::{AuditRecord, Describe};
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::body::buffered::BufferedBody;
use crate::sidecar::steps::model::scanner::ModelScanner;
use crate::sidecar::steps::route::Routed;

/// Proof that the whole body of a request was read, with all that it asks for.
#[derive(Debug)]
pub struct Read {
    routed: Routed,
    body: BufferedBody,
    facts: RequestFacts,
}

impl Read {
    pub fn routed(&self) -> &Routed {
        &self.routed
    }

    pub fn body(&self) -> &BufferedBody {
        &self.body
    }

    pub fn facts(&self) -> &RequestFacts {
        &self.facts
    }

    pub fn into_parts(self) -> (Routed, BufferedBody, RequestFacts) {
        (self.routed, self.body, self.facts)
    }
}

impl Describe for Read {
    fn describe(&self, record: &mut AuditRecord) {
        record.model_requested = self.facts.main_model().map(str::to_owned);
        record.stream = self.facts.stream();
    }
}

/// Reads what the request asks for.
///
/// # Errors
/// `bad_request` where the body is not a JSON object, or leaves a doubt about the model.
pub async fn read(routed: Routed, body: BufferedBody) -> Result<Read, Refusal> {
    let facts = facts_of(&routed, &body).await?;
    Ok(Read {
        routed,
        body,
        facts,
    })
}

async fn facts_of(route: &Routed, body: &BufferedBody) -> Result<RequestFacts, Refusal> {
    let endpoint = route.endpoint();
    let mut facts = match endpoint.body.model {
        ModelPlace::NoBody => RequestFacts::default(),
        _ => walk(endpoint.body, body, endpoint.stream).await?,
    };
    match endpoint.body.model {
        ModelPlace::NoBody => facts.main = route.model().map(str::to_owned),
        ModelPlace::Path => {
            let path = route.model().unwrap_or_default();
            let strip = |m: String| m.strip_prefix("models/").map(str::to_owned).unwrap_or(m);
            if let Some(main) = facts.main.take().map(strip).filter(|m| m != path) {
                return Err(doubt(format!(
                    "the path names model `{path}`, the body `{main}`"
                )));
            }
            facts.extra = facts
                .extra
                .into_iter()
                .map(strip)
                .filter(|m| m != path)
                .collect();
            facts.main = Some(path.to_owned());
        }
        ModelPlace::BodyOrFirst if facts.main.is_none() && !facts.extra.is_empty() => {
            facts.main = Some(facts.extra.remove(0))
        }
        // An agent that is kept at the provider brings its own model.
        ModelPlace::BodyOrAgent
            if facts.main.is_none() && facts.features.contains(&Feature::StoredObjects) =>
        {
            facts.any = true
        }
        ModelPlace::Body | ModelPlace::BodyOrFirst | ModelPlace::BodyOrAgent
            if facts.main.is_none() =>
        {
            return Err(doubt("`model` is missing".into()));
        }
        ModelPlace::Body | ModelPlace::BodyOrFirst | ModelPlace::BodyOrAgent => {}
    }
    if let Some(odd) = facts.models().find(|m| !is_id(m)) {
        return Err(doubt(format!("`{}` is not a model id", odd.escape_debug())));
    }
    Ok(facts)
}

fn doubt(what: String) -> Refusal {
    Refusal::new(
        Code::BadRequest,
        format!("cannot determine the model of this request: {what}"),
    )
}

/// What is walked before others have their turn: some 50 µs of prose, 1 ms of keys.
const TURN: usize = 128 * 1024;

/// Walks the whole body, and gives the thread back on the way.
async fn walk(
    rules: &'static BodyRules,
    body: &BufferedBody,
    stream: StreamBy,
) -> Result<RequestFacts, Refusal> {
    let mut scanner = ModelScanner::new(rules, stream);
    let mut parser = Parser::new();
    let mut parsed = Ok(());
    let mut pieces = body.pieces().iter().peekable();
    let mut walked = 0;
    while let Some(piece) = pieces.next() {
        parsed = parser.feed(piece, &mut |e: JsonEvent<'_>| scanner.event(e));
        if parsed.is_err() || scanner.fault.is_some() {
            break;
        }
        walked += piece.len();
        if walked >= TURN && pieces.peek().is_some() {
            walked = 0;
            tokio::task::yield_now().await;
        }
    }
    if let Some(fault) = scanner.fault {
        return Err(doubt(fault));
    }
    let parsed = parsed.and_then(|()| parser.finish(&mut |e: JsonEvent<'_>| scanner.event(e)));
    if let Err(e) = parsed {
        return Err(Refusal::new(
            Code::BadRequest,
            format!("the request body is not JSON: {e}"),
        ));
    }
    match scanner.fault {
        Some(fault) => Err(doubt(fault)),
        None => Ok(scanner.facts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    use crate::sidecar::provider::{anthropic, google, openai};

    fn walk_in(body: &str, rules: &'static BodyRules) -> Result<RequestFacts, Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let walk = |pieces| {
            runtime.block_on(super::walk(
                rules,
                &BufferedBody::of(pieces),
                StreamBy::Flag,
            ))
        };
        let whole = walk(vec![Bytes::from(body.to_owned())]);
        let split = walk(
            body.as_bytes()
                .chunks(1)
                .map(Bytes::copy_from_slice)
                .collect(),
        );
        assert_eq!(whole.as_ref().ok(), split.as_ref().ok());
        whole
    }

    fn body_of(
        provider: &'static crate::sidecar::provider::Provider,
        endpoint: &str,
    ) -> &'static BodyRules {
        provider
            .endpoints
            .iter()
            .find(|e| e.name == endpoint)
            .unwrap()
            .body
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
        assert!(
            walk_in(r#"{"model":"a","fallbacks":"default"}"#, messages)
                .unwrap()
                .any
        );
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
        assert_eq!(
            features(r#"{"model":"a","mcp_servers":[],"container":null}"#),
            []
        );
        assert_eq!(
            features(r#"{"model":"a","mcp_servers":[{"url":"x"}],"container":"c"}"#),
            [Feature::McpServers, Feature::StoredObjects]
        );
        let responses = body_of(&openai::PROVIDER, "responses");
        let features = |b: &str| walk_in(b, responses).unwrap().features;
        assert_eq!(
            features(r#"{"model":"a","background":false,"previous_response_id":null}"#),
            []
        );
        assert_eq!(
            features(
                r#"{"model":"a","background":true,"tools":[{"type":"mcp","server_url":"https://x"}]}"#
            ),
            [Feature::Background, Feature::McpServers]
        );
    }
}
