//! The scenes that a prompt can ask for.

use std::time::Duration;

use serde_json::json;

use crate::rehearsal::reply::{Failure, ScriptedCall, ScriptedReply, arguments, shell_call};
use crate::rehearsal::{Ask, Tool};

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

/// Calls a tool, or, when it has answered, repeats what it said.
pub(crate) fn tool_turn(name: &str, ask: &Ask) -> ScriptedReply {
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
pub(crate) const TOOL_SEARCH: &str = "ToolSearch";

/// Calls the first tool of a tool server, or looks for one where the CLI does not offer all of
/// them.
pub(crate) fn mcp_call(ask: &Ask, searched: bool) -> ScriptedReply {
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
pub(crate) fn named_scene(prompt: &str) -> Option<Result<&'static str, String>> {
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

pub(crate) fn no_such_scene(name: &str) -> Failure {
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

/// The shell as coding CLIs call it, the most common first.
pub(crate) const SHELLS: [&str; 10] = [
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

pub(crate) fn shell_tool(tools: &[Tool]) -> Option<&Tool> {
    SHELLS
        .iter()
        .find_map(|name| tools.iter().find(|t| t.name == *name))
}
