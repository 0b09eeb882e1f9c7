//! The tools of pi.

use serde_json::Value;

use super::Pi;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::native::{text, text_of};
use crate::event::{ChangeKind, FileChange, ToolOutput, ToolResult, ToolUse};

impl Pi {
    pub(super) fn tool_use(&mut self, m: &Value, out: &mut Vec<Action>) {
        let (id, native_name) = (
            text(m, "/toolCallId").to_owned(),
            text(m, "/toolName").to_owned(),
        );
        if self.used.insert(id.clone()) {
            self.begin_turn(out);
            self.tools.insert(id.clone(), String::new());
            let name = if native_name == "find" {
                "glob".to_owned()
            } else {
                native_name.clone()
            };
            out.push(
                ToolUse {
                    tool_use_id: id,
                    name,
                    native_name,
                    input: m["args"].clone(),
                    parent_tool_use_id: None,
                }
                .into(),
            );
        }
    }

    /// All of the output, each time.
    pub(super) fn tool_output(&mut self, m: &Value, out: &mut Vec<Action>) {
        let Some(seen) = self.tools.get_mut(text(m, "/toolCallId")) else {
            return;
        };
        let now = text_of(&m["partialResult"]["content"]);
        // A long one becomes a window of its end: what it has then is told with the result.
        if let Some(news) = now.strip_prefix(seen.as_str()).filter(|n| !n.is_empty()) {
            out.push(
                ToolOutput {
                    tool_use_id: text(m, "/toolCallId").into(),
                    text: news.into(),
                    parent_tool_use_id: None,
                }
                .into(),
            );
            *seen = now;
        }
    }

    pub(super) fn tool_result(&mut self, m: &Value, out: &mut Vec<Action>) {
        self.tool_use(m, out);
        let (id, name) = (text(m, "/toolCallId").to_owned(), text(m, "/toolName"));
        if self.tools.remove(&id).is_none() {
            return;
        }
        let (output, is_error) = (text_of(&m["result"]["content"]), m["isError"] == true);
        let exit_code = match output.rsplit_once("Command exited with code ") {
            _ if name != "bash" => None,
            Some((_, code)) if is_error => code.trim().parse().ok(),
            _ => (!is_error).then_some(0),
        };
        let path = m["args"]["path"]
            .as_str()
            .filter(|_| matches!(name, "edit" | "write") && !is_error);
        let change = path.map(|path| FileChange {
            path: path.to_owned(),
            kind: ChangeKind::Modify,
            diff: m["result"]["details"]["diff"].as_str().map(str::to_owned),
            tool_use_id: Some(id.clone()),
            parent_tool_use_id: None,
        });
        out.push(
            ToolResult {
                tool_use_id: id,
                output,
                is_error,
                exit_code,
                duration_ms: None,
                parent_tool_use_id: None,
            }
            .into(),
        );
        out.extend(change.map(Action::from));
    }
}
