//! The adapter as a process of its own, with a stand-in for its CLI (`fake`), so that it can
//! be killed a thousand times. The real CLI is in `tests/clients/runtimes.test.mjs`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::kit::{Got, SmallDisk, request, until, until_async, within};
use crate::pod::{BIN, Pod, attempt, follow};
use crate::{fake, fake_lines};

/// A subscriber that comes back as often as it must, and checks every number.
fn subscriber(
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<String>>>,
    flapping: bool,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while !stop.load(Ordering::SeqCst) {
            let last = seen.lock().unwrap().len() as u64;
            let mut left = if flapping { 37 } else { u64::MAX };
            let session = follow(addr, "", (last > 0).then_some(last), |id, data| {
                let mut seen = seen.lock().unwrap();
                assert_eq!(
                    id,
                    Some(seen.len() as u64 + 1),
                    "none lost, repeated or out of order"
                );
                seen.push(data.to_owned());
                left -= 1;
                left > 0
            });
            let _ = tokio::time::timeout(Duration::from_secs(20), session).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    })
}

/// Kills the adapter, or its CLI, at random moments of a running script.
async fn survive(runtime: &str, kills: usize, cli: bool) {
    let mut pod = Pod::of(runtime, json!({ "session": { "raw": false, "maxTurns": 100_000, "segmentBytes": 200_000, "segments": 10_000 } })).await;
    pod.start();
    let stop = Arc::new(AtomicBool::new(false));
    let seen: Vec<Arc<Mutex<Vec<String>>>> = (0..3).map(|_| Arc::default()).collect();
    let subscribers: Vec<_> = seen
        .iter()
        .enumerate()
        .map(|(i, s)| subscriber(pod.stream, stop.clone(), s.clone(), i == 2))
        .collect();
    // Inputs, one after the other, each as often as it takes.
    let enough = Arc::new(AtomicBool::new(false));
    let (input, stop_inputs) = (pod.input, enough.clone());
    let inputs = tokio::spawn(async move {
        let mut n = 0_u64;
        loop {
            let body = json!({ "text": format!("input {n} n=30 ms=1"), "input_id": format!("in-{n}"), "mode": if n.is_multiple_of(2) { "queue" } else { "auto" } });
            // Too many wait, nobody is there, or the answer was lost: again.
            if attempt(input, &body).await != Some(202) {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            n += 1;
            if stop_inputs.load(Ordering::SeqCst) {
                return n;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    });
    let mut seed = 88_172_645_463_325_252_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let longest = match (cli, runtime) {
        (true, _) => 60_000,
        // Its session is ready when its history has not grown for 200 ms.
        (false, "gemini") => 500_000,
        (false, _) => 180_000,
    };
    let turns = |seen: &Arc<Mutex<Vec<String>>>| {
        seen.lock()
            .unwrap()
            .iter()
            .filter(|e| e.contains("\"reason\":\"end_turn\""))
            .count()
    };
    for _ in 0..kills {
        if cli {
            // One that never finishes a turn is given up, and rightly.
            let before = turns(&seen[0]);
            until("a finished turn", || turns(&seen[0]) > before).await;
        }
        tokio::time::sleep(Duration::from_micros(random(longest))).await;
        if cli {
            for pid in pod.agents() {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(pid).unwrap(),
                    rustix::process::Signal::KILL,
                );
            }
        } else {
            pod.signal(rustix::process::Signal::KILL);
            pod.exit().await;
            pod.start();
        }
    }
    enough.store(true, Ordering::SeqCst);
    let accepted = inputs.await.unwrap();
    let delivered = || {
        pod.events()
            .iter()
            .filter(|e| e["type"] == "user.message")
            .count() as u64
    };
    tokio::time::timeout(Duration::from_secs(120), async {
        while delivered() < accepted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} of {accepted} inputs were delivered", delivered()));
    // Everybody catches up, also who leaves after every 37th event.
    let head = pod.events().len();
    tokio::time::timeout(Duration::from_secs(120), async {
        while seen.iter().any(|s| s.lock().unwrap().len() < head) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    stop.store(true, Ordering::SeqCst);
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
    for s in subscribers {
        s.await.unwrap();
    }
    let events = pod.events();
    // Every subscriber saw the one journal.
    for seen in &seen {
        let seen: Vec<Value> = seen
            .lock()
            .unwrap()
            .iter()
            .map(|e| serde_json::from_str(e).unwrap())
            .collect();
        assert!(events.starts_with(&seen) && seen.len() >= head);
    }
    for (i, e) in events.iter().enumerate() {
        assert_eq!(e["sequence"], i as u64 + 1);
    }
    // Every accepted input: once on the stream, once in the CLI, in the order of its acceptance.
    let said: Vec<&str> = events
        .iter()
        .filter(|e| e["type"] == "user.message")
        .filter_map(|e| e["payload"]["input_id"].as_str())
        .collect();
    assert_eq!(
        said,
        (0..accepted).map(|n| format!("in-{n}")).collect::<Vec<_>>()
    );
    let given: Vec<String> = match runtime {
        "opencode" => fake::history(pod.dir.path())
            .into_iter()
            .map(|(_, text)| text)
            .collect(),
        _ => fake_lines::history(&pod.path("journal/home")),
    };
    let twice: Vec<&String> = given
        .iter()
        .enumerate()
        .filter(|(i, text)| given[..*i].contains(text))
        .map(|(_, text)| text)
        .collect();
    assert!(twice.is_empty(), "given twice: {twice:?}");
    assert_eq!(given.len() as u64, accepted);
    for (n, text) in given.iter().enumerate() {
        assert!(text.starts_with(&format!("input {n} ")), "{text}");
    }
    let typed: Vec<_> = events
        .iter()
        .map(|e| outrigger::event::Event::read(e.to_string().as_bytes()).unwrap())
        .map(|e| (e.payload, e.turn_id))
        .collect();
    crate::recordings::assert_rules("what survived", &typed);
    let resumed = events
        .iter()
        .filter(|e| e["type"] == "session.start" && e["payload"]["resumed"] == true)
        .count();
    println!(
        "{runtime}, {kills} kills ({}): {} events, {accepted} inputs, {resumed} restarts that got ready",
        if cli { "CLI" } else { "adapter" },
        events.len()
    );
}

fn kills(otherwise: usize) -> usize {
    std::env::var("OUTRIGGER_KILLS")
        .ok()
        .and_then(|k| k.parse().ok())
        .unwrap_or(otherwise)
}

/// The stand-ins of all five protocols, killed one after the other, or the adapter over them.
/// `OUTRIGGER_KILLS` is how often each is, `RUNTIMES` names some of them.
async fn survive_each(otherwise: usize, cli: bool) {
    let names =
        std::env::var("RUNTIMES").unwrap_or_else(|_| "opencode,claude,codex,gemini,pi".into());
    for runtime in names.split(',') {
        survive(runtime, kills(otherwise), cli).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_the_adapter_lose_nothing() {
    survive_each(100, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_the_cli_lose_nothing() {
    survive_each(30, true).await;
}

#[tokio::test]
async fn a_stopped_session_leaves_no_process() {
    let mut pod = Pod::run(json!({})).await;
    pod.say("a", "fork n=1").await;
    pod.ends(1).await;
    until("the daemons", || pod.agents().len() > 3).await;
    let session = pod.session();
    let began = Instant::now();
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(pod.agents(), Vec::<i32>::new(), "{session}");
    let end = pod.events().pop().unwrap();
    assert_eq!(
        (end["type"].as_str(), end["payload"]["reason"].as_str()),
        (Some("session.end"), Some("terminated"))
    );
}

/// What an adapter that was killed has left is gone when the next one starts.
#[tokio::test]
async fn a_killed_adapters_cli_does_not_live_on() {
    let mut pod = Pod::run(json!({})).await;
    pod.say("a", "fork n=1").await;
    pod.ends(1).await;
    until("the daemons", || pod.agents().len() > 3).await;
    let before = pod.agents();
    pod.signal(rustix::process::Signal::KILL);
    pod.exit().await;
    assert!(!pod.agents().is_empty());
    pod.start();
    pod.say("b", "n=1").await;
    pod.ends(2).await;
    assert!(pod.agents().iter().all(|pid| !before.contains(pid)));
}

#[tokio::test]
async fn bad_input_gets_its_code_and_delivers_nothing() {
    let mut pod = Pod::run(json!({})).await;
    pod.wait("a session", |e| e["type"] == "session.start")
        .await;
    let long = "x".repeat((64 << 10) + 1);
    let image = |media: &str, data: &str| {
        json!({ "text": "t", "attachments": [{ "type": "image", "media_type": media, "data": data }] }).to_string()
    };
    #[rustfmt::skip]
    let posts: Vec<(u16, &str, String)> = vec![
        (400, "/inject", "{".into()),
        (400, "/inject", "[]".into()),
        (400, "/inject", "{}".into()),
        (400, "/inject", json!({ "text": 5 }).to_string()),
        (400, "/inject", json!({ "text": " \n" }).to_string()),
        (400, "/inject", json!({ "text": "a\u{1b}[2J" }).to_string()),
        (400, "/inject", json!({ "text": "a", "mode": "now" }).to_string()),
        (400, "/inject", json!({ "text": "a", "input_id": "" }).to_string()),
        (400, "/inject", json!({ "text": "a", "input_id": "a b" }).to_string()),
        (413, "/inject", json!({ "text": long }).to_string()),
        (413, "/inject", image("image/png", &"A".repeat((8 << 20) + 4))),
        (413, "/inject", " ".repeat(10 << 20)),
        (400, "/inject", image("text/html", "AAAA")),
        (400, "/inject", image("image/png", "<svg>")),
        (400, "/permission/x", "{}".into()),
        (404, "/permission/x", json!({ "decision": "allow" }).to_string()),
        (404, "/question/x", json!({ "answer": "a" }).to_string()),
        (400, "/question/x", json!({ "answers": [1] }).to_string()),
        (400, "/shutdown", json!({ "summary": 1 }).to_string()),
        (404, "/nothing", "{}".into()),
        (404, "/permission/a/b", "{}".into()),
    ];
    for (status, path, body) in posts {
        let got = request(pod.input, "POST", path, &[], body.as_bytes()).await;
        assert_eq!(got.status, status, "{path} {:.100}: {}", body, got.text());
        assert_eq!(got.header("content-type"), Some("application/problem+json"));
        assert!(got.json()["detail"].as_str().is_some_and(|d| !d.is_empty()));
    }
    #[rustfmt::skip]
    let cases = [
        (415, "POST", "/inject", &[("content-type", "text/plain")][..]),
        (405, "GET", "/inject", &[]),
        (405, "PUT", "/inject", &[]),
        (405, "OPTIONS", "/inject", &[]),
        (403, "POST", "/inject", &[("origin", "http://evil.example")]),
        (403, "POST", "/inject", &[("origin", "null")]),
        (403, "POST", "/inject", &[("sec-fetch-site", "cross-site")]),
    ];
    for (status, method, path, headers) in cases {
        assert_eq!(
            request(pod.input, method, path, headers, br#"{"text":"no"}"#)
                .await
                .status,
            status,
            "{method} {headers:?}"
        );
    }
    let raw = format!(
        "POST /inject HTTP/1.1\r\nHost: evil:{}\r\nContent-Type: application/json\r\nContent-Length: 12\r\nConnection: close\r\n\r\n{{\"text\":\"a\"}}",
        pod.input.port()
    );
    assert_eq!(
        Got::parse(&crate::kit::exchange(pod.input, raw.as_bytes()).await)
            .unwrap()
            .status,
        403
    );
    // More than may wait, and the one that is running.
    pod.say("first", "hang").await;
    pod.wait("a turn", |e| e["type"] == "turn.start").await;
    let mut refused = 0;
    for n in 0..258 {
        let got = pod
            .post(
                "/inject",
                &json!({ "text": "waits", "input_id": format!("w{n}"), "mode": "queue" }),
            )
            .await;
        refused += usize::from(got.status == 429);
    }
    assert_eq!(refused, 2);
    assert_eq!(
        pod.post("/inject", &json!({ "text": "waits", "input_id": "w3" }))
            .await
            .json()["duplicate"],
        true
    );
    assert_eq!(
        pod.post("/shutdown", &json!({ "summary": "enough" }))
            .await
            .status,
        202
    );
    assert_eq!(pod.exit().await, Some(0));
    let events = pod.events();
    assert_eq!(
        events
            .iter()
            .filter(|e| e["type"] == "user.message")
            .count(),
        1
    );
    assert_eq!(events.last().unwrap()["payload"]["summary"], "enough");
    assert_eq!(fake::history(pod.dir.path()).len(), 1);
}

#[tokio::test]
async fn the_stream_resumes_filters_and_refuses() {
    let mut pod = Pod::run(json!({ "session": { "segmentBytes": 4096, "segments": 3 } })).await;
    pod.say("a", "n=400").await;
    pod.ends(1).await;
    let events = pod.events();
    let (first, head) = (
        events[0]["sequence"].as_u64().unwrap(),
        events.len() as u64 + events[0]["sequence"].as_u64().unwrap() - 1,
    );
    assert!(first > 1, "old segments are gone");
    let read = async |query: &str, last: Option<u64>, until: u64| {
        let mut all = Vec::new();
        within(
            "a stream",
            follow(pod.stream, query, last, |id, data| {
                all.push((id.unwrap(), serde_json::from_str::<Value>(data).unwrap()));
                all.last().unwrap().0 < until
            }),
        )
        .await
        .unwrap();
        all
    };
    // What is gone is told, and then everything that is there.
    let all = read("", None, head).await;
    assert_eq!(
        (all[0].1["type"].as_str(), &all[0].1["payload"]),
        (Some("stream.gap"), &json!({ "from": 1, "to": first - 1 }))
    );
    assert_eq!(
        all[1..].iter().map(|e| e.1.clone()).collect::<Vec<_>>(),
        events
    );
    assert_eq!(read("", Some(head - 2), head).await.len(), 2);
    assert_eq!(
        read(&format!("?since={}", head - 2), None, head)
            .await
            .len(),
        2
    );
    assert_eq!(
        read("?since=1", Some(head - 3), head).await.len(),
        3,
        "the header wins"
    );
    assert!(
        read("?deltas=0", Some(first), head)
            .await
            .iter()
            .all(|e| e.1["type"] != "assistant.delta")
    );
    assert_eq!(
        read("?types=turn.end,assistant.message", Some(first), head)
            .await
            .len(),
        2
    );
    let x1 = read("?view=x1", Some(first), head).await;
    assert!(
        x1.iter().any(|e| e.1["type"] == "agent.text")
            && x1.last().unwrap().1["type"] == "agent.usage",
        "{:?}",
        x1.last()
    );
    let mut raw = Vec::new();
    within(
        "raw",
        follow(pod.stream, "?view=raw", None, |_, data| {
            raw.push(data.to_owned());
            !data.contains("session.idle")
        }),
    )
    .await
    .unwrap();
    assert!(raw.iter().any(|l| l.contains("\"stream\":\"events\"")));
    let cases = [
        (400, "/stream?since=x", &[][..]),
        (400, "/stream?since=-1", &[]),
        (400, "/stream?since=18446744073709551616", &[]),
        (400, "/stream?view=nope", &[]),
        (400, "/stream?types=nope", &[]),
        (400, "/stream?deltas=2", &[]),
        (400, "/stream?what=1", &[]),
        (400, "/stream?token=x", &[]),
        (400, "/stream", &[("last-event-id", "abc")]),
        (409, "/stream?since=1000000", &[]),
        (405, "/ticket", &[]),
        (400, "/stream?view=raw&types=turn.end", &[]),
        (400, "/stream?view=x1&deltas=0", &[]),
        (405, "/inject", &[]),
        (404, "/nope", &[]),
        (403, "/stream", &[("origin", "http://evil.example")]),
        (200, "/health", &[]),
        (200, "/status", &[]),
        (200, "/capabilities", &[]),
        (200, "/openapi.json", &[]),
        (200, "/schema/events.json", &[]),
        (200, "/", &[]),
    ];
    for (status, path, headers) in cases {
        assert_eq!(
            request(pod.stream, "GET", path, headers, b"").await.status,
            status,
            "{path} {headers:?}"
        );
    }
    let head_only = request(pod.stream, "HEAD", "/stream", &[], b"").await;
    assert_eq!((head_only.status, head_only.body.len()), (200, 0));
    // The stream ends with the session, and says so.
    let stream = pod.stream;
    let subscribers = async || {
        let status = request(stream, "GET", "/status", &[], b"").await;
        serde_json::from_slice::<Value>(&status.body).unwrap()["subscribers"]
            .as_u64()
            .unwrap()
    };
    let before = subscribers().await;
    let last = tokio::spawn(async move {
        let mut last = String::new();
        follow(stream, "", Some(head), |_, data| {
            last = data.to_owned();
            true
        })
        .await
        .unwrap();
        last
    });
    until_async("the subscriber", async || subscribers().await > before).await;
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
    assert!(
        within("the end of the stream", last)
            .await
            .unwrap()
            .contains("session.end")
    );
}

#[tokio::test]
async fn tokens_open_the_ports_and_nothing_else_does() {
    let mut pod = Pod::new(json!({})).await;
    let (read, write) = (
        "read-token-0123456789-0123456789-abc",
        "write-token-0123456789-0123456789-ab",
    );
    std::fs::write(pod.path("read"), read).unwrap();
    std::fs::write(pod.path("write"), write).unwrap();
    pod.config["listen"] = json!({ "readTokenFile": pod.path("read"), "writeTokenFile": pod.path("write"), "origins": ["https://ui.example"] });
    pod.start();
    pod.wait("a session", |e| e["type"] == "session.start")
        .await;
    let (r, w) = (format!("Bearer {read}"), format!("Bearer {write}"));
    let body = br#"{"text":"n=1","input_id":"a"}"#;
    let cases = [
        (401, pod.stream, "GET", "/stream", ""),
        (401, pod.stream, "GET", "/stream", w.as_str()),
        (401, pod.stream, "GET", "/status", ""),
        (200, pod.stream, "GET", "/status", r.as_str()),
        (200, pod.stream, "GET", "/health", ""),
        (200, pod.stream, "GET", "/", ""),
        (401, pod.stream, "POST", "/inject", r.as_str()),
        (401, pod.input, "POST", "/inject", ""),
        (401, pod.input, "POST", "/inject", r.as_str()),
        (202, pod.input, "POST", "/inject", w.as_str()),
        (202, pod.stream, "POST", "/inject", w.as_str()),
    ];
    for (status, addr, method, path, auth) in cases {
        let headers = [("authorization", auth)];
        let got = request(
            addr,
            method,
            path,
            if auth.is_empty() { &[] } else { &headers },
            if method == "POST" { body } else { b"" },
        )
        .await;
        assert_eq!(got.status, status, "{method} {path} {auth}: {}", got.text());
    }
    let ticket = request(
        pod.stream,
        "POST",
        "/ticket",
        &[("authorization", &r)],
        b"{}",
    )
    .await
    .json()["ticket"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut count = 0;
    within(
        "a stream",
        follow(pod.stream, &format!("?ticket={ticket}"), None, |_, _| {
            count += 1;
            count < 2
        }),
    )
    .await
    .unwrap();
    assert_eq!(
        request(pod.stream, "GET", "/stream?ticket=00", &[], b"")
            .await
            .status,
        401
    );
    assert_eq!(
        request(
            pod.stream,
            "GET",
            &format!("/status?ticket={ticket}"),
            &[],
            b""
        )
        .await
        .status,
        401,
        "a ticket is for the stream"
    );
    // A configured page: asked first, then served.
    let asked = request(
        pod.input,
        "OPTIONS",
        "/inject",
        &[("origin", "https://ui.example")],
        b"",
    )
    .await;
    assert_eq!(
        (asked.status, asked.header("access-control-allow-origin")),
        (204, Some("https://ui.example"))
    );
    assert_eq!(
        request(
            pod.input,
            "OPTIONS",
            "/inject",
            &[("origin", "https://other.example")],
            b""
        )
        .await
        .status,
        403
    );
    pod.ends(1).await;
    assert_eq!(
        pod.events()
            .iter()
            .filter(|e| e["type"] == "user.message")
            .count(),
        1
    );
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    // Open to others without a token.
    let mut pod = Pod::new(json!({ "listen": { "stream": "0.0.0.0:0" } })).await;
    let output = |pod: &Pod, skip_ports: bool| {
        let mut command = pod.command();
        if skip_ports {
            command = Command::new(BIN);
            command
                .env_clear()
                .arg("adapter")
                .arg("--config")
                .arg(pod.path("adapter.yaml"))
                .arg("--journal")
                .arg(pod.path("journal"));
        }
        let out = command.output().unwrap();
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    pod.command();
    let (code, said) = output(&pod, true);
    assert!(
        code == Some(64) && said.contains("listen.stream") && said.contains("readTokenFile"),
        "{code:?} {said}"
    );
    // Beside a key.
    pod.config["listen"] = json!({});
    pod.env = vec![("ANTHROPIC_API_KEY".into(), "sk-ant-real".into())];
    let (code, said) = output(&pod, false);
    assert!(
        code == Some(64) && said.contains("ANTHROPIC_API_KEY") && !said.contains("sk-ant-real"),
        "{code:?} {said}"
    );
    pod.env.clear();
    // A CLI that is missing, of another version, gone at once, or silent nonsense: each with the
    // reason, and 69.
    let script = |name: &str, text: &str| {
        let path = pod.path(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        path
    };
    for (program, reason) in [
        (PathBuf::from("/no/such/opencode"), "was not found"),
        (script("tea", "echo out of tea >&2; exit 3"), "out of tea"),
        (
            script("nonsense", "echo nonsense; exit 0"),
            "ended before it was ready",
        ),
    ] {
        std::fs::remove_dir_all(pod.path("journal")).ok();
        pod.config["agents"]["agentRuntimes"]["opencode"]["program"] = json!(program);
        let (code, said) = output(&pod, false);
        assert_eq!(code, Some(69), "{said}");
        let events = pod.events();
        let error = events.iter().find(|e| e["type"] == "error").unwrap();
        assert_eq!(error["payload"]["code"], "runtime_crashed");
        assert!(
            error["payload"].to_string().contains(reason),
            "{reason}: {error}"
        );
        let end = events.last().unwrap();
        assert_eq!(
            (end["type"].as_str(), end["payload"]["reason"].as_str()),
            (Some("session.end"), Some("crashed"))
        );
    }
}

#[tokio::test]
async fn whatever_the_cli_writes_is_said_or_survived() {
    let mut pod = Pod::run(json!({})).await;
    pod.say("noise", "noise n=2").await;
    pod.say("flood", "flood n=2").await;
    pod.ends(2).await;
    pod.say("huge", "huge n=2").await;
    let ends = pod.ends(3).await;
    assert!(ends.iter().all(|e| e["payload"]["reason"] == "end_turn"));
    assert_eq!(
        ends[0]["payload"]["usage"],
        json!({ "input": 7, "cache_read": 2, "cache_write": 1, "output": 3, "reasoning": 0, "cost_usd": 0.5 })
    );
    let unparsed: Vec<Value> = pod
        .events()
        .into_iter()
        .filter(|e| e["type"] == "agent.unparsed")
        .map(|e| e["payload"]["native"].clone())
        .collect();
    assert_eq!(unparsed[0], "not json");
    assert_eq!(unparsed[1]["type"], "of.the.future");
    let huge = &unparsed[2];
    assert_eq!(
        (
            huge["bytes"].as_u64(),
            huge["sha256"].as_str().map(str::len)
        ),
        (Some((100 << 20) + 8), Some(64))
    );
    // It was never held: the adapter's largest size.
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", pod.child.as_ref().unwrap().id()))
            .unwrap();
    let peak: u64 = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(peak < 64 << 10, "{peak} KiB");
    // It ends by itself: told with its last words, and started again.
    pod.say("exit", "exit").await;
    let error = pod.wait("an error", |e| e["type"] == "error").await;
    assert!(
        error["payload"]["native"]["stderr_tail"]
            .as_str()
            .unwrap()
            .contains("out of cheese"),
        "{error}"
    );
    pod.say("after", "n=1").await;
    assert_eq!(pod.ends(5).await[4]["payload"]["reason"], "end_turn");
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
}

/// A CLI that does not stop its turn when told to is started again.
#[tokio::test]
async fn a_hanging_cli_is_replaced() {
    let mut pod = Pod::run(json!({})).await;
    pod.say("a", "hang").await;
    pod.wait("a turn", |e| e["type"] == "assistant.delta").await;
    assert_eq!(pod.post("/interrupt", &json!({})).await.status, 202);
    let end = pod.ends(1).await.remove(0);
    assert_eq!(end["payload"]["reason"], "interrupted");
    pod.say("b", "n=1").await;
    assert_eq!(pod.ends(2).await[1]["payload"]["reason"], "end_turn");
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_session_has_one_adapter_and_one_journal() {
    let mut pod = Pod::run(json!({})).await;
    pod.wait("a session", |e| e["type"] == "session.start")
        .await;
    let second = pod.command().output().unwrap();
    assert_eq!(second.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another adapter"));
    pod.signal(rustix::process::Signal::TERM);
    pod.exit().await;
    pod.args = vec!["--session-id".into(), "another".into()];
    let other = pod.command().output().unwrap();
    assert_eq!(other.status.code(), Some(69));
    assert!(
        String::from_utf8_lossy(&other.stderr).contains("belongs to session"),
        "{}",
        String::from_utf8_lossy(&other.stderr)
    );
}

#[tokio::test]
async fn an_idle_session_ends_unless_somebody_is_there() {
    let mut pod = Pod::run(json!({ "session": { "idleTimeout": "700ms" } })).await;
    pod.wait("a session", |e| e["type"] == "session.start")
        .await;
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(pod.post("/keepalive", &json!({})).await.status, 202);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(pod.exit().await, Some(0));
    assert!(began.elapsed() > Duration::from_millis(1500));
    assert_eq!(
        pod.events().last().unwrap()["payload"]["reason"],
        "idle_timeout"
    );
}

/// 100 subscribers that never read: the CLI gets through its turn, and the others get every
/// event. (What 300 cost is measured in `tests/bench/events.rs`.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_never_read_hold_nobody_up() {
    let mut pod = Pod::run(json!({ "session": { "raw": false } })).await;
    pod.wait("a session", |e| e["type"] == "session.start")
        .await;
    let mut stuck = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(pod.stream).await.unwrap();
        stream
            .write_all(format!("GET /stream HTTP/1.1\r\nHost: {}\r\n\r\n", pod.stream).as_bytes())
            .await
            .unwrap();
        stuck.push(stream);
    }
    let (stop, seen): (_, Vec<Arc<Mutex<Vec<String>>>>) = (
        Arc::new(AtomicBool::new(false)),
        (0..20).map(|_| Arc::default()).collect(),
    );
    let readers: Vec<_> = seen
        .iter()
        .map(|s| subscriber(pod.stream, stop.clone(), s.clone(), false))
        .collect();
    // More than the sockets of those that do not read can hold.
    pod.say("a", "n=12000").await;
    pod.ends(1).await;
    let head = pod.events().len();
    until("every event at every reader", || {
        seen.iter().all(|s| s.lock().unwrap().len() >= head)
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    drop(stuck);
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
    for reader in readers {
        reader.await.unwrap();
    }
}

/// On a full disk nothing is dropped: the CLI waits, `/health` says why, and the stream tells it
/// when it is over.
#[tokio::test]
async fn a_full_disk_holds_the_cli_back_and_loses_nothing() {
    let mut pod = Pod::new(json!({ "session": { "raw": false } })).await;
    let mount = pod.path("journal");
    let Some(_disk) = SmallDisk::mount(&mount, 640, "a full disk under the journal") else {
        return;
    };
    pod.start();
    pod.wait("a session", |e| e["type"] == "session.start")
        .await;
    let ballast = mount.join("ballast");
    std::fs::write(&ballast, vec![0; 530_000]).unwrap();
    pod.say("a", "n=2000").await;
    let health = async || request(pod.stream, "GET", "/health", &[], b"").await;
    until_async("the trouble", async || health().await.status == 503).await;
    assert!(health().await.text().contains("cannot be written"));
    assert_eq!(
        pod.events()
            .iter()
            .filter(|e| e["type"] == "turn.end")
            .count(),
        0
    );
    std::fs::remove_file(&ballast).unwrap();
    pod.ends(1).await;
    let events = pod.events();
    assert_eq!(
        events
            .iter()
            .filter(|e| e["type"] == "assistant.delta")
            .count(),
        2000
    );
    for (i, e) in events.iter().enumerate() {
        assert_eq!(e["sequence"], i as u64 + 1);
    }
    assert!(events.iter().any(|e| {
        e["type"] == "warning"
            && e["payload"]["message"]
                .as_str()
                .unwrap()
                .contains("could not be written")
    }));
    assert_eq!(health().await.status, 200);
    pod.signal(rustix::process::Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));
}
