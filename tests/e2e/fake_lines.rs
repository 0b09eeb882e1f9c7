//! Stand-ins for the CLIs that are talked with in lines (Claude Code, Codex, Gemini CLI, pi): they
//! start in milliseconds, and can be killed a thousand times. What they say has the shape of the
//! recordings, and each keeps its history where the real one does, a line per message of the user.
//! These files are the truth of what the CLI was given.
//!
//! They are this test binary itself, as in `fake`. A prompt is a list of words: `n=<pieces>`,
//! `ms=<pause after each>`.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use serde_json::{Value, json};

const RUNTIME: &str = "FAKE_RUNTIME";
const ARGS: &str = "FAKE_ARGS";
/// What each says of its version.
const VERSIONS: [(&str, &str); 4] = [
    ("claude", "2.1.331"),
    ("codex", "0.169.0"),
    ("gemini", "0.61.0"),
    ("pi", "0.87.1"),
];

/// Writes the script that starts it into `dir`.
pub fn install(dir: &Path, runtime: &str) -> PathBuf {
    let script = dir.join(runtime);
    let own = std::env::current_exe().unwrap();
    let version = VERSIONS
        .iter()
        .find(|(name, _)| *name == runtime)
        .unwrap()
        .1;
    // The harness of the tests writes to standard output too: what the stand-in says has another.
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo {version} && exit\n{RUNTIME}={runtime} {ARGS}=\"$*\" exec '{}' --exact --ignored --nocapture fake_lines::talks 3>&1 >/dev/null\n",
        own.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// The texts that the CLI was given, in order. `home` is its directory.
pub fn history(home: &Path) -> Vec<String> {
    let mut files = Vec::new();
    below(home, &mut files);
    assert!(files.len() <= 1, "one history: {files:?}");
    files
        .iter()
        .flat_map(|file| remembered(file))
        .map(|entry| entry["content"][0]["text"].as_str().unwrap().to_owned())
        .collect()
}

fn below(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(Result::unwrap)
    {
        let path = entry.path();
        if path.is_dir() {
            below(&path, files);
        } else if path.extension().is_some_and(|e| e == "jsonl") {
            files.push(path);
        }
    }
}

fn remembered(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What the user says, with the name that the adapter gave it, and the request it came by.
struct Given {
    name: String,
    text: String,
    request: Value,
}

struct Cli {
    runtime: String,
    args: Vec<String>,
    out: Mutex<File>,
    /// The session: its id stands in the name of its file.
    session: Mutex<String>,
    file: Mutex<PathBuf>,
    turns: Mutex<u64>,
}

impl Cli {
    fn say(&self, message: Value) {
        // One write: a kill leaves the whole line or none of it.
        let _ = self
            .out
            .lock()
            .unwrap()
            .write_all(format!("{message}\n").as_bytes());
    }

    fn arg(&self, name: &str) -> Option<&str> {
        let at = self.args.iter().position(|arg| arg == name)?;
        self.args.get(at + 1).map(String::as_str)
    }

    /// Goes on with a session, or begins one.
    fn open(&self, session: &str) {
        let env = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
        let (dir, name) = match self.runtime.as_str() {
            "claude" => (
                env("CLAUDE_CONFIG_DIR").join("projects/work"),
                format!("{session}.jsonl"),
            ),
            "codex" => (env("CODEX_HOME"), format!("{session}.jsonl")),
            "gemini" => (
                env("GEMINI_CLI_HOME").join(".gemini/tmp/work/chats"),
                format!("session-2020-01-01T00-00-{}.jsonl", &session[..8]),
            ),
            _ => (
                PathBuf::from(self.arg("--session-dir").unwrap()),
                format!("1_{session}.jsonl"),
            ),
        };
        std::fs::create_dir_all(&dir).unwrap();
        *self.session.lock().unwrap() = session.to_owned();
        *self.file.lock().unwrap() = dir.join(name);
    }

    /// Writes down what the user said, `at` that time.
    fn remember(&self, given: &Given, at: jiff::Timestamp) {
        let line = json!({ "type": "user", "id": given.name, "timestamp": at.to_string(), "at": at.as_millisecond(), "content": [{ "type": "text", "text": given.text }] });
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&*self.file.lock().unwrap())
            .unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn history(&self) -> Vec<Value> {
        remembered(&self.file.lock().unwrap())
    }

    /// One line; what the user says is returned, and played one after the other.
    fn hear(&self, m: &Value) -> Option<Given> {
        match self.runtime.as_str() {
            "claude" => self.hear_claude(m),
            "codex" => self.hear_codex(m),
            "gemini" => self.hear_gemini(m),
            _ => self.hear_pi(m),
        }
    }

    fn play(&self, given: &Given) {
        let turn = {
            let mut turns = self.turns.lock().unwrap();
            *turns += 1;
            format!("{}-{turns}", std::process::id())
        };
        match self.runtime.as_str() {
            "claude" => self.play_claude(given, &turn),
            "codex" => self.play_codex(given, &turn),
            "gemini" => self.play_gemini(given),
            _ => self.play_pi(given),
        }
    }

    /// Says the pieces of an answer; all of it.
    fn answer(&self, given: &Given, piece: impl Fn(&str)) -> String {
        let word = |name: &str| {
            given
                .text
                .split(' ')
                .find_map(|w| w.strip_prefix(name))
                .and_then(|v| v.parse::<u64>().ok())
        };
        let mut said = String::new();
        for i in 0..word("n=").unwrap_or(3) {
            let text = format!("{i} ");
            piece(&text);
            said.push_str(&text);
            std::thread::sleep(Duration::from_millis(word("ms=").unwrap_or(0)));
        }
        said
    }

    fn hear_claude(&self, m: &Value) -> Option<Given> {
        match m["type"].as_str() {
            Some("control_request") => {
                self.open(self.arg("--resume").or(self.arg("--session-id")).unwrap());
                self.say(json!({ "type": "control_response", "response": { "subtype": "success", "request_id": m["request_id"], "response": {} } }));
                None
            }
            Some("user") => Some(Given {
                name: m["uuid"].as_str()?.into(),
                text: m["message"]["content"][0]["text"].as_str()?.into(),
                request: Value::Null,
            }),
            _ => None,
        }
    }

    fn play_claude(&self, given: &Given, turn: &str) {
        let event = |event: Value| {
            self.say(json!({ "type": "stream_event", "event": event, "parent_tool_use_id": null }))
        };
        self.remember(given, jiff::Timestamp::now());
        self.say(json!({ "type": "system", "subtype": "init" }));
        event(json!({ "type": "message_start", "message": { "id": turn } }));
        event(
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
        );
        let content = json!([{ "type": "text", "text": given.text }]);
        self.say(
            json!({ "type": "user", "isReplay": true, "uuid": given.name, "parent_tool_use_id": null, "message": { "role": "user", "content": content } }),
        );
        let said = self.answer(given, |piece| event(json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": piece } })));
        let message = json!({ "id": turn, "role": "assistant", "content": [{ "type": "text", "text": said }], "stop_reason": "end_turn" });
        self.say(json!({ "type": "assistant", "message": message, "parent_tool_use_id": null }));
        self.say(json!({ "type": "result", "subtype": "success", "is_error": false, "result": said, "stop_reason": "end_turn", "modelUsage": {} }));
    }

    fn hear_codex(&self, m: &Value) -> Option<Given> {
        let answer = |result: Value| self.say(json!({ "id": m["id"], "result": result }));
        let params = &m["params"];
        match m["method"].as_str()? {
            "initialize" => answer(json!({ "userAgent": "outrigger/0.169.0 (none)" })),
            method @ ("thread/start" | "thread/resume") => {
                let id = params["threadId"]
                    .as_str()
                    .unwrap_or("thread-of-the-stand-in");
                self.open(id);
                // Codex makes the file of a thread when the thread starts.
                let file = self.file.lock().unwrap().clone();
                if method == "thread/resume" && !file.exists() {
                    self.say(json!({ "id": m["id"], "error": { "message": "no such thread" } }));
                } else {
                    OpenOptions::new()
                        .create(true)
                        .append(true)
                        .open(file)
                        .unwrap();
                    answer(json!({ "thread": { "id": id } }));
                }
            }
            "thread/items/list" => answer(json!({ "data": self.history() })),
            "turn/start" => {
                let text = params["input"][0]["text"].as_str()?.into();
                return Some(Given {
                    name: params["clientUserMessageId"].as_str()?.into(),
                    text,
                    request: m["id"].clone(),
                });
            }
            "initialized" => {}
            _ => self.say(json!({ "id": m["id"], "error": { "message": "not supported" } })),
        }
        None
    }

    fn play_codex(&self, given: &Given, turn: &str) {
        let thread = self.session.lock().unwrap().clone();
        let notify = |method: &str, params: Value| {
            let mut params = params;
            params["threadId"] = thread.clone().into();
            self.say(json!({ "method": method, "params": params }));
        };
        self.remember(given, jiff::Timestamp::now());
        self.say(json!({ "id": given.request, "result": { "turn": { "id": turn } } }));
        notify("turn/started", json!({ "turn": { "id": turn } }));
        let user = json!({ "type": "userMessage", "id": format!("{turn}-user"), "clientId": given.name, "content": [{ "type": "text", "text": given.text }] });
        notify("item/started", json!({ "item": user }));
        notify("item/completed", json!({ "item": user }));
        let item = format!("{turn}-agent");
        notify(
            "item/started",
            json!({ "item": { "type": "agentMessage", "id": item, "text": "" } }),
        );
        let said = self.answer(given, |piece| {
            notify(
                "item/agentMessage/delta",
                json!({ "itemId": item, "delta": piece }),
            )
        });
        notify(
            "item/completed",
            json!({ "item": { "type": "agentMessage", "id": item, "text": said } }),
        );
        notify(
            "turn/completed",
            json!({ "turn": { "id": turn, "status": "completed" } }),
        );
    }

    fn hear_gemini(&self, m: &Value) -> Option<Given> {
        let answer =
            |result: Value| self.say(json!({ "jsonrpc": "2.0", "id": m["id"], "result": result }));
        match m["method"].as_str()? {
            "initialize" => answer(json!({ "agentInfo": { "version": "0.61.0" } })),
            "session/new" => {
                let id = format!("{:08x}-stand-in", std::process::id());
                self.open(&id);
                answer(json!({ "sessionId": id }));
            }
            "session/load" => {
                self.open(m["params"]["sessionId"].as_str()?);
                if self.history().is_empty() {
                    self.say(json!({ "jsonrpc": "2.0", "id": m["id"], "error": { "code": -32603, "message": "no such session" } }));
                } else {
                    answer(json!({}));
                }
            }
            "session/prompt" => {
                let text = m["params"]["prompt"][0]["text"].as_str()?.into();
                return Some(Given {
                    name: String::new(),
                    text,
                    request: m["id"].clone(),
                });
            }
            _ => {}
        }
        None
    }

    fn play_gemini(&self, given: &Given) {
        self.remember(given, jiff::Timestamp::now());
        let session = self.session.lock().unwrap().clone();
        self.answer(given, |piece| {
            let update = json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": piece } });
            self.say(json!({ "jsonrpc": "2.0", "method": "session/update", "params": { "sessionId": session, "update": update } }));
        });
        self.say(json!({ "jsonrpc": "2.0", "id": given.request, "result": { "stopReason": "end_turn" } }));
    }

    fn hear_pi(&self, m: &Value) -> Option<Given> {
        let answer = |data: Value| {
            self.say(json!({ "type": "response", "id": m["id"], "command": m["type"], "success": true, "data": data }))
        };
        match m["type"].as_str()? {
            "get_messages" => {
                self.open(
                    &self
                        .arg("--session")
                        .map_or_else(|| format!("stand-in-{}", std::process::id()), str::to_owned),
                );
                let message = |entry: &Value| json!({ "role": "user", "content": entry["content"], "timestamp": entry["at"] });
                answer(
                    json!({ "messages": self.history().iter().map(message).collect::<Vec<_>>() }),
                );
            }
            "get_state" => answer(json!({ "sessionId": *self.session.lock().unwrap() })),
            "prompt" => {
                answer(Value::Null);
                return Some(Given {
                    name: m["id"].as_str()?.into(),
                    text: m["message"].as_str()?.into(),
                    request: Value::Null,
                });
            }
            _ => {}
        }
        None
    }

    fn play_pi(&self, given: &Given) {
        let at = jiff::Timestamp::now();
        let now = at.as_millisecond();
        // Its file is written with its first answer.
        let written = self.file.lock().unwrap().exists();
        self.say(json!({ "type": "agent_start" }));
        self.say(json!({ "type": "turn_start" }));
        if written {
            self.remember(given, at);
        }
        let content = json!([{ "type": "text", "text": given.text }]);
        self.say(json!({ "type": "message_start", "message": { "role": "user", "content": content, "timestamp": now } }));
        self.say(json!({ "type": "message_start", "message": { "role": "assistant", "content": [], "timestamp": now + 1 } }));
        let update = |event: Value| {
            self.say(json!({ "type": "message_update", "assistantMessageEvent": event }))
        };
        let said = self.answer(given, |piece| {
            update(json!({ "type": "text_delta", "contentIndex": 0, "delta": piece }))
        });
        update(json!({ "type": "text_end", "contentIndex": 0, "content": said }));
        self.say(json!({ "type": "message_end", "message": { "role": "assistant", "stopReason": "stop", "timestamp": now + 1, "usage": {} } }));
        if !written {
            self.remember(given, at);
        }
        self.say(json!({ "type": "turn_end" }));
        self.say(json!({ "type": "agent_end", "messages": [] }));
        self.say(json!({ "type": "agent_settled" }));
    }
}

/// Not a test: see the head of this file.
#[test]
#[ignore = "the stand-in itself, started by the tests that need it"]
fn talks() {
    let Some(runtime) = std::env::var_os(RUNTIME) else {
        return;
    };
    let cli = Arc::new(Cli {
        runtime: runtime.into_string().unwrap(),
        args: std::env::var(ARGS)
            .unwrap()
            .split(' ')
            .map(str::to_owned)
            .collect(),
        out: Mutex::new(
            OpenOptions::new()
                .write(true)
                .open("/proc/self/fd/3")
                .unwrap(),
        ),
        session: Mutex::default(),
        file: Mutex::default(),
        turns: Mutex::default(),
    });
    let (give, given) = mpsc::channel::<Given>();
    let player = {
        let cli = cli.clone();
        std::thread::spawn(move || given.iter().for_each(|given| cli.play(&given)))
    };
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let message = serde_json::from_str(&line).unwrap();
        if let Some(given) = cli.hear(&message) {
            give.send(given).unwrap();
        }
    }
    drop(give);
    player.join().unwrap();
}
