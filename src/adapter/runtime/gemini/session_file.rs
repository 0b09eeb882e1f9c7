//! What stands only in the file of Gemini CLI's session: the output of commands, and the usage.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

use super::{Gemini, GeminiTool, STEP_TIME};
use crate::adapter::runtime::action::{Action, CallPurpose, FilePattern};
use crate::adapter::runtime::native::{newest_first, text};
use crate::event::{Usage, Warning};

/// The history of a session that is loaded is told when nothing more of it has come for so long.
pub(super) const HISTORY_TIME: Duration = Duration::from_millis(200);

/// How often, and how many times, the session file is read for what a tool said.
pub(super) const AGAIN: Duration = Duration::from_millis(25);

pub(super) const TRIES: u32 = 80;

/// Is this entry of a session file what a user said, not what a tool did?
pub(super) fn is_prompt(entry: &Value) -> bool {
    entry["type"] == "user" && entry["content"][0]["text"].is_string()
}

/// The model's answers to the last prompt with this text that have token counts. An answer that the
/// file holds several times is returned once, as it was written first.
pub(super) fn answers_to(prompt: &str, file: &[u8]) -> Vec<Value> {
    let (mut answers, mut found) = (Vec::new(), false);
    for entry in newest_first(file, b"") {
        if asks(&entry, prompt) {
            found = true;
            break;
        }
        if is_prompt(&entry) {
            // Another turn's.
            answers.clear();
        } else if entry["type"] == "gemini" && !entry["tokens"].is_null() {
            answers.push(entry);
        }
    }
    let mut seen = HashSet::new();
    answers.reverse();
    answers.retain(|entry| seen.insert(text(entry, "/id").to_owned()));
    if found { answers } else { Vec::new() }
}

/// Is it this prompt?
pub(super) fn asks(entry: &Value, prompt: &str) -> bool {
    entry["type"] == "user" && entry["content"][0]["text"] == prompt
}

/// What a command wrote, and its exit code, out of what the model is told of it.
pub(super) fn of_command(said: &str, failed: bool) -> (String, Option<i64>) {
    let said = said
        .strip_prefix("<untrusted_context>\n")
        .and_then(|s| s.strip_suffix("\n</untrusted_context>"))
        .unwrap_or(said);
    let Some(output) = said.strip_prefix("Output: ") else {
        return (said.to_owned(), None);
    };
    // What follows the output, each on a line of its own, in this order.
    let mut lines: Vec<&str> = output.split('\n').collect();
    let (mut exit_code, mut killed) = (None, false);
    while let Some(last) = lines.last() {
        match last.split_once(": ") {
            Some(("Exit Code", code)) => exit_code = code.trim().parse().ok(),
            Some(("Signal", _)) => killed = true,
            Some(("Process Group PGID" | "Background PIDs" | "Error", _)) => {}
            _ => break,
        }
        lines.pop();
    }
    let output = lines.join("\n");
    let output = if output == "(empty)" {
        String::new()
    } else {
        output
    };
    (output, exit_code.or((!failed && !killed).then_some(0)))
}

impl Gemini {
    pub(super) fn looks_for_output(&self) -> bool {
        self.tools.values().any(|tool| tool.wanted.is_some())
    }

    /// Goes on with what was held back.
    pub(super) fn go_on(&mut self, out: &mut Vec<Action>) {
        while !self.looks_for_output()
            && let Some(message) = self.held.pop_front()
        {
            self.hear(message, out);
        }
    }

    /// Looks into the session's own file.
    pub(super) fn find(&self, tag: CallPurpose, out: &mut Vec<Action>) {
        let short = self
            .session
            .as_deref()
            .and_then(|id| id.get(..8))
            .unwrap_or("none");
        out.push(Action::ReadFile {
            tag,
            file: FilePattern {
                dir: self.chats.clone(),
                suffix: format!("-{short}.jsonl"),
            },
        });
    }

    /// The session file, read for what a tool said.
    pub(super) fn found_output(&mut self, id: &str, file: &[u8], out: &mut Vec<Action>) {
        let Some(GeminiTool {
            wanted: Some((tries, failed)),
            execute,
            ..
        }) = self.tools.get_mut(id)
        else {
            return;
        };
        let call = newest_first(file, id.as_bytes()).find_map(|mut entry| {
            let calls = entry["toolCalls"].as_array_mut()?;
            calls
                .iter_mut()
                .find(|call| call["id"] == id)
                .map(Value::take)
        });
        let call = call.unwrap_or_default();
        let response =
            Some(&call["result"][0]["functionResponse"]["response"]).filter(|r| !r.is_null());
        let (failed, execute) = (
            *failed || call["status"] == "error" || call["status"] == "cancelled",
            *execute,
        );
        match response {
            Some(response) => {
                let said = response["output"]
                    .as_str()
                    .or(response["error"].as_str())
                    .map_or_else(|| response.to_string(), str::to_owned);
                let failed = failed || !response["error"].is_null();
                let (output, exit_code) = if execute {
                    of_command(&said, failed)
                } else {
                    (said, None)
                };
                self.tool_result(id, output, failed, exit_code, out);
            }
            None if *tries > 0 => {
                *tries -= 1;
                let counts_step = self.turn.as_ref().is_some_and(|turn| turn.tools_over);
                out.push(Action::Wake(if counts_step { STEP_TIME } else { AGAIN }));
            }
            None => {
                out.push(Warning { message: "Gemini CLI did not tell what a tool said, nor write it into its session file".into() }.into());
                self.tool_result(id, String::new(), failed, None, out);
            }
        }
    }

    /// What the session file says of the turn's tokens: which were cached, and what reasoning took.
    pub(super) fn count(&mut self, file: &[u8], out: &mut Vec<Action>) {
        if let Some(turn) = &mut self.turn {
            turn.counting = false;
            let mut sums = Usage::default();
            for entry in answers_to(&turn.prompt, file) {
                let n = |key: &str| entry["tokens"][key].as_u64();
                let input = n("input").map(|all| all.saturating_sub(n("cached").unwrap_or(0)));
                // What it calls output is without reasoning.
                let output = n("output").map(|output| output + n("thoughts").unwrap_or(0));
                sums.add(&Usage {
                    input,
                    cache_read: n("cached"),
                    cache_write: None,
                    output,
                    reasoning: n("thoughts"),
                    cost_usd: None,
                });
            }
            if sums != Usage::default() {
                // The protocol's own sum has subagents in it.
                let cached = sums.cache_read.unwrap_or(0);
                let input = turn
                    .usage
                    .input
                    .map(|all| all.saturating_sub(cached))
                    .max(sums.input);
                turn.usage = Usage {
                    input,
                    output: turn.usage.output.max(sums.output),
                    ..sums
                };
            }
        }
        self.end_if_known(out);
    }
}
