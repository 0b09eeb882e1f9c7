//! The lines of `gemini --output-format stream-json`.

use serde_json::Value;

use super::Gemini;
use super::turn::failure;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::items::ItemKind;
use crate::adapter::runtime::native::text;
use crate::event::{TurnEndReason, Usage, Warning};

impl Gemini {
    /// A line of `-o stream-json`.
    pub(super) fn one_shot(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        match (text(m, "/type"), text(m, "/role")) {
            ("init", _) => self.session = m["session_id"].as_str().map(str::to_owned),
            ("message", "user") => {
                let id = format!(
                    "{}-{}",
                    self.session.as_deref().unwrap_or_default(),
                    text(m, "/timestamp")
                );
                self.in_flight.foreign(&id, text(m, "/content"), out);
                self.begin_turn("", out);
            }
            ("message", _) => {
                self.begin_turn("", out);
                self.write(ItemKind::Text, text(m, "/content"), out);
            }
            ("tool_use", _) => {
                let name = text(m, "/tool_name").to_owned();
                self.begin_tool(
                    text(m, "/tool_id").to_owned(),
                    name,
                    false,
                    m["parameters"].clone(),
                    out,
                );
            }
            ("tool_result", _) => {
                let output = m["output"]
                    .as_str()
                    .or(m["error"]["message"].as_str())
                    .unwrap_or_default()
                    .to_owned();
                self.tool_result(
                    text(m, "/tool_id"),
                    output,
                    m["status"] == "error",
                    None,
                    out,
                );
            }
            ("error", _) => out.push(
                Warning {
                    message: text(m, "/message").to_owned(),
                }
                .into(),
            ),
            ("result", _) => {
                self.begin_turn("", out);
                let failed = m["status"] == "error";
                if failed {
                    out.push(failure(None, text(m, "/error/message"), m["error"].clone()).into());
                }
                if let Some(turn) = &mut self.turn {
                    let stats = &m["stats"];
                    turn.usage = Usage {
                        input: stats["input"].as_u64().or(stats["input_tokens"].as_u64()),
                        cache_read: stats["cached"].as_u64(),
                        output: stats["output_tokens"].as_u64(),
                        ..Usage::default()
                    };
                }
                self.end_turn(
                    if failed {
                        TurnEndReason::Error
                    } else {
                        TurnEndReason::EndTurn
                    },
                    out,
                );
            }
            _ => return false,
        }
        true
    }
}
