//! Imitates OpenAI's Responses and Chat Completions APIs, in the form that the `openai` SDK and
//! Codex can read.

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
    match (method, path.strip_prefix("/v1").unwrap_or(path)) {
        ("POST", "/responses" | "/responses/compact") => Some(Wanted::Inference("responses")),
        ("POST", "/chat/completions") => Some(Wanted::Inference("chat")),
        ("POST", "/responses/input_tokens") => Some(Wanted::Count("input_tokens")),
        ("GET", "/models") => Some(Wanted::Models),
        _ => None,
    }
}

fn read(path: &str, body: &Value) -> Ask {
    let mut ask = if path.ends_with("/chat/completions") {
        read_chat(body)
    } else {
        read_responses(body)
    };
    ask.stream = body["stream"] == true;
    // A `json_object` format has no schema: every JSON object is valid.
    let any = [&body["response_format"], &body["text"]["format"]]
        .into_iter()
        .any(|f| f["type"] == "json_object");
    ask.schema = schema_at(
        body,
        &["/response_format/json_schema/schema", "/text/format/schema"],
    )
    .or_else(|| any.then(|| json!({ "type": "object" })));
    ask.stream_usage = body["stream_options"]["include_usage"] == true;
    ask
}

fn read_chat(body: &Value) -> Ask {
    let empty = Vec::new();
    let messages = body["messages"].as_array().unwrap_or(&empty);
    let last = messages.last().cloned().unwrap_or_default();
    Ask {
        prompt: messages
            .iter()
            .rev()
            .find(|m| m["role"] == "user")
            .map(|m| text_of(&m["content"]))
            .unwrap_or_default(),
        tool_output: (last["role"] == "tool").then(|| text_of(&last["content"])),
        tools: body["tools"]
            .as_array()
            .unwrap_or(&empty)
            .iter()
            .filter_map(|t| tool(&t["function"]))
            .collect(),
        ..Ask::default()
    }
}

fn tool(t: &Value) -> Option<Tool> {
    Some(Tool {
        name: t["name"].as_str()?.to_owned(),
        namespace: None,
        schema: t["parameters"].clone(),
        freeform: t["type"] == "custom",
    })
}

fn read_responses(body: &Value) -> Ask {
    let empty = Vec::new();
    let items = body["input"].as_array().unwrap_or(&empty);
    let is_output = |i: &Value| {
        i["type"]
            .as_str()
            .is_some_and(|t| t.ends_with("_call_output"))
    };
    let last = items.iter().rev().find(|i| i["type"] != "reasoning");
    let output = last.filter(|i| is_output(i)).map(|i| match &i["output"] {
        Value::String(s) => s.clone(),
        other => text_of(other),
    });
    let prompt = match &body["input"] {
        Value::String(s) => s.clone(),
        _ => items
            .iter()
            .rev()
            .find(|i| i["role"] == "user")
            .map(|i| text_of(&i["content"]))
            .unwrap_or_default(),
    };
    let lite = items
        .first()
        .filter(|i| i["type"] == "additional_tools")
        .and_then(|i| i["tools"].as_array());
    let mut tools = Vec::new();
    for t in body["tools"].as_array().into_iter().chain(lite).flatten() {
        match t["type"].as_str() {
            Some("namespace") => {
                let namespace = t["name"].as_str().map(str::to_owned);
                let within = t["tools"].as_array().into_iter().flatten().filter_map(tool);
                tools.extend(within.map(|t| Tool {
                    namespace: namespace.clone(),
                    ..t
                }));
            }
            Some("function" | "custom") => tools.extend(tool(t)),
            _ => {}
        }
    }
    Ask {
        prompt,
        tool_output: output,
        tools,
        ..Ask::default()
    }
}

fn id(prefix: &str) -> String {
    format!("{prefix}_{}", crate::base::token::random_hex())
}

fn output_tokens(reply: &ScriptedReply) -> u64 {
    tokens(items(reply).to_string().len())
}

fn items(reply: &ScriptedReply) -> Value {
    let mut all = Vec::new();
    if let Some(text) = &reply.reasoning {
        all.push(json!({ "type": "reasoning", "id": id("rs"), "summary": [{ "type": "summary_text", "text": text }] }));
    }
    if let Some(text) = &reply.text {
        all.push(json!({ "type": "message", "id": id("msg"), "role": "assistant", "status": "completed", "content": [{ "type": "output_text", "text": text, "annotations": [] }] }));
    }
    for call in &reply.calls {
        let mut item = match call.input.as_str().filter(|_| call.freeform) {
            Some(text) => {
                json!({ "type": "custom_tool_call", "id": id("ctc"), "call_id": id("call"), "name": call.name, "input": text, "status": "completed" })
            }
            None => {
                json!({ "type": "function_call", "id": id("fc"), "call_id": id("call"), "name": call.name, "arguments": call.input.to_string(), "status": "completed" })
            }
        };
        if let Some(namespace) = &call.namespace {
            item["namespace"] = json!(namespace);
        }
        all.push(item);
    }
    Value::Array(all)
}

fn response(ask: &Ask, reply: &ScriptedReply, output: Value, id: &str) -> Value {
    let (input, out) = (tokens(ask.bytes), output_tokens(reply));
    let incomplete = reply.finish == Finish::MaxTokens;
    json!({
        "id": id, "object": "response", "created_at": 1_763_700_000, "model": ask.model,
        "status": if incomplete { "incomplete" } else { "completed" }, "error": null,
        "incomplete_details": if incomplete { json!({ "reason": "max_output_tokens" }) } else { Value::Null },
        "output": output, "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "service_tier": "default",
        "usage": { "input_tokens": input, "input_tokens_details": { "cached_tokens": 0 }, "output_tokens": out, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": input + out },
    })
}

fn chat_usage(ask: &Ask, reply: &ScriptedReply) -> Value {
    let (input, out) = (tokens(ask.bytes), output_tokens(reply));
    json!({ "prompt_tokens": input, "completion_tokens": out, "total_tokens": input + out, "prompt_tokens_details": { "cached_tokens": 0 }, "completion_tokens_details": { "reasoning_tokens": 0 } })
}

fn finish_reason(reply: &ScriptedReply) -> &'static str {
    match reply.finish {
        Finish::MaxTokens => "length",
        Finish::Done if reply.calls.is_empty() => "stop",
        Finish::Done => "tool_calls",
    }
}

fn tool_calls(reply: &ScriptedReply) -> Vec<Value> {
    let call = |(i, c): (usize, &crate::rehearsal::reply::ScriptedCall)| json!({ "index": i, "id": id("call"), "type": "function", "function": { "name": c.name, "arguments": c.input.to_string() } });
    reply.calls.iter().enumerate().map(call).collect()
}

fn reply(ask: &Ask, reply: &ScriptedReply, kind: &str) -> Value {
    if kind == "responses" {
        return response(ask, reply, items(reply), &id("resp"));
    }
    let mut message = json!({ "role": "assistant", "content": reply.text, "refusal": null });
    if !reply.calls.is_empty() {
        message["tool_calls"] = tool_calls(reply).into();
    }
    json!({ "id": id("chatcmpl"), "object": "chat.completion", "created": 1_763_700_000, "model": ask.model, "choices": [{ "index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(reply) }], "usage": chat_usage(ask, reply) })
}

fn events(ask: &Ask, reply: &ScriptedReply, kind: &str) -> Vec<String> {
    if kind == "responses" {
        response_events(ask, reply)
    } else {
        chat_events(ask, reply)
    }
}

fn chat_events(ask: &Ask, reply: &ScriptedReply) -> Vec<String> {
    let id = id("chatcmpl");
    let chunk = |delta: Value, finish: Option<&str>| {
        let mut v = json!({ "id": id, "object": "chat.completion.chunk", "created": 1_763_700_000, "model": ask.model, "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] });
        if ask.stream_usage {
            v["usage"] = Value::Null;
        }
        sse(None, &v)
    };
    let mut out = vec![chunk(json!({ "role": "assistant", "content": "" }), None)];
    if let Some(reasoning) = &reply.reasoning {
        out.extend(
            pieces(reasoning, 4)
                .into_iter()
                .map(|p| chunk(json!({ "reasoning_content": p }), None)),
        );
    }
    if let Some(text) = &reply.text {
        out.extend(
            pieces(text, reply.chunks)
                .into_iter()
                .map(|p| chunk(json!({ "content": p }), None)),
        );
    }
    out.extend(
        tool_calls(reply)
            .into_iter()
            .map(|c| chunk(json!({ "tool_calls": [c] }), None)),
    );
    out.push(chunk(json!({}), Some(finish_reason(reply))));
    if ask.stream_usage {
        out.push(sse(None, &json!({ "id": id, "object": "chat.completion.chunk", "created": 1_763_700_000, "model": ask.model, "choices": [], "usage": chat_usage(ask, reply) })));
    }
    out.push("data: [DONE]\n\n".into());
    out
}

fn response_events(ask: &Ask, reply: &ScriptedReply) -> Vec<String> {
    let id = id("resp");
    let items = items(reply);
    let mut out = Vec::new();
    let mut sequence = 0;
    let mut push = |mut v: Value| {
        v["sequence_number"] = json!(sequence);
        sequence += 1;
        out.push(sse(v["type"].as_str(), &v));
    };
    let mut begun = response(ask, reply, json!([]), &id);
    begun["status"] = json!("in_progress");
    begun["usage"] = Value::Null;
    push(json!({ "type": "response.created", "response": begun }));
    push(json!({ "type": "response.in_progress", "response": begun }));
    for (index, item) in items.as_array().into_iter().flatten().enumerate() {
        let mut open = item.clone();
        match item["type"].as_str() {
            Some("message") => {
                open["status"] = json!("in_progress");
                open["content"] = json!([]);
                let text = item["content"][0]["text"].as_str().unwrap_or_default();
                let at =
                    json!({ "item_id": item["id"], "output_index": index, "content_index": 0 });
                let with = |kind: &str, extra: Value| {
                    let mut v = at.clone();
                    v["type"] = json!(kind);
                    for (k, x) in extra.as_object().into_iter().flatten() {
                        v[k] = x.clone();
                    }
                    v
                };
                push(
                    json!({ "type": "response.output_item.added", "output_index": index, "item": open }),
                );
                push(with(
                    "response.content_part.added",
                    json!({ "part": { "type": "output_text", "text": "", "annotations": [] } }),
                ));
                for p in pieces(text, reply.chunks) {
                    push(with("response.output_text.delta", json!({ "delta": p })));
                }
                push(with("response.output_text.done", json!({ "text": text })));
                push(with(
                    "response.content_part.done",
                    json!({ "part": item["content"][0] }),
                ));
            }
            Some("reasoning") => {
                open["summary"] = json!([]);
                let text = item["summary"][0]["text"].as_str().unwrap_or_default();
                push(
                    json!({ "type": "response.output_item.added", "output_index": index, "item": open }),
                );
                push(
                    json!({ "type": "response.reasoning_summary_part.added", "item_id": item["id"], "output_index": index, "summary_index": 0, "part": { "type": "summary_text", "text": "" } }),
                );
                for p in pieces(text, 4) {
                    push(
                        json!({ "type": "response.reasoning_summary_text.delta", "item_id": item["id"], "output_index": index, "summary_index": 0, "delta": p }),
                    );
                }
                push(
                    json!({ "type": "response.reasoning_summary_text.done", "item_id": item["id"], "output_index": index, "summary_index": 0, "text": text }),
                );
                push(
                    json!({ "type": "response.reasoning_summary_part.done", "item_id": item["id"], "output_index": index, "summary_index": 0, "part": item["summary"][0] }),
                );
            }
            Some("custom_tool_call") => {
                open["input"] = json!("");
                open["status"] = json!("in_progress");
                push(
                    json!({ "type": "response.output_item.added", "output_index": index, "item": open }),
                );
                push(
                    json!({ "type": "response.custom_tool_call_input.delta", "item_id": item["id"], "output_index": index, "delta": item["input"] }),
                );
                push(
                    json!({ "type": "response.custom_tool_call_input.done", "item_id": item["id"], "output_index": index, "input": item["input"] }),
                );
            }
            _ => {
                open["arguments"] = json!("");
                open["status"] = json!("in_progress");
                push(
                    json!({ "type": "response.output_item.added", "output_index": index, "item": open }),
                );
                push(
                    json!({ "type": "response.function_call_arguments.delta", "item_id": item["id"], "output_index": index, "delta": item["arguments"] }),
                );
                push(
                    json!({ "type": "response.function_call_arguments.done", "item_id": item["id"], "output_index": index, "arguments": item["arguments"] }),
                );
            }
        }
        push(json!({ "type": "response.output_item.done", "output_index": index, "item": item }));
    }
    let end = if reply.finish == Finish::MaxTokens {
        "response.incomplete"
    } else {
        "response.completed"
    };
    push(json!({ "type": end, "response": response(ask, reply, items.clone(), &id) }));
    out
}

fn error(status: u16, message: &str) -> Value {
    let (kind, code) = match status {
        401 => ("invalid_request_error", json!("invalid_api_key")),
        404 => ("invalid_request_error", json!("model_not_found")),
        429 => ("tokens", json!("rate_limit_exceeded")),
        400..=499 => ("invalid_request_error", Value::Null),
        _ => ("server_error", Value::Null),
    };
    json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
}

fn models(ids: &[&str]) -> Value {
    let all: Vec<Value> = ids.iter().map(|id| json!({ "id": id, "object": "model", "created": 1_763_700_000, "owned_by": "rehearsal" })).collect();
    json!({ "object": "list", "data": all })
}
