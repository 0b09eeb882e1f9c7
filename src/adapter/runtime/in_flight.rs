//! Inputs between the moment in which a CLI is given them and the one in which it has them:
//! what every translator that talks over lines must know to tell each once and lose none.

use std::collections::HashSet;

use crate::adapter::inbox::Input;
use crate::adapter::runtime::action::Action;
use crate::event::{
    ErrorCode, ErrorEvent, InputMode, InputSource, TurnEnd, TurnEndReason, TurnStart, Usage,
    UserMessage,
};

#[derive(Debug, Default)]
pub struct InFlight {
    /// With the names that they have in the CLI.
    inputs: Vec<(String, Input)>,
    /// Those of turns that have begun.
    begun: HashSet<String>,
    /// Those that are looked for after a restart, and whose turn was told before it.
    turn_announced: HashSet<String>,
    /// Something was told already.
    resumed: bool,
}

impl InFlight {
    /// A session that goes on, or a new one.
    pub fn open(&mut self, resumed: bool) {
        self.resumed = resumed;
    }

    pub fn give(&mut self, native_id: &str, input: &Input) {
        self.inputs.push((native_id.to_owned(), input.clone()));
    }

    /// It was given before the CLI was stopped.
    pub fn look_for(&mut self, native_id: &str, input: &Input, told: bool) {
        self.give(native_id, input);
        if told {
            self.turn_announced.insert(input.input_id.clone());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// A turn begins, for what was given.
    pub fn begin_turn(&mut self, out: &mut Vec<Action>) {
        let input_ids = self
            .inputs
            .iter()
            .map(|(_, input)| input.input_id.clone())
            .collect();
        for (_, input) in &self.inputs {
            if self.begun.insert(input.input_id.clone()) {
                out.push(input.message().into());
            }
        }
        self.resumed |= !self.inputs.is_empty();
        out.push(TurnStart { turn: 0, input_ids }.into());
    }

    /// The CLI has those that are so. False: none is.
    pub fn acknowledge(
        &mut self,
        is: impl Fn(&str, &Input) -> bool,
        out: &mut Vec<Action>,
    ) -> bool {
        let before = out.len();
        for (_, input) in self
            .inputs
            .extract_if(.., |(native, input)| is(native, input))
        {
            if !self.begun.remove(&input.input_id) {
                out.push(input.message().into());
            }
            out.push(Action::Delivered {
                input_id: input.input_id,
            });
        }
        out.len() > before
    }

    /// The turn is over: what it was begun for was had, acknowledged or not.
    pub fn end_turn(&mut self, out: &mut Vec<Action>) {
        let begun = std::mem::take(&mut self.begun);
        self.inputs.retain(|(_, input)| {
            let had = begun.contains(&input.input_id);
            if had {
                out.push(Action::Delivered {
                    input_id: input.input_id.clone(),
                });
            }
            !had
        });
    }

    /// Said by somebody else: another client, or whoever made a recording.
    pub fn foreign(&mut self, input_id: &str, text: &str, out: &mut Vec<Action>) {
        let source = if std::mem::replace(&mut self.resumed, true) {
            InputSource::Inject
        } else {
            InputSource::Initial
        };
        let message = UserMessage {
            input_id: input_id.into(),
            text: text.into(),
            sender_id: None,
            source,
            mode: InputMode::Auto,
            attachments: 0,
        };
        out.push(message.into());
    }

    /// The turn is over, and what did not become a part of it never will: the CLI forgot it.
    pub fn forgotten(&mut self, out: &mut Vec<Action>) {
        let begun = &self.begun;
        for (_, input) in self
            .inputs
            .extract_if(.., |(_, input)| !begun.contains(&input.input_id))
        {
            out.push(Action::Undelivered {
                input_id: input.input_id,
            });
        }
    }

    /// Some turn was begun for what the CLI has not acknowledged.
    pub fn is_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// The CLI does not take it now, and may later.
    pub fn not_taken(&mut self, input_id: &str, out: &mut Vec<Action>) {
        if self.take(input_id).is_some() {
            out.push(Action::Undelivered {
                input_id: input_id.to_owned(),
            });
        }
    }

    pub fn refused(&mut self, input_id: &str, why: String, out: &mut Vec<Action>) {
        if self.take(input_id).is_some() {
            out.push(Action::Refused {
                input_id: input_id.to_owned(),
                why,
            });
        }
    }

    /// What became of an input that was given before the CLI was stopped: whether its history
    /// has it, by its name there.
    pub fn after_restart(
        &mut self,
        input_id: &str,
        name: &str,
        has: impl Fn(&str, &Input) -> bool,
        out: &mut Vec<Action>,
    ) {
        let Some((native, input)) = self.take(input_id) else {
            return;
        };
        let told = self.turn_announced.remove(input_id);
        if !has(&native, &input) {
            out.push(Action::Undelivered {
                input_id: input_id.to_owned(),
            });
            return;
        }
        out.push(input.message().into());
        out.push(Action::Delivered {
            input_id: input_id.to_owned(),
        });
        if !told {
            // It will not be taken up again by itself: the model sees it with the next one.
            let mut error = ErrorEvent::new(
                ErrorCode::RuntimeCrashed,
                format!(
                    "{name} was stopped before it answered this input, which stands in its history"
                ),
            );
            error.retryable = true;
            out.push(
                TurnStart {
                    turn: 0,
                    input_ids: vec![input_id.to_owned()],
                }
                .into(),
            );
            out.push(error.into());
            out.push(
                TurnEnd {
                    turn: 0,
                    reason: TurnEndReason::Error,
                    usage: Usage::default(),
                    duration_ms: 0,
                    final_text: String::new(),
                }
                .into(),
            );
        }
    }

    fn take(&mut self, input_id: &str) -> Option<(String, Input)> {
        let at = self
            .inputs
            .iter()
            .position(|(_, input)| input.input_id == input_id)?;
        Some(self.inputs.remove(at))
    }
}
