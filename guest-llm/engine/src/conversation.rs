//! A conversation: turns that follow each other in one context, so that keys and values of earlier turns are used again.

use alloc::vec::Vec;

use crate::generate::{Outcome, decode, piece_bytes};
use crate::thought::Thoughts;
use crate::{Error, Event, Flow, Report, Request, Result, Session, StopReason, Thinking, TokenId, Turn};

/// Where a conversation stands in its [`Session`].
///
/// # Invariant
/// The session's first `position` tokens are the conversation's whole turns, all but `unsaid`, or all but the last answer if
/// that is in `answer`. A turn that fails, or that is stopped before its answer begins, leaves that as it was,
/// but for old tokens that had to make room for it ([`crate::SessionConfig::context_shift`]).
#[derive(Debug, Default)]
pub struct Conversation {
    position: usize,
    has_turns: bool,
    /// The last token of the last answer, when it was not appended to the context.
    unsaid: Option<TokenId>,
    /// The last answer, when the context holds thoughts before it, empty ones included: templates leave them out of the
    /// history, so that with the next turn the answer is appended again, behind what was before the thoughts.
    answer: Option<Answer>,
}

#[derive(Debug)]
struct Answer {
    /// Where the thoughts began.
    position: usize,
    tokens: Vec<TokenId>,
}

impl Conversation {
    /// Starts a conversation without turns.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no turn yet.
    pub fn is_empty(&self) -> bool {
        !self.has_turns
    }

    /// Answers the user's next turn, written in the model's chat template; otherwise as [`crate::generate()`]. `request.raw`
    /// does not apply, nor `request.system` after the first turn. An answer that the caller or a stop string ends stays part of
    /// the conversation as far as it went, thoughts excepted. If `session` was used otherwise since the last turn, the
    /// conversation starts anew. The repetition penalty looks back to the start of the turn.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the model has no template that is known; [`Error::ContextFull`] when the turn leaves no room
    /// for a token; as [`crate::generate()`]. The conversation is as before the turn.
    pub fn answer(
        &mut self,
        session: &mut Session<'_>,
        request: &Request<'_>,
        on_event: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Report> {
        request.check()?;
        if session.position() != self.position {
            *self = Self::default();
        }
        let tokenizer = session.model().tokenizer();
        let turn = Turn {
            prompt: request.prompt,
            is_first: self.is_empty(),
            system: request.system,
            think: request.think,
            thoughtless: request.constraint.is_some(),
        };
        let (turn_tokens, before_thought) = tokenizer.encode_turn(&turn)?;
        let thinking = tokenizer.chat_template().map_or(Thinking::Never, |template| template.thinking());
        let begins_in_thought = thinking == Thinking::Always && !turn.thoughtless;
        let thinks = begins_in_thought
            || thinking == Thinking::Optional && !turn.thoughtless && turn.think != Some(false);

        let start = self.answer.as_ref().map_or(self.position, |answer| answer.position);
        let answered: &[TokenId] = self.answer.as_ref().map_or(&[], |answer| &answer.tokens);
        let mut tokens = Vec::new();
        let count = answered.len() + turn_tokens.len() + 1;
        tokens
            .try_reserve_exact(count)
            .map_err(|_| Error::OutOfMemory { bytes: count * size_of::<TokenId>() })?;
        tokens.extend(self.unsaid);
        tokens.extend(answered);
        let before_turn = tokens.len();
        tokens.extend(turn_tokens);

        let room = session.room_after(start);
        if tokens.len() >= room {
            return Err(Error::ContextFull { tokens: tokens.len() + 1, left: room });
        }
        let thoughts =
            Thoughts::new(thinking != Thinking::Never, thinks, begins_in_thought, piece_bytes(session))?;
        // A first turn begins as others before may have begun.
        let reused = if self.is_empty() { session.keep_prefix(&tokens) } else { 0 };
        session.truncate(start.max(reused));
        self.position = start;
        let forgotten = session.forgotten();
        match decode(session, &tokens, reused, request, thoughts, on_event) {
            Ok(Outcome { report, unsaid, answer })
                if report.stop != StopReason::Cancelled || report.tokens > 0 =>
            {
                self.has_turns = true;
                self.position = session.position();
                (self.unsaid, self.answer) = match answer {
                    Some(tokens) => {
                        let position = start + before_turn + before_thought;
                        let position = session.moved_to(position, session.forgotten() - forgotten);
                        (None, Some(Answer { position, tokens }))
                    }
                    None => (unsaid, None),
                };
                Ok(report)
            }
            unanswered => {
                self.position = session.moved_to(start, session.forgotten() - forgotten);
                if let Some(answer) = &mut self.answer {
                    answer.position = self.position;
                }
                session.truncate(self.position);
                unanswered.map(|outcome| outcome.report)
            }
        }
    }
}
