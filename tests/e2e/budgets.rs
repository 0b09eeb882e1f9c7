//! Budgets are ceilings: what a burst, a cut, a lie or a silent provider can spend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::*;

const MESSAGES: &str = "/anthropic/v1/messages";
const CHAT: &str = "/openai/v1/chat/completions";

/// What the grant of this scope was charged, by its records.
async fn charged(sc: &Running, records: usize) -> (u64, f64) {
    let all = sc.audit(records).await;
    let charges = all.iter().filter_map(|r| {
        Some((
            r["charged"]["tokens"].as_u64()?,
            r["charged"]["usd"].as_f64()?,
        ))
    });
    charges.fold((0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// A reply that ends well and reports no usage is charged by its size.
#[tokio::test]
async fn no_usage_is_not_free() {
    let text = "data: {\"choices\":[{\"delta\":{\"content\":\"hello there\"}}]}\n\n".repeat(100);
    let stream = Reply::Stream(vec![
        text.clone().into_bytes(),
        b"data: [DONE]\n\n".to_vec(),
    ]);
    let whole = json(&format!(
        "{{\"choices\":[{{\"message\":{{\"content\":\"{}\"}}}}]}}",
        "x".repeat(4000)
    ));
    for (path, body, reply, least) in [
        (
            CHAT,
            json!({ "model": "m", "messages": [], "stream": true }),
            stream,
            text.len() as u64 / 16,
        ),
        (CHAT, json!({ "model": "m", "messages": [] }), whole, 1000),
        (
            "/google/v1beta/models/m:embedContent",
            json!({ "content": { "parts": [{ "text": "x".repeat(3000) }] } }),
            json(r#"{"embedding":{"values":[1]}}"#),
            1000,
        ),
    ] {
        let up = Upstream::always(reply).await;
        let limits = "limits: {tokensPerDay: 1000000}";
        let sc = sidecar(&up)
            .grants(&format!(
                "[{{scope: ai.openai, {limits}}}, {{scope: ai.google, {limits}}}]"
            ))
            .run()
            .await;
        let yaml = std::fs::read_to_string(sc.path("sidecar.yaml")).unwrap();
        sc.reconfigure(&yaml.replace("  google: { ", "  google: { endpoints: [embedContent], "));
        until("the endpoint", || {
            sc.sidecar.shared.policy.load().providers["google"]
                .endpoints
                .len()
                == 1
        })
        .await;
        let got = sc.post(path, &[], body.to_string()).await;
        assert_eq!(got.status, 200, "{}", got.text());
        let (tokens, usd) = charged(&sc, 1).await;
        assert!(
            tokens >= least && usd > 0.0,
            "{path} {body}: {tokens} tokens, {usd} USD"
        );
    }
}

/// A burst spends what is left and one request's error at most.
#[tokio::test]
async fn a_burst_does_not_overshoot() {
    const BILLED: u64 = 100_000;
    let billed = Arc::new(AtomicU64::new(0));
    let count = billed.clone();
    let up = Upstream::new(move |_| {
        count.fetch_add(BILLED, Ordering::SeqCst);
        json(&json!({ "model": "claude-sonnet-5", "usage": { "input_tokens": 10, "output_tokens": BILLED } }).to_string())
    })
    .await;
    const BUDGET: u64 = 250_000;
    let sc = Arc::new(
        sidecar(&up)
            .grants(&format!(
                "[{{scope: ai.anthropic, limits: {{tokensPerDay: {BUDGET}}}}}]"
            ))
            .run()
            .await,
    );
    let body =
        json!({ "model": "claude-sonnet-5", "max_tokens": BILLED, "messages": [] }).to_string();
    for _ in 0..3 {
        let mut burst = tokio::task::JoinSet::new();
        for _ in 0..60 {
            let (sc, body) = (sc.clone(), body.clone());
            burst.spawn(async move { sc.post(MESSAGES, &[], body).await.code().to_owned() });
        }
        while let Some(code) = burst.join_next().await {
            assert!(["", "busy", "budget_exhausted"].contains(&code.unwrap().as_str()));
        }
    }
    let spent = billed.load(Ordering::SeqCst);
    assert!(
        (BUDGET..=BUDGET + BILLED).contains(&spent),
        "{spent} of {BUDGET}"
    );
    assert_eq!(
        sc.post(MESSAGES, &[], body).await.code(),
        "budget_exhausted"
    );
}

/// Whoever leaves early pays what the request can have cost.
#[tokio::test]
async fn leaving_before_the_reply_costs_what_it_can_have_cost() {
    let up = Upstream::always(Reply::Silence).await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, limits: {tokensPerDay: 1000000000}}]")
        .run()
        .await;
    for (max, least) in [(100_000, 100_000), (7, 7)] {
        let body =
            json!({ "model": "claude-sonnet-5", "max_tokens": max, "messages": [] }).to_string();
        let raw = String::from_utf8(compose("POST", MESSAGES, &[], body.as_bytes()))
            .unwrap()
            .replace("{PORT}", &sc.addr.port().to_string());
        let before = up.seen().len();
        let mut client = TcpStream::connect(sc.addr).await.unwrap();
        client.write_all(raw.as_bytes()).await.unwrap();
        until("the request to arrive", || up.seen().len() > before).await;
        drop(client);
        let records = sc.audit(before + 1).await;
        let tokens = records[before]["charged"]["tokens"].as_u64().unwrap();
        assert!(tokens >= least && tokens < least + 1000, "{tokens}");
    }
}

/// A stream that is cut or left is charged by what passed and a little more, not by all that it
/// might have become.
#[tokio::test]
async fn a_stream_that_is_left_costs_what_passed() {
    let up = Upstream::always(Reply::Open(
        b"data: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-sonnet-5\",\"usage\":{\"input_tokens\":50,\"output_tokens\":1}}}\n\n".to_vec(),
    ))
    .await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, limits: {tokensPerDay: 1000000000}}]")
        .run()
        .await;
    let body = json!({ "model": "claude-sonnet-5", "max_tokens": 100_000, "stream": true, "messages": [] }).to_string();
    let raw = String::from_utf8(compose("POST", MESSAGES, &[], body.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    client.write_all(raw.as_bytes()).await.unwrap();
    let mut piece = vec![0; 4096];
    let mut got = Vec::new();
    while find(&got, b"message_start").is_none() {
        let n = client.read(&mut piece).await.unwrap();
        got.extend_from_slice(&piece[..n]);
    }
    drop(client);
    let (tokens, _) = charged(&sc, 1).await;
    assert!((50 + 1024..50 + 1200).contains(&tokens), "{tokens}");
}

/// The grant that lets the provider choose pays for it.
#[tokio::test]
async fn the_grant_that_allows_is_the_grant_that_pays() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).grants("[{scope: \"ai.anthropic:claude-*\"}, {scope: ai.anthropic, limits: {tokensPerDay: 5}}]").run().await;
    let chosen =
        r#"{"model":"claude-sonnet-5","max_tokens":1,"messages":[],"fallbacks":"default"}"#;
    assert_eq!(sc.post(MESSAGES, &[], chosen).await.status, 200);
    assert_eq!(
        sc.post(MESSAGES, &[], chosen).await.code(),
        "budget_exhausted"
    );
    assert_eq!(
        sc.post(MESSAGES, &[], BODY).await.status,
        200,
        "the other grant has no budget"
    );
}

/// Fast modes, searches and pictures are paid.
#[tokio::test]
async fn what_is_billed_beside_tokens_is_paid() {
    let fast = json!({ "model": "claude-opus-5-5", "usage": { "input_tokens": 0, "output_tokens": 1_000_000, "speed": "fast", "inference_geo": "us", "server_tool_use": { "web_search_requests": 100 } } });
    let search = json!({ "model": "gpt-5.5", "output": [{ "type": "web_search_call" }, { "type": "web_search_call" }, { "type": "message" }], "usage": { "input_tokens": 0, "output_tokens": 1_000_000 } });
    let pictures = json!({ "model": "gpt-5.5", "output": [{ "type": "image_generation_call" }], "tool_usage": { "image_gen": { "input_tokens": 10, "output_tokens": 1_000_000 } }, "usage": { "input_tokens": 0, "output_tokens": 0 } });
    let google = json!({ "modelVersion": "gemini-2.5-pro", "candidates": [{ "finishReason": "STOP", "groundingMetadata": { "webSearchQueries": ["a", "b"] } }], "usageMetadata": { "promptTokenCount": 0, "candidatesTokenCount": 1_000_000 } });
    for (path, body, reply, usd) in [
        (
            MESSAGES,
            r#"{"model":"claude-opus-5-5","max_tokens":1,"messages":[]}"#,
            fast,
            20.0 * 2.0 * 1.1 + 1.0,
        ),
        (
            "/openai/v1/responses",
            r#"{"model":"gpt-5.5","input":"x"}"#,
            search,
            30.0 + 0.02,
        ),
        (
            "/openai/v1/responses",
            r#"{"model":"gpt-5.5","input":"x"}"#,
            pictures,
            75.00015,
        ),
        (
            "/google/v1beta/models/gemini-2.5-pro:generateContent",
            r#"{"contents":[]}"#,
            google,
            10.0 + 0.07,
        ),
    ] {
        let up = Upstream::always(json(&reply.to_string())).await;
        let sc = sidecar(&up).run().await;
        assert_eq!(sc.post(path, &[], body).await.status, 200);
        let record = sc.audit(1).await.remove(0);
        assert!(
            (record["cost_usd"].as_f64().unwrap() - usd).abs() < 1e-6,
            "{path}: {} and not {usd}",
            record["cost_usd"]
        );
    }
}

/// Stored input counts as the model's whole context while it is held.
#[tokio::test]
async fn stored_context_is_held_whole() {
    let up = Upstream::always(Reply::Silence).await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.openai, allow: [stored_objects], limits: {tokensPerDay: 100000000}}]")
        .run()
        .await;
    let body =
        r#"{"model":"gpt-5.5","input":"x","previous_response_id":"resp_1","max_output_tokens":10}"#;
    let raw = String::from_utf8(compose(
        "POST",
        "/openai/v1/responses",
        &[],
        body.as_bytes(),
    ))
    .unwrap()
    .replace("{PORT}", &sc.addr.port().to_string());
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    client.write_all(raw.as_bytes()).await.unwrap();
    until("the request to arrive", || up.seen().len() == 1).await;
    let text = sc.admin("/metrics").await.text();
    let held = text
        .lines()
        .find(|l| {
            l.starts_with("outrigger_budget{")
                && l.contains("tokens_per_day")
                && l.contains("\"held\"")
        })
        .unwrap();
    assert!(
        held.ends_with(" 1050010.0") || held.ends_with(" 1050010"),
        "{held}"
    );
    drop(client);
}

/// A limit that a rejected file would change stays as it is, its rate included.
#[tokio::test]
async fn a_broken_file_resets_no_rate() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, limits: {requestsPerMinute: 2}}]")
        .run()
        .await;
    for _ in 0..2 {
        assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    }
    let good = std::fs::read_to_string(sc.path("sidecar.yaml")).unwrap();
    sc.reconfigure(&good.replace("requestsPerMinute: 2", "requestsPerMinute: 3, nonsense: 1"));
    until("the broken file to be noticed", || {
        sc.sidecar.shared.metrics.policy_ok.get() == 0
    })
    .await;
    sc.reconfigure(&good);
    until("the good file to be noticed", || {
        sc.sidecar.shared.metrics.policy_ok.get() == 1
    })
    .await;
    assert_eq!(sc.post(MESSAGES, &[], BODY).await.code(), "rate_limited");
}

/// Claude Code's notice: how far the budget is used stands on each reply.
#[tokio::test]
async fn replies_say_how_far_a_budget_is_used() {
    let up = Upstream::always(json(
        r#"{"model":"claude-sonnet-5","usage":{"input_tokens":40,"output_tokens":40}}"#,
    ))
    .await;
    let sc = sidecar(&up)
        .grants("[{scope: ai.anthropic, limits: {tokensPerDay: 100}}]")
        .run()
        .await;
    let claude = [("x-claude-code-session-id", "s")];
    let first = sc.post(MESSAGES, &claude, BODY).await;
    assert_eq!(
        first.header("anthropic-ratelimit-unified-status"),
        Some("allowed")
    );
    assert_eq!(
        first.header("anthropic-ratelimit-unified-overage-surpassed-threshold"),
        None
    );
    sc.audit(1).await;
    let second = sc.post(MESSAGES, &claude, BODY).await;
    assert_eq!(
        second.header("anthropic-ratelimit-unified-status"),
        Some("allowed_warning")
    );
    assert_eq!(
        second.header("anthropic-ratelimit-unified-overage-utilization"),
        Some("0.80")
    );
    assert_eq!(
        second.header("anthropic-ratelimit-unified-overage-surpassed-threshold"),
        Some("0.75")
    );
    tokio::time::timeout(Duration::from_secs(5), sc.audit(2))
        .await
        .unwrap();
}

/// What a request holds, by the metric, while it is under way.
async fn held(grant: &str, path: &str, body: &str) -> u64 {
    let up = Upstream::always(Reply::Silence).await;
    let setup = sidecar(&up)
        .provider("own=openai-compatible", "/own")
        .provider("openrouter", "/api/v1");
    let sc = setup
        .grants(&format!(
            "[{{scope: {grant}, limits: {{tokensPerDay: 1000000000000}}}}]"
        ))
        .run()
        .await;
    let raw = String::from_utf8(compose("POST", path, &[], body.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    client.write_all(raw.as_bytes()).await.unwrap();
    until("the request to arrive", || up.seen().len() == 1).await;
    let text = sc.admin("/metrics").await.text();
    let line = text
        .lines()
        .find(|l| l.contains("tokens_per_day") && l.contains("\"held\""))
        .unwrap();
    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
}

/// Only the API's own limit, in its own place, makes a hold smaller.
#[tokio::test]
async fn no_other_limit_makes_a_hold_smaller() {
    const FULL: u64 = 128_000;
    let chat = "/own/chat/completions";
    assert!(
        held(
            "ai.own",
            chat,
            r#"{"model":"m","max_tokens":10,"messages":[]}"#
        )
        .await
            < 1000
    );
    for body in [
        r#"{"model":"m","max_output_tokens":1,"messages":[]}"#,
        r#"{"model":"m","max_completion_tokens":1,"messages":[]}"#,
        r#"{"model":"m","reasoning":{"max_tokens":1},"messages":[]}"#,
        r#"{"model":"m","max_tokens":0,"messages":[]}"#,
        r#"{"model":"m","max_tokens":null,"messages":[]}"#,
    ] {
        assert!(held("ai.own", chat, body).await >= FULL, "{body}");
    }
    let many = held(
        "ai.own",
        chat,
        r#"{"model":"m","max_tokens":1000,"n":128,"messages":[]}"#,
    )
    .await;
    assert!((128_000..129_000).contains(&many), "{many}");
    let google = "/google/v1beta/models/m:generateContent";
    let told = held(
        "ai.google",
        google,
        r#"{"contents":[],"generationConfig":{"maxOutputTokens":100,"candidateCount":"8"}}"#,
    )
    .await;
    assert!((800..2000).contains(&told), "{told}");
    let huge = held(
        "ai.openrouter",
        "/openrouter/v1/chat/completions",
        r#"{"models":["a/b","c/d"],"max_tokens":9223372036854775808,"messages":[]}"#,
    )
    .await;
    assert!(huge >= 1 << 63, "{huge}");
    // A picture is a picture, and not a document.
    let picture = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"x"}}]}]}"#;
    let told = held("ai.anthropic", MESSAGES, picture).await;
    assert!((5_000..12_000).contains(&told), "{told}");
    let address = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"document","source":{"type":"url","url":"https://x/y.pdf"}}]}]}"#;
    assert!(held("ai.anthropic", MESSAGES, address).await >= 1_000_000);
    let found = address.replace(
        "\"document\",\"source\":{\"type\":\"url\",\"url\":\"https://x/y.pdf\"}",
        "\"web_search_result\",\"url\":\"https://x\"",
    );
    assert!(
        held("ai.anthropic", MESSAGES, &found).await < 1000,
        "what a search found is in the request"
    );
}

/// Nothing was sent, so nothing is owed; what broke after it was sent can have cost all of it.
#[tokio::test]
async fn a_failure_costs_what_can_have_been_worked_on() {
    for (reply, least, most) in [
        (Some(Reply::Raw(b"HTTP/1.1 200".to_vec())), 100, 1000),
        (Some(Reply::Raw(Vec::new())), 100, 1000),
        (None, 0, 0),
    ] {
        let up = Upstream::always(reply.clone().unwrap_or(Reply::Silence)).await;
        let mut setup =
            sidecar(&up).grants("[{scope: ai.anthropic, limits: {tokensPerDay: 1000000}}]");
        if reply.is_none() {
            // A port that nobody listens on.
            setup.upstream = std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
        }
        let sc = setup.run().await;
        let got = sc
            .post(
                MESSAGES,
                &[],
                r#"{"model":"claude-sonnet-5","max_tokens":100,"messages":[]}"#,
            )
            .await;
        assert_eq!(got.status, 502, "{}", got.text());
        let (tokens, _) = charged(&sc, 1).await;
        assert!(
            (least..=most).contains(&tokens),
            "{tokens} tokens, {:?}",
            reply.is_some()
        );
    }
}
