//! How sessions end, go on, and wait: tasks that are started again, disks that are full, sidecars
//! that come late, inputs that kill.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fake;
use crate::kit::{SmallDisk, Upstream, message, request, sidecar, until_async};
use crate::pod::{Pod, free};

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|e| e["type"] == kind).count()
}

/// Takes all the room that a small disk has.
fn fill(ballast: &std::path::Path) {
    let file = std::fs::File::create(ballast).unwrap();
    let _ = std::io::Write::write_all(&mut &file, &vec![0; 1 << 20]);
}

/// A program in the CLI's place.
fn script(pod: &Pod, text: &str) -> String {
    let path = pod.path("script");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn a_task_that_is_over_ends_at_once_when_it_is_started_again() {
    for (prompt, code) in [("n=3", 0), ("exit", 69)] {
        let mut pod = Pod::new(json!({})).await;
        pod.env = vec![
            ("SESSION_MODE".into(), "oneshot".into()),
            ("AGENT_PROMPT".into(), prompt.into()),
        ];
        pod.start();
        assert_eq!(pod.exit().await, Some(code), "{prompt}");
        let before = pod.events();
        for _ in 0..2 {
            let since = Instant::now();
            pod.start();
            assert_eq!(pod.exit().await, Some(code), "{prompt}, again");
            assert!(since.elapsed() < Duration::from_secs(10));
        }
        assert_eq!(pod.events(), before, "there is nothing more to say");
    }
}

#[tokio::test]
async fn a_task_that_was_killed_before_its_end_goes_on() {
    let mut pod = Pod::new(json!({})).await;
    pod.env = vec![
        ("SESSION_MODE".into(), "oneshot".into()),
        ("AGENT_PROMPT".into(), "n=1000 ms=20".into()),
    ];
    pod.start();
    pod.wait("a text", |e| e["type"] == "assistant.delta").await;
    pod.signal(Signal::KILL);
    pod.exit().await;
    pod.start();
    assert_eq!(pod.exit().await, Some(69), "its turn was cut");
    let events = pod.events();
    assert_eq!(
        (count(&events, "turn.end"), count(&events, "session.end")),
        (1, 1)
    );
}

#[tokio::test]
async fn what_was_said_in_pieces_before_a_kill_becomes_a_truncated_message() {
    let mut pod = Pod::run(json!({})).await;
    pod.say("a", "n=1000 ms=5").await;
    pod.wait("some text", |e| e["payload"]["text"] == "20 ")
        .await;
    pod.signal(Signal::KILL);
    pod.exit().await;
    pod.start();
    let end = pod.ends(1).await.remove(0);
    let said: String = pod
        .events()
        .iter()
        .filter(|e| e["type"] == "assistant.delta")
        .map(|e| e["payload"]["text"].as_str().unwrap().to_owned())
        .collect();
    let message = pod
        .wait("the message", |e| e["type"] == "assistant.message")
        .await;
    assert_eq!(
        (
            message["payload"]["text"].as_str(),
            &message["payload"]["truncated"]
        ),
        (Some(said.as_str()), &json!(true))
    );
    assert_eq!(end["payload"]["final_text"].as_str(), Some(said.as_str()));
}

#[tokio::test]
async fn a_cli_that_closes_its_output_is_broken() {
    let mut pod = Pod::new(json!({})).await;
    let program = script(
        &pod,
        "[ \"$1\" = --version ] && { echo '2.1.330 (Claude Code)'; exit; }\nexec >&-\nexec sleep 1000",
    );
    pod.config["agents"] = json!({ "defaultRuntime": "claude", "agentRuntimes": { "claude": { "program": program } } });
    let since = Instant::now();
    pod.start();
    assert_eq!(pod.exit().await, Some(69));
    assert!(since.elapsed() < Duration::from_secs(20));
    let error = pod.wait("an error", |e| e["type"] == "error").await;
    assert!(
        error["payload"]["message"]
            .as_str()
            .unwrap()
            .contains("closed its output"),
        "{error}"
    );
}

#[tokio::test]
async fn a_sidecar_that_comes_late_is_waited_for() {
    let mut pod = Pod::new(json!({})).await;
    let late = free().await;
    pod.config["sidecar"] = json!({ "url": format!("http://{late}") });
    pod.start();
    let stage = pod.wait("a stage", |e| e["type"] == "session.stage").await;
    assert!(
        stage["payload"]["message"]
            .as_str()
            .unwrap()
            .contains("is waited for"),
        "{stage}"
    );
    let get = async |path| request(pod.stream, "GET", path, &[], b"").await;
    let (live, ready) = (get("/health").await, get("/readyz").await);
    assert_eq!(
        (live.status, ready.status),
        (200, 503),
        "{} {}",
        live.text(),
        ready.text()
    );
    assert!(ready.text().contains("the sidecar at"), "{}", ready.text());
    pod.say("a", "n=3").await;
    // All that is asked of a sidecar before the CLI asks it anything.
    let listener = tokio::net::TcpListener::bind(late).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        }
    });
    pod.ends(1).await;
    assert_eq!(get("/readyz").await.status, 200);
    assert_eq!(
        (
            count(&pod.events(), "error"),
            count(&pod.events(), "session.end")
        ),
        (0, 0)
    );
}

#[tokio::test]
async fn a_wrong_session_token_is_said_as_that_and_may_be_renewed() {
    let mut pod = Pod::new(json!({})).await;
    let (ours, theirs) = (pod.path("token"), pod.path("sidecar-token"));
    std::fs::write(&ours, "o".repeat(40)).unwrap();
    std::fs::write(&theirs, "t".repeat(40)).unwrap();
    let up = Upstream::always(message()).await;
    let guarded = sidecar(&up)
        .extra(&format!("tokenFile: {}\n", theirs.display()))
        .run()
        .await;
    pod.config["sidecar"] = json!({ "url": format!("http://{}", guarded.addr), "tokenFile": ours });
    pod.start();
    let error = pod.wait("an error", |e| e["type"] == "error").await;
    assert_eq!(error["payload"]["code"], "auth", "{error}");
    assert!(
        error["payload"]["message"]
            .as_str()
            .unwrap()
            .contains("refuses this session's token"),
        "{error}"
    );
    std::fs::write(&ours, "t".repeat(40)).unwrap();
    pod.say("a", "n=3").await;
    pod.ends(1).await;
}

#[tokio::test]
async fn a_full_disk_stops_neither_the_start_nor_the_end() {
    let mut pod = Pod::run(json!({})).await;
    pod.say("a", "n=3").await;
    pod.ends(1).await;
    pod.signal(Signal::TERM);
    assert_eq!(pod.exit().await, Some(0));

    let mut pod = Pod::new(json!({})).await;
    let mount = pod.path("journal");
    let Some(_disk) = SmallDisk::mount(&mount, 640, "a start on a full disk") else {
        return;
    };
    let ballast = mount.join("ballast");
    fill(&ballast);
    let health = async |pod: &Pod| request(pod.stream, "GET", "/health", &[], b"").await;
    // Nothing was there before: the ports answer, and say why nothing happens.
    pod.start();
    until_async("a port that says it", async || {
        tokio::net::TcpStream::connect(pod.stream).await.is_ok() && health(&pod).await.status == 503
    })
    .await;
    assert!(
        health(&pod).await.text().contains("No space left"),
        "{}",
        health(&pod).await.text()
    );
    // It can be stopped.
    let since = Instant::now();
    pod.signal(Signal::TERM);
    pod.exit().await;
    assert!(
        since.elapsed() < Duration::from_secs(8),
        "{:?}",
        since.elapsed()
    );
    // And it goes on as soon as there is room.
    pod.start();
    std::fs::remove_file(&ballast).unwrap();
    pod.say("a", "n=3").await;
    pod.ends(1).await;
    // On a disk that is full again: what was kept can be read.
    pod.signal(Signal::KILL);
    pod.exit().await;
    fill(&ballast);
    pod.start();
    until_async("the history", async || {
        let Ok(stream) = tokio::net::TcpStream::connect(pod.stream).await else {
            return false;
        };
        drop(stream);
        let mut ends = 0;
        let read = crate::pod::follow(pod.stream, "", None, |_, data| {
            ends += usize::from(data.contains("\"turn.end\""));
            ends == 0
        });
        tokio::time::timeout(Duration::from_secs(2), read)
            .await
            .is_ok()
            && ends == 1
    })
    .await;
}

#[tokio::test]
async fn the_clis_own_lines_stop_no_session() {
    // The journal has a disk of its own here; that of the raw lines is full from the start.
    let mut pod = Pod::new(json!({ "session": { "raw": true } })).await;
    std::fs::create_dir_all(pod.path("journal")).unwrap();
    let mount = pod.path("journal/raw");
    let Some(_disk) = SmallDisk::mount(&mount, 64, "a full disk under the raw lines") else {
        return;
    };
    pod.start();
    for id in ["a", "b", "c"] {
        pod.say(id, "n=500").await;
    }
    pod.ends(3).await;
    let health = request(pod.stream, "GET", "/health", &[], b"").await;
    assert_eq!(health.status, 200);
    assert!(health.text().contains("were left out"), "{}", health.text());
    assert_eq!(count(&pod.events(), "assistant.delta"), 1500);
}

#[tokio::test]
async fn an_input_that_kills_the_cli_is_given_up_and_those_behind_it_go_on() {
    let pod = Pod::run(json!({})).await;
    for (id, text) in [("bad", "poison"), ("good", "n=2")] {
        pod.say(id, text).await;
    }
    let given_up = pod
        .wait("the end of it", |e| {
            e["payload"]["message"]
                .as_str()
                .is_some_and(|m| m.contains("was given up"))
        })
        .await;
    assert!(
        given_up["payload"]["message"]
            .as_str()
            .unwrap()
            .contains("`bad`"),
        "{given_up}"
    );
    pod.ends(1).await;
    assert_eq!(
        fake::history(pod.dir.path())
            .iter()
            .map(|h| h.1.as_str())
            .collect::<Vec<_>>(),
        ["n=2"]
    );
}

#[tokio::test]
async fn inputs_that_wait_can_be_read_and_taken_back() {
    let pod = Pod::run(json!({})).await;
    pod.say("now", "n=100000 ms=5").await;
    pod.wait("its turn", |e| e["type"] == "turn.start").await;
    for id in ["first", "a/b:c%"] {
        pod.say(id, "n=1").await;
    }
    let get = async || request(pod.input, "GET", "/inputs", &[], b"").await.json();
    let ids = |v: &Value| {
        v["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["input_id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&get().await), ["first", "a/b:c%"]);
    let delete = async |path: &str| request(pod.input, "DELETE", path, &[], b"").await.status;
    assert_eq!(delete("/inputs/a%2Fb%3Ac%25").await, 200);
    assert_eq!(
        (delete("/inputs/now").await, delete("/inputs/none").await),
        (409, 404)
    );
    assert_eq!(ids(&get().await), ["first"]);
    pod.post("/interrupt", &json!({})).await;
    pod.ends(2).await;
    assert_eq!(fake::history(pod.dir.path()).len(), 2);
}

#[tokio::test]
async fn what_waits_when_the_turns_are_used_up_is_named() {
    let mut pod = Pod::run(json!({ "session": { "maxTurns": 1 } })).await;
    pod.say("one", "n=200 ms=5").await;
    pod.wait("its turn", |e| e["type"] == "turn.start").await;
    pod.say("two", "n=1").await;
    assert_eq!(pod.exit().await, Some(0));
    let warning = pod
        .wait("a warning", |e| {
            e["type"] == "warning"
                && e["payload"]["message"]
                    .as_str()
                    .unwrap()
                    .contains("had its")
        })
        .await;
    assert!(
        warning["payload"]["message"]
            .as_str()
            .unwrap()
            .contains("`two`"),
        "{warning}"
    );
}

#[tokio::test]
async fn a_disk_that_refuses_an_input_has_not_accepted_it() {
    let mut pod = Pod::new(json!({})).await;
    let mount = pod.path("journal");
    let Some(_disk) = SmallDisk::mount(&mount, 640, "an input on a full disk") else {
        return;
    };
    pod.start();
    pod.wait("a session", |e| e["type"] == "session.start")
        .await;
    let ballast = mount.join("ballast");
    fill(&ballast);
    let image = json!([{ "type": "image", "media_type": "image/png", "data": "A".repeat(40_000) }]);
    let refused = pod
        .post(
            "/inject",
            &json!({ "text": "n=1", "input_id": "a", "attachments": image }),
        )
        .await;
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (503, Some("inbox_unavailable")),
        "{}",
        refused.text()
    );
    pod.signal(Signal::KILL);
    pod.exit().await;
    std::fs::remove_file(ballast).unwrap();
    pod.start();
    pod.say("b", "n=2").await;
    pod.ends(1).await;
    assert_eq!(
        fake::history(pod.dir.path())
            .iter()
            .map(|h| h.1.as_str())
            .collect::<Vec<_>>(),
        ["n=2"]
    );
    let taken = pod
        .post("/inject", &json!({ "text": "n=1", "input_id": "a" }))
        .await;
    assert_eq!(
        (taken.status, taken.json()["duplicate"].as_bool()),
        (202, Some(false))
    );
}
