//! What a model is writing: pieces as they come, the whole that replaces them, and what is left
//! when nobody will ever finish it.

use crate::event::{AssistantDelta, AssistantMessage, Payload, Reasoning, ReasoningDelta};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Reasoning,
}

#[derive(Debug)]
struct Draft {
    item_id: String,
    kind: Kind,
    text: String,
    parent: Option<String>,
}

/// Items that are being written, in the order in which they were begun.
#[derive(Debug, Default)]
pub struct Drafts(Vec<Draft>);

impl Drafts {
    /// A piece of an item; the first begins it.
    pub fn write(&mut self, item_id: &str, kind: Kind, piece: &str, parent: Option<&str>, say: &mut impl FnMut(Payload)) {
        if piece.is_empty() {
            return;
        }
        let parent = parent.map(str::to_owned);
        match self.0.iter_mut().find(|d| d.item_id == item_id) {
            Some(draft) => draft.text.push_str(piece),
            None => self.0.push(Draft { item_id: item_id.to_owned(), kind, text: piece.to_owned(), parent: parent.clone() }),
        }
        let (item_id, text) = (item_id.to_owned(), piece.to_owned());
        say(match kind {
            Kind::Text => AssistantDelta { item_id, text, parent_tool_use_id: parent }.into(),
            Kind::Reasoning => ReasoningDelta { item_id, text, parent_tool_use_id: parent }.into(),
        });
    }

    /// An item, whole; `truncated`: somebody stopped it there.
    pub fn finish(&mut self, item_id: &str, kind: Kind, text: &str, parent: Option<&str>, truncated: bool, say: &mut impl FnMut(Payload)) {
        self.0.retain(|d| d.item_id != item_id);
        if !text.is_empty() {
            say(whole(Draft { item_id: item_id.to_owned(), kind, text: text.to_owned(), parent: parent.map(str::to_owned) }, truncated));
        }
    }

    /// What was written so far was all of it: the end of an item that has no other.
    pub fn finish_all(&mut self, say: &mut impl FnMut(Payload)) {
        self.0.drain(..).for_each(|draft| say(whole(draft, false)));
    }

    /// Nothing of this will be written any further: its stream was cut.
    pub fn cut(&mut self, say: &mut impl FnMut(Payload)) {
        self.0.drain(..).for_each(|draft| say(whole(draft, true)));
    }

    /// The text that was begun last.
    pub fn last_text_item(&self) -> Option<String> {
        self.0.iter().rfind(|d| d.kind == Kind::Text).map(|d| d.item_id.clone())
    }

    /// What is written of it.
    pub fn last_text(&self) -> Option<&str> {
        self.0.iter().rfind(|d| d.kind == Kind::Text).map(|d| d.text.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn whole(draft: Draft, truncated: bool) -> Payload {
    let Draft { item_id, kind, text, parent: parent_tool_use_id } = draft;
    match kind {
        Kind::Text => AssistantMessage { item_id, text, truncated, parent_tool_use_id }.into(),
        Kind::Reasoning => Reasoning { item_id, text, truncated, parent_tool_use_id }.into(),
    }
}
