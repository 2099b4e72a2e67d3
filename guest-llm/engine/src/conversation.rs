//! A conversation: turns that follow each other in one context, so that keys and values of earlier turns are used again.

use alloc::vec::Vec;

use crate::generate::{Outcome, decode};
use crate::{Error, Event, Flow, Report, Request, Result, Session, StopReason, TokenId};

/// Where a conversation stands in its [`Session`].
///
/// # Invariant
/// The session's first `position` tokens are the conversation's whole turns, all but `unsaid`. A turn that fails, or that is
/// stopped before its answer begins, leaves both as they were.
#[derive(Debug, Default)]
pub struct Conversation {
    position: usize,
    /// The last token of the last answer, when it was not appended to the context.
    unsaid: Option<TokenId>,
}

impl Conversation {
    /// Starts a conversation without turns.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no turn yet.
    pub fn is_empty(&self) -> bool {
        self.position == 0
    }

    /// Answers the user's next turn, written in the model's chat template; otherwise as [`crate::generate()`]. `request.raw`
    /// does not apply. An answer that the caller stops stays part of the conversation as far as it went. If `session` was used
    /// otherwise since the last turn, the conversation starts anew.
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
        if session.position() != self.position {
            *self = Self::default();
        }
        if self.is_empty() {
            session.reset();
        }
        let turn = session.model().tokenizer().encode_turn(request.prompt, self.is_empty())?;
        let mut tokens = Vec::new();
        let count = turn.len() + 1;
        tokens
            .try_reserve_exact(count)
            .map_err(|_| Error::OutOfMemory { bytes: count * size_of::<TokenId>() })?;
        tokens.extend(self.unsaid);
        tokens.extend(turn);

        let left = session.context() - self.position;
        if tokens.len() >= left {
            return Err(Error::ContextFull { tokens: tokens.len() + 1, left });
        }
        match decode(session, &tokens, request, on_event) {
            Ok(Outcome { report, unsaid, .. })
                if report.stop != StopReason::Cancelled || report.tokens > 0 =>
            {
                (self.position, self.unsaid) = (session.position(), unsaid);
                Ok(report)
            }
            unanswered => {
                session.truncate(self.position);
                unanswered.map(|outcome| outcome.report)
            }
        }
    }
}
