//! What a model is writing: pieces as they come, the whole that replaces them, and what is left
//! when nobody will ever finish it.

use indexmap::IndexMap;

use crate::adapter::runtime::action::Action;
use crate::event::{AssistantDelta, AssistantMessage, Reasoning, ReasoningDelta};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemKind {
    Text,
    Reasoning,
}

#[derive(Debug)]
pub struct OpenItem {
    pub kind: ItemKind,
    /// What is written of it.
    pub text: String,
    /// The tool call whose subagent writes it.
    pub parent: Option<String>,
}

impl OpenItem {
    /// Says that this is all of it; `truncated`: somebody stopped it there. Of an empty one
    /// nothing.
    fn emit(self, item_id: String, truncated: bool, out: &mut Vec<Action>) {
        let OpenItem {
            kind,
            text,
            parent: parent_tool_use_id,
        } = self;
        if text.is_empty() {
            return;
        }
        out.push(match kind {
            ItemKind::Text => AssistantMessage {
                item_id,
                text,
                truncated,
                parent_tool_use_id,
            }
            .into(),
            ItemKind::Reasoning => Reasoning {
                item_id,
                text,
                truncated,
                parent_tool_use_id,
            }
            .into(),
        });
    }
}

/// Items that are being written, by their ids, in the order in which they were begun.
#[derive(Debug, Default)]
pub struct OpenItems(IndexMap<String, OpenItem>);

impl OpenItems {
    /// An item is begun, with what is known of it already; one that was begun is left as it is.
    pub fn begin(&mut self, item_id: &str, kind: ItemKind, text: &str, parent: Option<&str>) {
        if !self.0.contains_key(item_id) {
            self.0.insert(
                item_id.to_owned(),
                OpenItem {
                    kind,
                    text: text.to_owned(),
                    parent: parent.map(str::to_owned),
                },
            );
        }
    }

    /// A piece of an item that was begun; false: none was.
    pub fn append(&mut self, item_id: &str, piece: &str, out: &mut Vec<Action>) -> bool {
        let Some(draft) = self.0.get_mut(item_id) else {
            return false;
        };
        if !piece.is_empty() {
            draft.text.push_str(piece);
            let (item_id, text, parent_tool_use_id) =
                (item_id.to_owned(), piece.to_owned(), draft.parent.clone());
            out.push(match draft.kind {
                ItemKind::Text => AssistantDelta {
                    item_id,
                    text,
                    parent_tool_use_id,
                }
                .into(),
                ItemKind::Reasoning => ReasoningDelta {
                    item_id,
                    text,
                    parent_tool_use_id,
                }
                .into(),
            });
        }
        true
    }

    /// A piece of an item; the first begins it.
    pub fn write(
        &mut self,
        item_id: &str,
        kind: ItemKind,
        piece: &str,
        parent: Option<&str>,
        out: &mut Vec<Action>,
    ) {
        if !piece.is_empty() {
            self.begin(item_id, kind, "", parent);
            self.append(item_id, piece, out);
        }
    }

    /// An item, whole; `truncated`: somebody stopped it there.
    pub fn finish(
        &mut self,
        item_id: &str,
        kind: ItemKind,
        text: &str,
        parent: Option<&str>,
        truncated: bool,
        out: &mut Vec<Action>,
    ) {
        self.0.shift_remove(item_id);
        OpenItem {
            kind,
            text: text.to_owned(),
            parent: parent.map(str::to_owned),
        }
        .emit(item_id.to_owned(), truncated, out);
    }

    /// What was written so far was all of it: the end of an item that has no other.
    pub fn finish_all(&mut self, out: &mut Vec<Action>) {
        self.0
            .drain(..)
            .for_each(|(item_id, draft)| draft.emit(item_id, false, out));
    }

    /// Nothing of this will be written any further: its stream was cut.
    pub fn cut(&mut self, out: &mut Vec<Action>) {
        self.cut_those(|_| true, out);
    }

    /// The same of those that are so; their ids.
    pub fn cut_those(
        &mut self,
        are: impl Fn(&OpenItem) -> bool,
        out: &mut Vec<Action>,
    ) -> Vec<String> {
        let cut = self.0.extract_if(.., |_, draft| are(draft));
        cut.map(|(item_id, draft)| {
            draft.emit(item_id.clone(), true, out);
            item_id
        })
        .collect()
    }

    pub fn get(&self, item_id: &str) -> Option<&OpenItem> {
        self.0.get(item_id)
    }

    /// The text that was begun last, and its id.
    pub fn last_text(&self) -> Option<(&String, &OpenItem)> {
        self.0
            .iter()
            .rfind(|(_, draft)| draft.kind == ItemKind::Text)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
