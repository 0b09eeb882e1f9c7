//! What changes while requests run: grants, secrets, a broken file.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::*;

const MESSAGES: &str = "/anthropic/v1/messages";

#[tokio::test]
async fn a_grant_holds_within_a_second_and_a_broken_file_changes_nothing() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).grants("[]").run().await;
    assert_eq!(sc.post(MESSAGES, &[], BODY).await.code(), "scope_denied");
    sc.regrant("[{scope: ai.anthropic}]");
    let since = Instant::now();
    until("the grant", || {
        !sc.sidecar.shared.policy.load().grants.is_empty()
    })
    .await;
    assert!(
        since.elapsed() < Duration::from_secs(1),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    let good = std::fs::read_to_string(sc.path("sidecar.yaml")).unwrap();
    for broken in [
        "",
        "{",
        "nope: 1\n",
        "permissionGrants: [{scope: ai.*}]\n",
        &good[..good.len() / 2],
        "a: 1\na: 2\n",
        "\0\0\0",
    ] {
        sc.reconfigure(broken);
        until("the broken file to be noticed", || {
            sc.sidecar.shared.metrics.policy_ok.get() == 0
        })
        .await;
        let ready = sc.admin("/readyz").await;
        assert_eq!(ready.status, 503);
        assert!(ready.text().contains("configuration file is broken"));
        assert_eq!(
            sc.post(MESSAGES, &[], BODY).await.status,
            200,
            "the last good one serves"
        );
        sc.reconfigure(&good);
        until("the good file to be noticed", || {
            sc.sidecar.shared.metrics.policy_ok.get() == 1
        })
        .await;
    }
    std::fs::remove_file(sc.path("sidecar.yaml")).unwrap();
    until("the missing file to be noticed", || {
        sc.sidecar.shared.metrics.policy_ok.get() == 0
    })
    .await;
    assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
    sc.regrant("[]");
    until("the revocation", || {
        sc.sidecar.shared.policy.load().grants.is_empty()
    })
    .await;
    assert_eq!(sc.post(MESSAGES, &[], BODY).await.code(), "scope_denied");
    let metrics = sc.admin("/metrics").await.text();
    assert!(
        metrics.contains("outrigger_policy_reloads_total{result=\"broken\"} 8"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_rotation_is_seen_within_two_seconds_also_as_kubernetes_does_it() {
    let up = Upstream::always(message()).await;
    let sc = sidecar(&up).run().await;
    // As the kubelet mounts a Secret: key -> ..data/key, ..data -> ..<time>.
    let mount = sc.path("secrets/anthropic");
    let version = |name: &str, key: &str| {
        std::fs::create_dir(mount.join(name)).unwrap();
        std::fs::write(mount.join(name).join("key"), key).unwrap();
        let _ = std::fs::remove_file(mount.join("..data_tmp"));
        std::os::unix::fs::symlink(name, mount.join("..data_tmp")).unwrap();
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    version("..1", "sk-version-1");
    std::fs::remove_file(mount.join("key")).unwrap();
    std::os::unix::fs::symlink("..data/key", mount.join("key")).unwrap();
    for n in 1..=3 {
        let key = format!("sk-version-{n}");
        if n > 1 {
            version(&format!("..{n}"), &key);
        }
        let since = Instant::now();
        until("the key", || {
            sc.sidecar.shared.secrets.patterns().find(key.as_bytes())
        })
        .await;
        assert!(since.elapsed() < Duration::from_secs(2));
        assert_eq!(sc.post(MESSAGES, &[], BODY).await.status, 200);
        assert_eq!(
            up.seen().last().unwrap().header("x-api-key"),
            Some(key.as_str())
        );
    }
}

/// A client that keeps its connection.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn new(sc: &Running) -> Client {
        Client {
            stream: TcpStream::connect(sc.addr).await.unwrap(),
            buffer: Vec::new(),
        }
    }

    async fn post(&mut self, port: u16, path: &str, body: &str) -> u16 {
        let raw = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(raw.as_bytes()).await.unwrap();
        let mut piece = vec![0; 8192];
        loop {
            if let Some(got) = Got::parse(&self.buffer).filter(|g| g.whole) {
                self.buffer.clear();
                return got.status;
            }
            let n = within("a reply", self.stream.read(&mut piece))
                .await
                .unwrap();
            assert!(n > 0, "the connection was closed under a request");
            self.buffer.extend_from_slice(&piece[..n]);
        }
    }
}

/// 10,000 requests at concurrency 64 while grants and secrets are rewritten ten times a
/// second: whatever a valid grant covered is served, whatever none did is not, with a key
/// that was valid, and there are exactly 10,000 records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_and_secrets_change_under_load() {
    const TOTAL: usize = 10_000;
    /// A change is to hold within this time; until then either answer is right.
    const GRACE: Duration = Duration::from_secs(1);
    let keys = Arc::new(Mutex::new(vec![(Instant::now(), CANARY.to_owned())]));
    let bad_keys = Arc::new(AtomicUsize::new(0));
    let (known, bad) = (keys.clone(), bad_keys.clone());
    let up = Upstream::new(move |seen| {
        let keys = known.lock().unwrap();
        let sent = seen.header("x-api-key").unwrap_or_default();
        let position = keys.iter().rposition(|(_, k)| k == sent);
        // Its successor must not be older than the time a rotation may take.
        let stale = position.is_none_or(|i| {
            keys.get(i + 1)
                .is_some_and(|(since, _)| since.elapsed() > Duration::from_secs(2))
        });
        bad.fetch_add(usize::from(stale), Ordering::Relaxed);
        message()
    })
    .await;
    // `always` is granted throughout, `sometimes` comes and goes, `never` is never.
    let with = r#"[{scope: "ai.anthropic:always"}, {scope: "ai.anthropic:sometimes"}]"#;
    let without = r#"[{scope: "ai.anthropic:always"}]"#;
    let sc = Arc::new(sidecar(&up).grants(with).run().await);
    // When `sometimes` was last written in, and out.
    let toggles: Arc<Mutex<Vec<(Instant, bool)>>> =
        Arc::new(Mutex::new(vec![(Instant::now() - GRACE * 2, true)]));
    let running = Arc::new(AtomicBool::new(true));
    let writer = {
        let (sc, keys, toggles, running) =
            (sc.clone(), keys.clone(), toggles.clone(), running.clone());
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            let mut n = 0;
            while running.load(Ordering::Relaxed) {
                tick.tick().await;
                n += 1;
                let key = format!("sk-rotated-{n:06}-abcdef");
                keys.lock().unwrap().push((Instant::now(), key.clone()));
                sc.rotate("anthropic", &key);
                // Rewritten every time, its meaning changed every three seconds.
                let granted = (n / 30) % 2 == 0;
                let mut log = toggles.lock().unwrap();
                if log.last().unwrap().1 != granted {
                    log.push((Instant::now(), granted));
                }
                sc.regrant(&format!("{} # {n}", if granted { with } else { without }));
            }
            n
        })
    };
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (sc, next, toggles) = (sc.clone(), next.clone(), toggles.clone());
        clients.spawn(async move {
            let mut client = Client::new(&sc).await;
            let mut seen = BTreeSet::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= TOTAL {
                    return seen;
                }
                let model = ["always", "sometimes", "never"][i % 3];
                let asked = Instant::now();
                let status = client
                    .post(
                        sc.addr.port(),
                        MESSAGES,
                        &format!(r#"{{"model":"{model}","messages":[]}}"#),
                    )
                    .await;
                let answered = Instant::now();
                // What `sometimes` was within the grace time before the answer.
                let states: BTreeSet<bool> = {
                    let log = toggles.lock().unwrap();
                    let from = log
                        .iter()
                        .rposition(|(at, _)| *at + GRACE < asked)
                        .unwrap_or(0);
                    log[from..]
                        .iter()
                        .filter(|(at, _)| *at <= answered)
                        .map(|(_, g)| *g)
                        .collect()
                };
                let right = match (model, status) {
                    ("always", 200) | ("never", 403) => true,
                    ("sometimes", 200) => states.contains(&true),
                    ("sometimes", 403) => states.contains(&false),
                    _ => false,
                };
                assert!(right, "request {i}: {model} got {status}, {states:?}");
                seen.insert((model, status));
            }
        });
    }
    let mut seen = BTreeSet::new();
    while let Some(done) = clients.join_next().await {
        seen.extend(done.unwrap());
    }
    running.store(false, Ordering::Relaxed);
    let rewrites = writer.await.unwrap();
    assert_eq!(
        bad_keys.load(Ordering::Relaxed),
        0,
        "every request went out with a key that was valid"
    );
    let all = sc.audit(TOTAL).await;
    // Refused requests may be counted together; what was served has a record each.
    let alone: Vec<&str> = all
        .iter()
        .filter(|r| r["count"].is_null())
        .map(|r| r["request_id"].as_str().unwrap())
        .collect();
    let ids: BTreeSet<&str> = alone.iter().copied().collect();
    assert_eq!(ids.len(), alone.len(), "each record is of another request");
    let allowed = all.iter().filter(|r| r["decision"] == "allow").count();
    assert_eq!(
        allowed,
        up.seen().len(),
        "what was allowed is what went out"
    );
    println!("{TOTAL} requests over {rewrites} rewrites: {allowed} allowed; {seen:?}");
}

#[tokio::test]
async fn drain_finishes_open_streams_and_takes_no_new_ones() {
    let up = Upstream::new(|seen| {
        if seen.body.is_empty() {
            Reply::Silence
        } else {
            Reply::Open(b"data: {\"type\":\"ping\"}\n\n".to_vec())
        }
    })
    .await;
    let sc = sidecar(&up).extra("timeouts: { drain: 10s }").run().await;
    let mut client = TcpStream::connect(sc.addr).await.unwrap();
    let raw = String::from_utf8(compose("POST", MESSAGES, &[], BODY.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    client.write_all(raw.as_bytes()).await.unwrap();
    client.read_exact(&mut [0; 20]).await.unwrap();
    let (addr, admin, shared) = (sc.addr, sc.admin, sc.sidecar.shared.clone());
    let Running {
        sidecar: running,
        dir,
        ..
    } = sc;
    let stopping = tokio::spawn(running.stop(std::future::pending()));
    until("the drain", || shared.draining.load(Ordering::Acquire)).await;
    until("the port to close", || {
        std::net::TcpStream::connect(addr).is_err()
    })
    .await;
    let _ = admin;
    assert!(!stopping.is_finished(), "the open stream is waited for");
    drop(client);
    within("the end", stopping).await.unwrap();
    let all = records(&dir.path().join("audit.jsonl"));
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["code"], "client_closed");
}

/// Cut at the end of the drain time, every stream still has its record.
#[tokio::test]
async fn what_the_drain_cuts_is_recorded() {
    let up = Upstream::always(Reply::Open(b"data: {}\n\n".to_vec())).await;
    let sc = sidecar(&up).extra("timeouts: { drain: 200ms }").run().await;
    let raw = String::from_utf8(compose("POST", MESSAGES, &[], BODY.as_bytes()))
        .unwrap()
        .replace("{PORT}", &sc.addr.port().to_string());
    let mut open = Vec::new();
    for _ in 0..200 {
        let mut client = TcpStream::connect(sc.addr).await.unwrap();
        client.write_all(raw.as_bytes()).await.unwrap();
        client.read_exact(&mut [0; 20]).await.unwrap();
        open.push(client);
    }
    let admin = sc.admin;
    let Running {
        sidecar: running,
        dir,
        ..
    } = sc;
    let stopping = tokio::spawn(running.stop(std::future::pending()));
    let ready = request(admin, "GET", "/readyz", &[], b"").await;
    assert!(
        ready.status == 503 && ready.text().contains("shutting down"),
        "readiness is seen to go: {}",
        ready.text()
    );
    within("the end", stopping).await.unwrap();
    assert_eq!(records(&dir.path().join("audit.jsonl")).len(), 200);
}
