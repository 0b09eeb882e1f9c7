//! The usage tap against recorded replies: whole, at the awkward places, byte by byte.

use std::collections::BTreeSet;
use std::io::Read;

use outrigger::sidecar::provider::{Endpoint, registry};
use outrigger::sidecar::usage::Report;
use outrigger::sidecar::usage::framing::Framing;
use outrigger::sidecar::usage::meter::Meter;
use serde_json::{Value, json};

use crate::kit::*;

const FAMILIES: [&str; 6] = [
    "anthropic",
    "openai",
    "google",
    "compat",
    "openrouter",
    "ollama",
];

/// Which endpoint a recording is of: by its request, else by its name.
fn endpoint(family: &str, name: &str, spec: &Value) -> &'static Endpoint {
    let kind = match family {
        "compat" => spec["provider"]
            .as_str()
            .filter(|p| registry::find(p).is_some())
            .unwrap_or("openai-compatible"),
        family => family,
    };
    let provider = registry::find(kind).unwrap();
    let path = spec["request"]["path"].as_str().unwrap_or_default();
    let wanted = match (family, name) {
        _ if path.ends_with("/count_tokens") => "count_tokens",
        _ if path.ends_with("/input_tokens") => "input_tokens",
        _ if path.contains(":countTokens") => "countTokens",
        _ if path.ends_with("/interactions") || name.starts_with("interactions") => "interactions",
        ("anthropic", _) => "messages",
        ("openai", n) if n.starts_with("responses") || n == "compact.json" => "responses",
        ("google", n) if n.starts_with("stream") => "streamGenerateContent",
        ("google", _) => "generateContent",
        ("ollama", n) if n.starts_with("api_") || n.starts_with("error") => "ollama.chat",
        _ => "chat",
    };
    provider
        .endpoints
        .iter()
        .find(|e| e.name == wanted)
        .unwrap_or_else(|| panic!("{kind} {wanted}"))
}

fn report(endpoint: &Endpoint, content_type: &str, pieces: &[&[u8]]) -> Report {
    let (Some(format), Some(framing)) = (endpoint.usage, Framing::of(content_type)) else {
        return Report {
            complete: true,
            ..Report::default()
        };
    };
    let mut meter = Meter::new(format, framing);
    pieces.iter().for_each(|p| meter.feed(p));
    meter.finish(true)
}

fn check(label: &str, spec: &Value, report: &Report) {
    let ok = spec["http"]["status"] == 200;
    let usage = report.usage.as_ref().filter(|_| ok);
    let got = match usage {
        None => Value::Null,
        Some(u) => {
            json!({ "input": u.input, "cache_read": u.cache_read, "cache_write": u.cache_write, "output": u.output, "reasoning": u.reasoning })
        }
    };
    let want = &spec["usage"];
    if want.is_null() {
        assert_eq!(got, Value::Null, "{label}");
    } else {
        for key in ["input", "cache_read", "cache_write", "output", "reasoning"] {
            assert_eq!(got[key], want[key], "{label}: {key}");
        }
        let u = usage.unwrap();
        if let Some(tier) = want["service_tier"].as_str() {
            assert_eq!(report.tier.as_deref(), Some(tier), "{label}");
        }
        if let Some(usd) = want["cost_usd"].as_f64() {
            assert_eq!(u.cost_usd, Some(usd), "{label}");
        }
        if let Some(hour) = want["cache_write_1h"].as_u64().filter(|n| *n > 0) {
            assert_eq!(u.cache_write_1h, Some(hour), "{label}");
        }
    }
    if ok {
        assert_eq!(
            report.model.as_deref(),
            spec["model"].as_str(),
            "{label}: model"
        );
    }
    assert_eq!(
        report.complete,
        spec["complete"].as_bool().unwrap() && (usage.is_some() || report.complete),
        "{label}: complete"
    );
    let error = report.error.clone().unwrap_or_default();
    if spec["error"].is_object() {
        assert_eq!(
            error.kind.as_deref(),
            spec["error"]["type"].as_str(),
            "{label}: error type"
        );
        assert_eq!(
            error.message.as_deref(),
            spec["error"]["message"].as_str(),
            "{label}: error message"
        );
    } else {
        assert_eq!(report.error, None, "{label}");
    }
    if let Some(extra) = spec["extra_usage"].as_array() {
        let got: Vec<Value> = usage
            .unwrap()
            .extra
            .iter()
            .map(
                |e| json!({ "kind": e.kind, "model": e.model, "input": e.input, "cache_read": e.cache_read, "cache_write": e.cache_write, "output": e.output }),
            )
            .collect();
        assert_eq!(&got, extra, "{label}");
    }
}

#[test]
fn every_recorded_reply_gives_its_numbers_however_it_is_cut() {
    let mut checked = BTreeSet::new();
    for family in FAMILIES {
        let expected: Value =
            serde_json::from_slice(&fixture(&format!("providers/{family}/expected.json"))).unwrap();
        let plain = expected["files"].as_object().unwrap().iter();
        let encoded = expected["encoded_files"].as_object().into_iter().flatten();
        for (name, spec) in plain.chain(encoded) {
            if name.ends_with("_ws.jsonl") {
                continue; // WebSockets are answered 426: no such reply passes
            }
            let label = format!("{family}/{name}");
            let mut bytes = fixture(&format!("providers/{label}"));
            let mut splits: Vec<usize> = spec["splits"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|n| n.as_u64().unwrap() as usize)
                .collect();
            if spec["content_encoding"] == "gzip" {
                let mut out = Vec::new();
                flate2::read::GzDecoder::new(bytes.as_slice())
                    .read_to_end(&mut out)
                    .unwrap();
                bytes = out;
                splits.clear();
            }
            let content_type = spec["http"]["headers"]["content-type"].as_str().unwrap();
            let endpoint = endpoint(family, name, spec);
            let whole = report(endpoint, content_type, &[&bytes]);
            check(&label, spec, &whole);
            let mut at_splits = Vec::new();
            let mut from = 0;
            for s in splits.iter().copied().chain([bytes.len()]) {
                at_splits.push(&bytes[from..s]);
                from = s;
            }
            assert_eq!(
                report(endpoint, content_type, &at_splits),
                whole,
                "{label} at its splits"
            );
            let each: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(
                report(endpoint, content_type, &each),
                whole,
                "{label} byte by byte"
            );
            for at in 0..bytes.len() {
                let (a, b) = bytes.split_at(at);
                assert_eq!(
                    report(endpoint, content_type, &[a, b]),
                    whole,
                    "{label} cut at {at}"
                );
            }
            checked.insert(label);
        }
    }
    assert!(checked.len() > 70, "{}", checked.len());
}

#[tokio::test]
async fn a_compressed_reply_is_relayed_plain_with_its_usage() {
    let gz = fixture("providers/anthropic/stream_basic.sse.gz");
    let plain = fixture("providers/anthropic/stream_basic.sse");
    let up = Upstream::always(Reply::Whole {
        status: 200,
        headers: vec![
            ("content-type", "text/event-stream".into()),
            ("content-encoding", "gzip".into()),
        ],
        body: gz,
    })
    .await;
    let sc = sidecar(&up).run().await;
    let got = sc
        .post(
            "/anthropic/v1/messages",
            &[("accept-encoding", "gzip, br")],
            BODY,
        )
        .await;
    assert_eq!(up.seen()[0].header("accept-encoding"), Some("identity"));
    assert_eq!((got.body, got.whole), (plain, true));
    let record = &sc.audit(1).await[0];
    assert_eq!(
        record["tokens"],
        json!({ "input": 25, "cache_read": 7168, "cache_write": 301, "output": 42, "reasoning": null })
    );
    assert_eq!(record["usage_complete"], true);
}

#[tokio::test]
async fn every_successful_recording_passes_through_untouched_and_is_audited() {
    for (family, provider, path) in [
        ("anthropic", "anthropic", "/anthropic/v1/messages"),
        ("openai", "openai", "/openai/v1/responses"),
        ("openai", "openai", "/openai/v1/chat/completions"),
    ] {
        let expected: Value =
            serde_json::from_slice(&fixture(&format!("providers/{family}/expected.json"))).unwrap();
        for (name, spec) in expected["files"].as_object().unwrap() {
            let is_responses = name.starts_with("responses");
            let fits = spec["http"]["status"] == 200
                && spec["usage"].is_object()
                && (family == "anthropic"
                    || (path.ends_with("responses") && is_responses)
                    || (path.ends_with("completions") && name.starts_with("chat")));
            if !fits {
                continue;
            }
            let bytes = fixture(&format!("providers/{family}/{name}"));
            let content_type = spec["http"]["headers"]["content-type"]
                .as_str()
                .unwrap()
                .to_owned();
            let reply = Reply::Whole {
                status: 200,
                headers: vec![("content-type", content_type), ("set-cookie", "x=1".into())],
                body: bytes.clone(),
            };
            let up = Upstream::always(reply).await;
            let sc = sidecar(&up).run().await;
            let got = sc
                .post(path, &[], r#"{"model":"m","messages":[],"input":"x"}"#)
                .await;
            assert_eq!(got.body, bytes, "{name}");
            assert_eq!(got.header("set-cookie"), None);
            let record = sc.audit(1).await.remove(0);
            for key in ["input", "cache_read", "cache_write", "output", "reasoning"] {
                assert_eq!(
                    record["tokens"][key], spec["usage"][key],
                    "{provider} {name} {key}"
                );
            }
            assert_eq!(record["model_reported"], spec["model"], "{name}");
            assert_eq!(record["usage_complete"], spec["complete"], "{name}");
        }
    }
}
