//! From a model's text to events: stop strings end it, thoughts are told from the answer.

use crate::stop::Stops;
use crate::thought::{Part, Thoughts};
use crate::{Event, Flow, Result};

/// What the caller does with events.
pub(crate) type OnEvent<'e> = &'e mut dyn FnMut(Event<'_>) -> Flow;

/// Text on its way to the caller.
#[derive(Debug)]
pub(crate) struct Filter<'s> {
    stops: Stops<'s>,
    thoughts: Thoughts,
}

impl<'s> Filter<'s> {
    pub fn new(stops: Stops<'s>, thoughts: Thoughts) -> Self {
        Filter { stops, thoughts }
    }

    /// Passes a piece on, as far as it is known what it is.
    pub fn push(&mut self, piece: &str, on_event: OnEvent<'_>) -> Result<Flow> {
        self.thoughts.push(self.stops.push(piece)?)?;
        Ok(self.pass(self.stops.is_found(), on_event))
    }

    /// Passes the rest on, behind the last piece.
    pub fn finish(&mut self, rest: &str, on_event: OnEvent<'_>) -> Result<Flow> {
        if self.push(rest, on_event)? == Flow::Stop {
            return Ok(Flow::Stop);
        }
        self.thoughts.push(self.stops.finish())?;
        Ok(self.pass(true, on_event))
    }

    fn pass(&mut self, is_last: bool, on_event: OnEvent<'_>) -> Flow {
        while let Some((part, text)) = self.thoughts.next(is_last) {
            let event = match part {
                Part::Thought => Event::Thought(text),
                Part::Answer => Event::Text(text),
            };
            if on_event(event) == Flow::Stop {
                return Flow::Stop;
            }
        }
        Flow::Continue
    }

    /// Whether a stop string ended the text.
    pub fn is_stopped(&self) -> bool {
        self.stops.is_found()
    }

    /// Whether all text so far belongs to thoughts.
    pub fn is_before_answer(&self) -> bool {
        self.stops.is_empty() && self.thoughts.is_before_answer()
    }
}
