//! How often, how many at once, how much: and that it is remembered.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::*;

const MESSAGES: &str = "/anthropic/v1/messages";

#[tokio::test]
async fn a_rate_is_kept_and_says_when_to_come_back() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, limits: {requestsPerMinute: 3}}, {scope: ai.google}, {scope: ai.openai, limits: {requestsPerMinute: 1}}]")
        .run()
        .await;
    for _ in 0..3 {
        assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    }
    // Refused requests (another model is one, too) are charged nothing and change nothing.
    let got = sc.post(MESSAGES, &[], BODY).await;
    assert_eq!((got.status, got.code()), (429, "rate_limited"));
    let after: u64 = got.header("retry-after").unwrap().parse().unwrap();
    let ms: u64 = got.header("retry-after-ms").unwrap().parse().unwrap();
    assert!(
        (1..=20).contains(&after) && ms <= after * 1000,
        "{after} s, {ms} ms"
    );
    assert_eq!(got.json()["error"]["type"], "rate_limit_error");
    assert_eq!(
        got.header("x-should-retry"),
        None,
        "SDKs are to wait and retry"
    );
    assert_eq!(up.seen().len(), 3);
    for path in [
        "/openai/v1/chat/completions",
        "/google/v1beta/models/m:generateContent",
    ] {
        assert_eq!(
            sc.post(
                path,
                &[],
                BODY.replace(
                    "\"model\":\"claude-sonnet-5\",",
                    if path.contains("google") {
                        ""
                    } else {
                        "\"model\":\"m\","
                    }
                )
            )
            .await
            .status,
            200,
            "{path}: other grants have other rates"
        );
    }
    let got = sc.post("/openai/v1/chat/completions", &[], BODY).await;
    assert_eq!(got.json()["error"]["code"], "rate_limit_exceeded");
    assert!(
        got.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("Please try again in ")
    );
}

#[tokio::test]
async fn streams_count_as_long_as_they_run() {
    let up = Upstream::always(Reply::Open(b"data: {}\n\n".to_vec())).await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, limits: {concurrent: 2}}]")
        .run()
        .await;
    let raw = String::from_utf8(compose("POST", MESSAGES, &[], BODY.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = TcpStream::connect(sc.addr).await.unwrap();
        client.write_all(raw.as_bytes()).await.unwrap();
        client.read_exact(&mut [0; 20]).await.unwrap();
        open.push(client);
    }
    let got = sc.post(MESSAGES, &[], BODY).await;
    assert_eq!(
        (got.status, got.code(), got.header("retry-after")),
        (503, "busy", Some("1"))
    );
    drop(open.pop());
    until("a place", || sc.sidecar.shared.metrics.in_flight.get() == 1).await;
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    client.write_all(raw.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    within("the third stream", client.read_exact(&mut head))
        .await
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_spent_budget_is_refused_so_that_nobody_retries_and_survives_a_restart() {
    let up = Upstream::always(message()).await; // 8 tokens each
    let grants = "[{scope: ai.anthropic, limits: {tokensPerDay: 16}}, {scope: ai.openai, limits: {tokensPerDay: 1}}, {scope: ai.google, limits: {tokensPerDay: 1}}]";
    let sc = sidecar(&up).grants(grants).run().await;
    for _ in 0..2 {
        assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    }
    let got = sc.post(MESSAGES, &[], BODY).await;
    assert_eq!(
        (got.status, got.code(), got.header("x-should-retry")),
        (400, "budget_exhausted", Some("false"))
    );
    assert_eq!(
        got.json()["error"]["details"]["error_code"],
        "local_budget_exhausted"
    );
    assert!(got.text().contains("16 tokens per day"));
    // Each provider its own way, none that its SDK retries.
    let openai = r#"{"model":"m","input":"x"}"#;
    let chat = json(r#"{"model":"m","usage":{"prompt_tokens":3,"completion_tokens":5}}"#);
    let up2 = Upstream::always(chat).await;
    let sc2 = sidecar(&up2).grants(grants).run().await;
    assert_eq!(
        sc2.post("/openai/v1/chat/completions", &[], openai)
            .await
            .status,
        200
    );
    // Measured with 45 pairs of a client and an API: a 400 is one request everywhere, and shown.
    for agent in [
        "codex_exec/0.169.0",
        "opencode/1.18.33 ai-sdk/provider-utils/4 runtime/bun",
        "ai/7.0.173 ai-sdk-provider-utils/4.0.0",
        "curl/8",
    ] {
        let got = sc2
            .post("/openai/v1/responses", &[("user-agent", agent)], openai)
            .await;
        assert_eq!(
            (got.status, got.header("x-should-retry")),
            (400, Some("false")),
            "{agent}"
        );
        assert_eq!(got.json()["error"]["type"], "insufficient_quota");
    }

    // The same files, a new process: what was spent is spent.
    let dir = sc.dir.path().to_owned();
    let Running {
        sidecar: running,
        dir: keep,
        ..
    } = sc;
    running.stop(std::future::pending()).await;
    let again = outrigger::sidecar::server::Sidecar::start(
        &dir.join("sidecar.yaml"),
        Some("ses_test".into()),
    )
    .await
    .unwrap();
    let got = request(again.addr, "POST", MESSAGES, &[], BODY.as_bytes()).await;
    assert_eq!(got.code(), "budget_exhausted");
    again.stop(std::future::pending()).await;
    // Another limit on the same grant: the counts stay.
    let yaml = std::fs::read_to_string(dir.join("sidecar.yaml"))
        .unwrap()
        .replace("tokensPerDay: 16", "tokensPerDay: 17");
    std::fs::write(dir.join("sidecar.yaml"), yaml).unwrap();
    let third = outrigger::sidecar::server::Sidecar::start(
        &dir.join("sidecar.yaml"),
        Some("ses_test".into()),
    )
    .await
    .unwrap();
    assert_eq!(
        request(third.addr, "POST", MESSAGES, &[], BODY.as_bytes())
            .await
            .status,
        200
    );
    assert_eq!(
        request(third.addr, "POST", MESSAGES, &[], BODY.as_bytes())
            .await
            .code(),
        "budget_exhausted"
    );
    drop(keep);
}

#[tokio::test]
async fn dollars_come_from_the_table_the_operator_or_the_provider() {
    let dir = tempfile::tempdir().unwrap();
    let prices = dir.path().join("prices.tsv");
    std::fs::write(&prices, "own\tm-1\t1000000\t2000000\n").unwrap();
    let up = Upstream::new(|seen| match seen.path() {
        "/own/chat/completions" => json(r#"{"model":"m-1","usage":{"prompt_tokens":3,"completion_tokens":5}}"#),
        "/api/v1/chat/completions" => json(r#"{"model":"x/y","usage":{"prompt_tokens":3,"completion_tokens":5,"cost":0.25}}"#),
        _ => json(r#"{"model":"claude-sonnet-4-5-20250929","usage":{"input_tokens":1000000,"output_tokens":1000000}}"#),
    })
    .await;
    let sc = sidecar(&up)
        .provider("own=openai-compatible", "/own")
        .provider("openrouter", "/api/v1")
        .grants("[{scope: ai.anthropic, limits: {usdPerSession: 30}}, {scope: ai.own, limits: {usdPerSession: 13}}, {scope: ai.openrouter, limits: {usdPerSession: 0.25}}]")
        .extra(&format!("prices: {}", prices.display()))
        .run()
        .await;
    let m = r#"{"model":"m-1","messages":[]}"#;
    for (path, body, usd, then) in [
        (MESSAGES, BODY, 18.0, 200),
        ("/own/v1/chat/completions", m, 13.0, 400),
        ("/openrouter/v1/chat/completions", m, 0.25, 400),
    ] {
        let before = records(&sc.path("audit.jsonl")).len();
        assert_eq!(sc.post(path, &[], body).await.status, 200, "{path}");
        let record = sc.audit(before + 1).await.pop().unwrap();
        assert_eq!(record["cost_usd"], usd, "{path}");
        assert_eq!(
            sc.post(path, &[], body).await.status,
            then,
            "{path}: {usd} spent"
        );
        sc.audit(before + 2).await;
    }
    assert_eq!(
        sc.post(MESSAGES, &[], BODY).await.code(),
        "budget_exhausted",
        "36 of 30"
    );
    let metrics = sc.admin("/metrics").await.text();
    assert!(
        metrics.contains("outrigger_cost_usd_total{provider=\"openrouter\"} 0.25"),
        "{metrics}"
    );
}

/// Dollars are held back for requests in flight, and paid by those that are left.
#[tokio::test]
async fn a_budget_in_dollars_is_not_spent_twice_at_once() {
    let up = Upstream::always(Reply::Silence).await;
    // 4,000,000 bytes are a million tokens, 3 USD of this model.
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, limits: {usdPerSession: 2}}]")
        .run()
        .await;
    let body = format!(
        r#"{{"model":"claude-sonnet-4-5","messages":["{}"]}}"#,
        "x".repeat(4_000_000)
    );
    let raw = String::from_utf8(compose("POST", MESSAGES, &[], body.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    client.write_all(raw.as_bytes()).await.unwrap();
    until("the request to arrive", || up.seen().len() == 1).await;
    let got = sc.post(MESSAGES, &[], BODY).await;
    assert_eq!(
        (got.status, got.code()),
        (503, "busy"),
        "what is held may come free again, so SDKs are to try again"
    );
    drop(client);
    sc.audit(2).await;
    assert_eq!(
        sc.post(MESSAGES, &[], BODY).await.code(),
        "budget_exhausted",
        "paid"
    );
}

/// A reply that was cut or left before it said anything is charged by its size.
#[tokio::test]
async fn leaving_early_is_not_free() {
    let up = Upstream::always(Reply::Silence).await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, limits: {tokensPerDay: 100}}]")
        .run()
        .await;
    let body = json!({ "model": "claude-sonnet-5", "messages": ["x".repeat(1000)] }).to_string();
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    let raw = String::from_utf8(compose("POST", MESSAGES, &[], body.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    client.write_all(raw.as_bytes()).await.unwrap();
    until("the request to arrive", || up.seen().len() == 1).await;
    drop(client);
    sc.audit(1).await;
    let got = tokio::time::timeout(Duration::from_secs(5), sc.post(MESSAGES, &[], BODY))
        .await
        .unwrap();
    assert_eq!(got.code(), "budget_exhausted");
}

#[tokio::test]
async fn an_expired_grant_is_none() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).grants("[{scope: ai.anthropic, expires: 2020-01-01T00:00:00Z}, {scope: ai.openai, expires: 2999-01-01T00:00:00Z}]").run().await;
    let got = sc.post(MESSAGES, &[], BODY).await;
    assert_eq!(got.code(), "scope_denied");
    assert!(
        got.text().contains("granted: `ai.openai`"),
        "{}",
        got.text()
    );
    assert_eq!(
        sc.post("/openai/v1/chat/completions", &[], BODY)
            .await
            .status,
        200
    );
}
