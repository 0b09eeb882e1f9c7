//! What opencode's tools have changed.

use serde_json::Value;

use crate::adapter::runtime::native::text;
use crate::event::{ChangeKind, FileChange, Usage};

/// What one step used.
pub(super) fn counts(tokens: &Value) -> Usage {
    let n = |key: &str| tokens[key].as_u64().unwrap_or(0);
    let cached = ["read", "write"]
        .iter()
        .filter_map(|key| tokens["cache"][*key].as_u64())
        .sum::<u64>();
    // With some providers reasoning stands beside the output, with others in it: the total tells.
    let beside = n("total") > 0 && n("total") == n("input") + n("output") + n("reasoning") + cached;
    Usage {
        input: tokens["input"].as_u64(),
        cache_read: tokens["cache"]["read"].as_u64(),
        cache_write: tokens["cache"]["write"].as_u64(),
        output: tokens["output"]
            .as_u64()
            .map(|output| output + if beside { n("reasoning") } else { 0 }),
        reasoning: tokens["reasoning"].as_u64(),
        cost_usd: None,
    }
}

pub(super) fn file_change(
    tool: &OpencodeTool,
    state: &Value,
    parent: Option<String>,
) -> Option<FileChange> {
    if !matches!(
        tool.name.as_str(),
        "write" | "edit" | "multiedit" | "apply_patch" | "patch"
    ) {
        return None;
    }
    let path = [
        text(state, "/input/filePath"),
        text(state, "/metadata/filediff/file"),
        text(state, "/metadata/filepath"),
    ];
    let path = path.into_iter().find(|p| !p.is_empty())?.to_owned();
    let kind = if state["metadata"]["exists"] == false {
        ChangeKind::Add
    } else {
        ChangeKind::Modify
    };
    let diff = Some(text(state, "/metadata/diff").to_owned()).filter(|d| !d.is_empty());
    Some(FileChange {
        path,
        kind,
        diff,
        tool_use_id: Some(tool.id.clone()),
        parent_tool_use_id: parent,
    })
}

/// What `output` has beyond `seen`. It grows at its end; from 30 KB on it is a window of the
/// end, after three dots and a blank line.
pub(super) fn appended_since<'a>(seen: &str, output: &'a str) -> &'a str {
    if let Some(more) = output.strip_prefix(seen) {
        return more;
    }
    let window = output.strip_prefix("...\n\n").unwrap_or(output);
    let seen = seen.strip_prefix("...\n\n").unwrap_or(seen);
    // The longest end of what was seen that the window begins with.
    let probe = window
        .char_indices()
        .nth(32)
        .map_or(window.len(), |(i, _)| i);
    let finder = memchr::memmem::Finder::new(&window[..probe]);
    for start in finder.find_iter(seen.as_bytes()) {
        if let Some(tail) = seen.get(start..)
            && let Some(more) = window.strip_prefix(tail)
        {
            return more;
        }
    }
    window
}

#[derive(Debug, Default)]
pub(super) struct OpencodeTool {
    pub(super) id: String,
    /// The provider's id of the call.
    pub(super) call: String,
    pub(super) name: String,
    pub(super) input: Value,
    pub(super) used: bool,
    /// The output as last sent.
    pub(super) seen: String,
    /// The session that a `task` runs in.
    pub(super) child: Option<String>,
}
