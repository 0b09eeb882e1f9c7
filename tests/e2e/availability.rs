//! No client can hold up another: what reads nothing, sends slowly, costs time to look through,
//! or takes every place.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::*;

const MESSAGES: &str = "/anthropic/v1/messages";

fn head(sc: &Running, path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n",
        sc.addr.port()
    )
}

/// Sends a request's head and the beginning of its body, and leaves it there.
async fn hold(sc: &Running, announced: usize, sent: usize) -> TcpStream {
    let mut stream = TcpStream::connect(sc.addr).await.unwrap();
    stream
        .write_all(head(sc, MESSAGES, announced).as_bytes())
        .await
        .unwrap();
    let piece = vec![b' '; 1 << 20];
    let mut left = sent;
    while left > 0 {
        let n = left.min(piece.len());
        // A body that has to make room is not read any further.
        if stream.write_all(&piece[..n]).await.is_err() {
            break;
        }
        left -= n;
    }
    stream
}

/// Bodies without their last bytes hold no memory that others need.
#[tokio::test]
async fn bodies_that_do_not_come_make_room_for_those_that_do() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    let whole = 32 << 20;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(hold(&sc, whole, whole - 26).await);
    }
    let large = BODY.replace("[]", &format!("[\"{}\"]", "x".repeat(8 << 20)));
    for body in [BODY.to_owned(), large] {
        let got = sc.post(MESSAGES, &[], body).await;
        assert_eq!(got.status, 200, "{}", got.text());
    }
    drop(held);
}

/// Slow bodies on every connection do not lock others out, and are recorded.
#[tokio::test]
async fn slow_bodies_on_every_connection_lock_nobody_out() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).extra("connections: 8").run().await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(hold(&sc, 1000, 10).await);
    }
    until("the bodies to be begun", || {
        sc.sidecar.shared.metrics.in_flight.get() == 8
    })
    .await;
    tokio::time::sleep(Duration::from_millis(150)).await; // a body is not slow before
    for _ in 0..3 {
        assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    }
    drop(held);
    let all = sc.audit(11).await;
    let evicted = all.iter().filter(|r| r["code"] == "body_timeout").count();
    assert!(
        (1..=8).contains(&evicted),
        "{evicted}: each that made room has a record that says so"
    );
}

/// Connections that are really used are not closed for others: a dropped one is counted.
#[tokio::test]
async fn a_connection_without_a_place_is_counted() {
    let up = Upstream::always(Reply::Open(b"data: {}\n\n".to_vec())).await;
    let sc = sidecar(&up).extra("connections: 2").run().await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(sc.addr).await.unwrap();
        stream
            .write_all(head(&sc, MESSAGES, BODY.len()).as_bytes())
            .await
            .unwrap();
        stream.write_all(BODY.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        open.push(stream);
    }
    let mut third = TcpStream::connect(sc.addr).await.unwrap();
    let mut nothing = Vec::new();
    let _ = third.read_to_end(&mut nothing).await;
    assert!(nothing.is_empty());
    drop(open);
    let all = sc.audit(3).await;
    assert!(
        all.iter()
            .any(|r| r["endpoint"] == "connection" && r["count"] == 1),
        "{all:#?}"
    );
    assert!(
        sc.admin("/metrics")
            .await
            .text()
            .contains("outrigger_connections_dropped_total 1")
    );
}

/// Clients that read nothing keep their place only while nobody else needs it.
#[tokio::test]
async fn readers_that_do_not_read_make_room() {
    let up = Upstream::new(|seen| {
        if seen.body.len() > 200 {
            Reply::Repeat(vec![b'x'; 64 << 10], 1000)
        } else {
            message()
        }
    })
    .await;
    let sc = sidecar(&up).extra("connections: 4").run().await;
    let long = BODY.replace("[]", &format!("[\"{}\"]", "x".repeat(300)));
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(sc.addr).await.unwrap();
        stream
            .write_all(head(&sc, MESSAGES, long.len()).as_bytes())
            .await
            .unwrap();
        stream.write_all(long.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    until("the replies to be begun", || up.seen().len() == 4).await;
    until_async("a place", async || {
        sc.post(MESSAGES, &[], BODY).await.status == 200
    })
    .await;
}

/// Whatever a body costs to look through, others are served meanwhile; what costs most is refused.
/// How long the others wait is measured in the long campaign.
#[tokio::test]
async fn bodies_that_cost_too_much_are_refused_while_others_are_served() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    let keys = format!(
        "{{\"model\":\"claude-sonnet-5\",{}\"z\":0}}",
        "\"İİ\":0,".repeat(1 << 20)
    );
    let lists = format!(
        "{{\"model\":\"claude-sonnet-5\",\"tools\":[{}1]}}",
        "[],".repeat(1 << 20)
    );
    for body in [keys, lists] {
        let long = sc.post(MESSAGES, &[], body);
        let quick = async {
            for _ in 0..20 {
                assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
            }
        };
        let (got, ()) = tokio::join!(long, quick);
        assert_eq!((got.status, got.code()), (400, "bad_request"));
    }
}

/// A refusal that closes the connection says so.
#[tokio::test]
async fn a_refusal_that_closes_says_so() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    for (path, kind) in [
        ("/openai/v1/files", "application/json"),
        (MESSAGES, "text/plain"),
        ("/nobody/v1/x", "application/json"),
    ] {
        let mut stream = TcpStream::connect(sc.addr).await.unwrap();
        let request = head(&sc, path, 100).replace("application/json", kind);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        within("the end of the connection", stream.read_to_end(&mut raw))
            .await
            .unwrap();
        let got = Got::parse(&raw).unwrap();
        assert!(
            got.status >= 400 && got.header("connection") == Some("close"),
            "{path} {kind}: {:?}",
            got.headers
        );
    }
}

/// Lists of models are counted in the memory for bodies, until the client has them.
#[tokio::test]
async fn lists_of_models_are_counted() {
    let half = format!("{{\"data\":[{}", "{\"id\":\"model\"},".repeat(100_000));
    let up = Upstream::always(Reply::Open(half.into_bytes())).await;
    let sc = sidecar(&up).run().await;
    let free = sc.sidecar.shared.body_memory.free();
    let request = format!(
        "GET /openai/v1/models HTTP/1.1\r\nHost: localhost:{}\r\n\r\n",
        sc.addr.port()
    );
    let mut stream = TcpStream::connect(sc.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    until("the list to be counted", || {
        sc.sidecar.shared.body_memory.free() + 1_500_000 < free
    })
    .await;
    drop(stream);
    until("the memory to be given back", || {
        sc.sidecar.shared.body_memory.free() == free
    })
    .await;
}

/// A flood of refused requests leaves a few records, which count all of it.
#[tokio::test]
async fn refused_requests_wash_no_record_away() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up)
        .grants("[{scope: \"ai.anthropic:claude-sonnet-5\"}]")
        .run()
        .await;
    assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    const FLOOD: usize = 3000;
    let mut floods = tokio::task::JoinSet::new();
    let (addr, port) = (sc.addr, sc.addr.port());
    for _ in 0..20 {
        floods.spawn(async move {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let one = format!("GET /anthropic/v1/models/{} HTTP/1.1\r\nHost: localhost:{port}\r\nanthropic-version: x\r\n\r\n", "a".repeat(250));
            let mut piece = vec![0; 4096];
            for _ in 0..FLOOD / 20 {
                stream.write_all(one.as_bytes()).await.unwrap();
                let mut got = Vec::new();
                while Got::parse(&got).is_none_or(|g| !g.whole) {
                    let n = stream.read(&mut piece).await.unwrap();
                    assert!(n > 0);
                    got.extend_from_slice(&piece[..n]);
                }
            }
        });
    }
    while let Some(done) = floods.join_next().await {
        done.unwrap();
    }
    let all = sc.audit(FLOOD + 1).await;
    assert_eq!(all.iter().filter(|r| r["status"] == 200).count(), 1);
    let lines = std::fs::read_to_string(sc.path("audit.jsonl"))
        .unwrap()
        .lines()
        .count();
    assert!(lines < 1200, "{lines} records for {FLOOD} refusals");
    let text = sc.admin("/metrics").await.text();
    let coalesced = text
        .lines()
        .find_map(|l| l.strip_prefix("outrigger_refusals_coalesced_total "))
        .unwrap();
    assert!(coalesced.parse::<f64>().unwrap() > 1000.0, "{coalesced}");
}
