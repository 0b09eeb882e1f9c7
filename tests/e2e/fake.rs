//! A stand-in for `opencode serve` that starts in milliseconds and does on demand what the
//! real one does rarely. What it says has the shape of the recordings. Its history is a file,
//! so that it can be killed and started again.
//!
//! It is this test binary itself, started by a script (`install`) that names the one test below.
//!
//! A prompt is a list of words: `n=<deltas>`, `ms=<pause>`, `fork` (daemons that ignore
//! signals), `flood` (stderr), `huge` (a line of 100 MB), `noise` (garbage), `exit`,
//! `hang`, `poison` (it dies before it has the prompt).

use std::convert::Infallible;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::sync::broadcast;

const DIR: &str = "FAKE_DIR";

/// Writes the script that starts it; its history is kept in `dir`.
pub fn install(dir: &Path) -> PathBuf {
    let script = dir.join("opencode");
    let own = std::env::current_exe().unwrap();
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh\n{DIR}='{}' exec '{}' --exact --ignored --nocapture fake::serves\n",
            dir.display(),
            own.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Every message that it was ever given, by its id, in order.
pub fn history(dir: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(dir.join("history")).unwrap_or_default();
    text.lines()
        .filter_map(|l| l.split_once(' '))
        .map(|(id, text)| (id.to_owned(), text.to_owned()))
        .collect()
}

#[derive(Clone)]
struct Fake {
    dir: PathBuf,
    bus: broadcast::Sender<Bytes>,
    abort: Arc<Mutex<u64>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

const SESSION: &str = "ses_fake";

impl Fake {
    fn say(&self, kind: &str, properties: Value) {
        let event = json!({ "id": "evt_000000000000", "type": kind, "properties": properties });
        let _ = self.bus.send(format!("data: {event}\n\n").into());
    }

    fn status(&self, kind: &str) {
        self.say(
            "session.status",
            json!({ "sessionID": SESSION, "status": { "type": kind } }),
        );
    }

    fn part(&self, part: Value) {
        self.say(
            "message.part.updated",
            json!({ "sessionID": SESSION, "part": part }),
        );
    }

    fn message(&self, id: &str, parent: Option<&str>, complete: bool, finish: Option<&str>) {
        let role = if parent.is_some() {
            "assistant"
        } else {
            "user"
        };
        let completed = complete.then_some(1);
        self.say("message.updated", json!({ "sessionID": SESSION, "info": { "id": id, "role": role, "parentID": parent, "finish": finish, "time": { "created": 1, "completed": completed } } }));
    }

    async fn prompt(self, id: String, text: String) {
        if text.contains("poison") {
            std::process::exit(9);
        }
        let mut history = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("history"))
            .unwrap();
        // One write: a kill leaves the whole line or none of it.
        history
            .write_all(format!("{id} {}\n", text.replace('\n', " ")).as_bytes())
            .unwrap();
        self.message(&id, None, false, None);
        self.part(
            json!({ "type": "text", "text": text, "messageID": id, "id": format!("prt_u{id}") }),
        );
        let _alone = self.turn.clone().lock_owned().await;
        let aborts = *self.abort.lock().unwrap();
        self.status("busy");
        let (answer, part) = (format!("{id}a"), format!("prt_{id}"));
        self.message(&answer, Some(&id), false, None);
        let word = |name: &str| {
            text.split(' ')
                .find_map(|w| w.strip_prefix(name))
                .and_then(|v| v.parse::<u64>().ok())
        };
        if text.contains("fork") {
            // A daemon that left the group, and one that hides behind it.
            let sleeper = "trap '' INT TERM HUP; sleep 1000 & (setsid sh -c \"trap '' INT TERM HUP; sleep 1001\" &) ; wait";
            let _ = std::process::Command::new("setsid")
                .args(["sh", "-c", sleeper])
                .stdin(std::process::Stdio::null())
                .spawn();
        }
        if text.contains("flood") {
            let line = vec![b'e'; 1 << 16];
            for _ in 0..160 {
                let _ = std::io::stderr().write_all(&line);
            }
        }
        if text.contains("noise") {
            for noise in [
                "data: not json\n\n",
                "data: {\"type\":\"of.the.future\",\"properties\":{\"x\":1}}\n\n",
                ": a comment\n\n",
                "nothing\n\n",
            ] {
                let _ = self.bus.send(noise.into());
            }
        }
        if text.contains("huge") {
            let piece = Bytes::from(vec![b'x'; 1 << 20]);
            let _ = self.bus.send("data: \"".into());
            for _ in 0..100 {
                let _ = self.bus.send(piece.clone());
                while self.bus.len() > 16 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let _ = self.bus.send("\"\n\n".into());
        }
        self.part(json!({ "type": "text", "text": "", "messageID": answer, "id": part, "time": { "start": 1 } }));
        let mut said = String::new();
        for i in 0..word("n=").unwrap_or(3) {
            let delta = format!("{i} ");
            said.push_str(&delta);
            self.say("message.part.delta", json!({ "sessionID": SESSION, "messageID": answer, "partID": part, "field": "text", "delta": delta }));
            if let Some(ms) = word("ms=") {
                tokio::time::sleep(Duration::from_millis(ms)).await;
            } else if i % 64 == 63 {
                while self.bus.len() > 512 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            if text.contains("exit") {
                eprintln!("fake: out of cheese");
                std::process::exit(7);
            }
            while text.contains("hang") || *self.abort.lock().unwrap() != aborts {
                if *self.abort.lock().unwrap() != aborts && !text.contains("hang") {
                    self.say("session.error", json!({ "sessionID": SESSION, "error": { "name": "MessageAbortedError", "data": { "message": "Aborted" } } }));
                    self.status("idle");
                    self.part(json!({ "type": "text", "text": said, "messageID": answer, "id": part, "time": { "start": 1, "end": 2 } }));
                    self.message(&answer, Some(&id), true, None);
                    self.status("idle");
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.part(json!({ "type": "text", "text": said, "messageID": answer, "id": part, "time": { "start": 1, "end": 2 } }));
        self.part(json!({ "type": "step-finish", "id": format!("prt_f{id}"), "messageID": answer, "reason": "stop", "cost": 0.5, "tokens": { "input": 7, "output": 3, "reasoning": 0, "cache": { "read": 2, "write": 1 } } }));
        self.message(&answer, Some(&id), true, Some("stop"));
        self.status("idle");
        self.say("session.idle", json!({ "sessionID": SESSION }));
    }

    async fn serve(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        if path == "/event" {
            let heard = self.bus.subscribe();
            self.say("server.connected", json!({}));
            let stream = futures_util::stream::unfold(heard, |mut heard| async move {
                let bytes = heard.recv().await.ok()?;
                Some((Ok(Frame::data(bytes)), heard))
            });
            return Ok(Response::new(BodyExt::boxed(StreamBody::new(stream))));
        }
        let body = request
            .into_body()
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let made = self.dir.join("session");
        let known = |id: &str| history(&self.dir).iter().any(|(i, _)| i == id);
        let (status, answer) = match (
            method,
            path.trim_start_matches('/')
                .split('/')
                .collect::<Vec<_>>()
                .as_slice(),
        ) {
            (Method::GET, ["global", "health"]) => {
                (200, json!({ "healthy": true, "version": "1.18.33" }))
            }
            (Method::POST, ["session"]) => {
                std::fs::write(&made, "").unwrap();
                (200, json!({ "id": SESSION }))
            }
            (Method::GET, ["session", _]) if made.exists() => (200, json!({ "id": SESSION })),
            (Method::GET, ["session", _, "message", id]) if known(id) => (200, json!({})),
            (Method::POST, ["session", _, "prompt_async"]) => {
                let id = body["messageID"].as_str().unwrap().to_owned();
                tokio::spawn(
                    self.clone()
                        .prompt(id, body["parts"][0]["text"].as_str().unwrap().to_owned()),
                );
                (204, Value::Null)
            }
            (Method::POST, ["session", _, "abort"]) => {
                *self.abort.lock().unwrap() += 1;
                (200, json!(true))
            }
            _ => (404, json!({ "error": "not here" })),
        };
        let mut response =
            Response::new(BodyExt::boxed(Full::new(Bytes::from(answer.to_string()))));
        *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
        Ok(response)
    }
}

/// Not a test: see the head of this file.
#[test]
#[ignore = "the stand-in itself, started by the tests that need it"]
fn serves() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!(
            "opencode server listening on http://{}",
            listener.local_addr().unwrap()
        );
        let fake = Fake {
            dir: dir.into(),
            bus: broadcast::channel(65_536).0,
            abort: Arc::default(),
            turn: Arc::default(),
        };
        while let Ok((stream, _)) = listener.accept().await {
            let fake = fake.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request| fake.clone().serve(request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await;
            });
        }
    });
}
