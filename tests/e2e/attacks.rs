//! What a prompt-injected agent tries with bodies and headers (A1–A20, A52–A58): each is
//! refused before a byte goes upstream, or is inert.

use serde_json::{Value, json};

use crate::kit::*;

const MESSAGES: &str = "/anthropic/v1/messages";

/// A sidecar that grants one model, and attempts at another.
async fn narrow(up: &Upstream) -> Running {
    sidecar(up).grants(r#"[{scope: "ai.anthropic:claude-sonnet-5"}, {scope: "ai.openai:gpt-5"}, {scope: "ai.google:gemini-5"}]"#).run().await
}

#[tokio::test]
async fn no_second_model_slips_past_the_first() {
    let up = Upstream::always(message()).await;
    let sc = narrow(&up).await;
    let good = "\"model\":\"claude-sonnet-5\"";
    let bad = "\"model\":\"claude-opus-5\"";
    let mut bodies: Vec<(String, u16)> = vec![
        // A1, A2: twice, in both orders, plain and escaped.
        (format!("{{{good},{bad}}}"), 400),
        (format!("{{{bad},{good}}}"), 400),
        (format!("{{{good},\"messages\":[],{good}}}"), 400),
        // A4, A15: wrappers, absence.
        (format!("{{{good},\"extra_body\":{{{bad}}}}}"), 400),
        (format!("{{{good},\"body\":{{{bad}}}}}"), 400),
        ("{\"messages\":[]}".into(), 400),
        (format!("{{\"request\":{{{good}}}}}"), 400),
        // A8: no id.
        ("{\"model\":null}".into(), 400),
        ("{\"model\":[]}".into(), 400),
        ("{\"model\":{}}".into(), 400),
        ("{\"model\":7}".into(), 400),
        ("{\"model\":\"\"}".into(), 400),
        // A9: what a careless glob lets through.
        ("{\"model\":\"claude-sonnet-5x\"}".into(), 403),
        ("{\"model\":\"claude-sonnet-5@latest\"}".into(), 403),
        ("{\"model\":\"claude-sonnet-5:nitro\"}".into(), 403),
        ("{\"model\":\"anthropic/claude-sonnet-5\"}".into(), 403),
        ("{\"model\":\"Claude-Sonnet-5\"}".into(), 403),
        ("{\"model\":\"claude-sonnet-5.\"}".into(), 403),
        ("{\"model\":\"claude-sonnet-5[1m]\"}".into(), 400),
        ("{\"model\":\"claude-sonnet-5 \"}".into(), 400),
        (
            "{\"model\":\"claude-sonnet-5/../claude-opus-5\"}".into(),
            400,
        ),
        ("{\"model\":\"*\"}".into(), 400),
        // A11, A12: further models.
        (format!("{{{good},\"fallbacks\":[{{{bad}}}]}}"), 403),
        (format!("{{{good},\"fallbacks\":[\"claude-opus-5\"]}}"), 403),
        (format!("{{{good},\"fallbacks\":\"default\"}}"), 403),
        (format!("{{{good},\"models\":[\"claude-opus-5\"]}}"), 403),
        (
            format!("{{{good},\"tools\":[{{\"type\":\"advisor_20260301\",{bad}}}]}}"),
            403,
        ),
        (
            format!(
                "{{{good},\"tools\":[{{\"type\":\"x\",\"config\":{{\"deep\":[{{\"model_id\":\"claude-opus-5\"}}]}}}}]}}"
            ),
            403,
        ),
        (
            format!("{{{good},\"something_new\":{{\"model\":\"claude-opus-5\"}}}}"),
            403,
        ),
        // A13, A14: what is kept or reached elsewhere.
        (format!("{{{good},\"container\":\"c_1\"}}"), 403),
        (
            format!(
                "{{{good},\"mcp_servers\":[{{\"url\":\"https://evil.example\",\"authorization_token\":\"x\"}}]}}"
            ),
            403,
        ),
    ];
    let key = "model";
    for at in 0..key.len() {
        let escaped = format!(
            "{}\\u{:04x}{}",
            &key[..at],
            key.as_bytes()[at],
            &key[at + 1..]
        );
        bodies.push((format!("{{{good},\"{escaped}\":\"claude-opus-5\"}}"), 400));
        bodies.push((format!("{{\"{escaped}\":\"claude-opus-5\"}}"), 403));
        bodies.push((format!("{{\"{escaped}\":\"claude-opus-5\",{good}}}"), 400));
        // A3: twins of case and look.
        let mut upper = key.to_owned();
        upper.replace_range(at..=at, &key[at..=at].to_uppercase());
        bodies.push((format!("{{{good},\"{upper}\":\"claude-opus-5\"}}"), 400));
        let wide: String = key
            .char_indices()
            .map(|(i, c)| {
                if i == at {
                    char::from_u32(c as u32 + 0xfee0).unwrap()
                } else {
                    c
                }
            })
            .collect();
        bodies.push((format!("{{{good},\"{wide}\":\"claude-opus-5\"}}"), 400));
    }
    for (body, status) in bodies {
        let got = sc.post(MESSAGES, &[], &body).await;
        assert_eq!(got.status, status, "{body}: {}", got.text());
        assert!(up.untouched(), "{body}");
        assert_eq!(got.json()["type"], "error", "in the provider's shape");
    }
    #[rustfmt::skip]
    let cases = [
        ("/openai/v1/responses", r#"{"model":"gpt-5","tools":[{"type":"image_generation","model":"gpt-image-2"}]}"#, 403),
        ("/openai/v1/responses", r#"{"model":"gpt-5","input":[{"type":"additional_tools","tools":[{"model":"gpt-6"}]}]}"#, 403),
        ("/openai/v1/responses", r#"{"model":"gpt-5","input":[{"Tools":[{"model":"gpt-6"}]}]}"#, 400),
        ("/openai/v1/responses", r#"{"model":"gpt-5","previous_response_id":"resp_1"}"#, 403),
        ("/openai/v1/responses", r#"{"model":"gpt-5","prompt":{"id":"p"}}"#, 403),
        ("/openai/v1/responses", r#"{"model":"gpt-5","conversation":"c"}"#, 403),
        ("/openai/v1/responses", r#"{"model":"gpt-5","background":true}"#, 403),
        ("/openai/v1/responses", r#"{"model":"gpt-5","tools":[{"type":"mcp","server_url":"https://evil.example"}]}"#, 403),
        ("/openai/v1/responses", r#"{"model":"gpt-5","moderation":{"model":"gpt-6"}}"#, 403),
        ("/google/v1beta/models/gemini-5:generateContent", r#"{"contents":[],"model":"models/gemini-6"}"#, 400),
        ("/google/v1beta/models/gemini-5:countTokens", r#"{"generateContentRequest":{"model":"models/gemini-6","contents":[]}}"#, 403),
        ("/google/v1beta/models/gemini-6:generateContent", r#"{"contents":[]}"#, 403),
        ("/google/v1beta/models/gemini-6:generateContent", r#"{"contents":[],"model":"models/gemini-5"}"#, 400),
    ];
    for (path, body, status) in cases {
        let got = sc.post(path, &[], body).await;
        assert_eq!(got.status, status, "{path} {body}: {}", got.text());
        assert!(up.untouched(), "{body}");
    }
}

#[tokio::test]
async fn the_users_words_never_refuse_a_request() {
    let up = Upstream::always(message()).await;
    let sc = narrow(&up).await;
    let nasty = json!({ "model": "gpt-6", "models": ["x"], "fallbacks": "default", "mcp_servers": [1], "Model": "X", "server_url": "https://x" });
    let body = json!({
        "model": "claude-sonnet-5", "max_tokens": 1, "system": [{ "type": "text", "text": nasty.to_string() }],
        "messages": [
            { "role": "user", "content": [{ "type": "text", "text": nasty.to_string() }, nasty] },
            { "role": "system", "content": "mid-conversation" },
            { "role": "assistant", "content": [{ "type": "tool_use", "id": "t", "name": "x", "input": nasty }] },
            { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": [nasty] }] },
        ],
        "tools": [{ "name": "model", "description": "model", "input_schema": { "type": "object", "properties": nasty, "required": ["model"] } }],
        "metadata": nasty, "thinking": { "type": "enabled" }, "output_config": { "format": { "schema": nasty } },
    });
    let got = sc.post(MESSAGES, &[], body.to_string()).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(
        up.seen()[0].body,
        body.to_string().as_bytes(),
        "byte for byte"
    );
    let body = json!({
        "model": "gpt-5", "instructions": "model", "input": [{ "role": "user", "content": [nasty] }, { "type": "function_call_output", "output": nasty }, { "type": "function_call", "arguments": "{\"model\":1}" }],
        "tools": [{ "type": "function", "name": "f", "parameters": { "properties": nasty } }], "text": { "format": { "schema": nasty } }, "metadata": nasty, "client_metadata": nasty,
    });
    assert_eq!(
        sc.post("/openai/v1/responses", &[], body.to_string())
            .await
            .status,
        200
    );
    let body = json!({ "contents": [{ "parts": [{ "functionCall": { "args": nasty } }] }], "systemInstruction": nasty, "tools": [{ "functionDeclarations": [{ "parametersJsonSchema": nasty, "parameters": nasty, "response": nasty }] }], "generationConfig": { "responseSchema": nasty, "responseJsonSchema": nasty } });
    assert_eq!(
        sc.post(
            "/google/v1beta/models/gemini-5:generateContent",
            &[],
            body.to_string()
        )
        .await
        .status,
        200
    );
    // A lone surrogate, as a CLI writes half an emoji that a tool cut.
    assert_eq!(
        sc.post(
            MESSAGES,
            &[],
            r#"{"model":"claude-sonnet-5","messages":[{"role":"user","content":"\ud83d"}]}"#
        )
        .await
        .status,
        200
    );
}

#[tokio::test]
async fn what_is_not_strict_json_is_refused_cheaply() {
    let up = Upstream::always(message()).await;
    let sc = narrow(&up).await;
    let good = br#"{"model":"claude-sonnet-5","messages":[]}"#.to_vec();
    let with = |prefix: &[u8], suffix: &[u8]| [prefix, &good, suffix].concat();
    let utf16: Vec<u8> = String::from_utf8(good.clone())
        .unwrap()
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let key = |n: usize| {
        format!("{{\"model\":\"claude-sonnet-5\",\"{}\":1}}", "k".repeat(n)).into_bytes()
    };
    let many = format!(
        "{{\"model\":\"claude-sonnet-5\",{}\"z\":0}}",
        (0..200_000)
            .map(|i| format!("\"k{i}\":0,"))
            .collect::<String>()
    );
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<u8>, bool)> = vec![
        ("BOM", with(b"\xef\xbb\xbf", b""), false),
        ("UTF-16", utf16, false),
        ("overlong", with(b"", b"").into_iter().map(|b| if b == b'[' { 0xc0 } else { b }).collect(), false),
        ("invalid UTF-8 in a content string", b"{\"model\":\"claude-sonnet-5\",\"messages\":[\"\xff\"]}".to_vec(), false),
        ("a second document", with(b"", b"{\"model\":\"claude-opus-5\"}"), false),
        ("a NUL", with(b"", b"\0"), false),
        ("a comment", with(b"/**/", b""), false),
        ("a trailing comma", b"{\"model\":\"claude-sonnet-5\",}".to_vec(), false),
        ("NaN", b"{\"model\":\"claude-sonnet-5\",\"x\":NaN}".to_vec(), false),
        ("single quotes", b"{'model':'claude-sonnet-5'}".to_vec(), false),
        ("an array", b"[{\"model\":\"claude-sonnet-5\"}]".to_vec(), false),
        ("nothing", Vec::new(), false),
        ("truncated", good[..good.len() - 1].to_vec(), false),
        ("deep nesting", format!("{{\"model\":\"claude-sonnet-5\",\"messages\":{}", "[".repeat(1_000_000)).into_bytes(), false),
        ("a key of a megabyte", key(1 << 20), false),
        ("many keys", many.into_bytes(), true),
        ("a long number", format!("{{\"model\":\"claude-sonnet-5\",\"x\":{}}}", "9".repeat(1_000_000)).into_bytes(), true),
        ("a long string", format!("{{\"model\":\"claude-sonnet-5\",\"messages\":\"{}\"}}", "x".repeat(20_000_000)).into_bytes(), true),
        ("white space", with(b" \r\n\t", b"\n\n "), true),
    ];
    let mut served = 0;
    for (what, body, serve) in cases {
        let got = sc.post(MESSAGES, &[], &body).await;
        assert_eq!(
            got.status,
            if serve { 200 } else { 400 },
            "{what}: {}",
            got.text()
        );
        served += usize::from(serve);
        assert_eq!(up.seen().len(), served, "{what}");
    }
    let got = sc.post(MESSAGES, &[], vec![b' '; 33 << 20]).await;
    assert_eq!((got.status, got.code()), (413, "body_too_large"));
}

#[tokio::test]
async fn only_json_and_only_two_encodings() {
    let up = Upstream::always(message()).await;
    let sc = narrow(&up).await;
    let cases = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/json, text/plain",
        "application/jsonp",
        "application/json; x=y",
    ];
    for ct in cases {
        let got = sc.post(MESSAGES, &[("content-type", ct)], BODY).await;
        assert_eq!(
            (got.status, got.code()),
            (415, "unsupported_media_type"),
            "{ct}"
        );
    }
    let gzip = |b: &[u8]| {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut e, b).unwrap();
        e.finish().unwrap()
    };
    let zstd = |b: &[u8]| zstd::encode_all(b, 3).unwrap();
    for (encoding, body) in [
        ("gzip", gzip(BODY.as_bytes())),
        ("zstd", zstd(BODY.as_bytes())),
        ("identity", BODY.as_bytes().to_vec()),
    ] {
        up.forget();
        assert_eq!(
            sc.post(MESSAGES, &[("content-encoding", encoding)], &body)
                .await
                .status,
            200,
            "{encoding}"
        );
        let seen = up.seen().remove(0);
        assert_eq!(
            seen.body,
            BODY.as_bytes(),
            "what was checked is what goes on"
        );
        assert_eq!(seen.header("content-encoding"), None);
    }
    up.forget();
    let denied = br#"{"model":"claude-opus-5","messages":[]}"#;
    let skippable = [
        &[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..],
        &zstd(BODY.as_bytes()),
    ]
    .concat();
    let gzip_bomb = gzip(&vec![b' '; 33 << 20]);
    #[rustfmt::skip]
    let cases = [
        ("gzip", gzip(denied), 403),
        ("zstd", zstd(denied), 403),
        ("br", BODY.as_bytes().to_vec(), 415),
        ("deflate", BODY.as_bytes().to_vec(), 415),
        ("x-gzip", gzip(BODY.as_bytes()), 415),
        ("gzip, zstd", gzip(BODY.as_bytes()), 415),
        ("GZIP", gzip(BODY.as_bytes()), 415),
        ("gzip", [gzip(BODY.as_bytes()), gzip(denied)].concat(), 400),
        ("gzip", [gzip(BODY.as_bytes()), b"x".to_vec()].concat(), 400),
        ("zstd", [zstd(BODY.as_bytes()), zstd(denied)].concat(), 400),
        ("zstd", skippable, 400),
        ("gzip", BODY.as_bytes().to_vec(), 400),
        ("zstd", zstd(BODY.as_bytes())[..20].to_vec(), 400),
        ("gzip", gzip_bomb, 413),
        ("zstd", zstd::encode_all(vec![b' '; 33 << 20].as_slice(), 19).unwrap(), 413),
    ];
    for (encoding, body, status) in cases {
        let got = sc
            .post(MESSAGES, &[("content-encoding", encoding)], &body)
            .await;
        assert_eq!(
            got.status,
            status,
            "{encoding} {} bytes: {}",
            body.len(),
            got.text()
        );
        assert!(up.untouched(), "{encoding}");
    }
    let fixture = fixture("providers/requests_zstd.bin");
    let sc = sidecar(&up)
        .grants(r#"[{scope: "ai.openai:gpt-5.6-sol"}]"#)
        .run()
        .await;
    assert_eq!(
        sc.post(
            "/openai/v1/responses",
            &[("content-encoding", "zstd")],
            fixture
        )
        .await
        .status,
        200
    );
    assert_eq!(sc.audit(1).await[0]["model_requested"], "gpt-5.6-sol");
}

/// A52–A55: of the client's headers, only the listed ones go on.
#[tokio::test]
async fn only_listed_headers_go_upstream() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).extra("").run().await;
    let dropped: Vec<(&str, &str)> = [
        "Authorization",
        "X-Api-Key",
        "Api-Key",
        "X-Goog-Api-Key",
        "Anthropic-Api-Key",
        "Cookie",
        "Proxy-Authorization",
        "X-Amz-Security-Token",
        "OpenAI-Organization",
        "OpenAI-Project",
        "chatgpt-account-id",
        "X-Goog-User-Project",
        "X-Gemini-Api-Privileged-User-Id",
        "Anthropic-Workspace-Id",
        "Anthropic-User-Profile-Id",
        "Anthropic-Organization-Id",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "Forwarded",
        "Via",
        "Traceparent",
        "Baggage",
        "X-Http-Method-Override",
        "X-Original-Url",
        "X-Rewrite-Url",
        "X-Portkey-Config",
        "Helicone-Auth",
        "X-Provider-Api-Keys",
        "X-Outrigger-Scope",
        "Te",
        "Trailer",
        "Keep-Alive",
        "X-Anything",
    ]
    .into_iter()
    .map(|n| (n, "attacker"))
    .collect();
    #[rustfmt::skip]
    let kept = [
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "claude-code-20250219,  context-1m-2025-08-07"),
        ("user-agent", "claude-cli/2.1.197 (external, sdk-cli)"),
        ("x-stainless-retry-count", "0"),
        ("x-claude-code-session-id", "s-1"),
        ("x-app", "cli"),
    ];
    let all: Vec<(&str, &str)> = dropped.iter().copied().chain(kept).collect();
    for path in [
        MESSAGES,
        "/openai/v1/responses",
        "/google/v1beta/models/m:generateContent",
    ] {
        up.forget();
        let body = if path.contains("google") {
            r#"{"contents":[]}"#
        } else {
            r#"{"model":"m","messages":[]}"#
        };
        assert_eq!(sc.post(path, &all, body).await.status, 200);
        assert!(
            !String::from_utf8_lossy(&up.bytes.lock().unwrap()).contains("attacker"),
            "{path}"
        );
        let seen = up.seen().remove(0);
        for (n, v) in kept {
            // Each provider gets what is its own.
            let own =
                path == MESSAGES || !(n.starts_with("anthropic-") || n.starts_with("x-claude-"));
            assert_eq!(
                seen.header(n),
                own.then_some(v),
                "{path} {n}: byte for byte"
            );
        }
        let credentials: Vec<_> = seen
            .headers
            .iter()
            .filter(|(_, v)| v.contains(CANARY))
            .collect();
        assert_eq!(credentials.len(), 1, "{path}");
        let names: Vec<&str> = seen.headers.iter().map(|(n, _)| n.as_str()).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len(), "{path}: each header once");
    }
    let record = &sc.audit(3).await[0];
    assert_eq!(record["client_session"], "s-1");
}

/// A57: with a session token, whoever does not present it learns nothing, not even what is offered.
#[tokio::test]
async fn only_the_session_token_opens_a_guarded_port() {
    let up = Upstream::always(message()).await;
    let dir = tempfile::tempdir().unwrap();
    let token = "t0ken-of-this-session-0123456789abcdef";
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let sc = sidecar(&up)
        .extra(&format!("tokenFile: {}", file.display()))
        .run()
        .await;
    let bearer = format!("Bearer {token}");
    for (name, value) in [
        ("authorization", bearer.as_str()),
        ("x-api-key", token),
        ("x-goog-api-key", token),
        ("api-key", token),
    ] {
        let got = sc.post(MESSAGES, &[(name, value)], BODY).await;
        assert_eq!(got.status, 200, "{name}: {}", got.text());
    }
    assert!(
        up.seen()
            .iter()
            .all(|s| !s.headers.iter().any(|(_, v)| v.contains(token))),
        "the token stays here"
    );
    up.forget();
    let cut = &token[..token.len() - 1];
    let wrong: [&[(&str, &str)]; 7] = [
        &[],
        &[("x-api-key", "")],
        &[("x-api-key", cut)],
        &[("x-api-key", "dummy")],
        &[("authorization", &format!("Basic {token}"))],
        &[("x-api-key", token), ("authorization", "Bearer other")],
        &[("cookie", &format!("token={token}"))],
    ];
    for headers in wrong {
        let got = sc.post(MESSAGES, headers, BODY).await;
        assert_eq!(
            (got.status, got.code()),
            (401, "unauthorized"),
            "{headers:?}"
        );
        assert!(!got.text().contains(cut));
    }
    let twice = sc
        .post(
            MESSAGES,
            &[("x-api-key", token), ("x-api-key", token)],
            BODY,
        )
        .await;
    assert_eq!((twice.status, twice.code()), (400, "bad_request"));
    // The same answer for what is there and what is not.
    let (there, not) = (
        sc.get("/anthropic/v1/models", &[]).await,
        sc.get("/nothing/here", &[]).await,
    );
    assert_eq!(
        (there.status, not.status, there.code(), not.code()),
        (401, 401, "unauthorized", "unauthorized")
    );
    // Guessing is slowed down; the right token is not.
    let mut told_to_wait = 0;
    for _ in 0..80 {
        told_to_wait += usize::from(
            sc.post(MESSAGES, &[("x-api-key", "guess")], BODY)
                .await
                .status
                == 429,
        );
    }
    assert!(told_to_wait > 0);
    assert!(up.untouched());
    assert_eq!(
        sc.post(MESSAGES, &[("x-api-key", token)], BODY)
            .await
            .status,
        200
    );
}

/// A58: files that are no key make the provider unavailable, and nobody is told their content.
#[tokio::test]
async fn a_broken_secret_is_a_missing_one() {
    let up = Upstream::always(message()).await;
    for content in [
        "",
        "two words here",
        "line\nbreak",
        "\u{7f}x",
        "ключ",
        &"k".repeat(5000),
    ] {
        let sc = sidecar(&up).key(Some(content)).run().await;
        let got = sc.post(MESSAGES, &[], BODY).await;
        assert_eq!(
            (got.status, got.code()),
            (403, "secret_missing"),
            "{content:?}"
        );
        assert_eq!(got.header("x-should-retry"), Some("false"));
        assert!(
            got.text()
                .contains("Blocked by workspace policy (not a login problem): ")
                && got.text().contains("`anthropic/key`")
        );
        assert!(content.len() < 4 || !got.text().contains(content));
        assert_eq!(sc.admin("/readyz").await.status, 503);
        // Mounted later, it serves without a restart.
        sc.rotate("anthropic", "sk-good-key");
        until("the key", || {
            sc.sidecar.shared.secrets.patterns().find(b"sk-good-key")
        })
        .await;
        assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    }
}

#[tokio::test]
async fn refusals_have_the_shape_of_their_provider() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up)
        .provider("openrouter", "/api/v1")
        .provider("ollama", "")
        .grants("[]")
        .run()
        .await;
    let body = r#"{"model":"gpt-5","messages":[],"contents":[]}"#;
    let message = |v: &Value| {
        v["error"]["message"]
            .as_str()
            .or(v["error"].as_str())
            .unwrap()
            .to_owned()
    };
    #[rustfmt::skip]
    let cases = [
        (MESSAGES, json!({ "type": "error", "kind": "permission_error" })),
        ("/openai/v1/chat/completions", json!({ "kind": "permission_error", "code": "local_scope_denied" })),
        ("/google/v1beta/models/gpt-5:generateContent", json!({ "code": 403, "status": "PERMISSION_DENIED" })),
        ("/openrouter/v1/chat/completions", json!({ "code": 403 })),
        ("/ollama/api/chat", json!({})),
    ];
    for (path, check) in cases {
        let got = sc.post(path, &[], body).await;
        assert_eq!((got.status, got.code()), (403, "scope_denied"), "{path}");
        let v = got.json();
        for (key, want) in check.as_object().unwrap() {
            let at = match key.as_str() {
                "type" => &v["type"],
                "kind" => &v["error"]["type"],
                key => &v["error"][key],
            };
            assert_eq!(at, want, "{path} {key}: {v}");
        }
        let text = message(&v);
        assert!(
            text.starts_with("Blocked by workspace policy (not a login problem): model `gpt-5`")
                && text.contains("\nhint: ask an operator to grant `ai."),
            "{text}"
        );
        assert!(
            got.header("x-request-id").is_some()
                && got.header("content-type") == Some("application/json")
        );
    }
    let got = sc
        .post(
            "/openai/v1/responses",
            &[("originator", "codex_exec")],
            body,
        )
        .await;
    assert_eq!(
        (got.status, got.code()),
        (400, "scope_denied"),
        "Codex retries a 403"
    );
    let got = sc
        .post(
            "/openai/v1/responses",
            &[("x-codex-turn-metadata", "{}")],
            body,
        )
        .await;
    assert_eq!(got.status, 400, "an app server by another name");
    for record in sc.audit(7).await {
        assert_eq!(
            (record["decision"].as_str(), record["code"].as_str()),
            (Some("deny"), Some("scope_denied"))
        );
        assert!(record["scope_needed"].as_str().unwrap().ends_with(":gpt-5"));
    }
    assert!(up.untouched());
}

/// Tools and plugins of OpenRouter run models of their own, named or not.
#[tokio::test]
async fn tools_that_run_models_need_grants_for_them() {
    let up = Upstream::always(json("{}")).await;
    let sc = sidecar(&up)
        .provider("openrouter", "/api/v1")
        .grants(r#"[{scope: "ai.openrouter:openai/gpt-5"}]"#)
        .run()
        .await;
    let chat = |more: &str| format!(r#"{{"model":"openai/gpt-5","messages":[],{more}}}"#);
    for more in [
        r#""tools":[{"type":"openrouter:advisor","parameters":{"model":"anthropic/claude-opus-5"}}]"#,
        r#""tools":[{"parameters":{"model":"anthropic/claude-opus-5"},"type":"somebody:advisor"}]"#,
        r#""tools":[{"type":"openrouter:fusion"}]"#,
        r#""plugins":[{"id":"fusion","analysis_models":["anthropic/claude-opus-5"]}]"#,
        r#""plugins":[{"id":"auto-router","allowed_models":["anthropic/*"]}]"#,
        r#""preset":"x""#,
        r#""plugins":[{"id":"somebodys-router"}]"#,
        r#""tools":[{"type":"openrouter:web_search","parameters":{"model":"openai/gpt"},"type":"function"}]"#,
        r#""tools":[{"type":"shell","environment":{"container_id":"c"}}]"#,
        r#""models":["anthropic/claude-opus-5"]"#,
    ] {
        let got = sc
            .post("/openrouter/v1/chat/completions", &[], chat(more))
            .await;
        assert!(
            matches!(got.status, 400 | 403),
            "{more}: {} {}",
            got.status,
            got.text()
        );
        assert!(up.untouched(), "{more}");
    }
    for more in [
        r#""tools":[{"type":"function","function":{"name":"f","parameters":{"model":"x","properties":{"Model":{"default":{"model":"y"}}}}}}]"#,
        r#""tools":[{"type":"openrouter:web_search","parameters":{"max_results":3}}]"#,
        r#""plugins":[{"id":"web"}]"#,
        r#""tool_choice":{"type":"auto"}"#,
        r#""tools":[{"type":"code_interpreter","container":{"type":"auto"}}]"#,
    ] {
        assert_eq!(
            sc.post("/openrouter/v1/chat/completions", &[], chat(more))
                .await
                .status,
            200,
            "{more}"
        );
    }
    let many = format!(
        r#"{{"model":"openai/gpt-5","models":[{}"x"]}}"#,
        (0..100_000)
            .map(|i| format!("\"m{i}\","))
            .collect::<String>()
    );
    let since = std::time::Instant::now();
    assert_eq!(
        sc.post("/openrouter/v1/chat/completions", &[], many)
            .await
            .status,
        400
    );
    assert!(
        since.elapsed() < std::time::Duration::from_secs(2),
        "linear"
    );
}

/// A feature is allowed only where every model of the request has it.
#[tokio::test]
async fn one_grants_allowance_is_not_anothers() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up)
        .grants(r#"[{scope: "ai.anthropic:a"}, {scope: "ai.anthropic:b", allow: [mcp_servers]}]"#)
        .run()
        .await;
    let ask = |model: &str, fallback: &str| {
        format!(
            r#"{{"model":"{model}","fallbacks":[{fallback}],"mcp_servers":[{{"url":"https://x"}}],"messages":[]}}"#
        )
    };
    assert_eq!(sc.post(MESSAGES, &[], ask("b", "")).await.status, 200);
    let sc2 = sidecar(&up).grants(r#"[{scope: "ai.anthropic:claude-*"}, {scope: "ai.anthropic:claude-b", allow: [mcp_servers]}]"#).run().await;
    assert_eq!(
        sc2.post(MESSAGES, &[], ask("claude-b", "")).await.status,
        200,
        "of several grants, the one that allows it"
    );
    for (model, fallback) in [("a", ""), ("a", "\"b\""), ("b", "\"a\"")] {
        assert_eq!(
            sc.post(MESSAGES, &[], ask(model, fallback)).await.code(),
            "scope_denied",
            "{model} {fallback}"
        );
    }
}

/// A body that trickles in after its grant was withdrawn finds it withdrawn.
#[tokio::test]
async fn a_held_back_body_keeps_no_grant() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    let raw = String::from_utf8(compose("POST", MESSAGES, &[], BODY.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    let mut client = tokio::net::TcpStream::connect(sc.addr).await.unwrap();
    let (most, last) = raw.as_bytes().split_at(raw.len() - 5);
    client.write_all(most).await.unwrap();
    until("the request to begin", || {
        sc.sidecar.shared.metrics.in_flight.get() == 1
    })
    .await;
    sc.regrant("[]");
    until("the revocation", || {
        sc.sidecar.shared.policy.load().grants.is_empty()
    })
    .await;
    client.write_all(last).await.unwrap();
    let mut got = Vec::new();
    within("an answer", client.read_to_end(&mut got))
        .await
        .unwrap();
    assert_eq!(Got::parse(&got).unwrap().code(), "scope_denied");
    assert!(up.untouched());
}

/// Bytes that come one by one are held as bytes, not as buffers.
#[tokio::test]
async fn a_body_in_tiny_chunks_costs_what_it_weighs() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    let mut raw = b"POST /anthropic/v1/messages HTTP/1.1\r\nHost: localhost:{PORT}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec();
    for b in BODY.bytes().chain(std::iter::repeat_n(b' ', 500_000)) {
        raw.extend_from_slice(b"1\r\n");
        raw.push(b);
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(Got::parse(&sc.raw(&raw).await).unwrap().status, 200);
    assert_eq!(up.seen()[0].body.len(), BODY.len() + 500_000);
}
