//! The binary: exit codes, hardening, signals, and the canary in nothing that leaves it.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::kit::*;
use crate::process::{Process, binary, port, run, start};

#[test]
fn mistakes_are_exit_64_with_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.yaml");
    std::fs::write(
        &file,
        "listen: 0.0.0.0:1\nnope: 1\npermissionGrants: [{scope: ai.*}]\n",
    )
    .unwrap();
    let (code, err) = run(&["sidecar", "--config", file.to_str().unwrap()]);
    assert_eq!(code, 64);
    for part in [
        "3 problems in `",
        "`listen` (line 1): `0.0.0.0:1` is not a loopback address",
        "`nope` (line 2): unknown key",
        "`permissionGrants[0].scope` (line 3): `ai.*` is not `ai.<provider>` or `ai.<provider>:<model glob>`",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
    assert_eq!(run(&["sidecar", "--config", "/does/not/exist"]).0, 64);
    assert_eq!(run(&["nonsense"]).0, 64);
    assert_eq!(run(&["rehearse", "--listen", "0.0.0.0:0"]).0, 64);
    assert_eq!(run(&["--help"]).0, 0);
    for command in ["sidecar", "rehearse", "healthcheck"] {
        let out = Command::new(binary())
            .args([command, "--help"])
            .output()
            .unwrap();
        assert!(
            out.status.success()
                && String::from_utf8_lossy(&out.stdout)
                    .contains(&format!("Example: outrigger {command}"))
        );
    }
    let up = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = up.local_addr().unwrap().port();
    std::fs::write(
        &file,
        format!("listen: 127.0.0.1:{taken}\nadmin: off\naudit: {{ file: \"-\" }}\n"),
    )
    .unwrap();
    let (code, err) = run(&["sidecar", "--config", file.to_str().unwrap()]);
    assert_eq!(code, 69, "{err}");
    assert_eq!(
        run(&["sidecar", "--check", "--config", file.to_str().unwrap()]).0,
        0
    );
    assert_eq!(
        run(&["healthcheck", "--address", &format!("127.0.0.1:{taken}")]).0,
        69
    );
}

#[tokio::test]
async fn the_canary_leaves_by_no_door() {
    let echo = format!("{{\"error\":{{\"message\":\"you sent {CANARY}\"}}}}");
    let up = Upstream::new(move |seen| match seen.body.len() % 4 {
        0 => status(500, &echo),
        1 => status(401, &echo),
        2 => Reply::Raw(
            format!("HTTP/1.1 200 OK\r\nx: {CANARY}\r\ncontent-length: 9999\r\n\r\n{CANARY}")
                .into_bytes(),
        ),
        _ => message(),
    })
    .await;
    let dir = sidecar(&up).extra("log: { level: debug }").lay_out();
    let mut sc = start(dir.path());
    let addr = ([127, 0, 0, 1], sc.port).into();
    let mut said = Vec::new();
    for pad in 0..8 {
        for path in [
            "/anthropic/v1/messages",
            "/openai/v1/responses",
            "/google/v1beta/models/m:generateContent",
            "/nowhere",
            "/anthropic/v1/files",
        ] {
            let body = if path.contains("google") {
                format!("{{\"contents\":[],\"x\":\"{}\"}}", "x".repeat(pad))
            } else {
                format!(
                    "{{\"model\":\"m\",\"messages\":[],\"x\":\"{}\"}}",
                    "x".repeat(pad)
                )
            };
            said.extend(
                exchange(
                    addr,
                    &compose(
                        "POST",
                        path,
                        &[("x-api-key", CANARY), ("x-canary", CANARY)],
                        body.as_bytes(),
                    ),
                )
                .await,
            );
        }
    }
    said.extend(exchange(addr, b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await);
    for path in ["/metrics", "/readyz", "/version", "/healthz"] {
        said.extend(
            request(([127, 0, 0, 1], sc.admin).into(), "GET", path, &[], b"")
                .await
                .body,
        );
    }
    // A rotation, a broken configuration, a file that is no key: each makes the log speak.
    replace(
        &dir.path().join("secrets/openai/key"),
        format!("{CANARY} {CANARY}").as_bytes(),
    );
    replace(
        &dir.path().join("sidecar.yaml"),
        format!("x: {{\n{CANARY}").as_bytes(),
    );
    let admin = ([127, 0, 0, 1], sc.admin).into();
    within("both to be noticed", async {
        loop {
            let ready = request(admin, "GET", "/readyz", &[], b"").await.text();
            if ready.contains("configuration file is broken")
                && ready.contains("the key of provider `openai` cannot be read again")
            {
                break;
            }
        }
    })
    .await;
    sc.process.signal("TERM");
    let mut out = Vec::new();
    sc.process
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    let (code, err) = sc.process.end();
    assert_eq!(code, 0);
    assert!(
        err.contains("configuration is broken") && err.contains("the last good one serves"),
        "{err}"
    );
    // Our own file's broken line is quoted by no log.
    for (door, bytes) in [
        ("a response", &said),
        ("stderr", &err.into_bytes()),
        ("stdout", &out),
    ] {
        assert!(
            find(bytes, CANARY.as_bytes()).is_none(),
            "the canary left by {door}: {}",
            String::from_utf8_lossy(bytes)
        );
    }
    for file in ["audit.jsonl", "audit.state.json"] {
        let bytes = std::fs::read(dir.path().join(file)).unwrap();
        assert!(find(&bytes, CANARY.as_bytes()).is_none(), "{file}");
    }
    assert_eq!(records(&dir.path().join("audit.jsonl")).len(), 41);
    assert!(!Path::new("/tmp/outrigger-must-not-write-this").exists());
}

#[tokio::test]
async fn the_process_cannot_be_looked_into() {
    let up = Upstream::always(message()).await;
    let dir = sidecar(&up).lay_out();
    let sc = start(dir.path());
    let id = sc.process.0.id();
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|l| l.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // Undumpable: its files in /proc belong to root, whoever it runs as.
    let nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "true"])
        .status();
    if !nobody.is_ok_and(|s| s.success()) {
        cannot_run("/proc of a process of another user", "root and setpriv");
        return;
    }
    let public = tempfile::tempdir().unwrap();
    let bin = public.path().join("outrigger");
    std::fs::copy(binary(), &bin).unwrap();
    let config = public.path().join("s.yaml");
    let free = port();
    std::fs::write(
        &config,
        format!("listen: 127.0.0.1:{free}\nadmin: off\naudit: {{ file: \"-\" }}\n"),
    )
    .unwrap();
    Command::new("chmod")
        .args(["-R", "a+rX", public.path().to_str().unwrap()])
        .status()
        .unwrap();
    let as_nobody = |args: &[&str]| {
        let mut c = Command::new("setpriv");
        c.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ])
        .args(args);
        c
    };
    let child = as_nobody(&[
        bin.to_str().unwrap(),
        "sidecar",
        "--config",
        config.to_str().unwrap(),
    ])
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let process = Process(child);
    until("the sidecar of nobody", || {
        std::net::TcpStream::connect(("127.0.0.1", free)).is_ok()
    })
    .await;
    let id = process.0.id();
    for file in ["environ", "maps", "mem", "root", "fd"] {
        let read = as_nobody(&["head", "-c", "1", &format!("/proc/{id}/{file}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(
            !read.success(),
            "the same uid can read /proc/<sidecar>/{file}"
        );
    }
}

#[tokio::test]
async fn a_full_disk_under_the_audit_file_closes_the_door() {
    let up = Upstream::always(message()).await;
    let dir = sidecar(&up).lay_out();
    let mount = dir.path().join("small");
    let Some(_disk) = SmallDisk::mount(&mount, 64, "a full disk under the audit file") else {
        return;
    };
    let file = dir.path().join("sidecar.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap().replace(
        &format!("{}/audit.jsonl", dir.path().display()),
        &format!("{}/audit.jsonl", mount.display()),
    );
    std::fs::write(&file, yaml).unwrap();
    let mut sc = start(dir.path());
    let addr = ([127, 0, 0, 1], sc.port).into();
    std::fs::write(mount.join("ballast"), vec![0u8; 40_000]).unwrap();
    let (mut sent, mut refused) = (0, 0);
    let until = Instant::now() + PATIENCE;
    while refused < 5 {
        assert!(Instant::now() < until);
        let got = request(addr, "POST", "/anthropic/v1/messages", &[], BODY.as_bytes()).await;
        sent += 1;
        match got.status {
            200 => assert_eq!(refused, 0, "none is served after the first was refused"),
            503 => {
                assert_eq!(got.code(), "audit_unavailable");
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    let served = up.seen().len();
    assert!(served < sent);
    let ready = request(
        ([127, 0, 0, 1], sc.admin).into(),
        "GET",
        "/readyz",
        &[],
        b"",
    )
    .await;
    assert!(ready.status == 503 && ready.text().contains("audit records cannot be written"));
    std::fs::remove_file(mount.join("ballast")).unwrap();
    loop {
        assert!(Instant::now() < until);
        sent += 1;
        if request(addr, "POST", "/anthropic/v1/messages", &[], BODY.as_bytes())
            .await
            .status
            == 200
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sc.process.signal("TERM");
    assert_eq!(sc.process.end().0, 0);
    let all = records(&mount.join("audit.jsonl"));
    assert_eq!(all.len(), sent, "nothing unaudited, the refusals included");
}

/// Standard error that nobody reads costs log lines, and nothing else.
#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let up = Upstream::always(message()).await;
    let dir = sidecar(&up)
        .grants("[{scope: \"ai.anthropic:claude-sonnet-5\"}]")
        .lay_out();
    // Its standard error is a pipe; nobody reads it before the end.
    let mut sc = start(dir.path());
    let addr = ([127, 0, 0, 1], sc.port).into();
    let denied = BODY.replace("claude-sonnet-5", &"m".repeat(200));
    for _ in 0..900 {
        assert_eq!(
            request(
                addr,
                "POST",
                "/anthropic/v1/messages",
                &[],
                denied.as_bytes()
            )
            .await
            .status,
            403
        );
    }
    assert_eq!(
        request(addr, "POST", "/anthropic/v1/messages", &[], BODY.as_bytes())
            .await
            .status,
        200
    );
    assert_eq!(
        request(
            ([127, 0, 0, 1], sc.admin).into(),
            "GET",
            "/healthz",
            &[],
            b""
        )
        .await
        .status,
        200
    );
    sc.process.signal("TERM");
    let until = Instant::now() + PATIENCE;
    while sc.process.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "it does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(sc.process.end().1.len() > 60_000, "the pipe was full");
}

/// The scenes do what their names say: the events come, and then the connection breaks.
#[tokio::test]
async fn a_scene_that_cuts_sends_its_events_first() {
    let rehearsal = outrigger::rehearsal::Rehearsal::start(
        ([127, 0, 0, 1], 0).into(),
        outrigger::rehearsal::Script::default(),
        None,
    )
    .await
    .unwrap();
    let bodies = [
        (
            "/v1/messages",
            r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"rehearse:SCENE"}]}"#,
            "event: ",
        ),
        (
            "/v1/responses",
            r#"{"model":"m","stream":true,"input":"rehearse:SCENE"}"#,
            "event: ",
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"rehearse:SCENE"}]}"#,
            "data: ",
        ),
        (
            "/v1beta/models/m:streamGenerateContent",
            r#"{"contents":[{"role":"user","parts":[{"text":"rehearse:SCENE"}]}]}"#,
            "data: ",
        ),
    ];
    for (path, body, event) in bodies {
        for (scene, whole) in [
            ("cut", false),
            ("cut", false),
            ("cut-once", false),
            ("cut-once", true),
            ("text", true),
        ] {
            let got = request(
                rehearsal.addr,
                "POST",
                path,
                &[],
                body.replace("SCENE", &format!("{scene} {path}")).as_bytes(),
            )
            .await;
            assert_eq!((got.status, got.whole), (200, whole), "{path} {scene}");
            let events = got.text().matches(event).count();
            assert!(
                if whole {
                    events > 4 || path.contains("v1beta")
                } else {
                    events == 4
                },
                "{path} {scene}: {events} events"
            );
        }
    }
    rehearsal.stop().await;
}

/// Mistakes on the command line: each has its exit code and its word, and costs nothing.
#[test]
fn what_is_typed_wrong_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    #[rustfmt::skip]
    let cases: [(&[&str], i32, &str); 14] = [
        (&["run", "--task", ""], 64, "the task is empty"),
        (&["run", "--task", "x", "--permissions", "ask"], 64, "allow, deny"),
        (&["run", "--task", "x", "--runtime", "opncode"], 64, "did you mean `opencode`?"),
        (&["up", "--port", "0"], 64, "from 1 to 65531"),
        (&["up", "--port", "65533"], 64, "from 1 to 65531"),
        (&["up", "--runtime", "opncode"], 64, "did you mean `opencode`?"),
        (&["up", "--origin", "localhost:5173"], 64, "`--origin`: `localhost:5173` is not an origin"),
        (&["up", "--sidecar-config", "/no/such.yaml"], 64, "in `/no/such.yaml`:\n  - cannot read it: there is no such file"),
        (&["up", "--model", "claude-sonnet-5-5"], 64, "did you mean `anthropic/claude-sonnet-5-5`?"),
        (&["healthcheck", "--address", "nonsense"], 64, "such as `127.0.0.1:3100`"),
        (&["rehearse", "--log", "/no/dir/log"], 64, "`--log`: `/no/dir/log` cannot be written"),
        (&["rehearse", "--script", "/no/such.yaml"], 64, "there is no such file"),
        (&["sidecar", "--session-id", "a b"], 64, "is not a session's id"),
        (&["adapter", "--check", "--sidecar", "http://u:hunter2@h"], 64, "`--sidecar`: `http://***@h`"),
    ];
    for (args, code, said) in cases {
        let mut command = Command::new(binary());
        command
            .args(args)
            .env_clear()
            .env("PATH", "/nowhere")
            .env("HOME", dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(
            stderr.contains(said) && !stderr.contains("hunter2"),
            "{args:?}: {stderr}"
        );
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "{args:?} left something"
        );
    }
}

/// `outrigger runtimes | head -1`.
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = Command::new(binary())
        .arg("runtimes")
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}
