//! What the rehearsal answers, and in which order.
//!
//! In order of weight: a prompt that says `rehearse:<name>` picks one of the built-in
//! [`SCENES`]; a script file gives its steps one after the other (the last repeats); without
//! either, any coding CLI is made to call its shell tool once and then to answer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Ask, Tool, example};
use crate::base::settings::{self, Problems, Section, parse_yaml};
use crate::base::sync::lock;

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Reply(ScriptedReply),
    Error(Failure),
}

/// A reply of the model: reasoning, then text, then tool calls.
#[derive(Debug, Clone, PartialEq)]
pub struct ScriptedReply {
    pub reasoning: Option<String>,
    pub text: Option<String>,
    pub calls: Vec<ScriptedCall>,
    /// Pieces that the text is streamed in.
    pub chunks: usize,
    /// Pause before each event of the stream.
    pub delay: Duration,
    /// Break the connection after so many events.
    pub cut_after: Option<usize>,
    /// Stop sending after so many events and keep the connection.
    pub stall_after: Option<usize>,
    pub finish: Finish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Done,
    MaxTokens,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ScriptedCall {
    pub name: String,
    pub namespace: Option<String>,
    pub input: Value,
    /// The input is text of the tool's own kind.
    pub freeform: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub status: u16,
    pub message: String,
    pub retry_after: Option<u64>,
}

impl Default for ScriptedReply {
    fn default() -> Self {
        ScriptedReply {
            reasoning: None,
            text: None,
            calls: Vec::new(),
            chunks: 8,
            delay: Duration::ZERO,
            cut_after: None,
            stall_after: None,
            finish: Finish::Done,
        }
    }
}

impl ScriptedReply {
    fn say(text: &str) -> Self {
        ScriptedReply {
            text: Some(text.to_owned()),
            ..ScriptedReply::default()
        }
    }

    fn call(tool: &Tool, command: &str) -> Self {
        ScriptedReply {
            calls: vec![shell_call(tool, command)],
            ..ScriptedReply::default()
        }
    }
}

/// Names a prompt can pick with `rehearse:<name>`, and what they show.
#[rustfmt::skip]
pub const SCENES: &[(&str, &str)] = &[
    ("text", "a text answer, no tool"),
    ("reasoning", "reasoning, then a text answer"),
    ("shell", "one shell call, then an answer"),
    ("fail", "a shell call that exits 3, then an answer"),
    ("parallel", "two shell calls at once, then an answer"),
    ("long-output", "a shell call that prints 100 KB, then an answer"),
    ("touch", "a shell call that makes a file, then an answer"),
    ("nap", "a shell call that takes 2 s, then an answer"),
    ("sleep", "a shell call that takes 30 s, then an answer"),
    ("mcp", "the first MCP tool that is offered, then an answer"),
    ("loop", "a shell call, and another, without end"),
    ("unknown-tool", "a call of a tool that does not exist, then an answer"),
    ("slow", "a text in 40 pieces, 100 ms apart"),
    ("long", "a text in 2000 pieces"),
    ("max-tokens", "a text that stops at the token limit"),
    ("401", "401 to every request"),
    ("403", "403 to every request"),
    ("404", "404 (unknown model) to every request"),
    ("429", "429 with `retry-after: 1` to every request"),
    ("429-once", "429 with `retry-after: 1`, then an answer"),
    ("500", "500 to every request"),
    ("529", "529 (overloaded) to every request"),
    ("cut", "every stream is broken after 4 events"),
    ("cut-once", "a stream broken after 4 events, then an answer"),
    ("stall", "every stream stops after 4 events, its connection open"),
];

/// Answers requests, step by step.
#[derive(Debug, Default)]
pub struct Script {
    steps: Vec<Step>,
    /// How often each step list or one-time scene was asked.
    asked: Mutex<HashMap<String, usize>>,
}

impl Script {
    /// Reads a script file.
    ///
    /// # Errors
    /// Every problem, with its path.
    pub fn load(path: &Path) -> Result<Script, Vec<String>> {
        Script::parse(&settings::read(path).map_err(|e| vec![e])?)
    }

    /// # Errors
    /// As [`Script::load`].
    pub fn parse(text: &str) -> Result<Script, Vec<String>> {
        let value = parse_yaml(text).map_err(|e| vec![e])?;
        let problems = Problems::default();
        let steps = {
            let mut root = Section::new("", value, &problems);
            let steps: Vec<Step> = root
                .sections("steps")
                .into_iter()
                .map(|mut s| step(&mut s))
                .collect();
            if steps.is_empty() && !root.is_troubled() {
                root.add("steps", "needs at least one step, such as `- say: hello`");
            }
            steps
        };
        let all = problems.take(text);
        if all.is_empty() {
            Ok(Script {
                steps,
                asked: Mutex::default(),
            })
        } else {
            Err(all)
        }
    }

    /// The answer to a request. Where the client wants JSON of a schema, what would be text is
    /// that.
    pub(super) fn next(&self, ask: &Ask) -> Step {
        match (self.scripted(ask), &ask.schema) {
            (Step::Reply(reply), Some(schema))
                if reply.calls.is_empty() && reply.text.is_some() =>
            {
                Step::Reply(ScriptedReply {
                    text: Some(example::of(schema).to_string()),
                    ..reply
                })
            }
            (step, _) => step,
        }
    }

    fn scripted(&self, ask: &Ask) -> Step {
        match named_scene(&ask.prompt) {
            Some(Err(unknown)) => return Step::Error(no_such_scene(&unknown)),
            Some(Ok(scene)) => return self.play(scene, ask),
            None => {}
        }
        if self.steps.is_empty() {
            return self.play("shell", ask);
        }
        let n = self.count("");
        self.steps[n.min(self.steps.len() - 1)].clone()
    }

    /// How often this was asked before.
    fn count(&self, key: &str) -> usize {
        let mut asked = lock(&self.asked);
        let n = asked.entry(key.to_owned()).or_default();
        *n += 1;
        *n - 1
    }

    fn play(&self, name: &str, ask: &Ask) -> Step {
        let again = |step: Step| {
            if self.count(&format!("{name} {}", ask.prompt)) == 0 {
                step
            } else {
                Step::Reply(ScriptedReply::say("Here I am again."))
            }
        };
        if let Ok(status) = name.trim_end_matches("-once").parse::<u16>() {
            let step = Step::Error(failure(status));
            return if name.ends_with("-once") {
                again(step)
            } else {
                step
            };
        }
        let prose = "This is a rehearsal: nobody was asked and nothing was billed. ";
        let text = |chunks, repeat: usize| ScriptedReply {
            chunks,
            ..ScriptedReply::say(&prose.repeat(repeat))
        };
        let reply = match name {
            "text" => text(8, 1),
            "reasoning" => ScriptedReply {
                reasoning: Some("The user wants to see that reasoning arrives. It does.".into()),
                ..text(8, 1)
            },
            "slow" => ScriptedReply {
                delay: Duration::from_millis(100),
                ..text(40, 4)
            },
            "long" => text(2000, 200),
            "max-tokens" => ScriptedReply {
                finish: Finish::MaxTokens,
                ..text(8, 1)
            },
            "cut" => ScriptedReply {
                cut_after: Some(4),
                ..text(8, 1)
            },
            "cut-once" => {
                return again(Step::Reply(ScriptedReply {
                    cut_after: Some(4),
                    ..text(8, 1)
                }));
            }
            "stall" => ScriptedReply {
                stall_after: Some(4),
                ..text(8, 1)
            },
            with_tool => tool_turn(with_tool, ask),
        };
        Step::Reply(reply)
    }
}

/// Calls a tool, or, when it has answered, repeats what it said.
fn tool_turn(name: &str, ask: &Ask) -> ScriptedReply {
    let found_tools = name == "mcp" && ask.last_call.as_deref() == Some(TOOL_SEARCH);
    if let Some(output) = ask
        .tool_output
        .as_ref()
        .filter(|_| name != "loop" && !found_tools)
    {
        let shown: String = output.chars().take(200).collect();
        return ScriptedReply::say(&format!("The tool said: {}", shown.trim()));
    }
    if name == "unknown-tool" {
        return ScriptedReply {
            calls: vec![ScriptedCall {
                name: "no_such_tool".into(),
                namespace: None,
                input: json!({ "x": 1 }),
                freeform: false,
            }],
            ..ScriptedReply::default()
        };
    }
    if name == "mcp" {
        return mcp_call(ask, found_tools);
    }
    let Some(shell) = shell_tool(&ask.tools) else {
        return ScriptedReply::say(
            "Rehearsal: no shell tool was offered, so there is nothing to run.",
        );
    };
    match name {
        "fail" => ScriptedReply::call(shell, "echo out; echo err >&2; exit 3"),
        "parallel" => ScriptedReply {
            calls: vec![shell_call(shell, "echo one"), shell_call(shell, "echo two")],
            ..ScriptedReply::default()
        },
        "long-output" => ScriptedReply::call(shell, "seq 1 20000"),
        "touch" => ScriptedReply::call(shell, "touch rehearsal-was-here"),
        // Claude Code refuses a command that does nothing but sleep.
        "nap" => ScriptedReply::call(shell, "echo begun; sleep 2"),
        "sleep" => ScriptedReply::call(shell, "echo begun; sleep 30"),
        // A provider thinks before it answers: who stops the loop has that time.
        "loop" => ScriptedReply {
            delay: Duration::from_millis(30),
            ..ScriptedReply::call(shell, "echo rehearsal-was-here")
        },
        _ => ScriptedReply {
            text: Some("I will look around first.".into()),
            ..ScriptedReply::call(shell, "echo rehearsal-was-here")
        },
    }
}

/// The tool by which a model finds further tools that Claude Code does not offer at first.
const TOOL_SEARCH: &str = "ToolSearch";

/// Calls the first tool of a tool server, or looks for one where the CLI does not offer all of
/// them.
fn mcp_call(ask: &Ask, searched: bool) -> ScriptedReply {
    let tools = &ask.tools;
    if let Some(code) = tools.iter().find(|t| t.freeform && t.name == "exec") {
        let script = "const t = ALL_TOOLS.find(t => t.name.startsWith(\"mcp__\")); text(t ? await tools[t.name]({ text: \"rehearsal\" }) : \"No MCP tool was offered.\");";
        let call = ScriptedCall {
            name: code.name.clone(),
            namespace: code.namespace.clone(),
            input: json!(script),
            freeform: true,
        };
        return ScriptedReply {
            calls: vec![call],
            ..ScriptedReply::default()
        };
    }
    let is_mcp =
        |t: &&Tool| t.namespace.is_some() || t.name.contains("echo") || t.name.starts_with("mcp_");
    let query = || {
        ask.mcp_name
            .as_ref()
            .map_or_else(|| "mcp".to_owned(), |name| format!("select:{name}"))
    };
    let search = || {
        tools
            .iter()
            .find(|t| t.name == TOOL_SEARCH && !searched)
            .map(|tool| (tool, json!({ "query": query() })))
    };
    let Some((tool, input)) = tools
        .iter()
        .find(is_mcp)
        .map(|tool| (tool, json!({ "text": "rehearsal" })))
        .or_else(search)
    else {
        return ScriptedReply::say("No MCP tool was offered.");
    };
    let call = ScriptedCall {
        name: tool.name.clone(),
        namespace: tool.namespace.clone(),
        input: arguments(tool, &input),
        freeform: false,
    };
    ScriptedReply {
        calls: vec![call],
        ..ScriptedReply::default()
    }
}

/// The scene that a prompt names, or the name of one that does not exist.
fn named_scene(prompt: &str) -> Option<Result<&'static str, String>> {
    let name = prompt
        .rsplit("rehearse:")
        .next()
        .filter(|rest| rest.len() < prompt.len())?;
    let name: String = name
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        return None;
    }
    Some(
        SCENES
            .iter()
            .map(|(n, _)| *n)
            .find(|n| *n == name)
            .ok_or_else(|| name.to_owned()),
    )
}

fn no_such_scene(name: &str) -> Failure {
    let all: Vec<&str> = SCENES.iter().map(|(n, _)| *n).collect();
    Failure {
        status: 400,
        message: format!(
            "rehearsal: there is no scene `{name}`; scenes: {}",
            all.join(", ")
        ),
        retry_after: None,
    }
}

fn failure(status: u16) -> Failure {
    let message = match status {
        401 => "rehearsal: the key is not valid",
        403 => "rehearsal: not allowed",
        404 => "rehearsal: the model does not exist",
        429 => "rehearsal: rate limit reached. Please try again in 1s.",
        529 => "rehearsal: overloaded",
        _ => "rehearsal: the server had an error",
    };
    Failure {
        status,
        message: message.into(),
        retry_after: (status == 429).then_some(1),
    }
}

/// The shell as coding CLIs call it, the most common first.
const SHELLS: [&str; 10] = [
    "bash",
    "Bash",
    "exec_command",
    "shell",
    "shell_command",
    "run_shell_command",
    "local_shell",
    "execute_command",
    "run_commands",
    "exec",
];

fn shell_tool(tools: &[Tool]) -> Option<&Tool> {
    SHELLS
        .iter()
        .find_map(|name| tools.iter().find(|t| t.name == *name))
}

fn shell_call(tool: &Tool, command: &str) -> ScriptedCall {
    if tool.freeform {
        // Codex' `exec` runs JavaScript in which its tools are functions.
        let script = format!(
            "const r = await tools.exec_command({{ cmd: {} }}); text(r.output ?? r);",
            json!(command)
        );
        return ScriptedCall {
            name: tool.name.clone(),
            namespace: tool.namespace.clone(),
            input: json!(script),
            freeform: true,
        };
    }
    let properties = tool.schema.get("properties").cloned().unwrap_or_default();
    let key = ["command", "cmd", "script", "input", "commands"]
        .into_iter()
        .find(|k| properties.get(*k).is_some())
        .unwrap_or("command");
    let list = properties
        .pointer(&format!("/{key}/type"))
        .and_then(Value::as_str)
        == Some("array");
    let value = match (list, key) {
        // A list of commands, or one command in words.
        (true, "commands") => json!([command]),
        (true, _) => json!(["bash", "-lc", command]),
        (false, _) => json!(command),
    };
    ScriptedCall {
        name: tool.name.clone(),
        namespace: tool.namespace.clone(),
        input: arguments(tool, &json!({ key: value })),
        freeform: false,
    }
}

/// The given arguments, and something valid for every other that the schema requires.
fn arguments(tool: &Tool, given: &Value) -> Value {
    let mut all = example::of(&tool.schema)
        .as_object()
        .cloned()
        .unwrap_or_default();
    all.extend(given.as_object().cloned().unwrap_or_default());
    // What was given but is not in the schema would be refused by a strict CLI.
    if let Some(properties) = tool
        .schema
        .get("properties")
        .and_then(Value::as_object)
        .filter(|p| !p.is_empty())
    {
        all.retain(|k, _| properties.contains_key(k));
    }
    Value::Object(all)
}

fn step(s: &mut Section) -> Step {
    if let Some(status) = s.integer("error", 400, 599) {
        let retry_after = s.integer("retryAfter", 0, 86_400);
        let message = s
            .string("message")
            .unwrap_or_else(|| failure(status as u16).message);
        return Step::Error(Failure {
            status: status as u16,
            message,
            retry_after,
        });
    }
    let calls = s
        .sections("tools")
        .into_iter()
        .map(|mut t| ScriptedCall {
            name: t.required("name", "`bash`").unwrap_or_default(),
            namespace: t.string("namespace"),
            input: t.value("input").unwrap_or_else(|| json!({})),
            freeform: false,
        })
        .collect();
    let reply = ScriptedReply {
        reasoning: s.string("reasoning"),
        text: s.string("say"),
        calls,
        chunks: s.integer("chunks", 1, 1_000_000).unwrap_or(8) as usize,
        delay: s.duration("delay").unwrap_or_default(),
        cut_after: s.integer("cutAfter", 0, 1_000_000).map(|n| n as usize),
        stall_after: s.integer("stallAfter", 0, 1_000_000).map(|n| n as usize),
        finish: s
            .choice(
                "finish",
                &[("done", Finish::Done), ("max_tokens", Finish::MaxTokens)],
            )
            .unwrap_or(Finish::Done),
    };
    if reply.text.is_none()
        && reply.calls.is_empty()
        && reply.reasoning.is_none()
        && !s.is_troubled()
    {
        s.add("", "a step needs `say`, `tools`, `reasoning` or `error`");
    }
    Step::Reply(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bash() -> Tool {
        Tool {
            name: "bash".into(),
            namespace: None,
            freeform: false,
            schema: json!({ "properties": { "command": { "type": "string" }, "description": { "type": "string" } }, "required": ["command", "description"] }),
        }
    }

    #[test]
    fn by_default_the_shell_is_called_once() {
        let script = Script::default();
        let mut ask = Ask {
            prompt: "fix the bug".into(),
            tools: vec![bash()],
            ..Ask::default()
        };
        let Step::Reply(first) = script.next(&ask) else {
            panic!()
        };
        assert_eq!(
            first.calls[0].input,
            json!({ "command": "echo rehearsal-was-here", "description": "rehearsal" })
        );
        ask.tool_output = Some("rehearsal-was-here\n".into());
        let Step::Reply(second) = script.next(&ask) else {
            panic!()
        };
        assert!(second.calls.is_empty() && second.text.unwrap().contains("rehearsal-was-here"));
    }

    #[test]
    fn a_prompt_picks_its_scene() {
        let script = Script::default();
        let ask = |p: &str| Ask {
            prompt: p.into(),
            tools: vec![bash()],
            ..Ask::default()
        };
        assert!(matches!(
            script.next(&ask("please rehearse:429.")),
            Step::Error(Failure {
                status: 429,
                retry_after: Some(1),
                ..
            })
        ));
        assert!(matches!(
            script.next(&ask("rehearse:429-once")),
            Step::Error(_)
        ));
        assert!(matches!(
            script.next(&ask("rehearse:429-once")),
            Step::Reply(_)
        ));
        let docs = include_str!("../../docs/rehearsal.md");
        for (name, what) in SCENES {
            script.next(&ask(&format!("rehearse:{name}")));
            assert!(
                crate::cli::SCENES_HELP.contains(name)
                    && docs.contains(&format!("| `{name}` | {what} |")),
                "{name}"
            );
        }
    }

    #[test]
    fn an_unknown_scene_is_an_error_that_names_the_known() {
        let script = Script::default();
        let Step::Error(failure) = script.next(&Ask {
            prompt: "rehearse:typo now".into(),
            ..Ask::default()
        }) else {
            panic!()
        };
        assert!(
            failure.status == 400
                && failure.message.contains("`typo`")
                && failure.message.contains("cut-once")
        );
        assert!(matches!(
            script.next(&Ask {
                prompt: "what does rehearse: do?".into(),
                ..Ask::default()
            }),
            Step::Reply(_)
        ));
    }

    #[test]
    fn tools_that_are_not_offered_at_first_are_looked_for_once() {
        let script = Script::default();
        let tool = |name: &str| Tool {
            name: name.into(),
            schema: json!({ "properties": { "query": { "type": "string" } } }),
            ..Tool::default()
        };
        let mut ask = Ask {
            prompt: "rehearse:mcp".into(),
            tools: vec![tool("ToolSearch")],
            ..Ask::default()
        };
        let called = |ask: &Ask| {
            if let Step::Reply(reply) = script.next(ask) {
                reply.calls.first().map(|c| c.name.clone())
            } else {
                None
            }
        };
        assert_eq!(called(&ask).as_deref(), Some("ToolSearch"));
        (ask.tool_output, ask.last_call) = (Some("nothing".into()), Some("ToolSearch".into()));
        assert_eq!(called(&ask), None);
        ask.tools.push(tool("mcp__files__read"));
        assert_eq!(called(&ask).as_deref(), Some("mcp__files__read"));
        ask.last_call = ask.tools.last().map(|t| t.name.clone());
        assert_eq!(called(&ask), None);
    }

    #[test]
    fn shells_of_other_names_and_structured_output_are_served() {
        let script = Script::default();
        let ask = |tools| Ask {
            prompt: "go".into(),
            tools,
            ..Ask::default()
        };
        let cline = Tool {
            name: "run_commands".into(),
            schema: json!({ "properties": { "commands": { "type": "array" }, "timeout": { "anyOf": [{ "type": "number" }, { "type": "null" }] } }, "required": ["commands", "timeout"] }),
            ..Tool::default()
        };
        let Step::Reply(reply) = script.next(&ask(vec![cline])) else {
            panic!()
        };
        assert_eq!(
            reply.calls[0].input,
            json!({ "commands": ["echo rehearsal-was-here"], "timeout": 1000.0 })
        );
        let exec = Tool {
            name: "exec".into(),
            namespace: Some("functions".into()),
            freeform: true,
            ..Tool::default()
        };
        let Step::Reply(reply) = script.next(&ask(vec![exec])) else {
            panic!()
        };
        assert!(
            reply.calls[0].freeform
                && reply.calls[0]
                    .input
                    .as_str()
                    .unwrap()
                    .contains("tools.exec_command")
        );
        let wanted = Ask {
            prompt: "rehearse:text".into(),
            schema: Some(
                json!({ "type": "object", "properties": { "n": { "type": "integer" } }, "required": ["n"] }),
            ),
            ..Ask::default()
        };
        let Step::Reply(reply) = script.next(&wanted) else {
            panic!()
        };
        assert_eq!(reply.text.as_deref(), Some(r#"{"n":1000}"#));
    }

    #[test]
    fn files_play_in_order_and_their_mistakes_are_all_named() {
        let script =
            Script::parse("steps:\n - say: one\n - error: 500\n - {say: last, cutAfter: 2}\n")
                .unwrap();
        let ask = Ask::default();
        assert!(matches!(script.next(&ask), Step::Reply(r) if r.text.as_deref() == Some("one")));
        assert!(matches!(script.next(&ask), Step::Error(_)));
        for _ in 0..2 {
            assert!(matches!(
                script.next(&ask),
                Step::Reply(ScriptedReply {
                    cut_after: Some(2),
                    ..
                })
            ));
        }
        assert_eq!(
            Script::parse("steps:\n - {}\n - error: 200\n - {say: x, chunk: 2}\n")
                .unwrap_err()
                .len(),
            3
        );
    }
}
