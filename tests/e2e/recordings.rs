//! Every recording of every runtime, through its translator and the rules of a stream.
//!
//! Golden outputs stand in `tests/golden/<runtime>/`; `UPDATE_GOLDEN=1` writes them, for a
//! person to read before they are committed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use outrigger::adapter::balance::{Admitted, Balance};
use outrigger::adapter::runtime::{Action, Mcp, Permissions, Setting, registry};
use outrigger::event::Payload;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

pub fn setting() -> Setting {
    let echo = Mcp::Local { command: vec!["echo".into()], env: BTreeMap::new() };
    Setting {
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
        resume: None,
        random: "0123456789abcdef".repeat(4),
    }
}

/// The native messages of a recording: the data of a stream of events, or lines.
fn messages(name: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
    let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    if name.ends_with(".sse") { lines.map(|l| l.strip_prefix(b"data: ").unwrap_or(l).to_vec()).collect() } else { lines.map(<[u8]>::to_vec).collect() }
}

/// What the stream would say of them, at a clock that stands still, and the CLI's end at the end.
fn translate(runtime: &str, native: &[Vec<u8>]) -> Vec<Admitted> {
    let mut translator = (registry::find(runtime).unwrap().translator)(&setting());
    let (mut balance, mut out) = (Balance::new("s"), Vec::new());
    let mut take = |actions: &mut Vec<Action>| {
        for action in actions.drain(..) {
            if let Action::Event(payload) = action {
                balance.admit(0, payload, &mut out);
            }
        }
    };
    let mut actions = Vec::new();
    for message in native {
        translator.read(message, &mut actions);
        take(&mut actions);
    }
    translator.close(&mut actions);
    take(&mut actions);
    out
}

/// The rules of a stream (docs/ui-developers.md).
pub fn assert_rules(what: &str, events: &[(Payload, Option<String>)]) {
    let (mut turn, mut tools, mut used) = (None, BTreeSet::new(), BTreeSet::new());
    for (payload, turn_id) in events {
        match payload {
            Payload::TurnStart(start) => {
                assert_eq!(turn.replace(start.turn), None, "{what}: a turn within a turn");
            }
            Payload::TurnEnd(end) => {
                assert_eq!(turn.take(), Some(end.turn), "{what}: an end without its start");
                assert!(tools.is_empty(), "{what}: {tools:?} have no result");
            }
            Payload::ToolUse(tool) => {
                assert!(used.insert(tool.tool_use_id.clone()), "{what}: {} twice", tool.tool_use_id);
                tools.insert(tool.tool_use_id.clone());
            }
            Payload::ToolResult(result) => assert!(tools.remove(&result.tool_use_id), "{what}: a result without its use"),
            _ => {}
        }
        if let (Some(turn), Some(id)) = (turn, turn_id) {
            assert_eq!(*id, format!("turn_{turn}"), "{what}");
        }
    }
    assert_eq!((turn, tools.len()), (None, 0), "{what}: something is open at the end");
}

fn recordings() -> Vec<(String, String, Vec<u8>)> {
    let mut all = Vec::new();
    for runtime in registry::ALL {
        let dir = root().join("fixtures/native").join(runtime.id);
        let mut files: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).map(|e| e.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty());
        all.extend(files.into_iter().map(|f| (runtime.id.to_owned(), f.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&f).unwrap())));
    }
    all
}

#[test]
fn every_recording_keeps_the_rules_and_its_golden_output() {
    let mut wrong = Vec::new();
    for (runtime, name, bytes) in recordings() {
        let events = translate(&runtime, &messages(&name, &bytes));
        assert_rules(&name, &events);
        let text: String = events.iter().map(|(p, turn)| format!("{} {} {}\n", turn.as_deref().unwrap_or("-"), p.name(), p.to_value())).collect();
        let golden = root().join("golden").join(&runtime).join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
            std::fs::write(&golden, &text).unwrap();
        } else if std::fs::read_to_string(&golden).ok().as_deref() != Some(text.as_str()) {
            wrong.push(golden);
        }
    }
    assert!(wrong.is_empty(), "not as committed (UPDATE_GOLDEN=1 shows how, as a diff): {wrong:#?}");
}

/// Cut anywhere, with bytes changed, with messages lost or out of order: no panic, and the
/// rules hold.
#[test]
fn a_damaged_recording_keeps_the_rules() {
    for (runtime, name, bytes) in recordings() {
        let all = messages(&name, &bytes);
        let step = (all.len() / 40).max(1);
        let few: Vec<Vec<u8>> = all.iter().filter(|m| m.len() < 20_000).cloned().collect();
        for n in (0..all.len()).step_by(step) {
            assert_rules(&name, &translate(&runtime, &all[..n]));
            let mut cut = all[..n].to_vec();
            cut.push(all[n][..all[n].len() / 2].to_vec());
            assert_rules(&name, &translate(&runtime, &cut));
            assert_rules(&name, &translate(&runtime, &all[n..]));
        }
        for round in 0..20_usize {
            let mut damaged = few.clone();
            let mut seed = round as u64 * 7919 + 1;
            let mut random = |below: usize| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as usize % below.max(1)
            };
            for _ in 0..damaged.len().min(10) {
                let (a, b) = (random(damaged.len()), random(damaged.len()));
                match random(3) {
                    0 => damaged.swap(a, b),
                    1 => _ = damaged.remove(a),
                    _ => {
                        let (at, byte) = (random(damaged[a].len()), b"x\"{},0\xff"[random(7)]);
                        if let Some(slot) = damaged[a].get_mut(at) {
                            *slot = byte;
                        }
                    }
                }
            }
            assert_rules(&name, &translate(&runtime, &damaged));
        }
    }
}

#[test]
fn nothing_is_lost_but_said_as_unparsed() {
    for noise in [&b"not json"[..], b"{}", b"[1]", b"{\"type\":\"new.thing\",\"properties\":{\"a\":1}}", b"\xff\xfe", b"{\"type\":5}"] {
        let events = translate("opencode", &[noise.to_vec()]);
        assert!(matches!(events.as_slice(), [(Payload::Unparsed(_), None)]), "{}: {events:?}", noise.escape_ascii());
    }
}
