//! Every place of a request that can name a model, a server or a stored object, and what must
//! not be taken for one.

use serde_json::{Value, json};

use crate::kit::*;

const MESSAGES: &str = "/anthropic/v1/messages";
const RESPONSES: &str = "/openai/v1/responses";
const CHAT: &str = "/openai/v1/chat/completions";
const GENERATE: &str = "/google/v1beta/models/gemini-2.5-pro:generateContent";
const INTERACTIONS: &str = "/google/v1beta/interactions";

/// Grants by pattern, with nothing allowed beside models.
const NARROW: &str = "[{scope: \"ai.anthropic:claude-sonnet*\"}, {scope: \"ai.openai:gpt-5*\"}, {scope: \"ai.google:gemini-*\"}, {scope: \"ai.ollama:gpt-oss:*\"}, \
                      {scope: \"ai.openrouter:*/*\"}, {scope: \"ai.xai:grok-*\"}, {scope: \"ai.together:llama*\"}]";

async fn narrow(up: &Upstream) -> Running {
    let sc = sidecar(up)
        .provider("ollama", "")
        .provider("openrouter", "/api/v1")
        .provider("xai", "/v1")
        .provider("together", "/v1");
    let sc = sc.grants(NARROW).run().await;
    let yaml = std::fs::read_to_string(sc.path("sidecar.yaml")).unwrap();
    let offers = yaml.replace(
        "  google: { ",
        "  google: { endpoints: [embedContent, interactions], ",
    );
    sc.reconfigure(&offers);
    until("the endpoints", || {
        sc.sidecar.shared.policy.load().providers["google"]
            .endpoints
            .len()
            == 2
    })
    .await;
    sc
}

/// A body with its model, for the endpoint that wants it there.
fn body(path: &str, more: &Value) -> String {
    let mut body = match path {
        MESSAGES => json!({ "model": "claude-sonnet-5", "max_tokens": 1, "messages": [] }),
        RESPONSES => json!({ "model": "gpt-5.5", "input": "x" }),
        CHAT => json!({ "model": "gpt-5.5", "messages": [] }),
        INTERACTIONS => json!({ "model": "gemini-2.5-pro", "input": "x" }),
        _ => json!({ "contents": [] }),
    };
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn message(content: Value) -> Value {
    json!({ "messages": [{ "role": "user", "content": [content] }] })
}

#[tokio::test]
async fn what_is_not_granted_is_refused_wherever_it_stands() {
    let up = Upstream::always(json("{}")).await;
    let sc = narrow(&up).await;
    let advisor =
        json!({ "type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5" });
    let addition = json!({ "type": "tool_addition", "tool": { "type": "tool_definition", "definition": advisor } });
    let file = json!({ "type": "document", "source": { "type": "file", "file_id": "file_1" } });
    for (path, more, needed) in [
        // Tools within messages (P1).
        (MESSAGES, message(addition.clone()), "claude-opus-5"),
        (
            MESSAGES,
            message(json!({ "type": "compaction", "tool_changes": [addition] })),
            "claude-opus-5",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "type": "additional_tools", "tools": [{ "type": "image_generation", "model": "gpt-image-1" }] }] }),
            "gpt-image-1",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "type": "tool_search_output", "tools": [{ "type": "image_generation", "model": "gpt-image-1" }] }] }),
            "gpt-image-1",
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "image_generation", "model": "gpt-5.5", "svg": { "model": "gpt-image-1" } }] }),
            "gpt-image-1",
        ),
        (
            GENERATE,
            json!({ "generationConfig": { "routingConfig": { "manualMode": { "modelName": "palm-2" } } } }),
            "palm-2",
        ),
        // Servers (7, P2).
        (
            MESSAGES,
            json!({ "mcp_servers": [{ "type": "url", "url": "https://x", "name": "n" }] }),
            "mcp_servers",
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "mcp", "server_label": "x", "tunnel_id": "t" }] }),
            "mcp_servers",
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "mcp", "server_label": "x" }] }),
            "mcp_servers",
        ),
        (
            GENERATE,
            json!({ "tools": [{ "mcpServers": [{ "name": "x", "streamableHttpTransport": { "url": "https://x" } }] }] }),
            "mcp_servers",
        ),
        (
            GENERATE,
            json!({ "tools": [{ "mcp_servers": [{ "name": "x" }] }] }),
            "mcp_servers",
        ),
        (
            INTERACTIONS,
            json!({ "tools": [{ "type": "mcp_server", "url": "https://x" }] }),
            "mcp_servers",
        ),
        (
            INTERACTIONS,
            json!({ "webhook_config": { "uris": ["https://x"] } }),
            "mcp_servers",
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "code_interpreter", "container": { "type": "auto", "network_policy": { "type": "allowlist", "allowed_domains": ["x"] } } }] }),
            "mcp_servers",
        ),
        // Stored objects (9, P3).
        (MESSAGES, message(file.clone()), "stored_objects"),
        (
            MESSAGES,
            message(json!({ "type": "tool_result", "tool_use_id": "t", "content": [file] })),
            "stored_objects",
        ),
        (
            MESSAGES,
            message(json!({ "type": "container_upload", "file_id": "file_1" })),
            "stored_objects",
        ),
        (
            MESSAGES,
            json!({ "container": "container_1" }),
            "stored_objects",
        ),
        (
            MESSAGES,
            json!({ "container": { "id": "container_1" } }),
            "stored_objects",
        ),
        (
            MESSAGES,
            json!({ "container": { "skills": [{ "type": "custom", "skill_id": "skill_1" }] } }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "type": "item_reference", "id": "msg_1" }] }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "id": "msg_1" }] }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "id": "msg_1", "type": null }] }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "type": "reasoning", "id": "rs_1", "summary": [] }] }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "type": "image_generation_call", "id": "ig_1", "result": null }] }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_file", "file_id": "file-1" }] }] }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "type": "function_call_output", "call_id": "c", "output": [{ "type": "input_image", "file_id": "file-1" }] }] }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "input": [{ "type": "shell_call", "environment": { "type": "container_reference", "container_id": "cntr_1" } }] }),
            "stored_objects",
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "shell", "environment": { "type": "container_auto", "skills": [{ "type": "skill_reference", "skill_id": "s" }] } }] }),
            "stored_objects",
        ),
        (
            CHAT,
            message(json!({ "type": "file", "file": { "file_id": "file-1" } })),
            "stored_objects",
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "assistant", "audio": { "id": "audio_1" } }] }),
            "stored_objects",
        ),
        (
            CHAT,
            json!({ "audio": { "voice": { "id": "voice_1" }, "format": "wav" } }),
            "stored_objects",
        ),
        (
            GENERATE,
            json!({ "cachedContent": "cachedContents/1" }),
            "stored_objects",
        ),
        (
            GENERATE,
            json!({ "cached_content": "cachedContents/1" }),
            "stored_objects",
        ),
        (
            GENERATE,
            json!({ "tools": [{ "fileSearch": { "fileSearchStoreNames": ["fileSearchStores/1"] } }] }),
            "stored_objects",
        ),
        (
            GENERATE,
            json!({ "contents": [{ "parts": [{ "fileData": { "fileUri": "https://generativelanguage.googleapis.com/v1beta/files/1" } }] }] }),
            "stored_objects",
        ),
        (
            GENERATE,
            json!({ "contents": [{ "parts": [{ "functionResponse": { "name": "f", "parts": [{ "file_data": { "file_uri": "files/1" } }] } }] }] }),
            "stored_objects",
        ),
        (
            GENERATE,
            json!({ "systemInstruction": { "parts": [{ "fileData": { "fileUri": "gs://b/o" } }] } }),
            "stored_objects",
        ),
        (
            INTERACTIONS,
            json!({ "previous_interaction_id": "i" }),
            "stored_objects",
        ),
        (
            INTERACTIONS,
            json!({ "environment": { "type": "remote", "environment_id": "e" } }),
            "stored_objects",
        ),
        (
            INTERACTIONS,
            json!({ "tools": [{ "type": "retrieval", "rag_store_config": {} }] }),
            "stored_objects",
        ),
        (
            GENERATE,
            json!({ "contents": [{ "parts": [{ "fileData": { "fileUri": "HTTPS://generativelanguage.GOOGLEAPIS.com/v1beta/files/1" } }] }] }),
            "stored_objects",
        ),
        (
            GENERATE,
            json!({ "contents": [{ "parts": [{ "fileData": { "fileUri": format!("v1beta/files/{}", "x".repeat(600)) } }] }] }),
            "stored_objects",
        ),
        // The provider's choice (10, P4).
        (
            RESPONSES,
            json!({ "tools": [{ "type": "image_generation", "model": null }] }),
            "choose the model",
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "image_generation", "model": "gpt-5.5", "output_format": "svg", "svg": { "model": null } }] }),
            "choose the model",
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "image_generation" }] }),
            "choose the model",
        ),
        (
            RESPONSES,
            json!({ "multi_agent": { "enabled": true } }),
            "choose the model",
        ),
        (
            MESSAGES,
            json!({ "fallbacks": "default" }),
            "choose the model",
        ),
        (
            "/openrouter/v1/chat/completions",
            json!({ "model": "openrouter/free", "messages": [] }),
            "openrouter/free",
        ),
        (
            "/openrouter/v1/chat/completions",
            json!({ "model": "OpenRouter/Auto", "messages": [] }),
            "OpenRouter/Auto",
        ),
        (
            "/ollama/api/chat",
            json!({ "model": "gpt-oss:120b-CLOUD" }),
            "gpt-oss:120b-CLOUD",
        ),
        (
            "/ollama/api/chat",
            json!({ "model": "gpt-oss:Cloud" }),
            "gpt-oss:Cloud",
        ),
        (
            "/together/v1/chat/completions",
            json!({ "model": "llama-4", "safety_model": "other" }),
            "other",
        ),
        (
            "/xai/v1/chat/completions",
            json!({ "model": "grok-5", "deferred": true }),
            "background",
        ),
    ] {
        let got = sc.post(path, &[], body(path, &more)).await;
        assert_eq!(
            (got.status, got.code()),
            (403, "scope_denied"),
            "{path} {more}: {}",
            got.text()
        );
        assert!(got.text().contains(needed), "{path} {more}: {}", got.text());
        assert!(up.untouched(), "{path} {more}");
    }
    // An agent that is kept at the provider brings its own model (F5).
    let got = sc
        .post(
            INTERACTIONS,
            &[],
            r#"{"agent":"deep-research","input":"x"}"#,
        )
        .await;
    assert_eq!(
        (got.status, got.code()),
        (403, "scope_denied"),
        "{}",
        got.text()
    );
}

#[tokio::test]
async fn what_only_a_lenient_parser_would_read_is_refused() {
    let up = Upstream::always(json("{}")).await;
    let sc = narrow(&up).await;
    for key in [
        "ⓜodel",
        "ℳodel",
        "MODEℓ",
        "𝐦odel",
        "mcp_Servers",
        "Container",
        "FILE_ID",
        "Fallback\u{17f}",
    ] {
        let got = sc
            .post(MESSAGES, &[], body(MESSAGES, &json!({ key: "x" })))
            .await;
        assert_eq!(
            (got.status, got.code()),
            (400, "bad_request"),
            "{key}: {}",
            got.text()
        );
    }
    for parameters in [
        json!({ "model": "x".repeat(600) }),
        json!({ "models": ["ok", "not an id"] }),
    ] {
        let more = json!({ "tools": [{ "type": "computer", "parameters": parameters }] });
        assert_ne!(
            sc.post(RESPONSES, &[], body(RESPONSES, &more)).await.status,
            200,
            "{more}"
        );
    }
    assert!(up.untouched());
}

#[tokio::test]
async fn what_is_harmless_is_served() {
    let up = Upstream::always(json("{}")).await;
    let sc = narrow(&up).await;
    let properties = json!({ "type": "object", "properties": { "model": { "type": "string" }, "file_id": { "type": "string" }, "server_url": {} } });
    let many: Value = (0..100).map(|i| format!("m-{i}")).collect();
    let mut served = 0;
    for (path, more) in [
        // F6: a new container with Anthropic's own skill.
        (
            MESSAGES,
            json!({ "container": { "skills": [{ "type": "anthropic", "skill_id": "pptx", "version": "latest" }] } }),
        ),
        (
            MESSAGES,
            json!({ "container": null, "thread": null, "mcp_servers": [] }),
        ),
        (
            MESSAGES,
            json!({ "safeguards": { "model": "x" }, "tags": { "model": "x" }, "an_unknown_field": { "model_settings": 1 } }),
        ),
        (
            MESSAGES,
            json!({ "tools": [{ "type": "mcp_toolset", "configs": { "model": { "enabled": true } } }] }),
        ),
        // What the provider itself said, told again.
        (
            MESSAGES,
            message(
                json!({ "type": "code_execution_tool_result", "content": { "type": "code_execution_result", "content": [{ "type": "code_execution_output", "file_id": "file_1" }] } }),
            ),
        ),
        (
            MESSAGES,
            message(
                json!({ "type": "fallback", "from": { "model": "claude-x" }, "to": { "model": "claude-y" } }),
            ),
        ),
        (
            MESSAGES,
            message(
                json!({ "type": "tool_use", "id": "t", "name": "n", "input": { "file_id": "f", "model": "m", "tools": [{ "model": "x" }] } }),
            ),
        ),
        (
            MESSAGES,
            message(json!({ "type": "text", "text": "{\"model\":\"x\",\"file_id\":\"y\"}" })),
        ),
        (
            MESSAGES,
            message(
                json!({ "type": "image", "source": { "type": "url", "url": "https://example.com/files/a.png" } }),
            ),
        ),
        // 26: schemas with properties of such names.
        (
            RESPONSES,
            json!({ "tools": [{ "type": "function", "name": "f", "parameters": properties, "output_schema": properties, "annotations": properties }] }),
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "function", "name": "f", "parameters": { "models": { "default": many } } }] }),
        ),
        (
            RESPONSES,
            json!({ "text": { "format": { "type": "json_schema", "schema": properties } } }),
        ),
        (
            RESPONSES,
            json!({ "tool_choice": { "type": "image_generation" } }),
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "image_generation", "model": "gpt-5.5" }], "multi_agent": { "enabled": false } }),
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "code_interpreter", "container": { "type": "auto", "memory_limit": "4g" } }] }),
        ),
        (
            RESPONSES,
            json!({ "tools": [{ "type": "web_search", "filters": { "allowed_domains": ["example.com"] } }] }),
        ),
        (
            RESPONSES,
            json!({ "input": [{ "type": "reasoning", "id": "rs_1", "encrypted_content": "x", "summary": [] }, { "type": "function_call", "id": "fc_1", "call_id": "c", "name": "n", "arguments": "{\"file_id\":1}" }] }),
        ),
        (
            RESPONSES,
            json!({ "input": [{ "id": "msg_1", "role": "assistant", "content": [{ "type": "output_text", "text": "x", "annotations": [{ "type": "file_citation", "file_id": "f" }] }] }] }),
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "id": "c", "type": "function", "function": { "name": "n", "arguments": "{}" } }] }] }),
        ),
        (
            CHAT,
            json!({ "audio": { "voice": "alloy", "format": "wav" } }),
        ),
        (
            GENERATE,
            json!({ "generationConfig": { "_responseJsonSchema": properties, "responseSchema": properties } }),
        ),
        (
            GENERATE,
            json!({ "contents": [{ "parts": [{ "functionCall": { "id": "c", "name": "f", "args": { "fileUri": "files/1" } } }, { "functionResponse": { "id": "c", "name": "f", "response": { "id": "x" } } }] }] }),
        ),
        (
            GENERATE,
            json!({ "contents": [{ "parts": [{ "fileData": { "fileUri": "https://www.youtube.com/watch?v=x" } }] }] }),
        ),
        (INTERACTIONS, json!({ "labels": { "model": "x" } })),
    ] {
        let got = sc.post(path, &[], body(path, &more)).await;
        assert_eq!(got.status, 200, "{path} {more}: {}", got.text());
        served += 1;
        assert_eq!(up.seen().len(), served);
    }
}

/// F1: the tool runners of both libraries of Anthropic's send a thread by default. They are told
/// in a way by which they go on without one, once nothing else is in the way.
#[tokio::test]
async fn a_thread_is_refused_so_that_its_client_falls_back() {
    let up = Upstream::always(crate::kit::message()).await;
    let sc = sidecar(&up)
        .grants("[{scope: \"ai.anthropic:claude-sonnet*\", limits: {tokensPerDay: 8}}]")
        .run()
        .await;
    for thread in [
        json!({ "type": "create" }),
        json!({ "type": "continue", "previous_message_id": "m" }),
        json!("thread_1"),
    ] {
        let got = sc
            .post(MESSAGES, &[], body(MESSAGES, &json!({ "thread": thread })))
            .await;
        assert_eq!((got.status, got.code()), (403, "scope_denied"), "{thread}");
        assert_eq!(
            got.json()["error"]["details"]["error_code"],
            "thread_unsupported_request"
        );
    }
    assert!(up.untouched());
    let denied = body(
        MESSAGES,
        &json!({ "thread": { "type": "create" }, "model": "claude-opus-5" }),
    );
    assert_eq!(
        sc.post(MESSAGES, &[], denied).await.json()["error"]["details"]["error_code"],
        "local_scope_denied"
    );
    assert_eq!(
        sc.post(MESSAGES, &[], body(MESSAGES, &json!({})))
            .await
            .status,
        200
    );
    let spent = sc
        .post(
            MESSAGES,
            &[],
            body(MESSAGES, &json!({ "thread": { "type": "create" } })),
        )
        .await;
    assert_eq!(
        spent.code(),
        "budget_exhausted",
        "one request is enough to hear of it"
    );
    let up = Upstream::always(crate::kit::message()).await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, allow: [stored_objects]}]")
        .run()
        .await;
    assert_eq!(
        sc.post(
            MESSAGES,
            &[],
            body(MESSAGES, &json!({ "thread": { "type": "create" } }))
        )
        .await
        .status,
        200
    );
}

/// More ids than any conversation has are an attack on the memory.
#[tokio::test]
async fn ids_without_end_are_refused() {
    let up = Upstream::always(json("{}")).await;
    let sc = narrow(&up).await;
    let files = (0..10_000)
        .map(|i| format!("{{\"type\":\"container_upload\",\"file_id\":\"f{i}\"}}"))
        .collect::<Vec<_>>()
        .join(",");
    let got = sc.post(MESSAGES, &[], format!("{{\"model\":\"claude-sonnet-5\",\"messages\":[{{\"role\":\"user\",\"content\":[{files}]}}]}}")).await;
    assert_eq!(
        (got.status, got.code()),
        (400, "bad_request"),
        "{}",
        got.text()
    );
    assert!(up.untouched());
}

/// Ids that another provider's reply named vouch for nothing.
#[tokio::test]
async fn another_providers_reply_makes_no_id_known() {
    let up = Upstream::always(json(r#"{"output":[{"type":"message","id":"msg_1"}]}"#)).await;
    let sc = narrow(&up).await;
    assert_eq!(
        sc.post(
            "/xai/v1/responses",
            &[],
            r#"{"model":"grok-5","input":"x"}"#
        )
        .await
        .status,
        200
    );
    let refer = body(
        RESPONSES,
        &json!({ "input": [{ "type": "item_reference", "id": "msg_1" }] }),
    );
    assert_eq!(sc.post(RESPONSES, &[], refer).await.code(), "scope_denied");
}

/// F2, F3, F4 and the queries of 26: what real clients ask for, and where it goes.
#[tokio::test]
async fn endpoints_are_found_as_real_clients_spell_them() {
    let up = Upstream::new(|seen| {
        if seen.line.starts_with("GET") {
            json(r#"{"data":[],"models":[]}"#)
        } else {
            json("{}")
        }
    })
    .await;
    let sc = narrow(&up).await;
    let embed =
        r#"{"requests":[{"model":"models/gemini-2.5-pro","content":{"parts":[{"text":"x"}]}}]}"#;
    #[rustfmt::skip]
    let cases = [
        ("POST", "/anthropic/messages", body(MESSAGES, &json!({})), "/v1/messages"),
        ("POST", "/anthropic/messages/count_tokens", body(MESSAGES, &json!({})), "/v1/messages/count_tokens"),
        ("POST", "/openai/responses", body(RESPONSES, &json!({})), "/v1/responses"),
        ("POST", "/openai/chat/completions", body(CHAT, &json!({})), "/v1/chat/completions"),
        ("GET", "/openai/models", String::new(), "/v1/models"),
        ("GET", "/anthropic/models", String::new(), "/v1/models"),
        ("POST", "/google/models/gemini-2.5-pro:generateContent", body(GENERATE, &json!({})), "/v1beta/models/gemini-2.5-pro:generateContent"),
        ("GET", "/google/v1/models", String::new(), "/v1/models"),
        ("GET", "/google/v1/models/gemini-2.5-pro", String::new(), "/v1/models/gemini-2.5-pro"),
        ("POST", "/google/v1/interactions", body(INTERACTIONS, &json!({})), "/v1/interactions"),
        ("POST", "/google/v1/models/gemini-2.5-pro:batchEmbedContents", embed.into(), "/v1/models/gemini-2.5-pro:batchEmbedContents"),
        ("POST", "/google/v1beta/models/gemini-2.5-pro:batchEmbedContents", embed.into(), "/v1beta/models/gemini-2.5-pro:batchEmbedContents"),
        (
            "POST",
            "/google/v1beta/models/gemini-2.5-pro:generateContent?$alt=json;enum-encoding=int&prettyPrint=true",
            body(GENERATE, &json!({})),
            "/v1beta/models/gemini-2.5-pro:generateContent?$alt=json;enum-encoding=int&prettyPrint=true",
        ),
        ("GET", "/openrouter/v1/models?supported_parameters=tools", String::new(), "/api/v1/models?supported_parameters=tools"),
    ];
    for (method, path, body, upstream) in cases {
        up.forget();
        let got = sc.request(method, path, &[], body.as_bytes()).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
        assert_eq!(up.seen()[0].path(), upstream, "{path}");
    }
    let denied = embed.replace("models/gemini-2.5-pro", "models/palm-2");
    assert_eq!(
        sc.post(
            "/google/v1/models/gemini-2.5-pro:batchEmbedContents",
            &[],
            denied
        )
        .await
        .code(),
        "scope_denied"
    );
    // F7: looks and telemetry of Claude Code, answered here.
    up.forget();
    for (method, path) in [
        ("HEAD", "/anthropic/api/hello"),
        ("HEAD", "/api/hello"),
        ("POST", "/anthropic/v1/metrics"),
        ("POST", "/v1/traces"),
    ] {
        let got = sc
            .request(
                method,
                path,
                &[("content-type", "application/x-protobuf")],
                b"\x0a\x00",
            )
            .await;
        assert_eq!(got.status, 200, "{method} {path}");
    }
    assert!(up.untouched());
    let all = sc.audit(19).await;
    assert!(
        all.iter().rev().take(4).all(|r| r["decision"] == "allow"),
        "{all:#?}"
    );
}

/// An id that a reply to this session named may be named again: libraries do so by default.
#[tokio::test]
async fn ids_of_earlier_replies_may_be_referred_to() {
    let up = Upstream::always(json(
        r#"{"id":"resp_1","output":[{"type":"message","id":"msg_known"},{"type":"code_interpreter_call","container_id":"cntr_known"}]}"#,
    ))
    .await;
    let sc = narrow(&up).await;
    let refer = |id: &str| {
        body(
            RESPONSES,
            &json!({ "input": [{ "type": "item_reference", "id": id }] }),
        )
    };
    assert_eq!(
        sc.post(RESPONSES, &[], refer("msg_known")).await.status,
        403
    );
    assert_eq!(
        sc.post(RESPONSES, &[], body(RESPONSES, &json!({})))
            .await
            .status,
        200
    );
    assert_eq!(
        sc.post(RESPONSES, &[], refer("msg_known")).await.status,
        200
    );
    assert_eq!(
        sc.post(RESPONSES, &[], refer("msg_other")).await.status,
        403
    );
    let call = json!({ "input": [{ "type": "code_interpreter_call", "id": "ci_1", "container_id": "cntr_known", "code": "1" }] });
    assert_eq!(
        sc.post(RESPONSES, &[], body(RESPONSES, &call)).await.status,
        200
    );
}
