//! What the rehearsal answers, and in which order.
//!
//! In order of weight: a prompt that says `rehearse:<name>` picks one of the built-in
//! [`SCENES`]; a script file gives its steps one after the other (the last repeats); without
//! either, any coding CLI is made to call its shell tool once and then to answer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use super::{Ask, example};
use crate::base::settings;
use crate::base::settings::section::Section;
use crate::base::settings::{Problems, parse_yaml};
use crate::base::sync::lock;
use crate::rehearsal::reply::{Failure, Finish, ScriptedCall, ScriptedReply, Step};
use crate::rehearsal::scene::{named_scene, no_such_scene, tool_turn};

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
    use crate::rehearsal::Tool;
    use crate::rehearsal::scene::SCENES;

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
