//! The tools of Gemini CLI, and its requests for permission.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Gemini;
use crate::adapter::runtime::Mcp;
use crate::adapter::runtime::action::{Action, CallPurpose};
use crate::adapter::runtime::gemini::session_file::TRIES;
use crate::adapter::runtime::native::{permission_options, request_id, text};
use crate::event::{ChangeKind, FileChange, PermissionRequest, ToolResult, ToolUse};

/// The longest texts of which the difference is looked for, and how long.
pub(super) const MAX_DIFF: usize = 512 << 10;

pub(super) const DIFF_TIME: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct GeminiTool {
    /// It is a command.
    pub(super) execute: bool,
    /// It is over, and what it said is looked for: how often still, and whether it failed.
    pub(super) wanted: Option<(u32, bool)>,
}

/// A permission that waits.
#[derive(Debug)]
pub(super) struct Asking {
    /// The request's number in the protocol.
    pub(super) number: Value,
    pub(super) options: Value,
    pub(super) tool: String,
}

pub(super) fn file_change(id: &str, content: &Value) -> FileChange {
    let kind = match text(content, "/_meta/kind") {
        "add" => ChangeKind::Add,
        "delete" => ChangeKind::Delete,
        _ => ChangeKind::Modify,
    };
    let (before, after) = (text(content, "/oldText"), text(content, "/newText"));
    // The agent chooses the texts: neither they nor their difference may cost much.
    let short = before.len() + after.len() <= MAX_DIFF;
    let diff = short.then(|| {
        similar::TextDiff::configure()
            .timeout(DIFF_TIME)
            .diff_lines(before, after)
            .unified_diff()
            .context_radius(3)
            .to_string()
    });
    let diff = diff.filter(|d| !d.is_empty());
    FileChange {
        path: text(content, "/path").to_owned(),
        kind,
        diff,
        tool_use_id: Some(id.to_owned()),
        parent_tool_use_id: None,
    }
}

impl Gemini {
    pub(super) fn tool_use(&mut self, u: &Value, out: &mut Vec<Action>) {
        let id = text(u, "/toolCallId").to_owned();
        // `<tool>__<tool>_<milliseconds>_<index>`
        let native_name = id
            .split_once("__")
            .map_or(id.as_str(), |(name, _)| name)
            .to_owned();
        let title = text(u, "/title");
        let said = text(u, "/content/0/content/text");
        let path = u["locations"][0]["path"].as_str();
        let input = match (
            text(u, "/kind"),
            path,
            serde_json::from_str::<Map<String, Value>>(said),
        ) {
            ("execute", _, _) => json!({ "command": title }),
            (_, _, Ok(arguments)) => Value::Object(arguments),
            (_, Some(path), _) => json!({ "file_path": path, "title": title }),
            _ => json!({ "title": title }),
        };
        self.begin_tool(id, native_name, u["kind"] == "execute", input, out);
    }

    pub(super) fn begin_tool(
        &mut self,
        id: String,
        native_name: String,
        execute: bool,
        input: Value,
        out: &mut Vec<Action>,
    ) {
        if id.is_empty() || !self.used.insert(id.clone()) {
            return;
        }
        self.begin_turn("", out);
        self.written(out);
        if id
            .rsplit('_')
            .next()
            .is_some_and(|n| n != "0" && n.len() < 4)
            && let Some(turn) = &mut self.turn
        {
            // The next of several that the model called at once.
            turn.tools_over = false;
        }
        self.step(out);
        self.tools.insert(
            id.clone(),
            GeminiTool {
                execute,
                wanted: None,
            },
        );
        out.push(
            ToolUse {
                tool_use_id: id,
                name: self.canonical(&native_name),
                native_name,
                input,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    pub(super) fn tool_over(&mut self, u: &Value, out: &mut Vec<Action>) {
        let id = text(u, "/toolCallId").to_owned();
        let Some(tool) = self.tools.get_mut(&id) else {
            return;
        };
        let failed = u["status"] == "failed";
        let content = u["content"].as_array().into_iter().flatten();
        let said: Vec<&str> = content
            .clone()
            .filter_map(|c| c["content"]["text"].as_str())
            .collect();
        let changes: Vec<FileChange> = content
            .filter(|c| c["type"] == "diff")
            .map(|c| file_change(&id, c))
            .collect();
        if said.is_empty() && changes.is_empty() && tool.wanted.is_none() {
            // It does not say what came of it; its session file does.
            tool.wanted = Some((TRIES, failed));
            self.find(CallPurpose::Output(id), out);
            return;
        }
        let cancelled = self.turn.as_ref().is_some_and(|t| t.aborted)
            || said.iter().any(|s| s.starts_with("Command cancelled"));
        let output = if said.is_empty() {
            changes
                .iter()
                .map(|c| format!("changed {}\n", c.path))
                .collect()
        } else {
            said.join("\n")
        };
        self.tool_result(&id, output, failed || cancelled, None, out);
        out.extend(changes.into_iter().filter(|_| !failed).map(Action::from));
    }

    pub(super) fn tool_result(
        &mut self,
        id: &str,
        output: String,
        is_error: bool,
        exit_code: Option<i64>,
        out: &mut Vec<Action>,
    ) {
        if self.tools.remove(id).is_none() {
            return;
        }
        let is_error = is_error || exit_code.is_some_and(|c| c != 0);
        out.push(
            ToolResult {
                tool_use_id: id.to_owned(),
                output,
                is_error,
                exit_code,
                duration_ms: None,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    pub(super) fn permission_asked(&mut self, number: &Value, p: &Value, out: &mut Vec<Action>) {
        let call = &p["toolCall"];
        self.begin_turn("", out);
        self.tool_use(call, out);
        let id = text(call, "/toolCallId");
        let request_id = request_id(id, number);
        self.permissions.insert(
            request_id.clone(),
            Asking {
                number: number.clone(),
                options: p["options"].clone(),
                tool: id.to_owned(),
            },
        );
        let native = id.split_once("__").map_or(id, |(name, _)| name);
        let input = if call["kind"] == "execute" {
            json!({ "command": call["title"] })
        } else {
            json!({ "title": call["title"], "content": call["content"] })
        };
        let has = |kind: &str| {
            p["options"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|o| o["kind"] == kind)
        };
        let options = permission_options()
            .into_iter()
            .filter(|name| name != "allow_always" || has(name))
            .collect();
        let name = self.canonical(native);
        out.push(
            PermissionRequest {
                request_id,
                tool_use_id: Some(id.to_owned()),
                name,
                input,
                options,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    /// A tool's name as every runtime has it.
    pub(super) fn canonical(&self, native: &str) -> String {
        let name = match native {
            "run_shell_command" => "bash",
            "read_file" | "read_many_files" => "read",
            "write_file" => "write",
            "replace" => "edit",
            "search_file_content" | "grep_search" => "grep",
            "google_web_search" => "web_search",
            "invoke_agent" => "task",
            _ => {
                let of = |(server, _): &(String, Mcp)| {
                    Some((
                        server.clone(),
                        native.strip_prefix(&format!("mcp_{server}_"))?.to_owned(),
                    ))
                };
                return self.mcp.iter().find_map(of).map_or_else(
                    || native.to_owned(),
                    |(server, tool)| format!("mcp__{server}__{tool}"),
                );
            }
        };
        name.to_owned()
    }
}
