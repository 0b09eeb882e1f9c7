//! What opencode asks its user: permissions and questions.

use serde_json::{Value, json};

use super::parts::canonical;
use super::{CALL_TIME, Opencode};
use crate::adapter::runtime::action::{Action, CallPurpose, PermissionDecision};
use crate::adapter::runtime::native::{DENIED, permission_options, text};
use crate::event::{
    PermissionRequest, PermissionResolved, QuestionRequest, QuestionResolved, ToolUse,
};

/// A permission or a question that came before its call.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) asked: Value,
    pub(super) parent: Option<String>,
    pub(super) question: bool,
}

impl Opencode {
    /// What a call waits for is told behind the call, although it may come before it.
    pub(super) fn asked_for(&mut self, early: Early, out: &mut Vec<Action>) {
        let call = text(&early.asked, "/tool/callID");
        if call.is_empty() || self.tools.values().any(|t| t.call == call && t.used) {
            return self.tell_request(&early, out);
        }
        self.early.push(early);
        out.push(Action::Wake(CALL_TIME));
    }

    pub(super) fn tell_request(&mut self, early: &Early, out: &mut Vec<Action>) {
        if early.question {
            self.question_asked(&early.asked, early.parent.clone(), out);
        } else {
            self.permission_asked(&early.asked, early.parent.clone(), out);
        }
    }

    /// Tells the requests that waited for this call.
    pub(super) fn call_is_told(&mut self, call: &str, out: &mut Vec<Action>) {
        for early in std::mem::take(&mut self.early) {
            if text(&early.asked, "/tool/callID") == call {
                self.tell_request(&early, out);
            } else {
                self.early.push(early);
            }
        }
    }

    /// The call did not come: it is told as the request describes it.
    pub(super) fn tell_early(&mut self, out: &mut Vec<Action>) {
        for early in std::mem::take(&mut self.early) {
            let (call, native_name) = (
                text(&early.asked, "/tool/callID"),
                text(&early.asked, "/permission"),
            );
            let waiting = self.tools.values_mut().find(|t| t.call == call);
            if let Some(tool) = waiting.filter(|t| !t.used) {
                tool.used = true;
                let (tool_use_id, name) = (tool.id.clone(), canonical(native_name, &self.mcp));
                let input = early.asked["metadata"].clone();
                out.push(
                    ToolUse {
                        tool_use_id,
                        name,
                        native_name: native_name.to_owned(),
                        input,
                        parent_tool_use_id: early.parent.clone(),
                    }
                    .into(),
                );
            }
            self.tell_request(&early, out);
        }
    }

    pub(super) fn permission_asked(
        &mut self,
        p: &Value,
        parent: Option<String>,
        out: &mut Vec<Action>,
    ) {
        let (request_id, call) = (text(p, "/id").to_owned(), text(p, "/tool/callID"));
        // It may ask before it has said what with: then its own summary stands for the input.
        let tool = self.tools.values().find(|t| t.call == call);
        let known = tool.map(|t| &t.input);
        let tool_use_id = tool.map_or_else(|| call.to_owned(), |t| t.id.clone());
        let input = [known, Some(&p["metadata"])]
            .into_iter()
            .flatten()
            .find(|i| i.as_object().is_some_and(|o| !o.is_empty()))
            .cloned();
        self.asked.insert(request_id.clone(), (false, false));
        out.push(
            PermissionRequest {
                request_id,
                tool_use_id: Some(tool_use_id).filter(|c| !c.is_empty()),
                name: canonical(text(p, "/permission"), &self.mcp),
                input: input.unwrap_or_else(|| json!({ "patterns": p["patterns"] })),
                options: permission_options(),
                parent_tool_use_id: parent,
            }
            .into(),
        );
    }

    pub(super) fn permission_replied(&mut self, p: &Value, out: &mut Vec<Action>) {
        let request_id = text(p, "/requestID").to_owned();
        if self.asked.remove(&request_id).is_none() {
            return;
        }
        let said = match text(p, "/reply") {
            "once" => "allow",
            "always" => "allow_always",
            _ => "deny",
        };
        let (decision, by) = self
            .decided
            .remove(&request_id)
            .unwrap_or((said.to_owned(), "runtime".to_owned()));
        out.push(
            PermissionResolved {
                request_id,
                decision,
                by,
            }
            .into(),
        );
    }

    pub(super) fn question_asked(
        &mut self,
        p: &Value,
        parent: Option<String>,
        out: &mut Vec<Action>,
    ) {
        let request_id = text(p, "/id").to_owned();
        self.asked.insert(request_id.clone(), (true, false));
        let questions: Vec<&Value> = p["questions"].as_array().into_iter().flatten().collect();
        let asked = questions
            .iter()
            .map(|q| text(q, "/question"))
            .collect::<Vec<_>>()
            .join("\n");
        let options = questions
            .iter()
            .flat_map(|q| q["options"].as_array().into_iter().flatten());
        let options = options
            .map(|o| {
                o["label"]
                    .as_str()
                    .or(o.as_str())
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect();
        out.push(
            QuestionRequest {
                request_id,
                text: asked,
                options,
                parent_tool_use_id: parent,
            }
            .into(),
        );
    }

    pub(super) fn question_over(&mut self, p: &Value, out: &mut Vec<Action>) {
        let request_id = text(p, "/requestID").to_owned();
        if self.asked.remove(&request_id).is_some() {
            let answers = p["answers"].as_array().map(|all| {
                let one = |a: &Value| {
                    a.as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                all.iter().map(one).collect::<Vec<_>>().join("\n")
            });
            out.push(
                QuestionResolved {
                    request_id,
                    answer: answers,
                }
                .into(),
            );
        }
    }

    /// Answers a request. Returns whether such a request was open.
    pub(super) fn decide(
        &mut self,
        request_id: &str,
        decision: &PermissionDecision,
        by: &str,
        out: &mut Vec<Action>,
    ) -> bool {
        let about_question = matches!(
            decision,
            PermissionDecision::Answers(_) | PermissionDecision::RejectQuestion
        );
        match self.asked.get_mut(request_id) {
            Some((is_question, answered)) if *is_question == about_question && !*answered => {
                *answered = true
            }
            _ => return false,
        }
        let permission = |reply: &str, message: Option<&str>| {
            (
                format!("/permission/{request_id}/reply"),
                json!({ "reply": reply, "message": message }),
            )
        };
        let (path, body) = match decision {
            PermissionDecision::Allow => permission("once", None),
            PermissionDecision::AllowAlways => permission("always", None),
            // Without a message opencode would end the turn.
            PermissionDecision::Deny { message } => {
                permission("reject", Some(message.as_deref().unwrap_or(DENIED)))
            }
            PermissionDecision::Answers(answers) => (
                format!("/question/{request_id}/reply"),
                json!({ "answers": answers }),
            ),
            PermissionDecision::RejectQuestion => {
                (format!("/question/{request_id}/reject"), json!({}))
            }
        };
        if !about_question {
            self.decided.insert(
                request_id.to_owned(),
                (decision.name().to_owned(), by.to_owned()),
            );
        }
        out.push(self.post(CallPurpose::Answer(request_id.to_owned()), &path, body));
        true
    }
}
