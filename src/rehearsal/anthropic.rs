//! The Messages API, as `@anthropic-ai/sdk` reads it.

use serde_json::{Value, json};

use super::{Api, Ask, Tool, Wanted, pieces, schema_at, sse, text_of, tokens};
use crate::base::token::{hex_to_letters, random_hex};
use crate::rehearsal::reply::{Finish, ScriptedReply};

pub(super) const API: Api = Api {
    header: Some("anthropic-version"),
    route,
    read,
    reply,
    events,
    error,
    models,
};

fn route(method: &str, path: &str) -> Option<Wanted> {
    match (method, path) {
        ("POST", "/v1/messages") => Some(Wanted::Inference("messages")),
        ("GET", "/v1/models") => Some(Wanted::Models),
        ("POST", "/v1/messages/count_tokens") => Some(Wanted::Count("input_tokens")),
        _ => None,
    }
}

fn read(_: &str, body: &Value) -> Ask {
    let empty = Vec::new();
    let messages = body["messages"].as_array().unwrap_or(&empty);
    let users = || messages.iter().rev().filter(|m| m["role"] == "user");
    let results = |m: &Value| -> Option<String> {
        let parts = m["content"].as_array()?;
        // Behind a tool that was interrupted, its result and the next prompt share a message.
        if parts.iter().any(|p| {
            p["type"] == "text" && p["text"].as_str().is_some_and(|t| t.contains("rehearse:"))
        }) {
            return None;
        }
        let texts: Vec<String> = parts
            .iter()
            .filter(|p| p["type"] == "tool_result")
            .map(|p| text_of(&p["content"]))
            .collect();
        (!texts.is_empty()).then(|| texts.join("\n"))
    };
    let mut calls = messages
        .iter()
        .filter(|m| m["role"] == "assistant")
        .flat_map(|m| m["content"].as_array().into_iter().flatten());
    let tools = body["tools"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .filter_map(|t| {
            Some(Tool {
                name: t["name"].as_str()?.to_owned(),
                namespace: None,
                schema: t["input_schema"].clone(),
                freeform: false,
            })
        });
    Ask {
        stream: body["stream"] == true,
        prompt: users()
            .find(|m| results(m).is_none())
            .map(|m| text_of(&m["content"]))
            .unwrap_or_default(),
        tool_output: users().next().and_then(results),
        last_call: calls
            .rfind(|block| block["type"] == "tool_use")
            .and_then(|call| call["name"].as_str())
            .map(str::to_owned),
        mcp_name: mcp_name(body),
        tools: tools.collect(),
        schema: schema_at(
            body,
            &["/output_config/format/schema", "/output_format/schema"],
        ),
        ..Ask::default()
    }
}

/// Claude Code lists the tools that it does not offer at first in words.
fn mcp_name(body: &Value) -> Option<String> {
    let text = format!("{}{}", body["system"], body["messages"]);
    let named = text.get(text.find("mcp__")?..)?;
    Some(
        named
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
            .collect(),
    )
}

fn blocks(reply: &ScriptedReply) -> Vec<Value> {
    let mut all = Vec::new();
    if let Some(thinking) = &reply.reasoning {
        all.push(json!({ "type": "thinking", "thinking": thinking, "signature": "cmVoZWFyc2Fs" }));
    }
    if let Some(text) = &reply.text {
        all.push(json!({ "type": "text", "text": text }));
    }
    for (i, call) in reply.calls.iter().enumerate() {
        all.push(json!({ "type": "tool_use", "id": id("toolu", i), "name": call.name, "input": call.input }));
    }
    all
}

fn id(prefix: &str, i: usize) -> String {
    format!("{prefix}_{}{i}", random_hex())
}

fn stop_reason(reply: &ScriptedReply) -> &'static str {
    match reply.finish {
        Finish::MaxTokens => "max_tokens",
        Finish::Done if reply.calls.is_empty() => "end_turn",
        Finish::Done => "tool_use",
    }
}

fn output_tokens(reply: &ScriptedReply) -> u64 {
    tokens(blocks(reply).iter().map(|b| b.to_string().len()).sum())
}

fn usage(ask: &Ask, output: u64) -> Value {
    json!({ "input_tokens": tokens(ask.bytes), "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": output })
}

fn reply(ask: &Ask, reply: &ScriptedReply, _: &str) -> Value {
    json!({
        "id": id("msg", 0), "type": "message", "role": "assistant", "model": ask.model, "content": blocks(reply),
        "stop_reason": stop_reason(reply), "stop_sequence": null, "usage": usage(ask, output_tokens(reply)),
    })
}

fn events(ask: &Ask, reply: &ScriptedReply, _: &str) -> Vec<String> {
    let event = |v: Value| sse(v["type"].as_str(), &v);
    let message = json!({ "id": id("msg", 0), "type": "message", "role": "assistant", "model": ask.model, "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage(ask, 1) });
    let mut out = vec![event(
        json!({ "type": "message_start", "message": message }),
    )];
    for (index, block) in blocks(reply).into_iter().enumerate() {
        let (empty, deltas): (Value, Vec<Value>) = match block["type"].as_str() {
            Some("text") => {
                let text = block["text"].as_str().unwrap_or_default();
                (
                    json!({ "type": "text", "text": "" }),
                    pieces(text, reply.chunks)
                        .into_iter()
                        .map(|p| json!({ "type": "text_delta", "text": p }))
                        .collect(),
                )
            }
            Some("thinking") => {
                let text = block["thinking"].as_str().unwrap_or_default();
                let mut deltas: Vec<Value> = pieces(text, 4)
                    .into_iter()
                    .map(|p| json!({ "type": "thinking_delta", "thinking": p }))
                    .collect();
                deltas.push(json!({ "type": "signature_delta", "signature": block["signature"] }));
                (
                    json!({ "type": "thinking", "thinking": "", "signature": "" }),
                    deltas,
                )
            }
            _ => {
                let mut start = block.clone();
                start["input"] = json!({});
                (
                    start,
                    pieces(&block["input"].to_string(), 2)
                        .into_iter()
                        .map(|p| json!({ "type": "input_json_delta", "partial_json": p }))
                        .collect(),
                )
            }
        };
        out.push(event(
            json!({ "type": "content_block_start", "index": index, "content_block": empty }),
        ));
        out.extend(
            deltas.into_iter().map(|d| {
                event(json!({ "type": "content_block_delta", "index": index, "delta": d }))
            }),
        );
        out.push(event(
            json!({ "type": "content_block_stop", "index": index }),
        ));
    }
    out.push(event(json!({ "type": "message_delta", "delta": { "stop_reason": stop_reason(reply), "stop_sequence": null }, "usage": { "output_tokens": output_tokens(reply) } })));
    out.push(event(json!({ "type": "message_stop" })));
    out
}

fn error(status: u16, message: &str) -> Value {
    let kind = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": format!("req_{}", hex_to_letters(&random_hex())) })
}

fn models(ids: &[&str]) -> Value {
    let all: Vec<Value> = ids.iter().map(|id| json!({ "type": "model", "id": id, "display_name": id, "created_at": "2026-01-01T00:00:00Z" })).collect();
    json!({ "data": all, "has_more": false, "first_id": ids.first(), "last_id": ids.last() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_models_has_the_shape_of_this_api() {
        assert_eq!(models(&["a", "b"])["last_id"], "b");
        assert_eq!(
            models(&[]),
            json!({ "data": [], "has_more": false, "first_id": null, "last_id": null })
        );
    }
}
