//! The Gemini API, as `@google/genai` reads it.

use serde_json::{Value, json};

use super::{Api, Ask, Tool, Wanted, pieces, schema_at, sse, text_of, tokens};
use crate::rehearsal::reply::{Finish, ScriptedReply};

pub(super) const API: Api = Api {
    header: None,
    route,
    read,
    reply,
    events,
    error,
    models,
};

fn route(method: &str, path: &str) -> Option<Wanted> {
    let rest = path
        .strip_prefix("/v1beta/models")
        .or_else(|| path.strip_prefix("/v1/models"))?;
    if (method, rest) == ("GET", "") && path.starts_with("/v1beta/") {
        return Some(Wanted::Models);
    }
    match (method, rest.rsplit(':').next()?) {
        ("POST", "generateContent") => Some(Wanted::Inference("whole")),
        ("POST", "streamGenerateContent") => Some(Wanted::Inference("stream")),
        ("POST", "countTokens") => Some(Wanted::Count("totalTokens")),
        _ => None,
    }
}

fn read(path: &str, body: &Value) -> Ask {
    let empty = Vec::new();
    let contents = body["contents"].as_array().unwrap_or(&empty);
    let outputs = |c: &Value| -> Option<String> {
        let texts: Vec<String> = c["parts"]
            .as_array()?
            .iter()
            .filter_map(|p| p.get("functionResponse"))
            .map(|r| {
                r["response"]["output"]
                    .as_str()
                    .map_or_else(|| r["response"].to_string(), str::to_owned)
            })
            .collect();
        (!texts.is_empty()).then(|| texts.join("\n"))
    };
    let declared = body["tools"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .filter_map(|t| t["functionDeclarations"].as_array())
        .flatten();
    let schema = |t: &Value| {
        if t["parametersJsonSchema"].is_object() {
            t["parametersJsonSchema"].clone()
        } else {
            t["parameters"].clone()
        }
    };
    let is_user = |c: &&Value| c["role"] == "user" && outputs(c).is_none();
    Ask {
        model: path
            .rsplit('/')
            .next()
            .and_then(|s| s.split(':').next())
            .unwrap_or_default()
            .to_owned(),
        stream: path.ends_with(":streamGenerateContent"),
        prompt: contents
            .iter()
            .rev()
            .find(is_user)
            .map(|c| text_of(&c["parts"]))
            .unwrap_or_default(),
        tool_output: contents.last().and_then(outputs),
        tools: declared
            .filter_map(|t| {
                Some(Tool {
                    name: t["name"].as_str()?.to_owned(),
                    namespace: None,
                    schema: schema(t),
                    freeform: false,
                })
            })
            .collect(),
        schema: schema_at(
            body,
            &[
                "/generationConfig/responseJsonSchema",
                "/generationConfig/responseSchema",
                "/generationConfig/_responseJsonSchema",
                "/generationConfig/response_schema",
            ],
        )
        .or_else(|| {
            (body["generationConfig"]["responseMimeType"] == "application/json")
                .then(|| json!({ "type": "object" }))
        }),
        ..Ask::default()
    }
}

fn usage(ask: &Ask, reply: &ScriptedReply) -> Value {
    let (prompt, thoughts) = (
        tokens(ask.bytes),
        reply.reasoning.as_ref().map_or(0, |r| tokens(r.len())),
    );
    let calls: usize = reply.calls.iter().map(|c| c.input.to_string().len()).sum();
    let out = tokens(reply.text.as_ref().map_or(0, String::len) + calls);
    json!({ "promptTokenCount": prompt, "candidatesTokenCount": out, "thoughtsTokenCount": thoughts, "totalTokenCount": prompt + out + thoughts })
}

fn chunk(ask: &Ask, parts: &[Value], end: Option<(&ScriptedReply, Value)>) -> Value {
    let mut candidate = json!({ "content": { "role": "model", "parts": parts }, "index": 0 });
    let mut v = json!({ "modelVersion": ask.model, "responseId": "rehearsal" });
    if let Some((reply, usage)) = end {
        candidate["finishReason"] = json!(if reply.finish == Finish::MaxTokens {
            "MAX_TOKENS"
        } else {
            "STOP"
        });
        v["usageMetadata"] = usage;
    } else {
        v["usageMetadata"] =
            json!({ "promptTokenCount": tokens(ask.bytes), "totalTokenCount": tokens(ask.bytes) });
    }
    v["candidates"] = json!([candidate]);
    v
}

fn calls(reply: &ScriptedReply) -> Vec<Value> {
    reply
        .calls
        .iter()
        .map(|c| json!({ "functionCall": { "name": c.name, "args": c.input } }))
        .collect()
}

fn thought(text: &str) -> Value {
    json!({ "text": format!("**Rehearsing**\n{text}"), "thought": true })
}

fn reply(ask: &Ask, reply: &ScriptedReply, _: &str) -> Value {
    let mut parts: Vec<Value> = reply.reasoning.iter().map(|r| thought(r)).collect();
    parts.extend(reply.text.iter().map(|t| json!({ "text": t })));
    parts.extend(calls(reply));
    chunk(ask, &parts, Some((reply, usage(ask, reply))))
}

fn events(ask: &Ask, reply: &ScriptedReply, _: &str) -> Vec<String> {
    let mut out: Vec<Value> = reply
        .reasoning
        .iter()
        .map(|r| chunk(ask, &[thought(r)], None))
        .collect();
    if let Some(text) = &reply.text {
        out.extend(
            pieces(text, reply.chunks)
                .into_iter()
                .map(|p| chunk(ask, &[json!({ "text": p })], None)),
        );
    }
    let mut last = calls(reply);
    if last.is_empty() {
        last.push(json!({ "text": "" }));
    }
    out.push(chunk(ask, &last, Some((reply, usage(ask, reply)))));
    // Google ends its lines with CRLF.
    out.into_iter()
        .map(|v| sse(None, &v).replace('\n', "\r\n"))
        .collect()
}

fn error(status: u16, message: &str) -> Value {
    let name = match status {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        503 | 529 => "UNAVAILABLE",
        _ => "INTERNAL",
    };
    json!({ "error": { "code": status, "message": message, "status": name } })
}

fn models(ids: &[&str]) -> Value {
    let all: Vec<Value> = ids
        .iter()
        .map(|id| json!({ "name": format!("models/{id}"), "displayName": id, "inputTokenLimit": 1_000_000, "outputTokenLimit": 65_536, "supportedGenerationMethods": ["generateContent", "countTokens"] }))
        .collect();
    json!({ "models": all })
}
