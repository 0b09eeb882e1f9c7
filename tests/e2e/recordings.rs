//! Every recording of every runtime, through its translator and the rules of a stream.
//!
//! Golden outputs stand in `tests/golden/<runtime>/`; `UPDATE_GOLDEN=1` writes them, for a
//! person to read before they are committed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger::adapter::inbox::Input;
use outrigger::adapter::lifecycle::{Lifecycle, TurnPayload};
use outrigger::adapter::runtime::action::{Action, CallReply, PermissionDecision};
use outrigger::adapter::runtime::{LaunchContext, Mcp, Permissions, Translator, registry};
use outrigger::event::InputSource;
use outrigger::event::Payload;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

pub fn setting() -> LaunchContext {
    let echo = Mcp::Local {
        command: vec!["echo".into()],
        env: BTreeMap::new(),
    };
    LaunchContext {
        session_id: "s".into(),
        model: "anthropic/claude-sonnet-4-5".into(),
        sidecar: "http://127.0.0.1:11432".into(),
        key: "outrigger".into(),
        workdir: "/workspace".into(),
        permissions: Permissions::Allow,
        allowed_tools: Vec::new(),
        mcp: BTreeMap::from([("echo".to_owned(), echo)]),
        subagents: false,
        interactive: true,
        home: "/home".into(),
        user_config: Some("/config".into()),
        resume: None,
        random: "0123456789abcdef".repeat(4),
    }
}

/// A line of a recording.
#[derive(Debug, Clone)]
enum Line {
    /// From the CLI.
    Heard(Vec<u8>),
    /// To the CLI: what a translator is asked to do, or has to say by itself.
    Said(Value),
}

/// The lines of a recording: the data of a stream of events, lines, or both directions
/// (`{dir, msg}`).
fn lines(name: &str, bytes: &[u8]) -> Vec<Line> {
    let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    let both = [".io.jsonl", ".acp.jsonl", ".jsonrpc.jsonl"]
        .iter()
        .any(|end| name.ends_with(end));
    let direction = |line: &[u8]| {
        let mut line: Value = serde_json::from_slice(line).unwrap();
        let message = line["msg"].take();
        match line["dir"].as_str().unwrap() {
            "out" | "server->client" => Line::Heard(
                message
                    .as_str()
                    .map_or_else(|| message.to_string(), str::to_owned)
                    .into_bytes(),
            ),
            _ => Line::Said(message),
        }
    };
    match () {
        () if both => lines.map(direction).collect(),
        () if name.ends_with(".sse") => lines
            .map(|l| Line::Heard(l.strip_prefix(b"data: ").unwrap_or(l).to_vec()))
            .collect(),
        () => lines.map(|l| Line::Heard(l.to_vec())).collect(),
    }
}

/// Plays a recording to a translator, at a clock that stands still. Where the recording has
/// both directions it says what was said then, and the answers get the numbers of its own
/// requests.
struct Player {
    translator: Box<dyn Translator>,
    lifecycle: Lifecycle,
    out: Vec<TurnPayload>,
    /// Its requests that nothing in the recording stands for yet: method and number.
    requests: Vec<(String, Value)>,
    /// The recording's numbers, and what they are here.
    numbers: HashMap<String, Value>,
    inputs: usize,
    /// The session that was gone on with.
    resume: Option<String>,
    /// What the CLI wrote down then, if it was kept.
    file: Option<Vec<u8>>,
}

impl Player {
    fn new(runtime: &str, name: &str, lines: &[Line]) -> Self {
        let translator = (registry::find(runtime).unwrap().translator)(&setting());
        let file = std::fs::read(root().join("fixtures/sessions").join(runtime).join(name)).ok();
        let resumed = |line: &Line| match line {
            Line::Said(m) if m["method"] == "session/load" => {
                m["params"]["sessionId"].as_str().map(str::to_owned)
            }
            Line::Said(m) if m["method"] == "thread/resume" => {
                m["params"]["threadId"].as_str().map(str::to_owned)
            }
            _ => None,
        };
        let resume = lines.iter().find_map(resumed);
        let (lifecycle, out) = (Lifecycle::new("s"), Vec::new());
        Player {
            translator,
            lifecycle,
            out,
            requests: Vec::new(),
            numbers: HashMap::new(),
            inputs: 0,
            resume,
            file,
        }
    }

    fn take(&mut self, actions: &mut Vec<Action>) {
        let mut todo: VecDeque<Action> = actions.drain(..).collect();
        while let Some(action) = todo.pop_front() {
            let mut more = Vec::new();
            match action {
                Action::Event(payload) => self.lifecycle.admit(0, payload, &mut self.out),
                Action::Send(m) => {
                    let method = m["method"]
                        .as_str()
                        .or(m["request"]["subtype"].as_str())
                        .or(m["type"].as_str())
                        .unwrap_or_default();
                    let number = [&m["id"], &m["request_id"]]
                        .into_iter()
                        .find(|n| !n.is_null())
                        .cloned()
                        .unwrap_or_default();
                    self.requests.push((method.to_owned(), number));
                }
                Action::ReadFile { tag, .. } => {
                    let found = self
                        .file
                        .clone()
                        .map_or((404, Vec::new()), |body| (200, body));
                    self.translator.reply(
                        tag,
                        CallReply::Answer {
                            status: found.0,
                            body: found.1,
                        },
                        &mut more,
                    );
                }
                Action::Wake(soon) if soon < Duration::from_millis(100) => {
                    self.translator.wake(&mut more)
                }
                _ => {}
            }
            todo.extend(more);
        }
    }

    fn say(&mut self, m: &Value, actions: &mut Vec<Action>) {
        let method = m["method"]
            .as_str()
            .or(m["request"]["subtype"].as_str())
            .or(m["type"].as_str())
            .unwrap_or_default();
        let p = &m["params"];
        // Whoever made the recording has waited.
        self.translator.wake(actions);
        self.take(actions);
        let mut same: &[&str] = &[];
        match method {
            "session/prompt" | "turn/start" | "turn/steer" | "user" | "prompt" => {
                let texts = [
                    &p["prompt"][0]["text"],
                    &p["input"][0]["text"],
                    &m["message"]["content"][0]["text"],
                    &m["message"]["content"],
                    &m["message"],
                ];
                let text = texts
                    .into_iter()
                    .find_map(Value::as_str)
                    .unwrap_or_default()
                    .to_owned();
                self.inputs += 1;
                let source = if self.inputs == 1 {
                    InputSource::Initial
                } else {
                    InputSource::Inject
                };
                let input = Input {
                    source,
                    ..Input::new(format!("input-{}", self.inputs), text)
                };
                let native = m["uuid"]
                    .as_str()
                    .map_or_else(|| format!("native-{}", self.inputs), str::to_owned);
                self.translator.deliver(&input, &native, actions);
                same = &["turn/start", "turn/steer"];
            }
            "turn/interrupt" | "session/cancel" | "interrupt" | "abort" => {
                self.translator.interrupt(actions)
            }
            "initialize" if self.requests.is_empty() => {
                self.translator
                    .open(self.resume.as_deref(), self.resume.is_some(), actions)
            }
            "control_response" | "" => {
                let answer = [
                    &m["response"]["response"]["behavior"],
                    &m["result"]["decision"],
                    &m["result"]["outcome"]["optionId"],
                ];
                let allow = answer
                    .into_iter()
                    .find_map(Value::as_str)
                    .is_some_and(|a| ["allow", "accept", "proceed_once"].contains(&a));
                let decision = if allow {
                    PermissionDecision::Allow
                } else {
                    PermissionDecision::Deny { message: None }
                };
                let open = self
                    .lifecycle
                    .permissions
                    .first()
                    .cloned()
                    .unwrap_or_default();
                assert!(
                    self.translator.answer(&open, &decision, "user", actions),
                    "a request is open: {m}"
                );
            }
            _ => {}
        }
        self.take(actions);
        let number = [&m["id"], &m["request_id"]]
            .into_iter()
            .find(|n| !n.is_null());
        let ours = self
            .requests
            .iter()
            .position(|(ours, _)| ours == method || same.contains(&ours.as_str()));
        if let (Some(number), Some(at)) = (number, ours) {
            let (_, ours) = self.requests.remove(at);
            self.numbers.insert(number.to_string(), ours);
        }
    }

    fn hear(&mut self, bytes: &[u8], actions: &mut Vec<Action>) {
        let mut bytes = bytes.to_vec();
        if let Ok(mut m) = serde_json::from_slice::<Value>(&bytes)
            && m.is_object()
        {
            // An answer: to a request of ours, or to one that only the recording's client made.
            let number = match m["type"].as_str() {
                Some("control_response") => &mut m["response"]["request_id"],
                _ if m.get("method").is_none()
                    && m.get("id").is_some()
                    && (m.get("result").is_some() || m.get("error").is_some()) =>
                {
                    &mut m["id"]
                }
                _ => &mut Value::Null,
            };
            if !number.is_null() {
                let Some(ours) = self.numbers.remove(&number.to_string()) else {
                    return;
                };
                *number = ours;
                bytes = m.to_string().into_bytes();
            }
        }
        self.translator.read(&bytes, actions);
    }
}

/// What the stream would say of a recording, and of the CLI's end at its end.
fn translate(runtime: &str, name: &str, native: &[Line]) -> Vec<TurnPayload> {
    let mut player = Player::new(runtime, name, native);
    let mut actions = Vec::new();
    for line in native {
        match line {
            Line::Heard(bytes) => player.hear(bytes, &mut actions),
            Line::Said(message) => player.say(message, &mut actions),
        }
        player.take(&mut actions);
    }
    player.translator.close(&mut actions);
    player.take(&mut actions);
    player.out
}

/// The rules of a stream (docs/ui-developers.md).
pub fn assert_rules(what: &str, events: &[(Payload, Option<String>)]) {
    let (mut turn, mut tools, mut used) = (None, BTreeSet::new(), BTreeSet::new());
    for (payload, turn_id) in events {
        match payload {
            Payload::TurnStart(start) => {
                assert_eq!(
                    turn.replace(start.turn),
                    None,
                    "{what}: a turn within a turn"
                );
            }
            Payload::TurnEnd(end) => {
                assert_eq!(
                    turn.take(),
                    Some(end.turn),
                    "{what}: an end without its start"
                );
                assert!(tools.is_empty(), "{what}: {tools:?} have no result");
            }
            Payload::ToolUse(tool) => {
                assert!(
                    used.insert(tool.tool_use_id.clone()),
                    "{what}: {} twice",
                    tool.tool_use_id
                );
                tools.insert(tool.tool_use_id.clone());
            }
            Payload::ToolResult(result) => assert!(
                tools.remove(&result.tool_use_id),
                "{what}: a result without its use"
            ),
            _ => {}
        }
        if let (Some(turn), Some(id)) = (turn, turn_id) {
            assert_eq!(*id, format!("turn_{turn}"), "{what}");
        }
    }
    assert_eq!(
        (turn, tools.len()),
        (None, 0),
        "{what}: something is open at the end"
    );
}

fn recordings() -> Vec<(String, String, Vec<u8>)> {
    let mut all = Vec::new();
    for runtime in registry::ALL {
        let dir = root().join("fixtures/native").join(runtime.id);
        let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|e| e.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty());
        all.extend(files.into_iter().map(|f| {
            (
                runtime.id.to_owned(),
                f.file_name().unwrap().to_str().unwrap().to_owned(),
                std::fs::read(&f).unwrap(),
            )
        }));
    }
    all
}

#[test]
fn every_recording_keeps_the_rules_and_its_golden_output() {
    let mut wrong = Vec::new();
    for (runtime, name, bytes) in recordings() {
        let events = translate(&runtime, &name, &lines(&name, &bytes));
        assert_rules(&name, &events);
        let text: String = events
            .iter()
            .map(|(p, turn)| {
                format!(
                    "{} {} {}\n",
                    turn.as_deref().unwrap_or("-"),
                    p.name(),
                    p.to_value()
                )
            })
            .collect();
        let golden = root()
            .join("golden")
            .join(&runtime)
            .join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
            std::fs::write(&golden, &text).unwrap();
        } else if std::fs::read_to_string(&golden).ok().as_deref() != Some(text.as_str()) {
            wrong.push(golden);
        }
    }
    assert!(
        wrong.is_empty(),
        "not as committed (UPDATE_GOLDEN=1 shows how, as a diff): {wrong:#?}"
    );
}

/// Without what the client said: what it answered may not stand where it did.
fn heard(lines: &[Line]) -> Vec<Line> {
    lines
        .iter()
        .filter(|l| matches!(l, Line::Heard(_)))
        .cloned()
        .collect()
}

/// Cut anywhere, with bytes changed, with messages lost or out of order: no panic, and the
/// rules hold.
#[test]
fn a_damaged_recording_keeps_the_rules() {
    for (runtime, name, bytes) in recordings() {
        let all = lines(&name, &bytes);
        let translate = |lines: &[Line]| translate(&runtime, &name, lines);
        let step = (all.len() / 40).max(1);
        let few: Vec<Line> = all
            .iter()
            .filter(|l| !matches!(l, Line::Heard(m) if m.len() >= 20_000))
            .cloned()
            .collect();
        for n in (0..all.len()).step_by(step) {
            assert_rules(&name, &translate(&all[..n]));
            let mut cut = all[..n].to_vec();
            if let Line::Heard(message) = &all[n] {
                cut.push(Line::Heard(message[..message.len() / 2].to_vec()));
            }
            assert_rules(&name, &translate(&cut));
            assert_rules(&name, &translate(&heard(&all[n..])));
        }
        for round in 0..20_usize {
            let mut damaged = few.clone();
            let mut seed = round as u64 * 7919 + 1;
            let mut random = |below: usize| {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as usize % below.max(1)
            };
            for _ in 0..damaged.len().min(10) {
                let (a, b) = (random(damaged.len()), random(damaged.len()));
                match random(3) {
                    0 => damaged.swap(a, b),
                    1 => _ = damaged.remove(a),
                    _ => {
                        let (place, byte) = (random(usize::MAX), b"x\"{},0\xff"[random(7)]);
                        if let Line::Heard(message) = &mut damaged[a]
                            && !message.is_empty()
                        {
                            let at = place % message.len();
                            message[at] = byte;
                        }
                    }
                }
            }
            assert_rules(&name, &translate(&heard(&damaged)));
        }
    }
}

#[test]
fn nothing_is_lost_but_said_as_unparsed() {
    for runtime in registry::ALL {
        for noise in [
            &b"not json"[..],
            b"{}",
            b"[1]",
            b"{\"type\":\"new.thing\",\"properties\":{\"a\":1}}",
            b"\xff\xfe",
            b"{\"type\":5}",
            b"{\"method\":\"new/thing\"}",
        ] {
            let events = translate(runtime.id, "", &[Line::Heard(noise.to_vec())]);
            assert!(
                matches!(events.as_slice(), [(Payload::Unparsed(_), None)]),
                "{} {}: {events:?}",
                runtime.id,
                noise.escape_ascii()
            );
        }
    }
}
