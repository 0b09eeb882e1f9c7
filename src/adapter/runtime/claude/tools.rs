//! The tools of Claude Code, and its requests for permission.

use serde_json::Value;

use super::Claude;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::native::{permission_options, plan, text, text_of};
use crate::event::{ChangeKind, FileChange, PermissionRequest, ToolResult, ToolUse};

#[derive(Debug)]
pub(super) struct ClaudeTool {
    pub(super) name: String,
    pub(super) input: Value,
    pub(super) parent: Option<String>,
}

pub(super) fn file_change(id: &str, tool: &ClaudeTool, details: &Value) -> Option<FileChange> {
    if !matches!(
        tool.name.as_str(),
        "Write" | "Edit" | "MultiEdit" | "NotebookEdit"
    ) {
        return None;
    }
    let path = details["filePath"]
        .as_str()
        .or(tool.input["file_path"].as_str())?
        .to_owned();
    let kind = if details["type"] == "create" {
        ChangeKind::Add
    } else {
        ChangeKind::Modify
    };
    let hunk = |hunk: &Value| {
        let n = |key: &str| hunk[key].as_u64().unwrap_or(0);
        let lines = hunk["lines"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|l| format!("{l}\n"))
            .collect::<String>();
        format!(
            "@@ -{},{} +{},{} @@\n{lines}",
            n("oldStart"),
            n("oldLines"),
            n("newStart"),
            n("newLines")
        )
    };
    let diff: String = details["structuredPatch"]
        .as_array()
        .into_iter()
        .flatten()
        .map(hunk)
        .collect();
    let diff = Some(diff).filter(|d| !d.is_empty());
    Some(FileChange {
        path,
        kind,
        diff,
        tool_use_id: Some(id.to_owned()),
        parent_tool_use_id: tool.parent.clone(),
    })
}

/// A tool's name as every runtime has it.
pub(super) fn canonical(native: &str) -> String {
    match native {
        "Bash" => "bash",
        "Read" => "read",
        "Write" => "write",
        "Edit" | "MultiEdit" | "NotebookEdit" => "edit",
        "Glob" => "glob",
        "Grep" => "grep",
        "WebFetch" => "web_fetch",
        "WebSearch" => "web_search",
        "Task" | "Agent" => "task",
        other => other,
    }
    .to_owned()
}

impl Claude {
    pub(super) fn tool_use(&mut self, block: &Value, parent: Option<&str>, out: &mut Vec<Action>) {
        self.begin_turn(out);
        let (id, native_name) = (
            text(block, "/id").to_owned(),
            text(block, "/name").to_owned(),
        );
        let input = block["input"].clone();
        if native_name == "TodoWrite" {
            out.push(plan(&input["todos"]));
        }
        let parent = parent.map(str::to_owned);
        self.tools.insert(
            id.clone(),
            ClaudeTool {
                name: native_name.clone(),
                input: input.clone(),
                parent: parent.clone(),
            },
        );
        out.push(
            ToolUse {
                tool_use_id: id,
                name: canonical(&native_name),
                native_name,
                input,
                parent_tool_use_id: parent,
            }
            .into(),
        );
    }

    pub(super) fn tool_result(&mut self, block: &Value, details: &Value, out: &mut Vec<Action>) {
        let id = text(block, "/tool_use_id");
        let Some(tool) = self.tools.remove(id) else {
            return;
        };
        if let (Some(turn), None) = (&mut self.turn, &tool.parent) {
            turn.tools_said = true;
        }
        let output = text_of(&block["content"]);
        let is_error = block["is_error"] == true;
        let exit_code = (tool.name == "Bash")
            .then(|| {
                if is_error {
                    output
                        .strip_prefix("Exit code ")?
                        .lines()
                        .next()?
                        .trim()
                        .parse()
                        .ok()
                } else {
                    Some(0)
                }
            })
            .flatten();
        let change = (!is_error)
            .then(|| file_change(id, &tool, details))
            .flatten();
        out.push(
            ToolResult {
                tool_use_id: id.to_owned(),
                output,
                is_error,
                exit_code,
                duration_ms: None,
                parent_tool_use_id: tool.parent,
            }
            .into(),
        );
        out.extend(change.map(Action::from));
    }

    pub(super) fn permission_asked(&mut self, m: &Value, out: &mut Vec<Action>) {
        let (request_id, request) = (text(m, "/request_id").to_owned(), &m["request"]);
        let input = request["input"].clone();
        let id = text(request, "/tool_use_id").to_owned();
        let parent = self.tools.get(&id).and_then(|t| t.parent.clone());
        self.asked.insert(
            request_id.clone(),
            (input.clone(), request["permission_suggestions"].clone()),
        );
        out.push(
            PermissionRequest {
                request_id,
                tool_use_id: Some(id).filter(|id| !id.is_empty()),
                name: canonical(text(request, "/tool_name")),
                input,
                options: permission_options(),
                parent_tool_use_id: parent,
            }
            .into(),
        );
    }

    pub(super) fn control_response(&mut self, response: &Value, out: &mut Vec<Action>) {
        let (id, failed) = (
            text(response, "/request_id"),
            response["subtype"] == "error",
        );
        if failed && (id == "open" || id.starts_with("interrupt-")) {
            out.push(Action::Broken(format!(
                "Claude Code refused to `{id}`: {}",
                text(response, "/error")
            )));
        } else if id == "open" && !self.ready {
            self.ready = true;
            out.push(Action::Ready {
                native_session_id: self.session.clone(),
                resumed: self.resumed,
            });
        }
    }
}
