//! Translates the lines that `codex exec --json` prints.

use serde_json::{Value, json};

use super::Codex;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::codex::items::camel;
use crate::adapter::runtime::codex::turn::counts;
use crate::adapter::runtime::native::text;

impl Codex {
    /// Translates a line of `codex exec --json`. Its items are those of the app-server, but their
    /// keys and types are spelled in `snake_case`. Returns whether the line was understood.
    pub(super) fn exec_line(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        let m = camel(m);
        self.one_shot |= matches!(text(&m, "/type"), "thread.started" | "turn.started");
        match text(&m, "/type") {
            "thread.started" => self.thread = m["threadId"].as_str().map(str::to_owned),
            "turn.started" => self.begin_turn("", out),
            "item.started" => return self.item_started(&m["item"], out),
            "item.updated" => {}
            "item.completed" => return self.item_completed(&m["item"], out),
            "error" if text(&m, "/message").starts_with("Reconnecting") => {
                let said = text(&m, "/message")
                    .split_once('(')
                    .map_or("", |(_, why)| why.trim_end_matches(')'));
                self.failed(
                    &json!({ "message": m["message"], "additionalDetails": said }),
                    true,
                    out,
                );
            }
            "error" => self.failed(&m, false, out),
            "turn.failed" => {
                self.failed(&m["error"], false, out);
                self.end_turn("failed", out);
            }
            "turn.completed" => {
                let usage = counts(&m["usage"]);
                if let Some(turn) = &mut self.turn {
                    turn.usage = usage;
                }
                self.end_turn("completed", out);
            }
            _ => return false,
        }
        true
    }
}
