//! Providers that misbehave (A70–A82): a typed error, no clean end where there was none, no
//! key to whoever cannot prove who he is, and never the same request twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::kit::*;

const MESSAGES: &str = "/anthropic/v1/messages";
const STREAM: &str = r#"{"model":"claude-sonnet-5","stream":true,"messages":[]}"#;

async fn one(reply: Reply) -> (Got, Value) {
    let up = Upstream::always(reply).await;
    let sc = sidecar(&up).run().await;
    let got = sc.post(MESSAGES, &[], BODY).await;
    let record = sc.audit(1).await.remove(0);
    assert!(!got.text().contains(CANARY));
    assert_eq!(up.seen().len(), 1, "one request in, one request out");
    (got, record)
}

#[tokio::test]
async fn redirects_are_never_followed() {
    let elsewhere = Upstream::always(message()).await;
    for code in [300, 301, 302, 303, 304, 307, 308] {
        let reply = Reply::Whole {
            status: code,
            headers: vec![("location", elsewhere.url("/v1/messages"))],
            body: vec![],
        };
        let (got, record) = one(reply).await;
        assert_eq!(
            (got.status, got.code(), got.header("location")),
            (502, "upstream_redirect", None)
        );
        assert_eq!(record["code"], "upstream_redirect");
    }
    assert!(elsewhere.untouched());
}

#[tokio::test]
async fn what_is_no_reply_is_a_502() {
    let flood = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(20_000);
    let big_header = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\n{{}}",
        "a".repeat(300_000)
    )
    .into_bytes();
    let many = format!(
        "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\n{{}}",
        "x: y\r\n".repeat(5000)
    )
    .into_bytes();
    let cases = [
        ("an unsolicited 101", &b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nsmuggled"[..]),
        ("a flood of interim replies", &flood),
        ("status 999", b"HTTP/1.1 999 X\r\ncontent-length: 2\r\n\r\n{}"),
        ("status 99", b"HTTP/1.1 099 X\r\ncontent-length: 2\r\n\r\n{}"),
        ("both framings", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ("two codings", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ("an odd coding", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n{}"),
        ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}"),
        ("HTTP/0.9", b"{}"),
        ("TLS", b"\x15\x03\x01\x00\x02\x02\x28"),
        ("a header of 300 KB", &big_header),
        ("5000 headers", &many),
        ("an unasked encoding", b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n{}"),
        ("nothing", b""),
        ("half a head", b"HTTP/1.1 200 OK\r\ncontent-le"),
    ];
    for (what, raw) in cases {
        let (got, record) = one(Reply::Raw(raw.to_vec())).await;
        assert_eq!(got.status, 502, "{what}: {}", got.text());
        assert!(
            matches!(got.code(), "upstream_invalid" | "upstream_unreachable"),
            "{what}: {}",
            got.code()
        );
        assert_eq!(record["decision"], "allow", "{what}");
        assert_eq!(record["code"], got.code(), "{what}");
        assert_eq!(got.json()["error"]["type"], "api_error", "{what}");
    }
}

#[tokio::test]
async fn a_cut_reply_is_never_a_clean_one() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let events = String::from_utf8(fixture("providers/anthropic/stream_truncated.sse")).unwrap();
    let chunk = format!("{:x}\r\n{events}\r\n", events.len());
    for (what, raw) in [
        (
            "chunks without an end",
            format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}"),
        ),
        (
            "half a chunk",
            format!(
                "{head}transfer-encoding: chunked\r\n\r\n{}",
                &chunk[..chunk.len() - 40]
            ),
        ),
        (
            "a broken chunk size",
            format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}zz\r\n"),
        ),
        (
            "a short length",
            format!("{head}content-length: 100000\r\n\r\n{events}"),
        ),
    ] {
        let (got, record) = one(Reply::Raw(raw.into_bytes())).await;
        assert_eq!(got.status, 200, "{what}");
        assert!(
            !got.whole,
            "{what}: the client must see that the reply was cut"
        );
        assert_eq!(record["code"], "upstream_cut", "{what}");
        assert_eq!(record["usage_complete"], false, "{what}");
        assert_eq!(
            record["tokens"]["input"], 25,
            "{what}: what is known is kept"
        );
    }
}

#[tokio::test]
async fn a_cut_compressed_reply_is_none_either() {
    let gz = fixture("providers/anthropic/stream_basic.sse.gz");
    for keep in [gz.len() - 30, gz.len() - 1, 40] {
        let headers = vec![
            ("content-type", "text/event-stream".into()),
            ("content-encoding", "gzip".into()),
        ];
        let (got, record) = one(Reply::Whole {
            status: 200,
            headers,
            body: gz[..keep].to_vec(),
        })
        .await;
        assert!(!got.whole, "{keep}");
        assert_eq!(record["code"], "upstream_cut");
    }
}

#[tokio::test]
async fn only_listed_headers_come_back() {
    let hostile = [
        ("set-cookie", "a=b"),
        ("server", "x"),
        ("via", "x"),
        ("alt-svc", "h3=\":443\""),
        ("link", "</x>"),
        ("nel", "{}"),
        ("report-to", "{}"),
        ("refresh", "0;url=http://evil"),
        ("content-security-policy", "x"),
        ("anthropic-organization-id", "o"),
        ("openai-organization", "o"),
        ("openai-project", "p"),
        ("access-control-allow-origin", "*"),
        ("location", "http://evil"),
        ("x-echo", CANARY),
    ];
    let kept = [
        ("content-type", "application/json"),
        ("retry-after", "3"),
        ("x-should-retry", "true"),
    ];
    // The workspace's account and quota are not the session's.
    let replaced = [
        ("request-id", "req_1"),
        ("anthropic-ratelimit-requests-remaining", "9"),
    ];
    let mut headers: Vec<(&'static str, String)> = hostile
        .iter()
        .chain(&kept)
        .chain(&replaced)
        .map(|(n, v)| (*n, (*v).to_owned()))
        .collect();
    headers.push(("x-request-id", format!("echo-{CANARY}")));
    let (got, _) = one(Reply::Whole {
        status: 429,
        headers,
        body: br#"{"type":"error","error":{"type":"rate_limit_error","message":"m"}}"#.to_vec(),
    })
    .await;
    assert_eq!(got.status, 429, "a provider's own errors pass");
    for (n, v) in kept {
        assert_eq!(got.header(n), Some(v));
    }
    for (n, _) in hostile {
        assert_eq!(got.header(n), None, "{n}");
    }
    assert!(
        got.header("request-id")
            .is_some_and(|id| id.starts_with("req_") && id != "req_1"),
        "ours, which leads to the audit"
    );
    assert_eq!(got.header("anthropic-ratelimit-requests-remaining"), None);
    assert_eq!(
        got.header("x-request-id"),
        None,
        "a header that holds the key is dropped"
    );
    assert_eq!(got.header("x-content-type-options"), Some("nosniff"));
    let (got, record) = one(Reply::Whole {
        status: 502,
        headers: vec![("content-type", "text/html".into())],
        body: fixture("providers/compat/error_html.html"),
    })
    .await;
    assert_eq!(
        got.body,
        fixture("providers/compat/error_html.html"),
        "also one that is no JSON"
    );
    assert_eq!(record["status"], 502);
}

#[tokio::test]
async fn an_echoed_key_is_blotted_out_in_every_form() {
    use base64::Engine;
    let b64 = base64::engine::general_purpose::STANDARD.encode(format!("Bearer {CANARY}"));
    let escaped: String = CANARY.bytes().map(|b| format!("\\u{b:04x}")).collect();
    let percent: String = CANARY.bytes().map(|b| format!("%{b:02x}")).collect();
    for echo in [
        CANARY.to_owned(),
        b64.clone(),
        escaped.clone(),
        percent.clone(),
    ] {
        let body = format!("{{\"error\":{{\"type\":\"x\",\"message\":\"you sent {echo}!\"}}}}");
        for status in [200, 400, 403] {
            let (got, record) = one(self::status(status, &body)).await;
            assert_eq!(
                (got.status, got.whole, got.body.len()),
                (status, true, body.len()),
                "{echo}"
            );
            assert!(
                !got.text().contains(&echo) && got.text().contains("[REDACTED]"),
                "{}",
                got.text()
            );
            assert_eq!(record["key_echoed"], true);
        }
        // Cut at every byte of the key, over chunks.
        let text = format!("data: {{\"x\":\"{echo}\"}}\n\n");
        let up = Upstream::always(Reply::Stream(text.bytes().map(|b| vec![b]).collect())).await;
        let sc = sidecar(&up).run().await;
        let got = sc.post(MESSAGES, &[], STREAM).await;
        assert!(
            got.whole && got.text().contains("[REDACTED]") && !got.text().contains(&echo),
            "{}",
            got.text()
        );
        let metrics = sc.admin("/metrics").await.text();
        assert!(
            metrics.contains("outrigger_key_echoes_total 1"),
            "{metrics}"
        );
    }
}

/// What a reply says of itself goes into records and logs: not if it is our key.
#[tokio::test]
async fn a_key_for_a_model_name_is_not_written_down() {
    let body = format!(
        r#"{{"type":"message","model":"{CANARY}","error":{{"type":"{CANARY}"}},"usage":{{"input_tokens":1,"output_tokens":18446744073709551615,"iterations":[{{"type":"advisor_{CANARY}","model":"{CANARY}","input_tokens":1}}]}}}}"#
    );
    let (got, record) = one(json(&body)).await;
    assert_eq!(got.status, 200);
    assert!(!record.to_string().contains("sk-canary"), "{record}");
    assert_eq!(record["key_echoed"], true);
}

#[tokio::test]
async fn a_refused_key_is_read_again_once_and_its_401_is_never_passed_on() {
    let body = format!(
        r#"{{"error":{{"message":"Incorrect API key provided: sk-***{}"}}}}"#,
        &CANARY[CANARY.len() - 4..]
    );
    let up = Upstream::new(move |seen| {
        if seen.header("x-api-key") == Some("sk-new-key-0001") {
            message()
        } else {
            status(401, &body)
        }
    })
    .await;
    let sc = sidecar(&up).run().await;
    let got = sc.post(MESSAGES, &[], BODY).await;
    assert_eq!(
        (got.status, got.code(), got.header("x-should-retry")),
        (403, "upstream_auth", Some("false"))
    );
    assert_eq!(up.seen().len(), 1);
    up.forget();
    // Rotated on disk, not looked at yet: the 401 makes it look.
    std::fs::write(sc.path("secrets/anthropic/key"), "sk-new-key-0001").unwrap();
    assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    assert!((1..=2).contains(&up.seen().len()));
}

#[tokio::test]
async fn timeouts_are_typed_and_bounded() {
    let up = Upstream::always(Reply::Silence).await;
    let sc = sidecar(&up)
        .extra("timeouts: { firstByte: 200ms, connect: 300ms }")
        .run()
        .await;
    let got = sc.post(MESSAGES, &[], BODY).await;
    assert_eq!((got.status, got.code()), (504, "upstream_timeout"));
    until("the upstream to be let go", || {
        up.gone.load(Ordering::SeqCst) == 1
    })
    .await;
    // A stream that stalls is cut, not ended.
    let up = Upstream::always(Reply::Open(b"event: ping\ndata: {}\n\n".to_vec())).await;
    let sc = sidecar(&up).extra("timeouts: { idle: 200ms }").run().await;
    let got = sc.post(MESSAGES, &[], STREAM).await;
    assert_eq!((got.status, got.whole), (200, false));
    assert_eq!(sc.audit(1).await[0]["code"], "upstream_timeout");
    // A port that nobody listens on.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = sidecar(&up);
    setup.upstream = dead.local_addr().unwrap();
    drop(dead);
    let sc = setup.run().await;
    let got = sc.post(MESSAGES, &[], BODY).await;
    assert_eq!(
        (got.status, got.code(), got.header("x-should-retry")),
        (502, "upstream_unreachable", None),
        "worth a retry"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_upstream() {
    for (what, reply, body) in [
        ("before the head", Reply::Silence, BODY),
        (
            "in the stream",
            Reply::Open(b"data: {}\n\n".to_vec()),
            STREAM,
        ),
    ] {
        let up = Upstream::always(reply).await;
        let sc = sidecar(&up).run().await;
        let mut client = TcpStream::connect(sc.addr).await.unwrap();
        let raw = String::from_utf8(compose("POST", MESSAGES, &[], body.as_bytes()))
            .unwrap()
            .replace("{PORT}", &sc.addr.port().to_string());
        client.write_all(raw.as_bytes()).await.unwrap();
        until("the request to arrive", || up.seen().len() == 1).await;
        if what == "in the stream" {
            let mut first = [0; 16];
            client.read_exact(&mut first).await.unwrap();
        }
        let left = std::time::Instant::now();
        drop(client);
        until("the upstream to be let go", || {
            up.gone.load(Ordering::SeqCst) == 1
        })
        .await;
        assert!(
            left.elapsed() < Duration::from_secs(1),
            "{what}: {:?}",
            left.elapsed()
        );
        let record = sc.audit(1).await.remove(0);
        assert_eq!(
            (record["decision"].as_str(), record["code"].as_str()),
            (Some("allow"), Some("client_closed")),
            "{what}"
        );
    }
}

/// Codex closes its connection at `response.completed`, before the stream's last chunk.
#[tokio::test]
async fn a_client_that_goes_when_the_protocol_has_ended_has_had_it_all() {
    let up = Upstream::always(Reply::Open(fixture(
        "providers/openai/responses_stream.sse",
    )))
    .await;
    let sc = sidecar(&up).run().await;
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    let raw = String::from_utf8(compose(
        "POST",
        "/openai/v1/responses",
        &[],
        br#"{"model":"gpt-5.6-sol","stream":true,"input":"x"}"#,
    ))
    .unwrap();
    client
        .write_all(
            raw.replace("{PORT}", &sc.addr.port().to_string())
                .as_bytes(),
        )
        .await
        .unwrap();
    let (mut got, mut piece) = (Vec::new(), vec![0; 4096]);
    while find(&got, b"event: response.completed").is_none() || !got.ends_with(b"\n\n\r\n") {
        let n = within("the stream", client.read(&mut piece)).await.unwrap();
        got.extend_from_slice(&piece[..n]);
    }
    drop(client);
    let record = sc.audit(1).await.remove(0);
    assert_eq!(
        (
            record["code"].as_str(),
            record["usage_complete"].as_bool(),
            record["tokens"]["output"].as_u64()
        ),
        (None, Some(true), Some(941))
    );
}

/// A82: the upstream dies after each byte of the request, on fresh and on kept connections:
/// the request is never sent twice, and the answer never looks whole.
#[tokio::test]
async fn an_upstream_that_dies_anywhere_gets_no_request_twice() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (whole, limit) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(usize::MAX)),
    );
    let length = Arc::new(AtomicUsize::new(0));
    let (counted, cut_at, measured) = (whole.clone(), limit.clone(), length.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (counted, cut_at, measured) = (counted.clone(), cut_at.clone(), measured.clone());
            tokio::spawn(async move {
                let (mut got, mut piece) = (Vec::new(), [0; 4096]);
                while let Ok(n) = stream.read(&mut piece).await {
                    got.extend_from_slice(&piece[..n]);
                    if n == 0 {
                        return;
                    }
                    let cut = cut_at.load(Ordering::SeqCst);
                    let done =
                        find(&got, b"\r\n\r\n").is_some_and(|i| got.len() - i - 4 >= BODY.len());
                    if done {
                        measured.store(got.len(), Ordering::SeqCst);
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                    if got.len() >= cut {
                        return; // dropped: reset
                    }
                    if done {
                        got.clear();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}").await;
                    }
                }
            });
        }
    });
    let idle = Upstream::always(message()).await;
    let mut setup = sidecar(&idle);
    setup.upstream = addr;
    let sc = setup.run().await;
    length.store(0, Ordering::SeqCst);
    assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    let request = length.load(Ordering::SeqCst);
    assert!(request > BODY.len());
    for cut in 1..=request {
        // Once on a fresh connection (the last one died), once on a kept one.
        if cut % 2 == 0 {
            limit.store(usize::MAX, Ordering::SeqCst);
            assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
        }
        whole.store(0, Ordering::SeqCst);
        limit.store(cut, Ordering::SeqCst);
        let got = sc.post(MESSAGES, &[], BODY).await;
        assert!(
            whole.load(Ordering::SeqCst) <= 1,
            "cut at {cut}: {} whole requests",
            whole.load(Ordering::SeqCst)
        );
        assert_eq!(got.status, 502, "cut at {cut} of {request}");
    }
}

/// A76: whatever a kept connection holds when it is taken again, no client gets another's.
/// `OUTRIGGER_EXCHANGES=1000000` takes some minutes.
#[tokio::test]
async fn replies_never_cross() {
    let exchanges: usize = std::env::var("OUTRIGGER_EXCHANGES")
        .ok()
        .map_or(8_000, |n| n.parse().unwrap());
    let up = Upstream::new(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        json(&body["messages"].to_string())
    })
    .await;
    let sc = Arc::new(sidecar(&up).run().await);
    let mut clients = tokio::task::JoinSet::new();
    for c in 0..8 {
        let sc = sc.clone();
        clients.spawn(async move {
            for i in 0..exchanges / 8 {
                let mark = format!("[\"{c}-{i}\"]");
                let got = sc
                    .post(
                        MESSAGES,
                        &[],
                        format!(r#"{{"model":"claude-sonnet-5","messages":{mark}}}"#),
                    )
                    .await;
                assert_eq!(got.text(), mark);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    // Surplus bytes behind a reply: the connection is not used again.
    let up = Upstream::always(Reply::Raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil".to_vec(),
    ))
    .await;
    let sc = sidecar(&up).run().await;
    for _ in 0..20 {
        assert_eq!(sc.post(MESSAGES, &[], BODY).await.text(), "{}");
    }
}

#[tokio::test]
async fn a_huge_reply_passes_with_flat_memory() {
    // 64 MB of stream in which one line has no end: read with constant memory.
    let mut piece = vec![b'x'; 1 << 20];
    piece[..7].copy_from_slice(b"data: \"");
    let up = Upstream::always(Reply::Repeat(piece, 64)).await;
    let sc = sidecar(&up).run().await;
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    let raw = String::from_utf8(compose("POST", MESSAGES, &[], STREAM.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    client.write_all(raw.as_bytes()).await.unwrap();
    let (mut total, mut piece, mut most) = (0, vec![0; 1 << 16], 0);
    let before = resident();
    while let Ok(n) = within("a piece", client.read(&mut piece)).await {
        if n == 0 {
            break;
        }
        total += n;
        most = most.max(resident().saturating_sub(before));
    }
    assert!(total >= 64 << 20);
    assert!(
        most < 32 << 20,
        "{} MiB more for a 64 MiB reply, all tests of this process included",
        most >> 20
    );
}

mod tls {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    fn issuer(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// Instead of a number of certificates: one, of last year.
    const EXPIRED: usize = 0;

    struct Server {
        addr: std::net::SocketAddr,
        plain: Arc<AtomicUsize>,
    }

    /// A TLS server that counts what it can decrypt.
    async fn serve(
        by: &CertifiedIssuer<'static, KeyPair>,
        names: &[&str],
        certificates: usize,
        versions: &[&'static rustls::SupportedProtocolVersion],
        alpn: &[&str],
    ) -> Server {
        let mut params =
            CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())
                .unwrap();
        if certificates == EXPIRED {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, by).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone(); certificates.max(1)],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let plain = Arc::new(AtomicUsize::new(0));
        let counted = plain.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(stream).await else {
                        return;
                    };
                    counted.fetch_add(1, Ordering::SeqCst);
                    assert_ne!(
                        tls.get_ref().1.alpn_protocol(),
                        Some(b"h2".as_slice()),
                        "streams of one connection could hold each other up"
                    );
                    let service = hyper::service::service_fn(
                        |request: hyper::Request<hyper::body::Incoming>| async move {
                            let key = request
                                .headers()
                                .get("x-api-key")
                                .map(|v| v.to_str().unwrap().to_owned())
                                .unwrap_or_default();
                            let reply = format!("{{\"keyed\":{}}}", key == CANARY);
                            let mut r =
                                hyper::Response::new(
                                    http_body_util::Full::<hyper::body::Bytes>::from(reply),
                                );
                            r.headers_mut().insert(
                                "content-type",
                                hyper::header::HeaderValue::from_static("application/json"),
                            );
                            Ok::<_, std::convert::Infallible>(r)
                        },
                    );
                    let io = hyper_util::rt::TokioIo::new(tls);
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .await;
                });
            }
        });
        Server { addr, plain }
    }

    async fn ask(server: &Server, host: &str, ca: &CertifiedIssuer<'static, KeyPair>) -> Got {
        let up = Upstream::always(message()).await;
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, ca.pem()).unwrap();
        let mut setup = sidecar(&up).extra(&format!("tls: {{ caFile: {} }}", ca_file.display()));
        setup.providers = vec![("anthropic", "")];
        setup.grants = "[{scope: ai.anthropic}]".into();
        let sc_dir = setup.lay_out();
        let yaml = std::fs::read_to_string(sc_dir.path().join("sidecar.yaml"))
            .unwrap()
            .replace(
                &format!("http://{}", up.addr),
                &format!("https://{host}:{}", server.addr.port()),
            );
        std::fs::write(sc_dir.path().join("sidecar.yaml"), yaml).unwrap();
        let sc =
            outrigger::sidecar::server::Sidecar::start(&sc_dir.path().join("sidecar.yaml"), None)
                .await
                .unwrap();
        let started = std::time::Instant::now();
        let got = request(sc.addr, "POST", MESSAGES, &[], BODY.as_bytes()).await;
        assert!(started.elapsed() < Duration::from_secs(8));
        got
    }

    #[tokio::test]
    async fn only_a_provider_that_proves_itself_gets_the_key() {
        let (ours, other) = (issuer("ours"), issuer("other"));
        let all = rustls::ALL_VERSIONS;
        for alpn in [&["h2", "http/1.1"][..], &["http/1.1"][..], &[][..]] {
            let good = serve(&ours, &["localhost"], 1, all, alpn).await;
            let got = ask(&good, "localhost", &ours).await;
            assert_eq!(got.text(), "{\"keyed\":true}", "{alpn:?}");
        }
        let tls12 = serve(
            &ours,
            &["localhost", "127.0.0.1"],
            1,
            &[&rustls::version::TLS12],
            &[],
        )
        .await;
        assert_eq!(ask(&tls12, "127.0.0.1", &ours).await.status, 200);
        #[rustfmt::skip]
        let bad = [
            ("another name", serve(&ours, &["api.anthropic.com"], 1, all, &[]).await, &ours),
            ("a sub-name", serve(&ours, &["x.localhost"], 1, all, &[]).await, &ours),
            ("a wild name", serve(&ours, &["*.localhost"], 1, all, &[]).await, &ours),
            ("no name", serve(&ours, &[], 1, all, &[]).await, &ours),
            ("expired", serve(&ours, &["localhost"], EXPIRED, all, &[]).await, &ours),
            ("another CA", serve(&other, &["localhost"], 1, all, &[]).await, &ours),
            ("no address in it", serve(&ours, &["example.com"], 1, all, &[]).await, &ours),
        ];
        for (what, server, ca) in &bad {
            let got = ask(server, "localhost", ca).await;
            assert_eq!(
                (got.status, got.code()),
                (502, "upstream_tls"),
                "{what}: {}",
                got.text()
            );
            assert_eq!(
                server.plain.load(Ordering::SeqCst),
                0,
                "{what}: the handshake must fail before a byte of the request"
            );
        }
    }

    /// RFC 5246 §7.4.1.3, in one record: `minor` 1 is TLS 1.0, 3 is TLS 1.2.
    fn server_hello(minor: u8, cipher: u16) -> Vec<u8> {
        let [high, low] = cipher.to_be_bytes();
        let hello = [&[3, minor][..], &[7; 32], &[0, high, low, 0]].concat();
        let message = [&[2, 0, 0, hello.len() as u8][..], &hello].concat();
        [&[0x16, 3, minor, 0, message.len() as u8][..], &message].concat()
    }

    /// A81: a handshake that comes byte by byte works; one that has no end of certificates does
    /// not.
    #[tokio::test]
    async fn a_slow_handshake_works_and_a_huge_one_does_not() {
        let ours = issuer("ours");
        let good = serve(&ours, &["localhost"], 1, rustls::ALL_VERSIONS, &[]).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let drip = Server {
            addr: listener.local_addr().unwrap(),
            plain: Arc::default(),
        };
        let to = good.addr;
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = TcpStream::connect(to).await.unwrap();
                client.set_nodelay(true).unwrap();
                tokio::spawn(async move {
                    let (mut up, mut down) = (server.split(), client.split());
                    let drip = async {
                        while let Ok(byte) = up.0.read_u8().await {
                            if down.1.write_u8(byte).await.is_err() {
                                return;
                            }
                        }
                    };
                    let back = tokio::io::copy(&mut down.0, &mut up.1);
                    let _ = tokio::join!(drip, back);
                });
            }
        });
        assert_eq!(
            ask(&drip, "localhost", &ours).await.text(),
            "{\"keyed\":true}"
        );
        let huge = serve(&ours, &["localhost"], 1000, rustls::ALL_VERSIONS, &[]).await;
        let got = ask(&huge, "localhost", &ours).await;
        assert_eq!(
            (got.status, got.code()),
            (502, "upstream_tls"),
            "{}",
            got.text()
        );
        assert_eq!(huge.plain.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn what_speaks_no_tls_gets_no_key_and_no_time() {
        let ours = issuer("ours");
        let noise = [
            &b"HTTP/1.1 400 Bad\r\n\r\n"[..],
            b"SSH-2.0-x\r\n",
            b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
            b"",
        ]
        .map(<[u8]>::to_vec);
        // TLS 1.0, TLS 1.1, and RC4 under TLS 1.2, as a server of that age picks them; then a
        // demand to negotiate again before there is anything to negotiate.
        let old = [
            server_hello(1, 0x002f),
            server_hello(2, 0x002f),
            server_hello(3, 0x0004),
            vec![0x16, 3, 3, 0, 4, 0, 0, 0, 0],
        ];
        for first in noise.into_iter().chain(old) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = Server {
                addr: listener.local_addr().unwrap(),
                plain: Arc::default(),
            };
            let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
            let (kept, first) = (seen.clone(), first);
            tokio::spawn(async move {
                while let Ok((mut s, _)) = listener.accept().await {
                    let mut piece = [0; 4096];
                    let n = s.read(&mut piece).await.unwrap_or(0);
                    kept.lock().unwrap().extend_from_slice(&piece[..n]);
                    let _ = s.write_all(&first).await;
                    if first.is_empty() {
                        // An endless handshake: it says nothing and stays.
                        let _ = s.read(&mut piece).await;
                    }
                }
            });
            let got = ask(&server, "localhost", &ours).await;
            assert!(
                matches!(got.code(), "upstream_tls" | "upstream_timeout"),
                "{} {}",
                got.status,
                got.code()
            );
            assert!(find(&seen.lock().unwrap(), CANARY.as_bytes()).is_none());
        }
    }
}

/// A reply in two encodings, or in one that was not asked for, is not passed on unread.
#[tokio::test]
async fn a_second_encoding_is_refused() {
    for encodings in [
        &["identity", "br"][..],
        &["gzip", "gzip"],
        &["br"],
        &["gzip, br"],
    ] {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.extend(
            encodings
                .iter()
                .map(|e| ("content-encoding", (*e).to_owned())),
        );
        let (got, _) = one(Reply::Whole {
            status: 200,
            headers,
            body: CANARY.as_bytes().to_vec(),
        })
        .await;
        assert_eq!(
            (got.status, got.code()),
            (502, "upstream_invalid"),
            "{encodings:?}"
        );
        assert!(find(&got.body, CANARY.as_bytes()).is_none());
    }
}
