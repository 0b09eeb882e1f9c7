//! Raw HTTP: the corpus of framing attacks against an upstream that counts, and paths and
//! queries bent in every way we know.

use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine;
use serde_json::Value;

use crate::kit::*;

#[tokio::test]
async fn the_framing_corpus_is_decided_as_listed() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    let corpus = String::from_utf8(fixture("http_framing.jsonl")).unwrap();
    let mut cases = 0;
    for line in corpus.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let id = case["id"].as_str().unwrap();
        let raw = base64::engine::general_purpose::STANDARD
            .decode(case["raw_b64"].as_str().unwrap())
            .unwrap();
        up.forget();
        // The connection is only ended by the other side, or by ours after a whole answer.
        let answer = until_answered(&sc, &raw).await;
        let requests = up.seen().len();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let first = Got::parse(&answer);
        match case["expect"].as_str().unwrap() {
            "serve" => {
                assert_eq!(first.map(|g| g.status), Some(200), "{id}: {text}");
                assert_eq!(requests, 1, "{id}");
            }
            "refuse" => {
                assert!(
                    up.untouched(),
                    "{id}: {requests} requests and {} bytes reached the upstream",
                    up.bytes.lock().unwrap().len()
                );
                let got = first.unwrap_or_else(|| panic!("{id}: no answer: {text:?}"));
                assert!(
                    (400..=505).contains(&got.status) && !got.code().is_empty(),
                    "{id}: {text}"
                );
                assert_eq!(
                    text.matches("x-outrigger-error: ").count(),
                    1,
                    "{id}: one answer: {text}"
                );
            }
            "inert" => {
                assert!(
                    requests <= text.matches("HTTP/1.1 200").count().max(1),
                    "{id}: {requests} requests, {text}"
                );
                let sent = requests.min(2);
                assert!(sent <= if id == "pipelined-pair" { 2 } else { 1 }, "{id}");
                for seen in up.seen() {
                    assert_eq!(
                        seen.header("x-api-key"),
                        Some(CANARY),
                        "{id}: the injected credential survives"
                    );
                }
            }
            other => panic!("{id}: {other}"),
        }
        let reached = String::from_utf8_lossy(&up.bytes.lock().unwrap().clone()).to_lowercase();
        for absent in case["absent"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            assert!(
                !reached.contains(&absent.to_lowercase()),
                "{id}: `{absent}` reached the upstream"
            );
        }
        cases += 1;
    }
    assert_eq!(cases, 131);
}

/// Sends the bytes and waits for an answer (or the end), then closes.
async fn until_answered(sc: &Running, raw: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let raw = if String::from_utf8_lossy(raw).contains("{PORT}") {
        subst(raw, sc.addr.port())
    } else {
        raw.to_vec()
    };
    within("an answer", async {
        let mut stream = tokio::net::TcpStream::connect(sc.addr).await.unwrap();
        let _ = stream.write_all(&raw).await;
        let (mut got, mut piece) = (Vec::new(), vec![0; 65536]);
        loop {
            // After a whole answer a kept connection stays open: a second one would follow at once.
            let quiet = if Got::parse(&got).is_some_and(|g| g.whole) {
                Duration::from_millis(100)
            } else {
                PATIENCE
            };
            match tokio::time::timeout(quiet, stream.read(&mut piece)).await {
                Ok(Ok(n)) if n > 0 => got.extend_from_slice(&piece[..n]),
                _ => return got,
            }
        }
    })
    .await
}

fn subst(raw: &[u8], port: u16) -> Vec<u8> {
    let mut out = raw.to_vec();
    while let Some(i) = find(&out, b"{PORT}") {
        out.splice(i..i + 6, port.to_string().into_bytes());
    }
    out
}

#[tokio::test]
async fn no_bent_path_reaches_another_endpoint() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    let dots = [
        ".",
        "..",
        "%2e",
        "%2E%2e",
        ".%2e",
        "%252e%252e",
        "%c0%ae",
        "..;",
        "...",
        "",
        ";x=1",
        "%00",
        "%0a",
        "\\",
        "%5c",
        "%2f",
        "%2F..%2F",
        "~",
        "*",
    ];
    let mut cases = 0;
    for (mount, rest) in [
        ("anthropic", "v1/messages"),
        ("openai", "v1/responses"),
        ("google", "v1beta/models/m:generateContent"),
    ] {
        let segments: Vec<&str> = std::iter::once(mount).chain(rest.split('/')).collect();
        for d in dots {
            for at in 0..=segments.len() {
                let mut bent = segments.clone();
                bent.insert(at, d);
                let path = format!("/{}", bent.join("/"));
                for path in [
                    path.clone(),
                    path.to_uppercase(),
                    format!("{path}/"),
                    format!("{path}%20"),
                ] {
                    let answer = sc.raw(&compose("POST", &path, &[], BODY.as_bytes())).await;
                    let got = Got::parse(&answer).unwrap_or_default();
                    assert!(
                        (400..500).contains(&got.status),
                        "{path}: {} {}",
                        got.status,
                        got.text()
                    );
                    cases += 1;
                }
            }
        }
        for verb in ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "GET"] {
            let got = Got::parse(&sc.raw(format!("{verb} /{mount}/{rest} HTTP/1.1\r\nHost: localhost:{{PORT}}\r\nConnection: close\r\n\r\n").as_bytes()).await)
                .unwrap();
            assert!((400..500).contains(&got.status), "{verb}");
            assert!(
                got.headers
                    .iter()
                    .all(|(n, _)| !n.starts_with("access-control")),
                "no CORS"
            );
        }
    }
    let queries = [
        "model=gpt-5",
        "alt=proto",
        "alt=sse&alt=json",
        "beta=false",
        "beta=true&beta=true",
        "x",
        "beta=true;model=x",
        "beta=true%26model=x",
        "api-version=1",
        "$fields=x",
        "prettyPrint=true",
    ];
    for query in queries {
        for path in [
            "/anthropic/v1/messages",
            "/openai/v1/chat/completions",
            "/google/v1beta/models/m:streamGenerateContent",
        ] {
            let got = sc.post(&format!("{path}?{query}"), &[], BODY).await;
            assert_eq!(
                (got.status, got.code()),
                (400, "bad_request"),
                "{path}?{query}"
            );
        }
    }
    assert!(up.untouched());
    assert!(cases > 700, "{cases}");
}

#[tokio::test]
async fn the_host_table() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).extra("hosts: [sidecar.pod]").run().await;
    let send = |host: &'static str, more: &'static str| {
        let sc = &sc;
        async move {
            let raw = format!(
                "POST /anthropic/v1/messages HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n{BODY}",
                BODY.len()
            );
            Got::parse(&sc.raw(raw.as_bytes()).await).unwrap()
        }
    };
    for good in [
        "localhost:{PORT}",
        "LocalHost:{PORT}",
        "127.0.0.1:{PORT}",
        "[::1]:{PORT}",
        "sidecar.pod:{PORT}",
    ] {
        assert_eq!(send(good, "").await.status, 200, "{good}");
    }
    up.forget();
    let cases = [
        "localhost",
        "127.0.0.1",
        "localhost:80",
        "localhost:{PORT}0",
        "evil:{PORT}",
        "localhost.:{PORT}",
        "127.1:{PORT}",
        "0.0.0.0:{PORT}",
        "[::]:{PORT}",
        "[::ffff:127.0.0.1]:{PORT}",
        "127.0.0.1.nip.io:{PORT}",
        "user@localhost:{PORT}",
        "localhost:{PORT}/x",
        "localhost:{PORT}#",
        "sidecar.pod",
    ];
    for bad in cases {
        let got = send(bad, "").await;
        assert_eq!((got.status, got.code()), (403, "host_denied"), "{bad}");
    }
    for bad in [
        "Origin: http://localhost:{PORT}\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: same-origin\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ] {
        let got = send("localhost:{PORT}", bad).await;
        assert_eq!((got.status, got.code()), (403, "host_denied"), "{bad}");
        assert_eq!(
            got.header("cross-origin-resource-policy"),
            Some("same-origin")
        );
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"));
    }
    assert!(up.untouched());
    for (path, host, status) in [
        ("/healthz", "10.0.0.9:9091", 200),
        ("/metrics", "evil.example", 403),
        ("/nothing", "127.0.0.1", 404),
    ] {
        let raw = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let got = Got::parse(&exchange(sc.admin, raw.as_bytes()).await).unwrap();
        assert_eq!(got.status, status, "{path} {host}");
        if status >= 400 {
            assert_eq!(got.header("content-type"), Some("application/problem+json"));
        }
    }
}

#[tokio::test]
async fn slow_heads_are_closed_and_make_room() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).extra("connections: 8").run().await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut s = tokio::net::TcpStream::connect(sc.addr).await.unwrap();
        s.write_all(b"POST /anthropic").await.unwrap();
        idle.push(s);
    }
    until("eight connections", || {
        sc.sidecar.shared.metrics.connections.get() == 8
    })
    .await;
    // A ninth client is served at once: the longest idle one made room.
    assert_eq!(
        sc.post("/anthropic/v1/messages", &[], BODY).await.status,
        200
    );
    let mut waste = [0; 16];
    assert_eq!(
        within("the oldest to be closed", idle[0].read(&mut waste))
            .await
            .unwrap_or(0),
        0
    );
    // And half a head is not waited for longer than its time.
    for s in &mut idle[1..] {
        assert_eq!(
            within("a slow head to be closed", s.read(&mut waste))
                .await
                .unwrap_or(0),
            0
        );
    }
    assert_eq!(up.connections.load(Ordering::SeqCst), 1);
}

/// What comes behind a request, in the same write or later, does not disturb it.
#[tokio::test]
async fn a_bad_second_head_does_not_disturb_the_first_request() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    let first = String::from_utf8(compose(
        "POST",
        "/anthropic/v1/messages",
        &[],
        BODY.as_bytes(),
    ))
    .unwrap()
    .replace("Connection: close\r\n", "");
    for bad in [
        "BAD\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "\0\0\0\0",
    ] {
        up.forget();
        let answer = String::from_utf8(sc.raw(format!("{first}{bad}").as_bytes()).await).unwrap();
        assert_eq!(up.seen().len(), 1);
        let (ok, refused) = (
            answer.find("HTTP/1.1 200").unwrap(),
            answer.rfind("HTTP/1.1 400").unwrap(),
        );
        assert!(
            ok < refused && answer[..refused].ends_with("}}"),
            "{answer}"
        );
    }
    sc.audit(6).await;
}
