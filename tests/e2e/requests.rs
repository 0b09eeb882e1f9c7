//! Request vectors: what real clients and attackers send, and what becomes of it.

use serde_json::{Value, json};

use crate::kit::*;

fn vectors() -> Vec<Value> {
    let file: Value = serde_json::from_slice(&fixture("providers/requests.json")).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

/// Providers of later versions: unknown mounts until then.
const LATER: [&str; 3] = ["bedrock", "vertex", "azure"];

#[tokio::test]
async fn every_request_vector_is_decided_as_listed() {
    let up = Upstream::new(|seen| {
        if seen.line.contains("/models") && seen.line.starts_with("GET") {
            json(r#"{"data":[],"models":[]}"#)
        } else {
            json("{}")
        }
    })
    .await;
    // A cached content is a stored object: its vector is served where the grant allows that.
    let sc = sidecar(&up)
        .provider("openrouter", "/api/v1")
        .provider("groq", "/openai/v1")
        .provider("ollama", "")
        .grants("[{scope: ai.anthropic}, {scope: ai.openai}, {scope: ai.google, allow: [stored_objects]}, {scope: ai.openrouter}, {scope: ai.groq}, {scope: ai.ollama}]")
        .run()
        .await;
    let mut count = 0;
    for v in vectors() {
        let name = v["name"].as_str().unwrap();
        let expect = &v["expect"];
        if expect["provider"]
            .as_str()
            .is_some_and(|p| LATER.contains(&p))
        {
            continue;
        }
        count += 1;
        up.forget();
        let headers: Vec<(&str, &str)> = v["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str().unwrap()))
            .collect();
        let body = match (v.get("body"), v["body_raw"].as_str()) {
            (_, Some(raw)) => raw.to_owned(),
            (Some(body), _) => body.to_string(),
            _ => String::new(),
        };
        let body = if v["method"] == "POST" && body.is_empty() {
            "{}".to_owned()
        } else {
            body
        };
        let got = sc
            .request(
                v["method"].as_str().unwrap(),
                v["path"].as_str().unwrap(),
                &headers,
                body.as_bytes(),
            )
            .await;
        let class = expect["class"].as_str().unwrap();
        let off = expect["default"] == "deny";
        match class {
            "inference" | "free" if !off => {
                assert_eq!(got.status, 200, "{name}: {}", got.text());
                if expect["local_answer"].is_u64() {
                    assert!(up.untouched(), "{name}");
                    continue;
                }
                let seen = up.seen();
                assert_eq!(seen.len(), 1, "{name}");
                let seen = &seen[0];
                if let Some(path) = expect["upstream_path"].as_str() {
                    assert_eq!(seen.path(), path, "{name}");
                }
                if v["method"] == "POST" {
                    assert_eq!(seen.body, body.as_bytes(), "{name}: the client's own bytes");
                }
                for h in expect["strip_headers"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                {
                    let value = seen.header(h).unwrap_or_default();
                    assert!(
                        value.is_empty() || value.contains(CANARY),
                        "{name}: {h}: {value}"
                    );
                }
                for beta in expect["edit_beta_remove"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                {
                    assert_eq!(
                        seen.header("anthropic-beta"),
                        Some("claude-code-20250219"),
                        "{name} {beta}"
                    );
                }
            }
            "inference" | "free" | "deny" | "bad_request" => {
                assert!(
                    (400..500).contains(&got.status),
                    "{name}: {} {}",
                    got.status,
                    got.text()
                );
                assert!(!got.code().is_empty(), "{name}");
                assert!(up.untouched(), "{name}: something reached the upstream");
                if name.contains("content-encoding") {
                    assert_eq!((got.status, got.code()), (415, "unsupported_encoding"));
                }
            }
            "websocket" => {
                assert_eq!(
                    (got.status, got.code()),
                    (426, "websocket_unsupported"),
                    "{name}"
                );
                assert!(up.untouched(), "{name}");
            }
            other => panic!("{name}: class {other}"),
        }
    }
    assert!(count >= 60, "{count}");
    let records = sc.audit(count).await;
    // What was asked for stands in the record, in order.
    let mut records = records.into_iter();
    for v in vectors() {
        let expect = &v["expect"];
        if expect["provider"]
            .as_str()
            .is_some_and(|p| LATER.contains(&p))
        {
            continue;
        }
        let record = records.next().unwrap();
        let served = matches!(expect["class"].as_str(), Some("inference" | "free"))
            && expect["default"] != "deny";
        if served && expect["model"].is_string() {
            assert_eq!(record["model_requested"], expect["model"], "{}", v["name"]);
            assert_eq!(record["provider"], expect["provider"], "{}", v["name"]);
        }
        if served && expect["stream"].is_boolean() {
            assert_eq!(record["stream"], expect["stream"], "{}", v["name"]);
        }
        assert_eq!(record["decision"] == "allow", served, "{}", v["name"]);
    }
}

#[tokio::test]
async fn every_extra_model_of_a_vector_needs_a_grant_of_its_own() {
    let up = Upstream::always(json("{}")).await;
    let mut checked = 0;
    for v in vectors() {
        let (Some(extra), Some(model), Some(provider)) = (
            v["expect"]["extra_models"].as_array(),
            v["expect"]["model"].as_str(),
            v["expect"]["provider"].as_str(),
        ) else {
            continue;
        };
        if LATER.contains(&provider) {
            continue;
        }
        checked += 1;
        // Only a pattern that covers the main model, not the others and not every model.
        let only = format!(
            "[{{scope: \"ai.{provider}\", models: [\"{}*\"]}}]",
            &model[..model.len() - 1]
        );
        let base = if provider == "openrouter" {
            sidecar(&up).provider("openrouter", "/api/v1")
        } else {
            sidecar(&up)
        };
        let sc = base.clone().grants(&only).run().await;
        up.forget();
        let got = sc
            .post(v["path"].as_str().unwrap(), &[], v["body"].to_string())
            .await;
        assert_eq!(
            (got.status, got.code()),
            (403, "scope_denied"),
            "{} beside {extra:?}",
            v["name"]
        );
        assert!(up.untouched());
        let named: Vec<String> = extra
            .iter()
            .filter_map(Value::as_str)
            .filter(|m| *m != "*")
            .map(|m| format!("\"{m}\""))
            .collect();
        let all = match named.is_empty() {
            true => format!("[{{scope: ai.{provider}}}]"),
            false => format!(
                "[{{scope: \"ai.{provider}\", models: [\"{model}\", {}]}}]",
                named.join(", ")
            ),
        };
        let sc = base.grants(&all).run().await;
        assert_eq!(
            sc.post(v["path"].as_str().unwrap(), &[], v["body"].to_string())
                .await
                .status,
            200,
            "{}",
            v["name"]
        );
    }
    assert_eq!(checked, 4);
}

#[tokio::test]
async fn optional_endpoints_are_there_when_the_operator_says_so() {
    let up = Upstream::always(json("{}")).await;
    let mut setup = sidecar(&up);
    setup.extra = String::new();
    let dir = tempfile::tempdir().unwrap();
    let yaml = setup
        .yaml(dir.path())
        .replace("key: key }, ", "")
        .replace(
            "google: { ",
            "google: { endpoints: [interactions, embedContent], ",
        )
        .replace("openai: { ", "openai: { endpoints: [embeddings], ");
    let sc = setup.run().await;
    let ask = |path: &'static str, body: &'static str| sc.post(path, &[], body);
    let calls = [
        (
            "/google/v1beta/interactions",
            r#"{"model":"gemini-x","input":"x"}"#,
        ),
        (
            "/google/v1beta/models/gemini-x:embedContent",
            r#"{"content":{}}"#,
        ),
        ("/openai/v1/embeddings", r#"{"model":"e","input":"x"}"#),
    ];
    for (path, body) in calls {
        assert_eq!(ask(path, body).await.status, 404, "{path}");
    }
    sc.reconfigure(&yaml.replace(
        &dir.path().display().to_string(),
        &sc.dir.path().display().to_string(),
    ));
    let revision = sc.sidecar.shared.policy.load().revision.clone();
    until("the reload", || {
        sc.sidecar.shared.policy.load().revision != revision
    })
    .await;
    for (path, body) in calls {
        let got = ask(path, body).await;
        assert_eq!(got.status, 200, "{path} {}", got.text());
    }
    assert_eq!(
        ask(
            "/google/v1beta/interactions",
            r#"{"model":"gemini-x","agent":"deep","input":"x"}"#
        )
        .await
        .status,
        403
    );
}

/// Heads as the real CLIs sent them, with a body of their API.
#[tokio::test]
async fn every_recorded_head_of_a_real_cli_is_served() {
    let up = Upstream::new(|seen| {
        if seen.line.starts_with("GET") {
            json(r#"{"data":[]}"#)
        } else {
            json("{}")
        }
    })
    .await;
    let sc = sidecar(&up)
        .provider("mymock=openai-compatible", "/v1")
        .grants(
            "[{scope: ai.anthropic}, {scope: ai.openai}, {scope: ai.google}, {scope: ai.mymock}]",
        )
        .run()
        .await;
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/requests");
    let mut served = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        if ["bedrock", "vertex"].iter().any(|p| name.contains(p)) || name.contains("websocket") {
            continue;
        }
        let mut lines = text.lines();
        let line = lines.next().unwrap().to_owned();
        let target = line.split(' ').nth(1).unwrap();
        // The recordings were made at several mounts; ours are /anthropic, /openai, /google.
        let target = match name.split(['-', '.']).next().unwrap() {
            _ if target.starts_with("/mymock") || target.contains("/chat/completions") => {
                "/mymock/v1/chat/completions".to_owned()
            }
            _ => target.replace("/envbase/", "/anthropic/"),
        };
        let method = line.split(' ').next().unwrap();
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        for l in lines.filter(|l| l.contains(':')) {
            let (n, v) = l.split_once(':').unwrap();
            match n.to_ascii_lowercase().as_str() {
                "host" => head.push_str("Host: 127.0.0.1:{PORT}\r\n"),
                "content-length" | "connection" | "transfer-encoding" => {}
                _ => head.push_str(&format!("{n}:{v}\r\n")),
            }
        }
        let body = if target.contains("/models/") {
            json!({ "contents": [] })
        } else {
            json!({ "model": "m", "messages": [], "input": [] })
        }
        .to_string();
        if method == "POST" {
            head.push_str(&format!(
                "Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            ));
        } else {
            head.push_str("Connection: close\r\n\r\n");
        }
        up.forget();
        let got = Got::parse(&sc.raw(head.as_bytes()).await).unwrap();
        assert_eq!(got.status, 200, "{name} {target}: {}", got.text());
        let leaked: Vec<_> = up
            .seen()
            .iter()
            .flat_map(|s| s.headers.clone())
            .filter(|(_, v)| v.contains("dummy"))
            .collect();
        assert!(leaked.is_empty(), "{name}: {leaked:?}");
        served += 1;
    }
    assert!(served >= 35, "{served}");
}

#[tokio::test]
async fn bare_paths_need_no_mount() {
    let up = Upstream::new(|seen| {
        if seen.line.starts_with("GET") {
            json(r#"{"data":[{"id":"a"}]}"#)
        } else {
            json("{}")
        }
    })
    .await;
    let sc = sidecar(&up).run().await;
    let body = r#"{"model":"m","messages":[],"input":"x","contents":[]}"#;
    #[rustfmt::skip]
    let cases = [
        ("/v1/messages?beta=true", "/v1/messages?beta=true"),
        ("/messages", "/v1/messages"),
        ("/v1/responses", "/v1/responses"),
        ("/responses", "/v1/responses"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/v1beta/models/m%3AstreamGenerateContent?alt=sse&key=dummy", "/v1beta/models/m:streamGenerateContent?alt=sse"),
    ];
    for (path, upstream) in cases {
        up.forget();
        let got = sc.post(path, &[], body).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
        assert_eq!(up.seen()[0].path(), upstream);
    }
    for (headers, key) in [
        (vec![("anthropic-version", "2023-06-01")], "x-api-key"),
        (vec![], "authorization"),
    ] {
        up.forget();
        assert_eq!(sc.get("/v1/models", &headers).await.status, 200);
        assert!(up.seen()[0].header(key).unwrap().contains(CANARY));
    }
    for path in ["/", "/anthropic", "/groq"] {
        up.forget();
        assert_eq!(sc.request("HEAD", path, &[], b"").await.status, 200);
        assert!(up.untouched());
    }
}

#[tokio::test]
async fn a_list_of_models_shows_what_is_granted() {
    let list = r#"{"object":"list","data":[{"id":"gpt-5.5"},{"id":"ft:gpt-4:secret-org"},{"id":"gpt-4.1"}]}"#;
    let up = Upstream::new(move |seen| {
        if seen.path().starts_with("/v1beta") {
            json(r#"{"models":[{"name":"models/gemini-2.5-pro"},{"name":"models/other"}]}"#)
        } else {
            json(list)
        }
    })
    .await;
    let sc = sidecar(&up).grants(r#"[{scope: "ai.openai:gpt-5*"}, {scope: ai.openai, models: [gpt-4.1]}, {scope: "ai.google:gemini-*"}]"#).run().await;
    let got = sc.get("/openai/v1/models", &[]).await.json();
    assert_eq!(
        got,
        json!({ "object": "list", "data": [{ "id": "gpt-5.5" }, { "id": "gpt-4.1" }] })
    );
    assert_eq!(
        sc.get("/google/v1beta/models?pageSize=50", &[])
            .await
            .json(),
        json!({ "models": [{ "name": "models/gemini-2.5-pro" }] })
    );
    assert_eq!(sc.get("/openai/v1/models/gpt-5.5", &[]).await.status, 200);
    assert_eq!(
        sc.get("/openai/v1/models/ft:gpt-4:secret-org", &[])
            .await
            .code(),
        "scope_denied"
    );
    assert_eq!(
        sc.get("/anthropic/v1/models", &[]).await.code(),
        "scope_denied"
    );
}

#[tokio::test]
async fn a_list_of_models_holds_no_key() {
    let list = format!(r#"{{"data":[{{"id":"gpt-5.5","description":"for {CANARY}"}}]}}"#);
    let up = Upstream::always(json(&list)).await;
    let sc = sidecar(&up).run().await;
    let got = sc.get("/openai/v1/models", &[]).await;
    assert!(
        got.text().contains("gpt-5.5")
            && got.text().contains("[REDACTED]")
            && !got.text().contains(CANARY),
        "{}",
        got.text()
    );
    assert_eq!(sc.audit(1).await[0]["key_echoed"], true);
}

/// OpenAI's and Anthropic's published paths: only the few that are listed exist here.
#[tokio::test]
async fn nothing_but_the_listed_endpoints_exists() {
    let up = Upstream::always(json("{}")).await;
    let sc = sidecar(&up).run().await;
    let openai = "assistants audio/speech audio/transcriptions batches chatkit/sessions containers conversations evals files fine_tuning/jobs images/edits images/generations moderations organization/admin_api_keys organization/users organization/costs realtime/client_secrets realtime/sessions realtime/calls responses/resp_1 responses/resp_1/cancel responses/resp_1/input_items skills threads threads/runs uploads vector_stores videos embeddings completions chat/completions/cmpl_1";
    let anthropic = "messages/batches files skills organizations/me organizations/api_keys organizations/invites organizations/usage_report/messages agents sessions environments deployments vaults memory_stores tunnels user_profiles dreams complete oauth/token experimental/generate_prompt";
    let google = "files cachedContents batches tunedModels operations fileSearchStores auth_tokens models/m:predict models/m:batchGenerateContent models/m:asyncBatchEmbedContent corpora dynamic/d:generateContent tunedModels/t:generateContent openai/chat/completions";
    let mut count = 0;
    let cases = [
        ("/openai/v1/", openai),
        ("/v1/", openai),
        ("/anthropic/v1/", anthropic),
        ("/v1/", anthropic),
        ("/google/v1beta/", google),
        ("/v1beta/", google),
        ("/google/upload/v1beta/", "files"),
    ];
    for (mount, paths) in cases {
        for path in paths.split(' ') {
            for method in ["GET", "POST"] {
                let got = sc
                    .request(
                        method,
                        &format!("{mount}{path}"),
                        &[("anthropic-version", "2023-06-01")],
                        if method == "POST" {
                            BODY.as_bytes()
                        } else {
                            b""
                        },
                    )
                    .await;
                assert!(
                    matches!(got.code(), "route_denied" | "unknown_provider"),
                    "{method} {mount}{path}: {} {}",
                    got.status,
                    got.code()
                );
                count += 1;
            }
        }
    }
    assert!(up.untouched());
    sc.audit(count).await;
}
