//! One request from prompt to answer; the same for the command line and the partition.

use crate::{Detokenizer, Error, Result, Sampler, Sampling, Session, TokenId};

/// What a user asks of a model.
#[derive(Clone, Debug)]
pub struct Request<'r> {
    /// The user's text.
    pub prompt: &'r str,
    /// Completes `prompt` as it is, special tokens included. Otherwise the file's `flexserve.request.prefix` and
    /// `.suffix` are put around it, and special tokens in the prompt itself stay plain text.
    pub raw: bool,
    /// Most tokens to generate; the context may end earlier.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Progress of a request. The engine has no clock: callers take times when events arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'e> {
    /// A batch of the prompt has been processed; `done` of `total` tokens by now.
    Prefill {
        /// Prompt tokens processed.
        done: usize,
        /// Prompt tokens in all.
        total: usize,
    },
    /// The whole prompt, of that many tokens, has been processed; decoding begins.
    Prefilled {
        /// Prompt tokens in all.
        tokens: usize,
    },
    /// The next piece of the answer: never empty, never part of a character.
    Text(&'e str),
}

/// The caller's answer to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Goes on.
    Continue,
    /// Ends the request with [`StopReason::Cancelled`].
    Stop,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model said so.
    EndOfGeneration,
    /// [`Request::max_tokens`] were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller returned [`Flow::Stop`].
    Cancelled,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Tokens of the prompt, with what was put around it.
    pub prompt_tokens: usize,
    /// Tokens generated, without the one that ends generation.
    pub tokens: usize,
    /// Why the answer ended.
    pub stop: StopReason,
}

/// Answers `request` in a fresh context (`session` is reset first), reporting through `on_event`.
///
/// # Errors
/// [`Error::EmptyPrompt`], [`Error::ContextFull`] when the prompt leaves no room for a token, [`Error::Parameter`] for
/// bad sampling parameters, [`Error::Logits`] for a broken model, and what allocation returns.
pub fn generate(
    session: &mut Session<'_>,
    request: &Request<'_>,
    on_event: &mut dyn FnMut(Event<'_>) -> Flow,
) -> Result<Report> {
    let prompt = session.model().tokenizer().encode_request(request.prompt, request.raw)?;
    session.reset();
    if prompt.len() >= session.context() {
        return Err(Error::ContextFull { tokens: prompt.len() + 1, left: session.context() });
    }
    decode(session, &prompt, request, on_event).map(|outcome| outcome.report)
}

/// What an answer left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub report: Report,
    /// The answer's last token, when it is not in the context.
    pub unsaid: Option<TokenId>,
}

/// Appends `prompt`, which leaves room for a token, and generates.
pub(crate) fn decode(
    session: &mut Session<'_>,
    prompt: &[TokenId],
    request: &Request<'_>,
    on_event: &mut dyn FnMut(Event<'_>) -> Flow,
) -> Result<Outcome> {
    let tokenizer = session.model().tokenizer();
    let mut outcome = Outcome {
        report: Report { prompt_tokens: prompt.len(), tokens: 0, stop: StopReason::Cancelled },
        unsaid: None,
    };
    let report = &mut outcome.report;
    let mut sampler = Sampler::new(&request.sampling, tokenizer.token_count())?;
    let mut detokenizer = Detokenizer::new(tokenizer);

    let flow = session.prefill(prompt, &mut |done, total| on_event(Event::Prefill { done, total }))?;
    if flow == Flow::Stop || on_event(Event::Prefilled { tokens: prompt.len() }) == Flow::Stop {
        return Ok(outcome);
    }

    report.stop = loop {
        if report.tokens == request.max_tokens {
            break StopReason::MaxTokens;
        }
        let token = sampler.sample(session.logits())?;
        if tokenizer.is_end_of_generation(token) {
            break StopReason::EndOfGeneration;
        }
        report.tokens += 1;
        outcome.unsaid = Some(token);
        let text = detokenizer.push(token)?;
        if !text.is_empty() && on_event(Event::Text(text)) == Flow::Stop {
            return Ok(outcome);
        }
        // The last token's logits would go unused.
        if report.tokens == request.max_tokens {
            break StopReason::MaxTokens;
        }
        if session.position() == session.context() {
            break StopReason::ContextFull;
        }
        session.decode(token)?;
        outcome.unsaid = None;
    };
    let rest = detokenizer.finish();
    if !rest.is_empty() && on_event(Event::Text(rest)) == Flow::Stop {
        report.stop = StopReason::Cancelled;
    }
    Ok(outcome)
}
